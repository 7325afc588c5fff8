# SPDX-License-Identifier: Apache-2.0
"""Building blocks that several hosts share."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Return a convolution and a batch normalisation."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False),
        nn.BatchNorm2d(outputs),
    )


def norm_relu_conv(inputs: int, outputs: int, kernel: int = 1) -> nn.Sequential:
    """Return a batch normalisation, a ReLU and a convolution."""
    return nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
    )


def initialise(network: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_out") -> None:
    """Initialise the kernels of all convolutions for ReLU (He et al., ICCV 2015). Nothing else changes."""
    for module in network.modules():
        # On the meta device a kernel has no values, and `normal_` would import torch._dynamo, which takes seconds.
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")


def resize(features: Tensor, like: Tensor) -> Tensor:
    """Resize features bilinearly to the grid of ``like``."""
    return F.interpolate(features, size=like.shape[-2:], mode="bilinear", align_corners=False)


class ResidualBlock(nn.Module):
    """``body(x) + shortcut(x)``, without a ReLU after the sum: some callers add to it first."""

    def __init__(self, body: nn.Module, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = body
        self.shortcut = (
            nn.Identity() if stride == 1 and inputs == outputs else conv_norm(inputs, outputs, kernel=1, stride=stride)
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.body(features) + self.shortcut(features)


class ContextPyramid(nn.Module):
    """DDRNet's pyramid of pooled contexts (DAPPM): five scales, each refined together with the next finer one.

    Source: DDRNet, arXiv 2101.06085, Sec. III-C and Fig. 5. Departure: the input is normalised once, before pooling.
    The paper normalises each pooled map; the global one has a single value per channel, so training with a batch of one
    is impossible.

    Args:
        inputs: Channels of the input ``(B, inputs, h, w)``.
        width: Channels of each scale.
        outputs: Channels of the output ``(B, outputs, h, w)``.
    """

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.pools = nn.ModuleList(
            [nn.AvgPool2d(2 * s + 1, stride=s, padding=s, count_include_pad=False) for s in (2, 4, 8)]
            + [nn.AdaptiveAvgPool2d(1)]
        )
        self.reduce = nn.ModuleList(nn.Conv2d(inputs, width, 1, bias=False) for _ in range(5))
        self.refine = nn.ModuleList(norm_relu_conv(width, width, kernel=3) for _ in range(4))
        self.merge = norm_relu_conv(5 * width, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        features = self.norm(features)
        scales = [self.reduce[0](features)]
        for pool, reduce, refine in zip(self.pools, self.reduce[1:], self.refine, strict=True):
            scales.append(refine(resize(reduce(pool(features)), like=features) + scales[-1]))
        return self.merge(torch.cat(scales, dim=1)) + self.shortcut(features)
