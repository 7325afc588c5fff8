# SPDX-License-Identifier: Apache-2.0
"""Cross-validation over the drives of CamVid: train a recipe without each drive in turn, and score it on that drive.

``python studies/cross_validation.py config/training/swiftnet_lite2_camvid.yaml`` prints the scores in docs/models.md.
With ``--netwarp config/training/swiftnet_lite2_netwarp_camvid.yaml``, NetWarp is then trained on each host, without the
drive too, and both are scored on the drive's stills set in motion, and on its video where the recipe has one. Frames of
a drive resemble one another, so only a drive that is left out as a whole shows how a model does on new drives. A run
that was stopped continues from its checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from netwarp_ros.datasets.moving_stills import MovingStills
from netwarp_ros.datasets.samples import SampleFrames, Samples
from netwarp_ros.evaluation.results import EvaluationResults
from netwarp_ros.evaluation.scoring import evaluate
from netwarp_ros.models import load_model
from netwarp_ros.recordings.frames import Frame, FrameSource, stamp
from netwarp_ros.segmenter import Segmenter
from netwarp_ros.training.config import CamVidConfig, Source, TrainingConfig, load_config
from netwarp_ros.training.data import open_sources
from netwarp_ros.training.trainer import train, validate

DRIVES = ("0001TP", "0006R0", "0016E5")
"""Drives of CamVid's training split. The name of a frame starts with that of its drive."""

VIDEO_RATE = 15.0  # of CamVid's video, in Hz
CLIP = 8  # frames of a still in motion


class Video(FrameSource):
    """All frames of a data set as one recording."""

    def __init__(self, samples: Samples) -> None:
        super().__init__()
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, begin: int = 0, end: int | None = None) -> Iterator[Frame]:
        for index in range(len(self))[begin:end]:
            sample = self.samples[index]
            yield Frame(index, stamp(index, VIDEO_RATE), sample.name, sample.image)

    def label(self, frame: Frame) -> np.ndarray:
        """Return the label map of a frame."""
        return self.samples[frame.index].label


def fold(recipe: TrainingConfig, drive: str, steps: int | None = None) -> TrainingConfig:
    """Return a recipe that leaves out a drive and is validated on its stills."""
    pattern = f"{drive}_*"
    data, held_out = list[Source](), list[Source]()
    for source in recipe.data:
        if not isinstance(source, CamVidConfig):
            data.append(source)
            continue
        (samples,) = open_sources((source,), recipe.augment)
        names = [samples.name(index) for index in range(len(samples))]
        if not all(fnmatchcase(name, pattern) for name in names):
            data.append(dataclasses.replace(source, leave_out=(*source.leave_out, pattern)))
        if any(fnmatchcase(name, pattern) for name in names):
            held_out.append(dataclasses.replace(source, names=(pattern,), leave_out=()))
    steps = steps or recipe.optimiser.steps
    return dataclasses.replace(
        recipe,
        data=tuple(data),
        validation=tuple(held_out),
        optimiser=dataclasses.replace(recipe.optimiser, steps=steps),
        output=str(Path(recipe.output) / f"without_{drive}"),
        evaluate_every=steps,
    )


def netwarp_scores(recipe: TrainingConfig, host: Path, drive: str, steps: int | None) -> dict[str, EvaluationResults]:
    """Train NetWarp on a host without a drive; return the scores of both on the drive, by what they were scored on."""
    model = dataclasses.replace(recipe.model, initial=str(host))
    without = fold(dataclasses.replace(recipe, model=model), drive, steps)
    weights = train(dataclasses.replace(without, validation=()))
    results = {}
    for source in without.validation:
        assert isinstance(source, CamVidConfig)
        (samples,) = open_sources((source,), without.augment)
        frames = SampleFrames(MovingStills(samples, CLIP), CLIP) if source.stills else Video(samples)
        segmenter = Segmenter(load_model(weights), precision="float32")
        kind = "stills in motion" if source.stills else "video"
        results[f"{drive}, {kind}"] = evaluate(frames, frames.label, segmenter, samples.classes, host=True, widths=(2,))
    return results


def main(
    recipe: Path,
    netwarp: Annotated[Path | None, typer.Option(help="Recipe of NetWarp, to train on each host.")] = None,
    drives: Annotated[
        list[str] | None, typer.Option("--drive", help="Drive to leave out; may be given more than once.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each training; by default, the recipe's.", min=1)] = None,
    netwarp_steps: Annotated[int | None, typer.Option(help="The same for NetWarp.", min=1)] = None,
) -> None:
    """Train a recipe without each drive of CamVid in turn, and score it on that drive."""
    config = load_config(recipe)
    scores, of_netwarp = {}, dict[str, EvaluationResults]()
    for drive in drives or DRIVES:
        without = fold(config, drive, steps)
        held_out = open_sources(without.validation, without.augment)
        host = train(without)
        scores[drive] = (sum(map(len, held_out)), validate(load_model(host), held_out, without))
        if netwarp is not None:
            of_netwarp |= netwarp_scores(load_config(netwarp), host, drive, netwarp_steps)
    print("| drive left out | frames | mIoU |\n|---|---|---|")
    for drive, (frames, miou) in scores.items():
        print(f"| {drive} | {frames} | {miou:.2f} |")
    print(f"| mean | | {np.mean([miou for _, miou in scores.values()]):.2f} |")
    if of_netwarp:
        print(
            "\n| | mIoU, host | NetWarp | trimap IoU, host | NetWarp | consistency, host | NetWarp |\n"
            + "|---" * 7
            + "|"
        )
    for name, result in of_netwarp.items():
        assert result.host is not None
        pairs = ((result.host.miou, result.miou), (result.host.tiou[2], result.tiou[2]), (result.host.tc, result.tc))
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for pair in pairs for value in pair) + " |")


if __name__ == "__main__":
    typer.run(main)
