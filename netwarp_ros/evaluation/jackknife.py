# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals of scores over frames that resemble their neighbors.

Frames of one drive are no independent draws: what is hard in one frame is hard in the next. Independent are recordings,
and pieces of a drive that are long compared with the time over which its frames resemble one another. The score is
computed again without each of them in turn (the blockwise jackknife: Künsch, "The jackknife and the bootstrap for
general stationary observations", Annals of Statistics 17, 1989). Student's distribution then gives the interval, as for
batch means (Schmeiser, "Batch size effects in the analysis of simulation output", Operations Research 30, 1982).

A drive is first cut into `FIRST_PIECES` pieces. The correlation of neighboring pieces, r, tells how many of them count
as independent: the share (1 - r) / (1 + r), as in an autoregressive series. They are joined to as many longer pieces.
`CORRELATION_LENGTH` and `MIN_PIECES` allow for r being a rough estimate. How often two equally good models are then
called different is measured by ``studies/compare_power.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

FIRST_PIECES = 30
"""Number of pieces that a drive is cut into at first: the most that Schmeiser recommends."""

CORRELATION_LENGTH = 2.5
"""Length of a joined piece in units of (1 + r) / (1 - r) first pieces."""

MIN_PIECES = 5
"""Least number of joined pieces. Where fewer would be independent, the interval is widened instead."""

_ROUNDING = 1e-9
"""Relative differences below this are rounding errors."""


class Interval(NamedTuple):
    """A confidence interval.

    Attributes:
        low: Lower end; -inf if there are too few units.
        high: Upper end; inf if there are too few units.
        units: Number of recordings, or of independent pieces of a drive, which is an estimate; 0 if there are too few.
    """

    low: float
    high: float
    units: float


def jackknife_interval(
    sums: np.ndarray, score: Callable[[np.ndarray], np.ndarray], *, independent: bool, confidence: float
) -> Interval:
    """Return the confidence interval of a score.

    Args:
        sums: ``(N, ...)``, what the score is computed from, for each recording, or for successive frames of a drive.
            Entries that are 0 throughout do not count.
        score: Computes the scores ``(D,)`` of D sums over some of the N, ``(D, ...)``.
        independent: Whether the N are independent, as recordings are and successive frames are not.
        confidence: In per cent.
    """
    sums = sums[sums.reshape(len(sums), -1).any(axis=1)]
    if not independent and len(sums) > FIRST_PIECES:
        sums = np.add.reduceat(sums, np.linspace(0, len(sums), FIRST_PIECES, endpoint=False).astype(int))
    count = len(sums)
    unknown = Interval(-math.inf, math.inf, 0)
    if count < (2 if independent else MIN_PIECES):
        return unknown
    total = sums.sum(axis=0)
    value = float(score(total[None])[0])
    values = count * value - (count - 1) * score(total - sums)  # pseudo-values, whose mean estimates the score
    if not np.isfinite(values).all():
        return unknown
    units = count if independent else independent_pieces(values)
    pieces = count if independent else max(int(units), MIN_PIECES)
    means = np.array([piece.mean() for piece in np.array_split(values, pieces)])
    error = means.std(ddof=1) / math.sqrt(min(units, pieces))
    half_width = student_quantile(confidence, pieces - 1) * error
    return Interval(value - half_width, value + half_width, units)


def independent_pieces(values: np.ndarray) -> float:
    """Return how many independent pieces successive values ``(N,)`` can be joined to.

    The correlation of neighbors is estimated by von Neumann's ratio ("Distribution of the ratio of the mean square
    successive difference to the variance", Annals of Mathematical Statistics 12, 1941).
    """
    deviations, steps = values - values.mean(), np.diff(values)
    spread, rounding = deviations @ deviations, len(values) * (_ROUNDING * np.abs(values).max()) ** 2
    correlation = max(0.0, 1 - (steps @ steps) / (2 * spread)) if spread > rounding else 0.0
    return len(values) / CORRELATION_LENGTH * (1 - correlation) / (1 + correlation)


def student_quantile(confidence: float, freedom: int) -> float:
    """Return the t that Student's distribution does not exceed in absolute value, with a confidence in per cent.

    With t = sqrt(freedom) tan(angle), the density of the angle is proportional to cos(angle)^(freedom - 1).
    """
    edges = np.linspace(0, math.pi / 2, 10_001)
    density = np.cos((edges[1:] + edges[:-1]) / 2) ** (freedom - 1)
    share = np.concatenate([[0], np.cumsum(density)]) / density.sum()
    return math.sqrt(freedom) * math.tan(np.interp(confidence / 100, share, edges))
