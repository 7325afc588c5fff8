# SPDX-License-Identifier: Apache-2.0
"""How often `netwarp compare` calls equally good models different, and how often it sees a true difference.

``python studies/compare_power.py`` prints the table in docs/evaluation.md. Frames of a drive resemble one another. So
the noise of each model, and that of the scene, which both share, is an autoregressive series AR(1) with a given
correlation of neighbors. It may also be the sum of two, as where the scene changes slowly, and each frame a little. The
difference of the two models in one frame has a standard deviation of 2 per cent of mean IoU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Annotated

import numpy as np
import typer

from netwarp_ros.evaluation.comparison import Difference, compare
from netwarp_ros.evaluation.observations import Observations

CORRELATIONS = ((0.0,), (0.5,), (0.9,), (0.97,), (0.0, 0.9), (0.0, 0.97))
"""Correlations of neighboring frames, of the parts of the noise."""

PIXELS, RIGHT, PER_CENT = 1000, 800, 7.2
"""Pixels of each of two classes in a frame; how many of them are right; how many more raise the mean IoU by 1."""


def main(
    runs: Annotated[int, typer.Option(help="Comparisons for each cell of the table.", min=1)] = 1000,
    frames: Annotated[list[int] | None, typer.Option(help="Lengths of the drive.", min=5)] = None,
) -> None:
    """Print a table of how often models are called different."""
    print("| Frames | Correlation | Equal models called different | Better by 1: seen | Better by 2: seen | Median ± |")
    print("|---|---|---|---|---|---|")
    for count, correlations in product(frames or (300, 1000, 3000), CORRELATIONS):
        rng = np.random.default_rng(0)
        found = {gain: compare_often(rng, correlations, (runs, count), gain) for gain in (0, 1, 2)}
        wrong = np.mean([one.is_worse() or one.is_better() for one in found[0]])
        right = [np.mean([one.is_better() for one in found[gain]]) for gain in (1, 2)]
        width = np.median([one.uncertainty for one in found[0]])
        name = " and ".join(map(str, correlations))
        shares = f"{100 * wrong:.1f} % | {100 * right[0]:.0f} % | {100 * right[1]:.0f} %"
        print(f"| {count} | {name} | {shares} | {width:.2f} |", flush=True)


def compare_often(
    rng: np.random.Generator, correlations: Sequence[float], shape: tuple[int, int], gain: float
) -> list[Difference]:
    """Compare pairs of models, of which the second is better by ``gain`` per cent of mean IoU."""
    scene = RIGHT + noise(rng, correlations, shape, 30)
    first, second = (scene + noise(rng, correlations, shape, 10) for _ in range(2))
    pairs = zip(first, second + gain * PER_CENT, strict=True)
    return [compare(observations(before), observations(after))[0] for before, after in pairs]


def noise(
    rng: np.random.Generator, correlations: Sequence[float], shape: tuple[int, int], deviation: float
) -> np.ndarray:
    """Draw series ``(runs, frames)`` with a standard deviation."""
    parts = []
    for correlation in correlations:
        part = rng.normal(0, deviation / math.sqrt(len(correlations)), shape)
        for index in range(1, shape[1]):
            part[:, index] = correlation * part[:, index - 1] + math.sqrt(1 - correlation**2) * part[:, index]
        parts.append(part)
    return np.sum(parts, axis=0)


def observations(right: np.ndarray) -> Observations:
    """Return frames of which so many pixels of each class are right."""
    hits = np.clip(right, 0, PIXELS)
    counts = np.stack([np.stack([hits, PIXELS - hits], 1), np.stack([PIXELS - hits, hits], 1)], 1)
    return Observations([""] * len(hits), ("a", "b"), {"iou": counts}, np.ones((len(hits), 2)))


if __name__ == "__main__":
    typer.run(main)
