# SPDX-License-Identifier: Apache-2.0
"""Comparison of two evaluations by the paired bootstrap: how much their scores differ, and how certain that is.

The paired bootstrap (Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13) draws frames, or bags, with
replacement, the same ones for both evaluations. It computes each score again from the counts of those drawn. After many
draws, percentiles of the differences are their confidence intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from netwarp_ros.evaluation.results import dense, read_json
from netwarp_ros.metrics import iou

SMALLER_IS_BETTER = ("total_ms", "flicker")
"""Measures of which a smaller value is better; of ``flicker.CLASS``, the part before the dot."""

_BATCH = 100
"""Number of draws computed at a time."""


@dataclass(frozen=True)
class Difference:
    """How two evaluations differ in one measure.

    Attributes:
        measure: ``miou``, ``iou.CLASS``, ``tiou.WIDTH``, ``tc``, ``flicker.CLASS`` or ``tc_unmasked``, in per cent; or
            ``total_ms``, the mean over the frames.
        first: Value of the first evaluation.
        second: Value of the second evaluation.
        low: Lower end of the confidence interval of second - first.
        high: Upper end of it.
    """

    measure: str
    first: float
    second: float
    low: float
    high: float

    def is_worse(self, margin: float = 0.0) -> bool:
        """Tell whether the whole interval lies on the worse side, by more than a margin in the measure's unit."""
        return self.low > margin if self._smaller_is_better else self.high < -margin

    def is_better(self) -> bool:
        """Tell whether the whole interval lies on the better side."""
        return self.high < 0 if self._smaller_is_better else self.low > 0

    @property
    def _smaller_is_better(self) -> bool:
        return self.measure.partition(".")[0] in SMALLER_IS_BETTER

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "difference": self.second - self.first}


@dataclass(frozen=True)
class Observations:
    """What the bootstrap draws from: N frames or bags of one evaluation, with K classes.

    Attributes:
        names: Their names.
        classes: Names of the classes.
        counts: Confusion matrices ``(N, K, K)`` by measure: ``iou``, ``tiou.WIDTH``, ``tc``, ``tc_unmasked``.
        times: ``(N, 2)``: total milliseconds, and the number of frames in that total.
    """

    names: Sequence[str]
    classes: Sequence[str]
    counts: dict[str, np.ndarray]
    times: np.ndarray

    def sum(self, name: str) -> Observations:
        """Add up all observations to a single one."""
        counts = {measure: values.sum(axis=0, keepdims=True) for measure, values in self.counts.items()}
        return Observations([name], self.classes, counts, self.times.sum(axis=0, keepdims=True))


def read_pair(first: Path, second: Path) -> tuple[Observations, Observations]:
    """Read two evaluations of the same recordings.

    Args:
        first: A file written by ``netwarp evaluate --json``, to draw its frames; or a folder of such files, one for
            each bag, to draw bags.
        second: A file with the same frames, or a folder with files of the same names.

    Raises:
        ValueError: If a file does not hold such results, or the two differ in frames, classes or labels.
    """
    if not first.is_dir():
        pair = _read(first), _read(second)
        _check_pair(first, second, *pair)
        return pair
    names = [sorted(path.name for path in folder.glob("*.json")) for folder in (first, second)]
    if names[0] != names[1] or not names[0]:
        unpaired = ", ".join(sorted(set(names[0]) ^ set(names[1]))) or "no file at all"
        raise ValueError(f"{first} and {second} must hold JSON files of the same names, but there is {unpaired} in one")
    pairs = []
    for name in names[0]:
        bags = _read(first / name), _read(second / name)
        _check_pair(first / name, second / name, *bags)
        pairs.append([bag.sum(name) for bag in bags])
    joined = [_join(bags) for bags in zip(*pairs, strict=True)]
    return joined[0], joined[1]


def compare(
    first: Observations, second: Observations, *, draws: int = 2000, confidence: float = 95.0, seed: int = 0
) -> list[Difference]:
    """Compare two evaluations.

    Args:
        first: The first of `read_pair`.
        second: The second of `read_pair`.
        draws: Number of draws.
        confidence: Confidence of the intervals in per cent.
        seed: Seed of the draws; the same seed gives the same intervals.

    Returns:
        The difference in each measure that both have.

    Raises:
        ValueError: If there are fewer than two frames or bags, or an argument is out of its range.
    """
    count = len(first.names)
    if count < 2:
        raise ValueError(f"there is {count} to draw from: give at least 2 frames, or folders of at least 2 bags")
    if draws < 1 or not 0 < confidence < 100:
        raise ValueError(f"draws is {draws}, confidence is {confidence}: give draws > 0 and 0 < confidence < 100")
    drawn = paired_bootstrap(first, second, draws, np.random.default_rng(seed))
    all_once = np.ones((1, count))
    before, after = (
        {measure: float(values[0]) for measure, values in _scores(observations, all_once)}
        for observations in (first, second)
    )
    tails = [50 - confidence / 2, 50 + confidence / 2]
    differences = []
    for measure in before:
        if measure in after and not np.isnan([before[measure], after[measure]]).any():
            low, high = np.nanpercentile(drawn[measure], tails)
            differences.append(Difference(measure, before[measure], after[measure], float(low), float(high)))
    return differences


def paired_bootstrap(
    first: Observations, second: Observations, draws: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draw observations with replacement, the same for both evaluations, and compute how the scores differ.

    Returns:
        second - first by measure, ``(draws,)`` each.
    """
    count = len(first.names)
    differences: dict[str, list[np.ndarray]] = {}
    for start in range(0, draws, _BATCH):
        times_drawn = rng.multinomial(count, [1 / count] * count, size=min(_BATCH, draws - start)).astype(float)
        firsts, seconds = (dict(_scores(observations, times_drawn)) for observations in (first, second))
        for measure in firsts.keys() & seconds.keys():
            differences.setdefault(measure, []).append(seconds[measure] - firsts[measure])
    return {measure: np.concatenate(batches) for measure, batches in differences.items()}


def select_gates(differences: Sequence[Difference], measures: Sequence[str]) -> list[Difference]:
    """Return the differences that the gate checks: ``measures``, by default ``miou``, or ``tc`` without labels.

    Raises:
        ValueError: If a measure was not compared.
    """
    by_measure = {difference.measure: difference for difference in differences}
    chosen = measures or ["tc" if "tc" in by_measure and "miou" not in by_measure else "miou"]
    for measure in chosen:
        if measure not in by_measure:
            raise ValueError(f"there is no {measure} in both results: choose one of {', '.join(by_measure)}")
    return [by_measure[measure] for measure in chosen]


def _scores(observations: Observations, times_drawn: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Compute each measure for D draws, ``(D,)``, given how often each observation was drawn, ``(D, N)``."""
    for name, counts in observations.counts.items():
        sums = (times_drawn @ counts.reshape(len(counts), -1)).reshape(-1, *counts.shape[1:])
        by_class, labelled = iou(sums), sums.sum(axis=-1) > 0
        with np.errstate(invalid="ignore"):
            mean = np.where(labelled, by_class, 0).sum(axis=-1) / labelled.sum(axis=-1)
        yield ("miou" if name == "iou" else name), mean
        if name == "iou":
            for index, class_name in enumerate(observations.classes):
                yield f"iou.{class_name}", np.where(labelled[:, index], by_class[:, index], np.nan)
        elif name == "tc":
            for index, class_name in enumerate(observations.classes):
                yield f"flicker.{class_name}", 100 - by_class[:, index]
    milliseconds, frames = (times_drawn @ observations.times).T
    yield "total_ms", milliseconds / frames


def _read(path: Path) -> Observations:
    """Read the frames of one evaluation."""
    results = read_json(path)
    frames, classes = results["per_frame"], list(results["iou"])

    def stack(counts: Iterable[Sequence[int] | None]) -> np.ndarray:
        return np.stack([dense(pairs or [], len(classes)) for pairs in counts]).astype(float)

    try:
        counts = {"iou": stack(frame["confusion"] for frame in frames)}
        for width in results["tiou"]:
            counts[f"tiou.{width}"] = stack(frame["tiou"].get(width) for frame in frames)
        for measure in ("tc", "tc_unmasked"):
            counts[measure] = stack(frame[measure] for frame in frames)
        times = np.array([[sum(frame["stages_ms"].values()), 1.0] for frame in frames])
        return Observations([f"{frame['camera']} {frame['name']}".strip() for frame in frames], classes, counts, times)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} has frames that cannot be read: {error}") from error


def _check_pair(first: Path, second: Path, before: Observations, after: Observations) -> None:
    """Check that two files have the same classes, frames and labels.

    Raises:
        ValueError: If they do not.
    """
    if list(before.classes) != list(after.classes):
        raise ValueError(f"{first} has the classes {', '.join(before.classes)}, {second} {', '.join(after.classes)}")
    if len(before.names) != len(after.names):
        raise ValueError(
            f"{first} has {len(before.names)} frames, {second} has {len(after.names)}: give results on the same frames"
        )
    for ours, theirs in zip(before.names, after.names, strict=True):
        if ours != theirs:
            raise ValueError(f"a frame is {ours} in {first}, but {theirs} in {second}: give results on the same frames")
    labelled = [observations.counts["iou"].sum(axis=2) for observations in (before, after)]
    differing = np.flatnonzero((labelled[0] != labelled[1]).any(axis=1))
    if differing.size:
        raise ValueError(
            f"{before.names[differing[0]]} has another label in {first} than in {second}: give results on the same "
            "labels"
        )


def _join(bags: Sequence[Observations]) -> Observations:
    """Put the observations of several bags into one, with the measures that all of them have."""
    measures = [measure for measure in bags[0].counts if all(measure in bag.counts for bag in bags)]
    return Observations(
        [name for bag in bags for name in bag.names],
        bags[0].classes,
        {measure: np.concatenate([bag.counts[measure] for bag in bags]) for measure in measures},
        np.concatenate([bag.times for bag in bags]),
    )
