# SPDX-License-Identifier: Apache-2.0
"""The segment node under load, compared with its host alone and with a node as in tutorials.

Here are the figures, the search for the peak rate, and the table. `netwarp_ros.node.tools.load_test` runs the nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MAX_DROPPED_PERCENT = 5.0
"""The peak is the highest rate at which less than this percentage of images is dropped."""

RATE_STEP = 1.25
"""Factor between the rates of the search for the peak, until one rate is served and the next one is not."""

HALVINGS = 2
"""How often the interval between those two rates is then halved."""

LOWEST_RATE = 0.2
"""Lowest rate in Hz that the search tries."""


@dataclass(frozen=True)
class Run:
    """One node under one load, measured from the end of the warm-up to the end of sending.

    Attributes:
        system: ``netwarp``, the segment node; ``viewed``, the same with a subscriber of its overlays; ``host``, the
            segment node with ``host_only``; or ``plain``, a node as in tutorials.
        cameras: Number of cameras. They send at the same moment.
        width: Width of the images in pixels.
        height: Height of the images in pixels.
        rate: Images per second that each camera should send.
        seconds: Duration.
        sent: Number of images that the cameras sent.
        masks: Number of masks that the node published.
        stages_ms: p50, p95 and p99 of the durations in `FrameTiming`, and of ``own``, the node's own cost: from the
            image callback to the published mask, without flow and network. Empty if there was no mask.
        cpu: Mean number of CPU cores that the node's process used.
        memory_mb: Resident memory of the node's process at the end, in 10^6 bytes.
        peak: Whether this is the peak rate.
    """

    system: str
    cameras: int
    width: int
    height: int
    rate: float
    seconds: float
    sent: int
    masks: int
    stages_ms: dict[str, dict[str, float]]
    cpu: float
    memory_mb: float
    peak: bool = False

    @property
    def dropped(self) -> float:
        """Per cent of the images sent for which no mask was published in the same time, at least 0."""
        return max(0.0, 100 * (1 - self.masks / self.sent)) if self.sent else 0.0

    @property
    def served(self) -> bool:
        """Whether the cameras kept their rate, and the node kept up with them."""
        least_sent = (1 - MAX_DROPPED_PERCENT / 100) * self.rate * self.seconds * self.cameras
        return self.sent >= least_sent and self.dropped < MAX_DROPPED_PERCENT

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "dropped": self.dropped}


def find_peak(run_at: Callable[[float], Run], start: float) -> Run | None:
    """Find the highest served rate, accurate to 6 %.

    Args:
        run_at: Runs the node at a rate in Hz.
        start: First rate to try, in Hz.

    Returns:
        The run at the peak; None if no rate down to `LOWEST_RATE` is served.
    """
    best: Run | None = None
    rate, lowest_failed = start, math.inf
    while rate >= LOWEST_RATE:
        run = run_at(rate)
        if run.served:
            best = run
        else:
            lowest_failed = rate
        if best and lowest_failed < math.inf:
            break
        rate = rate * RATE_STEP if run.served else rate / RATE_STEP
    for _ in range(HALVINGS if best else 0):
        assert best is not None
        run = run_at(math.sqrt(best.rate * lowest_failed))
        if run.served:
            best = run
        else:
            lowest_failed = run.rate
    return best


def markdown(runs: Iterable[Run]) -> str:
    """Return a Markdown table with a line for each run; times in ms."""
    columns = (
        "cameras", "size", "Hz", "node", "dropped", "own p50", "flow p50", "network p50",
        "latency p50", "p95", "p99", "age p50", "p95", "p99", "CPU", "MB",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---|---|" + "---:|---|" + "---:|" * (len(columns) - 4)]
    lines += [f"| {' | '.join(_cells(run))} |" for run in runs]
    return "\n".join(lines)


def _cells(run: Run) -> Sequence[str]:
    wanted = [("own", "p50"), ("flow", "p50"), ("network", "p50")]
    wanted += [(stage, rank) for stage in ("total", "age") for rank in ("p50", "p95", "p99")]
    return (
        str(run.cameras),
        f"{run.width}×{run.height}",
        f"peak {run.rate:.1f}" if run.peak else f"{run.rate:g}",
        run.system,
        f"{run.dropped:.1f} %",
        *(f"{run.stages_ms[stage][rank]:.1f}" if run.stages_ms else "" for stage, rank in wanted),
        f"{100 * run.cpu:.0f} %",
        f"{run.memory_mb:.0f}",
    )
