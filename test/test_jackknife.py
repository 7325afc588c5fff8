# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals over frames that resemble their neighbors: their values, and how often they err."""

from __future__ import annotations

import math

import numpy as np
import pytest

from netwarp_ros.evaluation.comparison import Difference, compare
from netwarp_ros.evaluation.jackknife import independent_pieces, jackknife_interval, student_quantile
from netwarp_ros.evaluation.observations import Observations

FRAMES = 300
RUNS = 600


def share(sums: np.ndarray) -> np.ndarray:
    """A score that is linear where the second number is constant."""
    return sums[..., 0] / sums[..., 1]


def pairs(values: object) -> np.ndarray:
    numbers = np.asarray(values, float)
    return np.stack([numbers, np.ones_like(numbers)], axis=1)


# Values


@pytest.mark.parametrize(
    ("confidence", "freedom", "quantile"),
    [(95, 1, 12.7062), (95, 2, 4.3027), (95, 4, 2.7764), (95, 29, 2.0452), (99, 1, 63.657), (95, 10_000, 1.9602)],
)
def test_students_quantiles_are_those_of_the_tables(confidence: float, freedom: int, quantile: float) -> None:
    assert student_quantile(confidence, freedom) == pytest.approx(quantile, rel=1e-4)


def test_the_interval_over_recordings_is_students() -> None:
    """Mean 3, standard deviation 2, t = 4.3027 for three recordings."""
    low, high, units = jackknife_interval(pairs([1, 3, 5]), share, independent=True, confidence=95)
    assert (low, high) == pytest.approx((3 - 4.3027 * 2 / math.sqrt(3), 3 + 4.3027 * 2 / math.sqrt(3)), rel=1e-4)
    assert units == 3


def test_recordings_count_by_their_length() -> None:
    """Ten times as many frames of the same values change nothing."""
    sums = np.array([[8.0, 2], [9, 3], [2, 1]])
    low, high, _ = jackknife_interval(sums, share, independent=True, confidence=90)
    assert jackknife_interval(10 * sums, share, independent=True, confidence=90)[:2] == pytest.approx((low, high))
    assert (low + high) / 2 == pytest.approx(19 / 6)


def test_pieces_are_joined_where_neighbors_resemble_one_another() -> None:
    """Without correlation, 2.5 pieces are joined to one; with a correlation r, (1 + r) / (1 - r) times as many."""
    assert independent_pieces(np.array([1.0, -1] * 15)) == 12
    assert independent_pieces(np.full(30, 0.1) * 3) == 12  # constant but for rounding
    assert independent_pieces(np.array([1.0, 1, 1, -1, -1, -1] * 5)) == pytest.approx(12 * (1 - 0.4) / (1 + 0.4))
    assert independent_pieces(np.arange(30.0)) < 0.3


def test_where_frames_say_nothing_the_interval_is_infinite() -> None:
    infinite = (-math.inf, math.inf, 0)
    assert jackknife_interval(pairs([1, 2, 1, 2]), share, independent=False, confidence=95) == infinite
    assert jackknife_interval(pairs([1]), share, independent=True, confidence=95) == infinite
    with_nothing = np.concatenate([pairs([1, 2, 1, 2]), np.zeros((9, 2))])
    assert jackknife_interval(with_nothing, share, independent=False, confidence=95) == infinite
    with np.errstate(divide="ignore", invalid="ignore"):
        in_one = np.array([[1.0, 1]] + 9 * [[1, 0]])  # without the first, nothing is left to divide by
        assert jackknife_interval(in_one, share, independent=False, confidence=95).units == 0


def test_a_constant_difference_is_certain() -> None:
    low, high, _ = jackknife_interval(pairs(np.full(300, 0.3)), share, independent=False, confidence=95)
    assert (low, high) == pytest.approx((0.3, 0.3))


# Errors and power


def series(rng: np.random.Generator, correlation: float, deviation: float) -> np.ndarray:
    """Draw a series of frames, each of which resembles its neighbors: AR(1)."""
    steps = rng.normal(0, deviation * math.sqrt(1 - correlation**2), FRAMES)
    values = np.empty(FRAMES)
    values[0] = rng.normal(0, deviation)
    for index in range(1, FRAMES):
        values[index] = correlation * values[index - 1] + steps[index]
    return values


def observations(hits: np.ndarray) -> Observations:
    """Frames of 1000 pixels of each class, so many of them right. 7.2 more are 1 per cent of mean IoU."""
    hits = np.clip(hits, 0, 1000)
    counts = np.stack([np.stack([hits, 1000 - hits], 1), np.stack([1000 - hits, hits], 1)], 1)
    return Observations([""] * FRAMES, ("a", "b"), {"iou": counts}, np.ones((FRAMES, 2)))


def differences(correlations: tuple[float, ...], gain: float = 0.0) -> list[Difference]:
    """Compare models that are equally good but for ``gain``; their noise is a sum of equal parts."""
    rng = np.random.default_rng(0)

    def noise(deviation: float) -> np.ndarray:
        return sum(series(rng, one, deviation / math.sqrt(len(correlations))) for one in correlations)

    compared = []
    for _ in range(RUNS):
        shared = 800 + noise(30)
        first, second = observations(shared + noise(10)), observations(shared + noise(10) + gain)
        compared.append(compare(first, second)[0])
    return compared


@pytest.mark.parametrize("correlations", [(0.0,), (0.9,), (0.97,), (0.0, 0.9)], ids=str)
def test_equal_models_are_rarely_called_different(correlations: tuple[float, ...]) -> None:
    """5 per cent are meant."""
    compared = differences(correlations)
    assert {difference.measure for difference in compared} == {"miou"}
    assert np.mean([difference.is_worse() or difference.is_better() for difference in compared]) <= 0.08


@pytest.mark.parametrize(("correlation", "power"), [(0.0, 0.95), (0.9, 0.25), (0.97, 0.08)])
def test_a_difference_of_one_per_cent_is_seen_where_frames_differ(correlation: float, power: float) -> None:
    compared = differences((correlation,), gain=7.2)
    assert np.mean([difference.second - difference.first for difference in compared]) == pytest.approx(1, abs=0.1)
    assert np.mean([difference.is_better() for difference in compared]) >= power
