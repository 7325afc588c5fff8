# SPDX-License-Identifier: Apache-2.0
"""``netwarp quantize``: the int8 graphs of a model."""

from __future__ import annotations

import sys
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from netwarp_ros.cli.option_groups import expand_groups
from netwarp_ros.cli.options import ClassesOption, DataOptions, RecordingOptions, ThreadsOption
from netwarp_ros.cli.printing import plain_console, progress_bar, say

if TYPE_CHECKING:
    from netwarp_ros.classes import ClassSet
    from netwarp_ros.cli.options import EvaluationData
    from netwarp_ros.engines.int8 import Int8Graphs
    from netwarp_ros.models import Model
    from netwarp_ros.quantization.cost import Cost
    from netwarp_ros.segmenter import Segmenter

MAX_COMPARED = 1000
"""Most frames that float32 and int8 are compared on: the first of the recording."""


@expand_groups
def quantize(
    *,
    name: Annotated[str, typer.Argument(metavar="MODEL", help="The name of a shipped model, or a .safetensors file.")],
    data: DataOptions,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FOLDER|VIDEO|BAG",
            help="Images to calibrate on, instead of those that float32 and int8 are compared on.",
            show_default=False,
        ),
    ] = None,
    classes: ClassesOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The file to write. By default MODEL-int8.safetensors beside the model, for --precision int8.",
            show_default=False,
        ),
    ] = None,
    frames: Annotated[
        int,
        typer.Option(
            "--frames",
            min=1,
            help="Frames to calibrate on, evenly spaced; fewer if they need more than 512 MB of memory.",
        ),
    ] = 100,
    max_drop: Annotated[
        float,
        typer.Option(
            "--max-drop",
            min=0,
            help="Write nothing if mean IoU or temporal consistency are lower in int8 by more points than this.",
        ),
    ] = 0.5,
    threads: ThreadsOption = 0,
    reading: RecordingOptions,
) -> None:
    """Make the int8 graphs of a model, and compare its masks in float32 and int8. Needs NNCF: netwarp_ros[quantize].

    The exit status is 1 if a score drops too far.
    """
    from netwarp_ros.classes import load_classes
    from netwarp_ros.engines.int8 import INT8_MARK, save_int8
    from netwarp_ros.models.weights import find_weights, int8_file, load_model, read_spec
    from netwarp_ros.quantization.calibration import record_samples
    from netwarp_ros.quantization.post_training import import_nncf, versions
    from netwarp_ros.quantization.post_training import quantize as quantize_graphs
    from netwarp_ros.recordings.atomic import refuse_foreign
    from netwarp_ros.recordings.open import open_frames
    from netwarp_ros.resources import sha256

    weights = find_weights(name)
    path = output or int8_file(weights)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} does not end in .safetensors, the only format of int8 graphs")
    refuse_foreign(path, INT8_MARK)
    import_nncf()
    class_set = load_classes(classes) if classes else read_spec(weights).classes
    opened = data.open(reading, class_set)
    source = open_frames(calibration, rate=reading.rate) if calibration else opened.frames
    digest, model = sha256(weights), load_model(weights)
    samples = record_samples(model, source, frames, threads)
    graphs = quantize_graphs(model, samples)
    cost = _compare(opened, model, graphs, class_set, threads)
    _print(cost)
    if dropped := cost.drops(max_drop):
        sys.stderr.write(
            f"netwarp: {path} is not written, because int8 lowers {' and '.join(dropped)}, by more than {max_drop:g}: "
            "give more --frames, images that are more like your camera's, or a greater --max-drop\n"
        )
        raise typer.Exit(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    recording = calibration or data.images or data.cityscapes
    note = f"{len(samples)} frames of {recording.resolve().name if recording else name}"
    refuse_foreign(path, INT8_MARK)  # something may have been put there in the meantime
    save_int8(path, graphs, digest, note, cost.to_json(), versions())
    say(f"int8 graphs in {path}, {path.stat().st_size / 1e6:.1f} MB")
    if path != int8_file(weights):
        say(f"--precision int8 looks for them at {int8_file(weights)}")


def _compare(data: EvaluationData, model: Model, graphs: Int8Graphs, classes: ClassSet, threads: int) -> Cost:
    """Compare the model in float32 and int8."""
    from netwarp_ros.engines.openvino import OpenVINOEngine
    from netwarp_ros.quantization.calibration import segmenter_with
    from netwarp_ros.quantization.cost import measure_cost

    def segmenter(precision: str) -> Segmenter:
        make = partial(OpenVINOEngine, precision=precision, threads=threads, int8=graphs)
        return segmenter_with(model, make, threads)

    float32, int8 = segmenter("float32"), segmenter("int8")
    with progress_bar() as progress:
        task = progress.add_task("comparing float32 and int8", total=min(len(data.frames), MAX_COMPARED) or None)
        first = islice(data.frames, MAX_COMPARED)
        return measure_cost(first, data.labels, float32, int8, classes, lambda: progress.advance(task))


def _print(cost: Cost) -> None:
    table = Table("", "float32", "int8", title=f"{cost.frames} frames, {cost.labelled} labelled")
    for what, before, after in (
        ("mean IoU", cost.miou_float32, cost.miou_int8),
        ("temporal consistency", cost.tc_float32, cost.tc_int8),
        ("ms per frame", cost.ms_float32, cost.ms_int8),
    ):
        if before == before:  # not nan
            table.add_row(what, f"{before:.2f}", f"{after:.2f}")
    table.add_row("pixels that change their class", "", f"{cost.changed:.2f} %")
    plain_console().print(table)
