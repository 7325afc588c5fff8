# SPDX-License-Identifier: Apache-2.0
"""PSPNet, the paper's strongest host: a dilated ResNet whose features are pooled in a pyramid of four grids.

Source: Zhao, Shi, Qi, Wang, Jia, "Pyramid Scene Parsing Network", CVPR 2017. Block and layer names are those of its
Caffe release, which the NetWarp paper uses. The structure is that of the same authors' PyTorch release
(github.com/hszhao/semseg), so its weights can be loaded: the 3x3 convolution of a block has the stride, and the
pyramid's maps are upsampled with aligned corners.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netwarp_ros.models.hosts.blocks import ResidualBlock, conv_norm, initialise

_BINS = (1, 2, 3, 6)  # the pyramid's grids, 1x1 to 6x6


class PSPNet101(nn.Module):
    """PSPNet on ResNet-101.

    The paper's insertion layers: ``conv4_23`` (stride 8, 1024 channels), the 23rd block of the fourth stage, and
    ``conv5_4`` (stride 8, 512 channels), the 3x3 convolution and normalisation after the pyramid. As in the authors'
    release of NetWarp, the ReLU follows NetWarp. The blocks are ``conv2_1`` to ``conv5_3``; any of them can be an
    insertion layer. Any image size works.

    In the pyramid's 1x1 grid, an image has one value per channel. Batch normalisation of it needs a batch of two or
    more in training, or evaluation mode.

    Args:
        num_classes: Number of classes without void.
        width: Channels of the stem's first convolution; all others scale with it.
        auxiliary: Also build the auxiliary classifier on the fourth stage. Only training needs it.
    """

    depths: ClassVar[Sequence[int]] = (3, 4, 23, 3)

    def __init__(self, num_classes: int, *, width: int = 64, auxiliary: bool = False) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}, must be at least 2")
        self.stem = nn.Sequential(
            conv_norm(3, width, stride=2),
            nn.ReLU(),
            conv_norm(width, width),
            nn.ReLU(),
            conv_norm(width, 2 * width),
            nn.ReLU(),
        )
        self.blocks: list[str] = []
        inputs = 2 * width
        strides, dilations = (1, 2, 1, 1), (1, 1, 2, 4)
        for stage, (depth, stride, dilation) in enumerate(zip(self.depths, strides, dilations, strict=True)):
            middle = 2**stage * width
            for number in range(1, depth + 1):
                name = f"conv{stage + 2}_{number}"
                self.add_module(name, _bottleneck(inputs, middle, stride if number == 1 else 1, dilation))
                self.blocks.append(name)
                inputs = 4 * middle
        self.pyramid = nn.ModuleList(conv_norm(inputs, inputs // len(_BINS), kernel=1) for _ in _BINS)
        self.conv5_4 = conv_norm(2 * inputs, inputs // 4)
        self.classifier = nn.Conv2d(inputs // 4, num_classes, 1)
        self.auxiliary = (
            nn.Sequential(
                conv_norm(inputs // 2, inputs // 8),
                nn.ReLU(),
                nn.Dropout2d(0.1),
                nn.Conv2d(inputs // 8, num_classes, 1),
            )
            if auxiliary
            else None
        )
        initialise(self)

    def forward(self, frame: Tensor, *, auxiliary: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Segment a batch of frames.

        Args:
            frame: (B, 3, H, W), RGB, normalised.
            auxiliary: Also return the auxiliary logits.

        Returns:
            Logits (B, num_classes, ceil(H/8), ceil(W/8)); with ``auxiliary``, a pair of them.

        Raises:
            ValueError: If ``auxiliary`` is set and the network was built without it.
        """
        if auxiliary and self.auxiliary is None:
            raise ValueError(f"this network has no auxiliary head; build it with {type(self).__name__}(auxiliary=True)")
        features = F.max_pool2d(self.stem(frame), 3, stride=2, padding=1)
        fourth = features
        for name in self.blocks:
            features = F.relu(self.get_submodule(name)(features))
            if name.startswith("conv4"):
                fourth = features
        maps = [features]
        for bins, reduce in zip(_BINS, self.pyramid, strict=True):
            pooled = F.relu(reduce(F.adaptive_avg_pool2d(features, bins)))
            maps.append(F.interpolate(pooled, size=features.shape[-2:], mode="bilinear", align_corners=True))
        features = F.relu(self.conv5_4(torch.cat(maps, dim=1)))
        logits = self.classifier(F.dropout2d(features, 0.1, self.training))
        if auxiliary and self.auxiliary is not None:
            return logits, self.auxiliary(fourth)
        return logits


class PSPNet50(PSPNet101):
    """PSPNet on ResNet-50; its fourth stage ends with ``conv4_6``."""

    depths: ClassVar[Sequence[int]] = (3, 4, 6, 3)


def _bottleneck(inputs: int, middle: int, stride: int, dilation: int) -> ResidualBlock:
    body = nn.Sequential(
        conv_norm(inputs, middle, kernel=1),
        nn.ReLU(),
        conv_norm(middle, middle, stride=stride, dilation=dilation),
        nn.ReLU(),
        conv_norm(middle, 4 * middle, kernel=1),
    )
    return ResidualBlock(body, inputs, 4 * middle, stride)
