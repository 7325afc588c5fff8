# SPDX-License-Identifier: Apache-2.0
"""Small networks of transformers with random weights, and directories of them as the Hugging Face hub has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers: Any = pytest.importorskip(
    "transformers", reason="no transformers, which has the networks of others: pip install transformers"
)

STAGES = ["stage1", "stage2", "stage3", "stage4"]
NUM_CLASSES = 11


def segformer(num_labels: int = NUM_CLASSES) -> Any:
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 2, 3, 4],
        decoder_hidden_size=16,
        num_labels=num_labels,
    )
    return transformers.SegformerForSemanticSegmentation(config)


def upernet(backbone: Any = None) -> Any:
    """Return UperNet with a backbone, by default ConvNeXt."""
    convnext = transformers.ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], out_features=STAGES)
    config = transformers.UperNetConfig(
        backbone_config=backbone or convnext,
        hidden_size=16,
        pool_scales=[1, 2],
        auxiliary_in_channels=4 * backbone.embed_dim if backbone else 24,
        auxiliary_channels=8,
        num_labels=NUM_CLASSES,
    )
    return transformers.UperNetForSemanticSegmentation(config)


def swin() -> Any:
    """Return the configuration of a backbone.

    Its widths are multiples of 16: OpenVINO 2026.4 normalises others by AVX-512 instructions and crashes, if
    ONEDNN_MAX_CPU_ISA holds it to AVX2 on a CPU that has them. CPUs without them are not affected.
    """
    return transformers.SwinConfig(
        embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], window_size=4, out_features=STAGES, image_size=64
    )


def dpt() -> Any:
    config = transformers.DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        num_labels=NUM_CLASSES,
    )
    return transformers.DPTForSemanticSegmentation(config)


def beit() -> Any:
    config = transformers.BeitConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        out_indices=[1, 2, 3, 4],
        pool_scales=[1, 2],
        use_relative_position_bias=True,
        num_labels=NUM_CLASSES,
    )
    return transformers.BeitForSemanticSegmentation(config)


def mobilevit() -> Any:
    config = transformers.MobileViTConfig(
        hidden_sizes=[8, 12, 16],
        neck_hidden_sizes=[4, 8, 8, 12, 16, 16, 24],
        num_attention_heads=2,
        aspp_out_channels=8,
        atrous_rates=[1, 2, 3],
        image_size=64,
        num_labels=NUM_CLASSES,
    )
    return transformers.MobileViTForSemanticSegmentation(config)


def mask2former() -> Any:
    config = transformers.Mask2FormerConfig(
        backbone_config=swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        num_attention_heads=2,
        encoder_layers=1,
        decoder_layers=2,
        num_queries=6,
        num_labels=NUM_CLASSES,
    )
    return transformers.Mask2FormerForUniversalSegmentation(config)


def maskformer() -> Any:
    """Return a network whose decoder's configuration names a backbone of timm, which is not built."""
    decoder = transformers.DetrConfig(
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=6,
    )
    config = transformers.MaskFormerConfig(
        backbone_config=swin(),
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=NUM_CLASSES,
    )
    return transformers.MaskFormerForInstanceSegmentation(config)


def eomt() -> Any:
    config = transformers.EomtConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        num_blocks=2,
        num_queries=6,
        num_upscale_blocks=2,
        num_labels=NUM_CLASSES,
    )
    return transformers.EomtForUniversalSegmentation(config)


NETWORKS: dict[str, Callable[[], Any]] = {
    "segformer": segformer,
    "upernet": upernet,
    "upernet-swin": lambda: upernet(swin()),
    "dpt": dpt,
    "beit": beit,
    "mobilevit": mobilevit,
    "mask2former": mask2former,
    "maskformer": maskformer,
    "eomt": eomt,
}

PREPROCESSOR = {
    "do_normalize": True,
    "do_rescale": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "rescale_factor": 1 / 255,
    "size": {"height": 64, "width": 96},
}


def randomised(network: nn.Module) -> Any:
    """Return a network with other statistics and biases than a new one, so that a lost tensor shows.

    The weights get the deviation of He et al., and normalisations a factor of about 1: a new network lets little of the
    image through.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point() and value.ndim == 1:
                value += torch.rand(value.shape, generator=generator) / 4
                value += 1 if name.endswith("weight") and value.mean() < 0.5 else 0
            elif value.is_floating_point():
                value *= (2 / value[0].numel()) ** 0.5 / (value.std() + 1e-6)
    return network.eval()


def make(name: str) -> Any:
    """Return one of `NETWORKS`, always with the same weights."""
    torch.manual_seed(0)
    return randomised(NETWORKS[name]())


def save(network: Any, folder: Path, preprocessor: dict[str, Any] | None = None) -> Path:
    """Write a directory as the hub has it."""
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR if preprocessor is None else preprocessor))
    return folder


def change(folder: Path, **values: Any) -> None:
    """Change keys of a ``config.json``."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def logits_of(network: nn.Module, frame: Tensor) -> Tensor:
    from netwarp_ros.models.outputs import class_scores

    with torch.inference_mode():
        return class_scores(network(frame))
