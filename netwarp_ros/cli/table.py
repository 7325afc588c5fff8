# SPDX-License-Identifier: Apache-2.0
"""``netwarp table``: the paper's tables on any data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from netwarp_ros.cli.option_groups import expand_groups
from netwarp_ros.cli.options import (
    DataOptions,
    EngineOptions,
    InferenceOptions,
    InputHeightOption,
    RecordingOptions,
)

if TYPE_CHECKING:
    from netwarp_ros.benchmarks.tables import RowEvaluator
    from netwarp_ros.classes import ClassSet
    from netwarp_ros.evaluation.results import EvaluationResults
    from netwarp_ros.segmenter import Segmenter


@expand_groups
def table(
    *,
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="models: scores and runtime, also of each model's host. classes: IoU by class. flows: a model with "
            "each flow. sweep: trains a recipe with NetWarp at each of its layers and at all of them, with FlowCNN "
            "and without, or trains variants of the recipe.",
        ),
    ],
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="RECIPE.yaml", help="sweep: the training recipe to vary.", show_default=False),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            metavar="KEYS",
            help="sweep: a variant of the recipe, as keys of model.netwarp, such as '{remember: after, flow_cnn: "
            "false}', and full names of other keys, such as optimiser.rate; may be given more than once. The recipe "
            "itself comes first.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option("--steps", min=0, help="sweep: steps of each training. 0: those of the recipe.")
    ] = 0,
    data: DataOptions,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME|FILE",
            help="A shipped model or a .safetensors file; may be given more than once.",
            show_default=False,
        ),
    ] = None,
    engine: EngineOptions,
    flows: Annotated[
        list[str] | None,
        typer.Option(
            "--flow",
            metavar="NAME|FOLDER",
            help="As in `netwarp evaluate`; may be given more than once. By default ultrafast, or all names for flows.",
            show_default=False,
        ),
    ] = None,
    keyframes: Annotated[
        list[str] | None,
        typer.Option(
            "--keyframes",
            metavar="N|adaptive",
            help="models, classes: also a row for each model whose network runs on such frames only; may be given more "
            "than once.",
            show_default=False,
        ),
    ] = None,
    rivals: Annotated[
        list[str] | None,
        typer.Option(
            "--rival",
            metavar="NAME",
            help="models, classes: also a row for each model's host with densecrf, fso-crf or vpn; may be given more "
            "than once.",
            show_default=False,
        ),
    ] = None,
    input_height: InputHeightOption = 0,
    inference: InferenceOptions,
    reading: RecordingOptions,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            "-o",
            help="Write each row to this file; rows that are already in it are not computed again.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print a table of the paper in Markdown, for any data. With -o, a command that was stopped can continue."""
    from netwarp_ros.benchmarks import tables
    from netwarp_ros.flow import PRESETS
    from netwarp_ros.models import DEFAULT_MODEL

    if kind not in tables.KINDS:
        raise ValueError(f"there is no table {kind!r}: give {', '.join(tables.KINDS)}")
    if kind == "sweep" and (recipe is None or models):
        raise ValueError("a sweep trains its models: give RECIPE.yaml, and leave out --model")
    if kind != "sweep" and (recipe or variant or steps):
        raise ValueError(f"nothing is trained for {kind}: leave out RECIPE.yaml, --variant and --steps")
    if kind not in ("models", "classes") and (rivals or keyframes):
        raise ValueError(f"there are no rivals and key frames in the table {kind}: leave out --rival and --keyframes")
    options = {**engine.engine_arguments(), "input_height": input_height}
    evaluator = _row_evaluator(data, reading, inference, options)
    flows = flows or ([*PRESETS, "deepflow"] if kind == "flows" else ["ultrafast"])
    if recipe:
        if len(flows) > 1:
            raise ValueError(f"a sweep takes one flow, not {', '.join(flows)}")
        rows = tables.sweep_rows(evaluator, recipe, [_variant(text) for text in variant or []], steps, flows[0])
    else:
        rows = tables.model_rows(
            evaluator, models or [DEFAULT_MODEL], flows, rivals or [], keyframes or [], hosts=kind != "flows"
        )
    results = tables.compute_rows(kind, rows, json_file, lambda line: typer.echo(line, err=True))
    typer.echo(tables.markdown(kind, results))


def _row_evaluator(
    data: DataOptions, reading: RecordingOptions, inference: InferenceOptions, options: dict[str, Any]
) -> RowEvaluator:
    """Open the data; `options` are those of the segmenter."""
    from netwarp_ros.benchmarks.tables import RowEvaluator, first_images
    from netwarp_ros.evaluation.provenance import describe_input
    from netwarp_ros.evaluation.scoring import evaluate

    def evaluate_row(segmenter: Segmenter, classes: ClassSet, **settings: Any) -> EvaluationResults:
        labelled = data.open(reading, classes)
        return evaluate(
            labelled.frames, labelled.labels, segmenter, classes, instances=labelled.instances, sizes=labelled.sizes,
            **settings,
        )  # fmt: skip

    opened = data.open(reading)
    origin = {
        **{name: describe_input(path)["sha256"] for name, path in opened.inputs.items() if path},
        "topics": reading.topics,
        "label_topics": data.label_topics,
        "rate": reading.rate,
        "clip": data.clip if data.cityscapes else None,
        **options,
        "window": inference.window,
        "scales": inference.scales,
        "flip": inference.flip,
    }
    return RowEvaluator(
        evaluate_row,
        first_images(opened.frames),
        {**options, "inference": inference.inference()},
        origin,
    )


def _variant(text: str) -> dict[str, Any]:
    """Read the keys and values of a variant, in YAML."""
    try:
        keys = yaml.safe_load(text)
    except yaml.YAMLError:
        keys = None
    if not isinstance(keys, dict) or not keys:
        raise ValueError(f"variant is {text!r}: give keys of model.netwarp, such as '{{flow_cnn: false}}'")
    return keys
