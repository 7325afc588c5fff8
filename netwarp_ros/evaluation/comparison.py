# SPDX-License-Identifier: Apache-2.0
"""Comparison of two evaluations: how much their scores differ, and how certain that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from netwarp_ros.evaluation.jackknife import MIN_PIECES, jackknife_interval
from netwarp_ros.evaluation.observations import Observations
from netwarp_ros.metrics import iou

SMALLER_IS_BETTER = ("total_ms", "flicker")
"""Measures of which a smaller value is better; of ``flicker.CLASS``, the part before the dot."""

Score = Callable[[np.ndarray], np.ndarray]
"""Computes scores ``(...)`` of sums of counts ``(..., K, K)`` or ``(..., 2)``."""


@dataclass(frozen=True)
class Difference:
    """How two evaluations differ in one measure.

    Attributes:
        measure: ``miou``, ``iou.CLASS``, ``tiou.WIDTH``, ``tc``, ``flicker.CLASS`` or ``tc_unmasked``, in per cent; or
            ``total_ms``, the mean over the frames.
        first: Value of the first evaluation.
        second: Value of the second evaluation.
        low: Lower end of the confidence interval of second - first; -inf if nothing can be said.
        high: Upper end of it; inf if nothing can be said.
        units: Number of recordings, or of independent pieces of a drive, that the interval rests on.
    """

    measure: str
    first: float
    second: float
    low: float
    high: float
    units: float

    def is_worse(self, margin: float = 0.0) -> bool:
        """Tell whether the whole interval lies on the worse side, by more than a margin in the measure's unit."""
        return self.low > margin if self._smaller_is_better else self.high < -margin

    def is_better(self) -> bool:
        """Tell whether the whole interval lies on the better side."""
        return self.high < 0 if self._smaller_is_better else self.low > 0

    @property
    def uncertainty(self) -> float:
        """Half the width of the interval, whose middle is second - first; inf if nothing can be said."""
        return (self.high - self.low) / 2

    @property
    def is_known(self) -> bool:
        """Whether there is an interval: there are enough independent units for one."""
        return math.isfinite(self.high)

    @property
    def _smaller_is_better(self) -> bool:
        return self.measure.partition(".")[0] in SMALLER_IS_BETTER

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; None stands for an end that is not known."""
        ends = {name: getattr(self, name) if self.is_known else None for name in ("low", "high")}
        return {**vars(self), **ends, "difference": self.second - self.first}


def compare(first: Observations, second: Observations, *, confidence: float = 95.0) -> list[Difference]:
    """Compare two evaluations.

    Args:
        first: The first of `read_pair`.
        second: The second of `read_pair`.
        confidence: Confidence of the intervals in per cent.

    Returns:
        The difference in each measure that both have.

    Raises:
        ValueError: If the confidence is out of its range.
    """
    if not 0 < confidence < 100:
        raise ValueError(f"confidence is {confidence}: give 0 < confidence < 100")
    differences = []
    seconds = {measure: counts for measure, counts, _ in _measures(second)}
    for measure, counts, score in _measures(first):
        if measure not in seconds:
            continue
        pair = np.stack([counts, seconds[measure]], axis=1)
        before, after = (float(value) for value in score(pair.sum(axis=0)))
        if math.isnan(before + after):
            continue
        interval = jackknife_interval(pair, _difference_in(score), independent=first.independent, confidence=confidence)
        differences.append(Difference(measure, before, after, *interval))
    return differences


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


def describe(difference: Difference, observations: Observations) -> str:
    """Say in words how a measure differs, and how much or little the observations can show."""
    name, frames = difference.measure, f"{observations.frames} frames"
    if not difference.is_known:
        return f"{name}: not known, it occurs in too few of the {frames}: give at least {MIN_PIECES}, or 2 recordings"
    if observations.independent:
        basis = f"{round(difference.units)} recordings, {frames}"
    else:
        basis = f"{frames} of one drive, which count as {difference.units:.1f} independent pieces"
    change = f"{difference.second - difference.first:+.2f} ± {difference.uncertainty:.2f}"
    known = "B is worse" if difference.is_worse() else "B is better" if difference.is_better() else ""
    return f"{name}: {known or 'no clear difference'}, {change} ({basis})"


def _measures(observations: Observations) -> Iterator[tuple[str, np.ndarray, Score]]:
    """Yield each measure, the counts ``(N, ...)`` that it is computed from, and how."""
    for name, counts in observations.counts.items():
        yield ("miou" if name == "iou" else name), counts, _mean_iou
        if name in ("iou", "tc"):
            intersection, labelled = np.diagonal(counts, axis1=1, axis2=2), counts.sum(axis=2)
            by_class = np.stack([intersection, labelled + counts.sum(axis=1) - intersection], axis=2)
            for index, class_name in enumerate(observations.classes):
                if name == "tc":
                    yield f"flicker.{class_name}", by_class[:, index], lambda sums: 100 - 100 * _ratio(sums)
                elif labelled[:, index].any():
                    yield f"iou.{class_name}", by_class[:, index], lambda sums: 100 * _ratio(sums)
    yield "total_ms", observations.times, _ratio


def _difference_in(score: Score) -> Score:
    """Return what computes the differences ``(D,)`` of the scores of D pairs of sums, ``(D, 2, ...)``."""
    return lambda pairs: np.diff(score(pairs), axis=1)[:, 0]


def _mean_iou(confusion: np.ndarray) -> np.ndarray:
    """Compute the mean IoU over the labelled classes, as `miou` does, of matrices ``(..., K, K)``."""
    labelled = confusion.sum(axis=-1) > 0
    return _ratio(np.stack([np.where(labelled, iou(confusion), 0).sum(axis=-1), labelled.sum(axis=-1)], axis=-1))


def _ratio(pairs: np.ndarray) -> np.ndarray:
    """Divide pairs ``(..., 2)``; nan where the divisor is 0."""
    with np.errstate(invalid="ignore"):
        return pairs[..., 0] / pairs[..., 1]
