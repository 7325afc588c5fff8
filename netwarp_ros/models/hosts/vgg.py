# SPDX-License-Identifier: Apache-2.0
"""VGG-16 made fully convolutional at stride 8: the base of PlayData-CNN and Dilation-CNN.

Source: the front end of Yu and Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", ICLR 2016, Section 4,
and the network definitions of their release (github.com/fyu/dilation). The last two pooling layers of VGG-16 are
removed; the layers after them are dilated instead, the fifth stage by 2 and ``fc6``, a 7x7 convolution, by 4.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from netwarp_ros.models.hosts.blocks import initialise

_STAGES = (  # convolutions, channels as a multiple of the first stage's, dilation, whether pooling follows
    (2, 1, 1, True),
    (2, 2, 1, True),
    (3, 4, 1, True),
    (3, 8, 1, False),
    (3, 8, 2, False),
)


class DilatedVGG16(nn.Module):
    """The convolutions ``conv1_1`` to ``conv5_3``, ``fc6``, ``fc7`` and the classifier ``fc8``.

    Each name is that of a convolution; its ReLU is not part of the layer, so that it follows NetWarp. The NetWarp
    authors' release does the same behind ``conv5_4`` of PSPNet.

    Args:
        num_classes: Number of classes without void.
        width: Channels of the first stage (VGG-16: 64); all others scale with it.
        padded: Whether the convolutions pad with zeros, so that every map covers the frame. If not, pass frames with a
            margin of `MARGIN` pixels on each side, which the convolutions consume.
    """

    MARGIN = 186
    """Half of the pixels that convolutions without padding consume along a side: 4 + 8 + 24 + 48 + 96 + 192."""

    def __init__(self, num_classes: int, *, width: int, padded: bool) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}, must be at least 2")
        inputs = 3
        for stage, (count, factor, dilation, _) in enumerate(_STAGES, start=1):
            for number in range(1, count + 1):
                padding = dilation if padded else 0
                convolution = nn.Conv2d(inputs, factor * width, 3, padding=padding, dilation=dilation)
                self.add_module(f"conv{stage}_{number}", convolution)
                inputs = factor * width
        self.fc6 = nn.Conv2d(inputs, 64 * width, 7, padding=12 if padded else 0, dilation=4)
        self.fc7 = nn.Conv2d(64 * width, 64 * width, 1)
        self.fc8 = nn.Conv2d(64 * width, num_classes, 1)
        initialise(self, mode="fan_in")

    def forward(self, frame: Tensor) -> Tensor:
        """Segment a batch of frames.

        Args:
            frame: (B, 3, H, W), RGB, normalised; if not ``padded``, (B, 3, H + 2 MARGIN, W + 2 MARGIN).

        Returns:
            Logits (B, num_classes, ceil(H/8), ceil(W/8)).
        """
        features = frame
        for stage, (count, _, _, pooled) in enumerate(_STAGES, start=1):
            for number in range(1, count + 1):
                features = F.relu(self.get_submodule(f"conv{stage}_{number}")(features))
            if pooled:
                features = F.max_pool2d(features, 2, ceil_mode=True)
        features = F.dropout(F.relu(self.fc6(features)), 0.5, self.training)
        features = F.dropout(F.relu(self.fc7(features)), 0.5, self.training)
        return self.fc8(features)
