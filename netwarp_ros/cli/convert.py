# SPDX-License-Identifier: Apache-2.0
"""``netwarp convert``: a model file of a public network's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netwarp_ros.cli.printing import say

Triple = tuple[float, float, float]


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DIRECTORY|FILE",
            help="A directory of the Hugging Face hub, with config.json; a state dict (.safetensors or torch.save); or "
            "an ONNX file.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.", show_default=False)],
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            help="For a FILE: the network of these weights, such as pspnet101, or a host of an installed package. A "
            "wrong name prints the list.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            metavar="NAME|FILE",
            help="A class set of this package, such as cityscapes, or a .yaml file, in the order of the network's "
            "outputs. By default a DIRECTORY's own.",
            show_default=False,
        ),
    ] = None,
    input_height: Annotated[
        int | None,
        typer.Option(
            "--input-height",
            min=1,
            help="Height in pixels that images are scaled to. By default what a DIRECTORY says, or 360.",
            show_default=False,
        ),
    ] = None,
    mean: Annotated[
        Triple | None,
        typer.Option(
            "--mean",
            metavar="R G B",
            help="Mean of the values, from 0 to 1, that images are normalised with. By default what a DIRECTORY says, "
            "or torchvision's.",
            show_default=False,
        ),
    ] = None,
    std: Annotated[
        Triple | None,
        typer.Option("--std", metavar="R G B", help="Standard deviation of the values, likewise.", show_default=False),
    ] = None,
    caffe_mean: Annotated[
        Triple | None,
        typer.Option(
            "--caffe-mean",
            metavar="B G R",
            help="For weights that take BGR values from 0 to 255 minus this mean, in place of --mean and --std.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a model file of a public network's weights, and print which weights fit."""
    import torch

    from netwarp_ros.classes import load_classes
    from netwarp_ros.models.others.conversion import Conversion, Overrides, convert_directory, convert_file
    from netwarp_ros.models.others.onnx_conversion import OnnxConversion, convert_onnx
    from netwarp_ros.models.weights import MODEL_MARK, save_model
    from netwarp_ros.recordings.atomic import refuse_foreign

    refuse_foreign(output, MODEL_MARK)
    if caffe_mean:
        if mean or std:
            raise ValueError("--caffe-mean is in place of --mean and --std: give one or the other")
        blue, green, red = caffe_mean
        mean, std = (red / 255, green / 255, blue / 255), (1 / 255, 1 / 255, 1 / 255)
    conversion: Conversion | OnnxConversion
    overrides = Overrides(load_classes(classes) if classes else None, input_height, mean, std)
    if source.is_dir():
        if host or caffe_mean:
            raise ValueError(f"{source} says itself which network it holds: leave out --host and --caffe-mean")
        conversion = convert_directory(source, overrides)
    elif source.suffix == ".onnx":
        if host:
            raise ValueError(f"{source} is a network itself: leave out --host")
        conversion = convert_onnx(source, overrides, bgr=bool(caffe_mean))
    else:
        conversion = convert_file(source, host, overrides, bgr=bool(caffe_mean))
    output.parent.mkdir(parents=True, exist_ok=True)
    save_model(output, conversion.network, conversion.spec, dtype=torch.float32)
    say(f"{conversion}\nmodel in {output}")
