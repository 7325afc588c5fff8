# SPDX-License-Identifier: Apache-2.0
"""``netwarp train``, ``convert`` and ``models``: models made, and those that the package ships."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from netwarp_ros.cli.printing import say


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The training recipe.")],
) -> None:
    """Train an image CNN or a video CNN by a recipe. If a run was interrupted, the same command continues it."""
    from netwarp_ros.training import trainer
    from netwarp_ros.training.config import load_config

    say(f"weights in {trainer.train(load_config(config))}")


def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="FILE", help="A state dict: .safetensors, or of torch.save.")],
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="The network of these weights, such as pspnet101. A wrong name prints the list.",
            show_default=False,
        ),
    ],
    classes: Annotated[
        str,
        typer.Option(
            "--classes",
            metavar="NAME|FILE",
            help="camvid, cityscapes or a .yaml file, in the order of the network's outputs.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.", show_default=False)],
    input_height: Annotated[
        int, typer.Option("--input-height", min=1, help="Height in pixels that images are resized to.")
    ] = 360,
    caffe_mean: Annotated[
        tuple[float, float, float] | None,
        typer.Option(
            "--caffe-mean",
            metavar="B G R",
            help="For weights that take BGR values from 0 to 255 minus this mean. By default they take RGB, normalised "
            "as by torchvision.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a model file of a public network's weights, and print which weights fit."""
    import torch

    from netwarp_ros.classes import load_classes
    from netwarp_ros.models import ModelSpec, build, save_model
    from netwarp_ros.models.public_weights import load_public_weights, read_checkpoint

    weights = read_checkpoint(checkpoint)
    class_set = load_classes(classes)
    spec = ModelSpec(
        host,
        class_set,
        {"num_classes": len(class_set)},
        input_height=input_height,
        notes={"origin": f"converted from {checkpoint.name}"},
    )
    if caffe_mean:
        blue, green, red = caffe_mean
        spec = dataclasses.replace(spec, mean=(red / 255, green / 255, blue / 255), std=(1 / 255, 1 / 255, 1 / 255))
    network = build(spec)
    result = load_public_weights(network.host, weights, bgr=bool(caffe_mean))
    output.parent.mkdir(parents=True, exist_ok=True)
    save_model(output, network, spec, dtype=torch.float32)
    say(f"{result}\nmodel in {output}")


def models() -> None:
    """List the models that the package ships."""
    from netwarp_ros.models import DEFAULT_MODEL, read_spec, shipped_models
    from netwarp_ros.models.weights import find_weights

    table = Table("model", "host", "NetWarp at", "classes", "MB", "notes")
    for name in shipped_models():
        path = find_weights(name)
        spec = read_spec(path)
        table.add_row(
            f"{name} (default)" if name == DEFAULT_MODEL else name,
            spec.host,
            ", ".join(spec.netwarp.layers) if spec.netwarp else "none",
            spec.classes.name,
            f"{path.stat().st_size / 1e6:.1f}",
            "\n".join(f"{key}: {value}" for key, value in spec.notes.items()),
        )
    Console().print(table if table.row_count else "This package holds no weights; train a model with `netwarp train`.")
