# SPDX-License-Identifier: Apache-2.0
"""Durations: how they are taken, and what is said of many."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter

import numpy as np


@contextmanager
def timed(stages: dict[str, float], name: str) -> Iterator[None]:
    """Note how long the body of a ``with`` statement takes, in ms, under a name."""
    start = perf_counter()
    yield
    stages[name] = (perf_counter() - start) * 1e3


class Stopwatch:
    """Adds up what the time goes to, in s."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = defaultdict(float)
        self.restart()

    def restart(self) -> None:
        self._last = perf_counter()

    def lap(self, name: str) -> None:
        """Add the time since the last lap, or restart, to a name's."""
        now = perf_counter()
        self.laps[name] += now - self._last
        self._last = now


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """Return the 50th, 95th and 99th percentile, as p50, p95 and p99."""
    return dict(zip(("p50", "p95", "p99"), np.percentile(list(values), (50, 95, 99)).tolist(), strict=True))
