# SPDX-License-Identifier: Apache-2.0
"""DDRNet-23-slim, a real-time segmentation network with two branches, adapted to CamVid at 480x360.

Source: Hong, Pan, Sun, Jia, "Deep Dual-resolution Networks for Real-time and Accurate Semantic Segmentation of Road
Scenes", arXiv 2101.06085. The high-resolution branch stays at stride 8; the low-resolution branch goes deeper and ends
in a pyramid of pooled contexts (DAPPM, Sec. III-C). The two exchange features twice ("bilateral fusion", Sec. III-B).

Departures, because the paper's images are 2048x1024 and CamVid's have a twelfth of the pixels:

* The head also reads the stride-4 features of ``layer1``, and the logits have stride 4: poles and signs are two or
  three pixels wide and vanish at stride 8.
* Stage 5 of the low-resolution branch has stride 32 (paper: 64), so that the context pyramid starts from 15x12 cells
  and not from 8x6.
* The last two stages of the low-resolution branch have 192 and 384 channels (paper: 256 and 512). This gives 4.3
  instead of 5.7 million parameters and keeps the weights in half precision under 10 MB.
* The context pyramid normalises its input once (see `netwarp_ros.models.hosts.blocks.ContextPyramid`).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from netwarp_ros.models.hosts.blocks import ContextPyramid, ResidualBlock, conv_norm, initialise, norm_relu_conv, resize


def _basic(inputs: int, outputs: int, stride: int = 1) -> ResidualBlock:
    body = nn.Sequential(conv_norm(inputs, outputs, stride=stride), nn.ReLU(), conv_norm(outputs, outputs))
    return ResidualBlock(body, inputs, outputs, stride)


def _bottleneck(inputs: int, outputs: int) -> ResidualBlock:
    middle = outputs // 2
    body = nn.Sequential(
        conv_norm(inputs, middle, kernel=1),
        nn.ReLU(),
        conv_norm(middle, middle),
        nn.ReLU(),
        conv_norm(middle, outputs, kernel=1),
    )
    return ResidualBlock(body, inputs, outputs, stride=1)


def _stage(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return two basic blocks. The last sum has no ReLU."""
    return nn.Sequential(_basic(inputs, outputs, stride), nn.ReLU(), _basic(outputs, outputs))


class Fusion(nn.Module):
    """Sum of the high-resolution features and the context, resized to their grid."""

    def forward(self, high: Tensor, context: Tensor) -> Tensor:
        return high + resize(context, like=high)


class Head(nn.Module):
    """Classifier at stride 4, on the sum of the upsampled stride-8 features and the stride-4 detail."""

    def __init__(self, inputs: int, detail: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.reduce = norm_relu_conv(inputs, width, kernel=3)
        self.detail = nn.Conv2d(detail, width, 1, bias=False)
        self.refine = nn.Sequential(norm_relu_conv(width, width, kernel=3), nn.BatchNorm2d(width), nn.ReLU())
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, fused: Tensor, detail: Tensor) -> Tensor:
        features = resize(self.reduce(fused), like=detail) + self.detail(detail)
        return self.classifier(self.refine(features))


def _auxiliary_head(width: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        norm_relu_conv(width, width, kernel=3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, num_classes, 1),
    )


class DDRNet23Slim(nn.Module):
    """DDRNet-23-slim with a stride-4 head; the module's docstring lists the departures from the paper.

    Possible insertion layers (stride, channels): ``stem`` (4, 32), ``layer1`` (4, 32), ``layer2``
    (8, 64), ``low3`` (16, 128), ``high3`` (8, 64), ``low4`` (32, 192), ``high4`` (8, 64), ``low5`` (32, 384), ``high5``
    (8, 128), ``context`` (32, 128), ``fusion`` (8, 128), ``head.refine`` (4, 64). Any image size works, not only
    multiples of 32: the branches are resized to each other's grids.

    Args:
        num_classes: Number of classes without void.
        auxiliary: Also build the paper's auxiliary classifier, on the first fused high-resolution features. Only
            training needs it.
    """

    def __init__(self, num_classes: int, *, auxiliary: bool = False) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}, must be at least 2")
        self.stem = nn.Sequential(conv_norm(3, 32, stride=2), nn.ReLU(), conv_norm(32, 32, stride=2), nn.ReLU())
        self.layer1 = _stage(32, 32)
        self.layer2 = _stage(32, 64, stride=2)

        self.low3 = _stage(64, 128, stride=2)
        self.high3 = _stage(64, 64)
        self.high_to_low3 = conv_norm(64, 128, stride=2)
        self.low_to_high3 = conv_norm(128, 64, kernel=1)

        self.low4 = _stage(128, 192, stride=2)
        self.high4 = _stage(64, 64)
        self.high_to_low4 = nn.Sequential(conv_norm(64, 128, stride=2), nn.ReLU(), conv_norm(128, 192, stride=2))
        self.low_to_high4 = conv_norm(192, 64, kernel=1)

        self.low5 = _bottleneck(192, 384)
        self.high5 = _bottleneck(64, 128)
        self.context = ContextPyramid(384, 128, 128)
        self.fusion = Fusion()
        self.head = Head(128, 32, 64, num_classes)
        self.auxiliary = _auxiliary_head(64, num_classes) if auxiliary else None
        initialise(self)

    def forward(self, frame: Tensor, *, auxiliary: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Segment a batch of frames.

        Args:
            frame: (B, 3, H, W), RGB, normalised.
            auxiliary: Also return the auxiliary logits.

        Returns:
            Logits (B, num_classes, ceil(H/4), ceil(W/4)); with ``auxiliary``, a pair whose second member is
            (B, num_classes, ceil(H/8), ceil(W/8)).

        Raises:
            ValueError: If ``auxiliary`` is set and the network was built without it.
        """
        if auxiliary and self.auxiliary is None:
            raise ValueError("this network has no auxiliary head; build it with DDRNet23Slim(..., auxiliary=True)")
        detail = F.relu(self.layer1(self.stem(frame)))
        shared = F.relu(self.layer2(detail))

        low, high = self.low3(shared), self.high3(shared)
        low, high = (
            low + self.high_to_low3(F.relu(high)),
            high + resize(self.low_to_high3(F.relu(low)), like=high),
        )
        early = high
        low, high = self.low4(F.relu(low)), self.high4(F.relu(high))
        low, high = (
            low + self.high_to_low4(F.relu(high)),
            high + resize(self.low_to_high4(F.relu(low)), like=high),
        )
        context = self.context(self.low5(F.relu(low)))
        logits = self.head(self.fusion(self.high5(F.relu(high)), context), detail)
        if auxiliary and self.auxiliary is not None:
            return logits, self.auxiliary(early)
        return logits
