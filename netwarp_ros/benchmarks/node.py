# SPDX-License-Identifier: Apache-2.0
"""The segment node under load, beside its own host frame by frame and beside the node that tutorials write.

What is measured, and what is made of it; `netwarp_ros.node.tools.load` runs the nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

TOLERATED = 5.0
"""Per cent of the images that may be dropped at the peak rate."""

STEP = 1.25
"""Factor between the first rates that are tried for the peak."""

HALVINGS = 2
"""How often the step is halved around the peak."""

SLOWEST = 0.2
"""Rate in Hz under which no peak is looked for."""


@dataclass(frozen=True)
class Run:
    """A node under one load, from the end of the warm-up to the end of sending.

    Attributes:
        system: ``netwarp`` or ``host``, the segment node; or ``plain``, the node that tutorials write.
        cameras: Number of cameras, which fire together.
        width: Of the images, in pixels.
        height: Of the images, in pixels.
        rate: Images that each camera was to send per second.
        seconds: Duration.
        sent: Images that the cameras sent.
        masks: Masks that came out.
        stages_ms: p50, p95 and p99 of the durations in `FrameTiming`, and of ``own``, the node's own cost: image
            callback to mask published, less flow and network. Empty where no mask came out.
        cpu: Processors that the node's process kept busy.
        memory_mb: Resident memory of the node's process at the end, in 10^6 bytes.
        peak: Whether this is the highest rate with less than 5 % dropped.
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
        """Per cent of the images that no mask came out for while they were sent; never less than 0."""
        return max(0.0, 100 * (1 - self.masks / self.sent)) if self.sent else 0.0

    @property
    def served(self) -> bool:
        """Whether the cameras kept their rate and the node kept up with them."""
        return self.sent >= (1 - TOLERATED / 100) * self.rate * self.seconds * self.cameras and self.dropped < TOLERATED

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "dropped": self.dropped}


def find_peak(load: Callable[[float], Run], start: float) -> Run | None:
    """Find the highest rate that is served, to 6 %.

    Args:
        load: Runs the node at a rate in Hz.
        start: The rate to try first.

    Returns:
        The run at that rate; None if there is none down to `SLOWEST`.
    """
    best: Run | None = None
    rate, lowest_failed = start, math.inf
    while rate >= SLOWEST:
        run = load(rate)
        if run.served:
            best = run
        else:
            lowest_failed = rate
        if best and lowest_failed < math.inf:
            break
        rate = rate * STEP if run.served else rate / STEP
    for _ in range(HALVINGS if best else 0):
        assert best is not None
        run = load(math.sqrt(best.rate * lowest_failed))
        if run.served:
            best = run
        else:
            lowest_failed = run.rate
    return best


def markdown(runs: Iterable[Run]) -> str:
    """Return a table of runs, a line for each; times in ms."""
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
