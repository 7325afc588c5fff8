# SPDX-License-Identifier: Apache-2.0
"""Two evaluations of the same recordings: how far they differ, and how sure that is.

Intervals are of the paired bootstrap (Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13): frames, or
bags, are drawn with replacement, the same ones for both, and each score is computed anew from what was drawn.
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
_BATCH = 100
"""Draws that are computed at a time."""


@dataclass(frozen=True)
class Difference:
    """One measure of the two.

    Attributes:
        measure: ``miou``, ``iou.CLASS``, ``tiou.WIDTH``, ``tc``, ``flicker.CLASS`` and ``tc_unmasked`` in per cent, and
            ``total_ms``, the mean over the frames.
        first: What the first has.
        second: What the second has.
        low: The least that the second has more, at the confidence asked for; negative where it has less.
        high: The most that it has more.
    """

    measure: str
    first: float
    second: float
    low: float
    high: float

    def is_worse(self, margin: float = 0.0) -> bool:
        """Tell whether the second is worse for sure, by more than a margin in the measure's own unit."""
        return self.low > margin if self._smaller_is_better else self.high < -margin

    def is_better(self) -> bool:
        """Tell whether the second is better for sure."""
        return self.high < 0 if self._smaller_is_better else self.low > 0

    @property
    def _smaller_is_better(self) -> bool:
        return self.measure.partition(".")[0] in SMALLER_IS_BETTER

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "difference": self.second - self.first}


@dataclass(frozen=True)
class Observations:
    """What can be drawn: frames, or bags.

    Attributes:
        names: What they are called.
        classes: Names of the classes.
        counts: Counts of pixels by measure (``iou``, ``tiou.WIDTH``, ``tc``, ``tc_unmasked``), ``(U, K, K)``.
        times: Milliseconds, and the number of frames that took them, ``(U, 2)``.
    """

    names: Sequence[str]
    classes: Sequence[str]
    counts: dict[str, np.ndarray]
    times: np.ndarray

    def sum(self, name: str) -> Observations:
        """Return all of them as one."""
        counts = {measure: values.sum(axis=0, keepdims=True) for measure, values in self.counts.items()}
        return Observations([name], self.classes, counts, self.times.sum(axis=0, keepdims=True))


def read_pair(first: Path, second: Path) -> tuple[Observations, Observations]:
    """Read what is to be compared.

    Args:
        first: What ``netwarp evaluate --json`` wrote, to be compared over its frames; or a folder of such files, one
            for each bag, to be compared over the bags.
        second: The same of the same frames, or a folder of files that are called the same.

    Raises:
        ValueError: If a file holds no such results, or the two are not of the same frames, classes and labels.
    """
    if not first.is_dir():
        pair = _read(first), _read(second)
        _check_pair(first, second, *pair)
        return pair
    names = [sorted(path.name for path in folder.glob("*.json")) for folder in (first, second)]
    if names[0] != names[1] or not names[0]:
        lone = ", ".join(sorted(set(names[0]) ^ set(names[1]))) or "no file at all"
        raise ValueError(f"{first} and {second} must hold JSON files of the same names, but there is {lone} in one")
    pairs = []
    for name in names[0]:
        bags = _read(first / name), _read(second / name)
        _check_pair(first / name, second / name, *bags)
        pairs.append([bag.sum(name) for bag in bags])
    joined = [_join(observations) for observations in zip(*pairs, strict=True)]
    return joined[0], joined[1]


def compare(
    first: Observations, second: Observations, *, draws: int = 2000, confidence: float = 95.0, seed: int = 0
) -> list[Difference]:
    """Compare two evaluations.

    Args:
        first: Of `read_pair`.
        second: Of the same.
        draws: How often to draw.
        confidence: Of the intervals, in per cent.
        seed: Of the draws: the same one gives the same intervals.

    Returns:
        A difference for each measure that both have.

    Raises:
        ValueError: If there are fewer than two frames or bags, or an argument is out of its range.
    """
    count = len(first.names)
    if count < 2:
        raise ValueError(f"there is {count} to draw from: give at least 2 frames, or folders of at least 2 bags")
    if draws < 1 or not 0 < confidence < 100:
        raise ValueError(f"draws is {draws}, confidence is {confidence}: give draws > 0 and 0 < confidence < 100")
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[np.ndarray]] = {}
    for start in range(0, draws, _BATCH):
        times_drawn = rng.multinomial(count, [1 / count] * count, size=min(_BATCH, draws - start)).astype(float)
        before, after = (dict(_scores(observations, times_drawn)) for observations in (first, second))
        for measure in before.keys() & after.keys():
            drawn.setdefault(measure, []).append(after[measure] - before[measure])
    whole = np.ones((1, count))
    present = [dict(_scores(observations, whole)) for observations in (first, second)]
    tails = [50 - confidence / 2, 50 + confidence / 2]
    differences = []
    for measure in present[0]:
        if measure in present[1] and not np.isnan([scores[measure][0] for scores in present]).any():
            low, high = np.nanpercentile(np.concatenate(drawn[measure]), tails)
            values = [float(scores[measure][0]) for scores in present]
            differences.append(Difference(measure, values[0], values[1], float(low), float(high)))
    return differences


def select_gates(differences: Sequence[Difference], measures: Sequence[str]) -> list[Difference]:
    """Return the differences that count in a gate: those of the measures, by default mIoU, or TC without labels.

    Raises:
        ValueError: If a measure is none of those compared.
    """
    known = {difference.measure: difference for difference in differences}
    chosen = measures or ["tc" if "tc" in known and "miou" not in known else "miou"]
    for measure in chosen:
        if measure not in known:
            raise ValueError(f"there is no {measure} in both results: choose one of {', '.join(known)}")
    return [known[measure] for measure in chosen]


def _scores(observations: Observations, times_drawn: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Compute the measures where each unit was drawn so many times, ``(D, U)``; each is ``(D,)``."""
    for name, counts in observations.counts.items():
        sums = (times_drawn @ counts.reshape(len(counts), -1)).reshape(-1, *counts.shape[1:])
        of_classes, labelled = iou(sums), sums.sum(axis=-1) > 0
        with np.errstate(invalid="ignore"):
            mean = np.where(labelled, of_classes, 0).sum(axis=-1) / labelled.sum(axis=-1)
        yield ("miou" if name == "iou" else name), mean
        if name == "iou":
            for index, class_name in enumerate(observations.classes):
                yield f"iou.{class_name}", np.where(labelled[:, index], of_classes[:, index], np.nan)
        elif name == "tc":
            for index, class_name in enumerate(observations.classes):
                yield f"flicker.{class_name}", 100 - of_classes[:, index]
    milliseconds, frames = (times_drawn @ observations.times).T
    yield "total_ms", milliseconds / frames


def _read(path: Path) -> Observations:
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


def _join(observations: Sequence[Observations]) -> Observations:
    measures = [measure for measure in observations[0].counts if all(measure in each.counts for each in observations)]
    return Observations(
        [name for each in observations for name in each.names],
        observations[0].classes,
        {measure: np.concatenate([each.counts[measure] for each in observations]) for measure in measures},
        np.concatenate([each.times for each in observations]),
    )
