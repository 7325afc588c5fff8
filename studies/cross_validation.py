# SPDX-License-Identifier: Apache-2.0
"""Cross-validation over the drives of CamVid: train a recipe without each drive in turn, and score it on that drive.

``python studies/cross_validation.py config/training/swiftnet_lite2_camvid.yaml`` prints the scores in docs/models.md.
Frames of a drive resemble one another, so only a drive that is left out as a whole shows how a model does on new
drives. A run that was stopped continues from its checkpoint.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from netwarp_ros.models import load_model
from netwarp_ros.training.config import CamVidConfig, TrainingConfig, load_config
from netwarp_ros.training.data import open_sources
from netwarp_ros.training.trainer import train, validate

DRIVES = ("0001TP", "0006R0", "0016E5")
"""Drives of CamVid's training split. The name of a frame starts with that of its drive."""


def fold(recipe: TrainingConfig, drive: str, steps: int | None = None) -> TrainingConfig:
    """Return a recipe that leaves out a drive and is validated on it."""
    pattern = (f"{drive}_*",)
    camvid = [source for source in recipe.data if isinstance(source, CamVidConfig)]
    others = [source for source in recipe.data if source not in camvid]
    steps = steps or recipe.optimiser.steps
    return dataclasses.replace(
        recipe,
        data=(*(dataclasses.replace(source, leave_out=source.leave_out + pattern) for source in camvid), *others),
        validation=tuple(dataclasses.replace(source, names=pattern, stills=True) for source in camvid),
        optimiser=dataclasses.replace(recipe.optimiser, steps=steps),
        output=str(Path(recipe.output) / f"without_{drive}"),
        evaluate_every=steps,
    )


def main(
    recipe: Path,
    drives: Annotated[
        list[str] | None, typer.Option("--drive", help="Drive to leave out; may be given more than once.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each training; by default, the recipe's.", min=1)] = None,
) -> None:
    """Train a recipe without each drive of CamVid in turn, and score it on that drive."""
    config = load_config(recipe)
    scores = {}
    for drive in drives or DRIVES:
        without = fold(config, drive, steps)
        held_out = open_sources(without.validation, without.augment)
        scores[drive] = (sum(map(len, held_out)), validate(load_model(train(without)), held_out, without))
    print("| drive left out | frames | mIoU |\n|---|---|---|")
    for drive, (frames, miou) in scores.items():
        print(f"| {drive} | {frames} | {miou:.2f} |")
    print(f"| mean | | {np.mean([miou for _, miou in scores.values()]):.2f} |")


if __name__ == "__main__":
    typer.run(main)
