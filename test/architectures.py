# SPDX-License-Identifier: Apache-2.0
"""Public segmentation networks with random weights, small enough for tests.

Those of transformers are built from their configs (`transformers_networks`); others are written down here as they are
laid out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers_networks import NUM_CLASSES, make


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Backbone(nn.ModuleDict):
    """As torchvision's IntermediateLayerGetter: it runs its children in order and returns some outputs in a dict."""

    def __init__(self, layers: dict[str, nn.Module], returned: dict[str, str]) -> None:
        super().__init__(layers)
        self.returned = returned

    def forward(self, frame: Tensor) -> dict[str, Tensor]:
        features = {}
        for name, layer in self.items():
            frame = layer(frame)
            if name in self.returned:
                features[self.returned[name]] = frame
        return features


class DeepLab(nn.Module):
    """Laid out as torchvision's DeepLabV3: a dict of features, and a dict of scores with those of an auxiliary head."""

    def __init__(self) -> None:
        super().__init__()
        layers = {
            "conv1": block(3, 8, 2),
            "layer1": block(8, 16, 2),
            "layer2": block(16, 16, 2),
            "layer3": block(16, 24),
            "layer4": block(24, 32),
        }
        self.backbone = Backbone(layers, {"layer3": "aux", "layer4": "out"})
        self.branches = nn.ModuleList(nn.Conv2d(32, 16, 3, padding=rate, dilation=rate) for rate in (1, 2, 4))
        self.classifier = nn.Conv2d(48, NUM_CLASSES, 1)
        self.aux_classifier = nn.Conv2d(24, NUM_CLASSES, 1)

    def forward(self, frame: Tensor) -> dict[str, Tensor]:
        features = self.backbone(frame)
        scores = self.classifier(torch.cat([branch(features["out"]) for branch in self.branches], dim=1))
        size = frame.shape[-2:]
        return {
            "out": F.interpolate(scores, size=size, mode="bilinear"),
            "aux": F.interpolate(self.aux_classifier(features["aux"]), size=size, mode="bilinear"),
        }


class LRASPP(nn.Module):
    """Laid out as torchvision's LRASPP: a low branch for detail, and a high one that is scaled by its average."""

    def __init__(self) -> None:
        super().__init__()
        layers = {"0": block(3, 8, 2), "1": block(8, 16, 2), "2": block(16, 24, 2), "3": block(24, 32, 2)}
        self.backbone = Backbone(layers, {"2": "low", "3": "high"})
        self.cbr = block(32, 16)
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 16, 1, bias=False), nn.Sigmoid())
        self.low_classifier, self.high_classifier = nn.Conv2d(24, NUM_CLASSES, 1), nn.Conv2d(16, NUM_CLASSES, 1)

    def forward(self, frame: Tensor) -> dict[str, Tensor]:
        features = self.backbone(frame)
        high = self.cbr(features["high"]) * self.scale(features["high"])
        high = F.interpolate(high, size=features["low"].shape[-2:], mode="bilinear")
        scores = self.low_classifier(features["low"]) + self.high_classifier(high)
        return {"out": F.interpolate(scores, size=frame.shape[-2:], mode="bilinear")}


class UNet(nn.Module):
    """A U-Net that returns a dict with another name for its scores, and takes multiples of 8 only."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([block(3, 8), block(8, 16), block(16, 24)])
        self.bottom = block(24, 32)
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(32, 24, 2, 2), nn.ConvTranspose2d(24, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)]
        )
        self.merge = nn.ModuleList([block(48, 24), block(32, 16), block(16, 8)])
        self.head = nn.Conv2d(8, NUM_CLASSES, 1)

    def forward(self, frame: Tensor) -> dict[str, Any]:
        skips = []
        for layer in self.down:
            frame = layer(frame)
            skips.append(frame)
            frame = F.max_pool2d(frame, 2)
        frame = self.bottom(frame)
        for up, merge in zip(self.up, self.merge, strict=True):
            frame = merge(torch.cat((skips.pop(), up(frame)), dim=1))
        return {"segmentation": self.head(frame), "features": None}


class Tokens(nn.Module):
    """A vision transformer in the style of Segmenter: tokens with a class token, put together at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.class_token = nn.Parameter(torch.randn(1, 1, 32))
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True) for _ in range(2))
        self.head = nn.Linear(32, NUM_CLASSES)

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.patches(frame)
        tokens = torch.cat((self.class_token.expand(len(frame), -1, -1), maps.flatten(2).transpose(1, 2)), dim=1)
        for layer in self.blocks:
            tokens = layer(tokens)
        scores = self.head(tokens[:, 1:]).transpose(1, 2).unflatten(2, maps.shape[-2:])
        return scores, tokens[:, 0]


FRAMES = {"dpt": (32, 32), "beit": (64, 64), "eomt": (64, 64)}
"""Sizes of the frames for networks that do not take any."""

ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    **{
        name: partial(make, name)
        for name in ("segformer", "upernet", "upernet-swin", "mask2former", "dpt", "mobilevit", "beit", "eomt")
    },
    "unet": UNet,
    "deeplab": DeepLab,
    "lraspp": LRASPP,
    "tokens": Tokens,
}
