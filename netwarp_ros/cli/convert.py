# SPDX-License-Identifier: Apache-2.0
"""``netwarp convert``: a model file of a public network's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from netwarp_ros.cli.printing import say


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
    from netwarp_ros.models.weights import MODEL_MARK
    from netwarp_ros.recordings.atomic import refuse_foreign
    from netwarp_ros.resources import parse

    refuse_foreign(output, MODEL_MARK)
    weights = read_checkpoint(checkpoint)
    class_set = load_classes(classes)
    content: dict[str, Any] = {
        "host": host,
        "classes": class_set,
        "host_arguments": {"num_classes": len(class_set)},
        "input_height": input_height,
        "notes": {"origin": f"converted from {checkpoint.name}"},
    }
    if caffe_mean:
        content |= {"mean": [value / 255 for value in reversed(caffe_mean)], "std": [1 / 255] * 3}
    spec = parse(ModelSpec, content, "the model file")
    network = build(spec)
    result = load_public_weights(network.host, weights, bgr=bool(caffe_mean))
    output.parent.mkdir(parents=True, exist_ok=True)
    save_model(output, network, spec, dtype=torch.float32)
    say(f"{result}\nmodel in {output}")
