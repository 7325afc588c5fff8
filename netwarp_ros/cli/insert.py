# SPDX-License-Identifier: Apache-2.0
"""``netwarp insert``: NetWarp into the image CNN of a model file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from netwarp_ros.cli.printing import plain_console, say

if TYPE_CHECKING:
    from netwarp_ros.models.proposals import Candidate


def insert(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The name of a shipped model, or a .safetensors file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.", show_default=False)],
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            metavar="NAME,NAME...",
            help="Layers to insert NetWarp behind; or a YAML mapping that tells what cannot be seen of their outputs, "
            "such as '{blocks.3: {tokens: [16, 16]}}'. By default, the "
            "layers that most of the class scores come through, at strides 4, 8 and 16.",
            show_default=False,
        ),
    ] = None,
    flow_cnn: Annotated[bool, typer.Option(help="Whether the flow goes through the FlowCNN.")] = True,
    flow_grid: Annotated[
        str, typer.Option("--flow-grid", help="Grid that the FlowCNN works on: image, features or first.")
    ] = "first",
    remember: Annotated[
        str, typer.Option("--remember", help="What the next frame sees: a layer's output before or after the blend.")
    ] = "after",
) -> None:
    """Insert NetWarp into an image CNN. It has no effect until it is trained: see `netwarp adapt`, `netwarp train`."""
    import torch

    from netwarp_ros.models import NetWarpSpec, save_model
    from netwarp_ros.models.building import insert_netwarp
    from netwarp_ros.models.insertion import example_frame
    from netwarp_ros.models.others.onnx_host import refuse_onnx
    from netwarp_ros.models.proposals import propose
    from netwarp_ros.models.weights import MODEL_MARK, find_weights, load_model, stored_type
    from netwarp_ros.recordings.atomic import refuse_foreign
    from netwarp_ros.resources import parse

    refuse_foreign(output, MODEL_MARK)
    image_cnn = load_model(find_weights(model))
    spec, host = image_cnn.spec, image_cnn.network.host
    refuse_onnx(spec, model, "NetWarp cannot be inserted")
    if spec.netwarp:
        raise ValueError(f"{model} already has NetWarp behind {', '.join(spec.netwarp.layers)}: give its image CNN")
    if layers is None:
        candidates = propose(host, example_frame(host, spec.input_size.example))
        plain_console().print(_table(candidates))
        chosen: Any = [candidate.name for candidate in candidates if candidate.proposed]
    else:
        chosen = _parse_layers(layers)
    content: dict[str, Any] = {
        "layers": chosen,
        "flow_cnn": flow_cnn,
        "flow_grid": flow_grid,
        "remember": remember,
    }
    torch.manual_seed(0)  # for the first layers of the FlowCNN, whose last one starts as the identity
    spec = replace(
        spec, netwarp=parse(NetWarpSpec, content, "the options"), notes={**spec.notes, "netwarp": "untrained"}
    )
    network = insert_netwarp(host, spec)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_model(output, network, spec, dtype=stored_type(find_weights(model)))
    say(f"NetWarp behind {', '.join(content['layers'])}, untrained: w1 = 1, w2 = 0\nmodel in {output}")


def _table(candidates: Sequence[Candidate]) -> Table:
    table = Table("layer", "stride", "channels", "gives", "share", "NetWarp")
    table.columns[0].overflow = "fold"
    for layer in candidates:
        gives, mark = "tokens" if layer.tokens else "map", "inserted" if layer.proposed else ""
        table.add_row(layer.name, str(layer.stride), str(layer.channels), gives, f"{layer.share:.0%}", mark)
    return table


def _parse_layers(text: str) -> Any:
    from netwarp_ros.resources import load_yaml

    if text.lstrip().startswith("{"):
        return load_yaml(text.encode(), "layers")
    return [name.strip() for name in text.split(",")]
