# SPDX-License-Identifier: Apache-2.0
"""Cross-validation over drives: a recipe trained without each drive in turn, and judged on the labelled frames of it.

``python studies/cross_validation.py config/training/swiftnet_lite0_camvid.yaml`` prints the scores that
docs/models.md has. Frames of one drive resemble each other whichever of them were trained on, so that only a drive
that was left out whole says how a model does on new ones. A run that was stopped goes on where it was.
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
"""The drives of CamVid's training split; a frame's name starts with that of its drive."""


def fold(recipe: TrainingConfig, drive: str, steps: int, average: float) -> TrainingConfig:
    """Return the recipe without a drive, which it is validated on instead."""
    pattern = (f"{drive}_*",)
    camvid = [source for source in recipe.data if isinstance(source, CamVidConfig)]
    others = [source for source in recipe.data if source not in camvid]
    return dataclasses.replace(
        recipe,
        data=(*(dataclasses.replace(source, leave_out=source.leave_out + pattern) for source in camvid), *others),
        validation=tuple(dataclasses.replace(source, names=pattern, stills=True) for source in camvid),
        optimiser=dataclasses.replace(recipe.optimiser, steps=steps, average=average),
        output=str(Path(recipe.output) / f"without_{drive}"),
        evaluate_every=steps,
    )


def main(
    recipe: Path,
    drives: Annotated[list[str] | None, typer.Option("--drive", help="Leave out this one; again for more.")] = None,
    steps: Annotated[int, typer.Option(help="Of each training.", min=1)] = 600,
    average: Annotated[float, typer.Option(help="Decay of the moving average, shorter with fewer steps.")] = 0.99,
) -> None:
    """Train a recipe without each drive of CamVid in turn, and judge it on that drive."""
    config = load_config(recipe)
    scores = {}
    for drive in drives or DRIVES:
        without = fold(config, drive, steps, average)
        held_out = open_sources(without.validation, without.augment)
        scores[drive] = (sum(map(len, held_out)), validate(load_model(train(without)), held_out, without))
    print("| drive left out | frames | mIoU |\n|---|---|---|")
    for drive, (frames, miou) in scores.items():
        print(f"| {drive} | {frames} | {miou:.2f} |")
    print(f"| mean | | {np.mean([miou for _, miou in scores.values()]):.2f} |")


if __name__ == "__main__":
    typer.run(main)
