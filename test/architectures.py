# SPDX-License-Identifier: Apache-2.0
"""Public segmentation networks with random weights, small enough for tests.

Those of transformers are built from their configs; others are written down here as they are laid out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

os.environ["HF_HUB_OFFLINE"] = "1"
transformers: Any = pytest.importorskip(
    "transformers", reason="no transformers, which has the networks of others: pip install transformers"
)

CLASSES = 11
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def segformer() -> nn.Module:
    config = transformers.SegformerConfig(
        num_labels=CLASSES, depths=[1] * 4, hidden_sizes=[16, 32, 64, 96], decoder_hidden_size=64,
        num_attention_heads=[1, 2, 4, 6],
    )  # fmt: skip
    return transformers.SegformerForSemanticSegmentation(config)


def convnext() -> Any:
    return transformers.ConvNextConfig(depths=[1] * 4, hidden_sizes=[16, 32, 64, 96], out_features=STAGES)


def swin() -> Any:
    return transformers.SwinConfig(
        embed_dim=16, depths=[1] * 4, num_heads=[1, 2, 4, 8], window_size=4, image_size=128, out_features=STAGES
    )


def upernet(backbone: Any) -> nn.Module:
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=32, num_labels=CLASSES, auxiliary_in_channels=64, pool_scales=[1, 2]
    )
    return transformers.UperNetForSemanticSegmentation(config)


def mask2former() -> nn.Module:
    config = transformers.Mask2FormerConfig(
        backbone_config=swin(), feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=64,
        encoder_layers=1, decoder_layers=2, num_attention_heads=4, dim_feedforward=64, num_queries=20,
        num_labels=CLASSES,
    )  # fmt: skip
    return transformers.Mask2FormerForUniversalSegmentation(config)


def dpt() -> nn.Module:
    config = transformers.DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, image_size=64, patch_size=16,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16, 32, 32, 32], fusion_hidden_size=32,
        num_labels=CLASSES, is_hybrid=False,
    )  # fmt: skip
    return transformers.DPTForSemanticSegmentation(config)


def mobilevit() -> nn.Module:
    config = transformers.MobileViTConfig(
        hidden_sizes=[24, 32, 40], neck_hidden_sizes=[8, 16, 24, 32, 40, 48, 64], num_attention_heads=4,
        aspp_out_channels=32, num_labels=CLASSES, image_size=128,
    )  # fmt: skip
    host = transformers.MobileViTForSemanticSegmentation(config)
    for weight in host.parameters():  # with those of its initialisation, nothing is left of a frame at the end
        if weight.ndim > 1:
            nn.init.kaiming_normal_(weight)
    return host


def beit() -> nn.Module:
    config = transformers.BeitConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, image_size=64, patch_size=16,
        out_indices=[1, 2, 3, 4], use_relative_position_bias=True, use_mask_token=False, pool_scales=[1, 2],
        num_labels=CLASSES, auxiliary_channels=16,
    )  # fmt: skip
    return transformers.BeitForSemanticSegmentation(config)


def eomt() -> nn.Module:
    config = transformers.EomtConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, image_size=64, patch_size=8, num_blocks=2,
        num_queries=10, num_upscale_blocks=1, num_register_tokens=4, num_labels=CLASSES,
    )  # fmt: skip
    return transformers.EomtForUniversalSegmentation(config)


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
        self.classifier = nn.Conv2d(48, CLASSES, 1)
        self.aux_classifier = nn.Conv2d(24, CLASSES, 1)

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
        self.low_classifier, self.high_classifier = nn.Conv2d(24, CLASSES, 1), nn.Conv2d(16, CLASSES, 1)

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
        self.head = nn.Conv2d(8, CLASSES, 1)

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
        self.head = nn.Linear(32, CLASSES)

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.patches(frame)
        tokens = torch.cat((self.class_token.expand(len(frame), -1, -1), maps.flatten(2).transpose(1, 2)), dim=1)
        for layer in self.blocks:
            tokens = layer(tokens)
        scores = self.head(tokens[:, 1:]).transpose(1, 2).unflatten(2, maps.shape[-2:])
        return scores, tokens[:, 0]


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "segformer": segformer,
    "upernet-convnext": lambda: upernet(convnext()),
    "upernet-swin": lambda: upernet(swin()),
    "mask2former-swin": mask2former,
    "dpt": dpt,
    "mobilevit-deeplab": mobilevit,
    "beit": beit,
    "eomt": eomt,
    "unet": UNet,
    "deeplab": DeepLab,
    "lraspp": LRASPP,
    "tokens": Tokens,
}
