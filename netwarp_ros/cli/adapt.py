# SPDX-License-Identifier: Apache-2.0
"""``netwarp adapt``: training of NetWarp without labels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from netwarp_ros.cli.option_groups import expand_groups
from netwarp_ros.cli.options import ClassesOption, DeviceOption, RecordingOptions, ThreadsOption
from netwarp_ros.cli.printing import plain_console, say, warn

if TYPE_CHECKING:
    from netwarp_ros.training.adaptation import AdaptReport


@expand_groups
def adapt(
    *,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model with NetWarp, which may be untrained (`netwarp insert`).")
    ],
    drives: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER|VIDEO|BAG...", help="Recordings of the cameras that the model is meant for."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.", show_default=False)],
    labels: Annotated[
        list[Path] | None,
        typer.Option(
            "--labels",
            help="Label maps of some frames, if there are any: a folder with NAME.png, or a bag. Give it once for each "
            "recording, in the same order.",
            show_default=False,
        ),
    ] = None,
    label_topics: Annotated[
        list[str] | None,
        typer.Option(
            "--label-topic",
            help="Topic of label maps, in the bag given by --labels or else in the recording. Give one topic for each "
            "--topic, in the same order.",
            show_default=False,
        ),
    ] = None,
    classes: ClassesOption = None,
    steps: Annotated[int, typer.Option("--steps", help="Length of the training, in batches of two clips.")] = 100,
    clip: Annotated[int, typer.Option("--clip", help="Frames of a clip.")] = 5,
    frames: Annotated[
        int, typer.Option("--frames", help="Most frames to use: evenly spaced sections of longer recordings.")
    ] = 500,
    seed: Annotated[int, typer.Option("--seed", help="Seed of all random choices.")] = 0,
    device: DeviceOption = "cpu",
    precision: Annotated[
        str,
        typer.Option(
            "--precision", help="float32 or bfloat16; auto: bfloat16 where the device computes in it. Weights: float32."
        ),
    ] = "auto",
    threads: ThreadsOption = 0,
    reading: RecordingOptions,
) -> None:
    """Train the NetWarp of a model without labels: its own predictions, averaged over views and time, are the targets.

    The first fifth of the frames is kept out of the training; the report is about these. The image CNN stays as it is.
    """
    import torch

    from netwarp_ros.classes import load_classes
    from netwarp_ros.models import load_model
    from netwarp_ros.recordings.open import open_frames, open_labels
    from netwarp_ros.resources import parse
    from netwarp_ros.training.adaptation import AdaptConfig, check_adaptable
    from netwarp_ros.training.adaptation import adapt as adapt_model
    from netwarp_ros.training.soft_targets import Recording

    content: dict[str, Any] = {
        "steps": steps, "clip": clip, "frames": frames, "seed": seed, "device": device, "precision": precision,
    }  # fmt: skip
    config = parse(AdaptConfig, content, "the options")
    if labels and len(labels) != len(drives):
        raise ValueError(f"--labels is given {len(labels)} times for {len(drives)} recordings: give it once for each")
    loaded = load_model(model)
    check_adaptable(loaded, output)
    class_set, topics = load_classes(classes) if classes else loaded.spec.classes, label_topics or []
    class_set.check_names(loaded.spec.classes, f"model {loaded.name}")
    if threads:
        torch.set_num_threads(threads)
    recordings = []
    for number, drive in enumerate(drives):
        source = open_frames(drive, rate=reading.rate, topics=reading.topics or [], leave_out=topics)
        maps = open_labels(source, drive, labels[number] if labels else None, topics, class_set)
        recordings.append(Recording(source, maps))
    report = adapt_model(loaded, recordings, output, config)
    _print(report)
    for recording in recordings:
        for damage in recording.frames.damage:
            warn(damage)
    if report.kept == 0:
        warn(f"no state of the training agrees better with the targets: {output} has the weights of {model}")
    say(f"model in {output}")


def _print(report: AdaptReport) -> None:
    title = f"on {report.checked} frames that were kept out; {report.trained} were trained on"
    table = Table("%", "host", "before", "adapted", title=title)
    host, before, adapted = report.host, report.checks[0], report.adapted
    for what, name in (
        ("temporal consistency", "consistency"),
        ("static pixels that differ from their targets", "static"),
        ("moving pixels that differ from their targets", "moving"),
        ("mean IoU", "miou"),
    ):
        values = [getattr(agreement, name) for agreement in (host, before, adapted)]
        if not all(map(math.isnan, values)):
            table.add_row(what, *(f"{value:.2f}" for value in values))
    plain_console().print(table)
    last = max(report.checks)
    say(f"state after {report.kept} of {last} steps, {report.labelled} label maps trained on, {report.seconds:.0f} s")
