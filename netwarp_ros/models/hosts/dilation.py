# SPDX-License-Identifier: Apache-2.0
"""Dilation-CNN: a dilated VGG-16 with a module that gathers context behind it.

Source: Yu and Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", ICLR 2016: the front end of Section 4
(see `netwarp_ros.models.hosts.vgg`) and the basic context module of Section 3. Layers have the names of the authors'
release (github.com/fyu/dilation), but for its ``final``, which is ``fc8`` here.
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

    NetWarp goes behind the context layers, all of stride 8 and with a channel for each class: ``ctx_conv1_1``,
    ``ctx_conv1_2``, ``ctx_conv2_1``, ``ctx_conv3_1``, ``ctx_conv4_1``, ``ctx_conv5_1``, ``ctx_fc1``, ``ctx_final``.
    They start as the identity (Equation 4): the network begins as its front end, the logits rectified. As in VGG-16,
    names are those of convolutions, and what NetWarp blends is not rectified yet.

    The front end's convolutions do not pad. They see the frame mirrored at its edges, so the maps of the front end
    before ``fc6`` reach beyond the frame and are no place for NetWarp. Any image size works.

    Args:
        num_classes: Number of classes, void not counted.
        width: Channels of the first stage; those of the others go with it, but for the context.
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
    """Dilation-CNN for Cityscapes: two more context layers, ``ctx_conv6_1`` and ``ctx_conv7_1``, before ``ctx_fc1``."""

    context: ClassVar[Mapping[str, int]] = {
        **{name: dilation for name, dilation in Dilation8.context.items() if name != "ctx_fc1"},
        "ctx_conv6_1": 32,
        "ctx_conv7_1": 64,
        "ctx_fc1": 1,
    }


def _mirrored(size: int, margin: int, device: torch.device) -> Tensor:
    """Return the indices of a row of pixels and of its mirror images on both sides; the edge pixel is not repeated."""
    period = max(2 * (size - 1), 1)
    position = torch.arange(-margin, size + margin, device=device) % period
    return torch.minimum(position, period - position)
