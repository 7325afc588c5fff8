# SPDX-License-Identifier: Apache-2.0
"""Durations: measured, added up, and summarised as percentiles. The segment node loads this: NumPy is all it needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter

import numpy as np


@contextmanager
def timed(stages_ms: dict[str, float], name: str) -> Iterator[None]:
    """Set ``stages_ms[name]`` to the duration in ms of the body of a ``with`` statement, if no error leaves it."""
    start = perf_counter()
    yield
    stages_ms[name] = (perf_counter() - start) * 1e3


class Stopwatch:
    """Adds up laps by name.

    Attributes:
        laps: Sum of the laps of each name, in s.
    """

    def __init__(self) -> None:
        self.laps: dict[str, float] = defaultdict(float)
        self.restart()

    def restart(self) -> None:
        """Begin a lap here, and drop the time since the last one."""
        self._start = perf_counter()

    def lap(self, name: str) -> None:
        """End the lap, add its duration to those of a name, and begin the next lap."""
        now = perf_counter()
        self.laps[name] += now - self._start
        self._start = now


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """Return the 50th, 95th and 99th percentile of at least one value, under the keys p50, p95 and p99."""
    return dict(zip(("p50", "p95", "p99"), np.percentile(list(values), (50, 95, 99)).tolist(), strict=True))
