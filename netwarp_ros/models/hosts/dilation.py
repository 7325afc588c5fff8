# SPDX-License-Identifier: Apache-2.0
"""Dilation-CNN: a dilated VGG-16, the front end, followed by a context module.

Source: Yu and Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", ICLR 2016: the front end of Section 4
(see `netwarp_ros.models.hosts.vgg`) and the basic context module of Section 3. Layers have the names of the authors'
release (github.com/fyu/dilation), except that its ``final`` is ``fc8`` here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netwarp_ros.models.hosts.vgg import DilatedVGG16


class Dilation8(DilatedVGG16):
    """Dilation-CNN with eight context layers, which the paper uses on CamVid.

    Insertion layers are the context layers, of stride 8 with one channel per class: ``ctx_conv1_1``, ``ctx_conv1_2``,
    ``ctx_conv2_1``, ``ctx_conv3_1``, ``ctx_conv4_1``, ``ctx_conv5_1``, ``ctx_fc1``, ``ctx_final``. Initially they are
    the identity (Equation 4), so the network equals its front end, with a ReLU on the logits. Each name is that of a
    convolution; its ReLU follows NetWarp.

    The convolutions of the front end do not pad: the frame is mirrored at its edges instead. The maps before ``fc6``
    therefore extend beyond the frame, and NetWarp cannot be inserted there. Any image size works.

    Args:
        num_classes: Number of classes without void.
        width: Channels of the first stage; the other stages scale with it, the context does not.
    """

    context: ClassVar[Mapping[str, int]] = {  # dilations of the 3x3 convolutions
        "ctx_conv1_1": 1,
        "ctx_conv1_2": 1,
        "ctx_conv2_1": 2,
        "ctx_conv3_1": 4,
        "ctx_conv4_1": 8,
        "ctx_conv5_1": 16,
        "ctx_fc1": 1,
    }

    def __init__(self, num_classes: int, *, width: int = 64) -> None:
        super().__init__(num_classes, width=width, padded=False)
        for name, dilation in self.context.items():
            self.add_module(name, nn.Conv2d(num_classes, num_classes, 3, padding=dilation, dilation=dilation))
        self.ctx_final = nn.Conv2d(num_classes, num_classes, 1)
        for convolution in (*map(self.get_submodule, self.context), self.ctx_final):
            assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
            nn.init.dirac_(convolution.weight)
            nn.init.zeros_(convolution.bias)

    def forward(self, frame: Tensor) -> Tensor:
        """Segment a batch of frames.

        Args:
            frame: (B, 3, H, W), RGB, normalised.

        Returns:
            Logits (B, num_classes, ceil(H/8), ceil(W/8)).
        """
        rows, columns = (_mirrored(size, self.MARGIN, frame.device) for size in frame.shape[-2:])
        features = super().forward(frame[:, :, rows][:, :, :, columns])
        for name in self.context:
            features = F.relu(self.get_submodule(name)(features))
        return self.ctx_final(features)


class Dilation10(Dilation8):
    """Dilation-CNN with ten context layers for Cityscapes: also ``ctx_conv6_1`` and ``ctx_conv7_1``."""

    context: ClassVar[Mapping[str, int]] = {
        **{name: dilation for name, dilation in Dilation8.context.items() if name != "ctx_fc1"},
        "ctx_conv6_1": 32,
        "ctx_conv7_1": 64,
        "ctx_fc1": 1,
    }


def _mirrored(size: int, margin: int, device: torch.device) -> Tensor:
    """Return indices that extend a row of pixels by its mirror image on both sides; edge pixels are not repeated."""
    period = max(2 * (size - 1), 1)
    position = torch.arange(-margin, size + margin, device=device) % period
    return torch.minimum(position, period - position)
