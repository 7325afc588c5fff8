# SPDX-License-Identifier: Apache-2.0
"""Soak test of the segment node: more images than it can segment, for half an hour.

``python -m netwarp_ros.node.tools.soak --minutes 30`` checks that the masks stay fresh, that the memory does not grow,
and that the counts agree; `soak` returns the checks. If one fails, the exit status is 1.

The program first measures the service time S: the time between two masks while images are always waiting, over all
cameras. Then the cameras fire together, at 1.5 times the rate that the node can serve.

The bound on a mask's age: cameras are served in turn, and the newest image of each is taken. Each of N cameras sends an
image every N/1.5 S, so an image waits at most N/1.5 S, and its mask follows one S later: after N/1.5 + 1 service times,
if all service times are equal. The bound is 1.5 times that: 1.5 * (N/1.5 + 1) = N + 1.5 service times.
"""

from __future__ import annotations

if __name__ == "__main__":
    from netwarp_ros.environment import configure_libraries

    configure_libraries()

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from netwarp_ros.evaluation.provenance import environment, versions
from netwarp_ros.models import DEFAULT_MODEL
from netwarp_ros.node.tools.load_cameras import memory_mb
from netwarp_ros.node.tools.load_test import Bench, NodeUnderTest
from netwarp_ros.recordings.atomic import refuse_foreign, write_marked_json, written_by

OVERLOAD = 1.5
"""Images sent, divided by the images that the node can serve."""

MAX_GROWTH = 1.0
"""Per cent by which the memory may grow after the warm-up."""

SAMPLE_S = 5.0
"""Seconds between two measurements of the memory."""


def service_time(system: str, cameras: int, size: tuple[int, int], seconds: float, **parameters: Any) -> float:
    """Return the service time in s of a system, see `soak`: the time between two masks under overload."""
    with Bench() as bench:
        [node] = bench.start([system], cameras, **parameters)
        rate = 40 / cameras
        for _ in range(2):  # the second time at the rate of the soak: publishing the images also takes CPU time
            run = bench.load(node, size, rate, seconds)
            rate = OVERLOAD * run.masks / run.seconds / cameras
    return run.seconds / run.masks


def soak(
    system: str, cameras: int, size: tuple[int, int], seconds: float, service_s: float, **parameters: Any
) -> tuple[dict[str, Any], dict[str, bool]]:
    """Send `OVERLOAD` times the images that the node can serve.

    Args:
        system: Key of `netwarp_ros.node.tools.load_test.SYSTEMS`.
        cameras: Number of cameras.
        size: Width and height of the images.
        seconds: Duration.
        service_s: Service time of the node, in s.
        parameters: Parameters of the node.

    Returns:
        The figures, and for each check whether it passed.
    """
    memory: list[tuple[float, float]] = []
    with Bench() as bench:
        [node] = bench.start([system], cameras, **parameters)
        start_s = time.monotonic()

        def sample_memory() -> None:
            now = time.monotonic() - start_s
            if now >= SAMPLE_S * len(memory):
                memory.append((round(now, 1), memory_mb(node.process.pid)))

        rate = OVERLOAD / service_s / cameras
        run = bench.load(node, size, rate, seconds, warm_up=0, meanwhile=sample_memory)
        node.diagnostics.clear()
        bench.spin_until(lambda: len(node.diagnostics) == cameras and not _count(node, "in flight"), node)
    ages = node.durations(0, 2**63)["age"]
    drop_counts = [name for name in next(iter(node.diagnostics.values())) if name.startswith("dropped: ")]
    figures: dict[str, Any] = {
        "system": system,
        "cameras": cameras,
        "size": list(size),
        "seconds": round(run.seconds, 1),
        "rate": round(rate, 2),
        "service_ms": {"before": 1e3 * service_s, "meanwhile": 1e3 * run.seconds / run.masks},
        "stages_ms": run.stages_ms,
        "age_max_ms": max(ages),
        "sent": run.sent,
        **{name: _count(node, name) for name in ("received", "missed", "published", "dropped", *drop_counts)},
        "cpu": run.cpu,
        "memory_mb": memory,
        "growth": memory_growth(memory),
        "errors": sorted({values["last error"] for values in node.diagnostics.values()} - {"none"}),
        "accounts": node.diagnostics,
    }
    service_ms = figures["service_ms"]["meanwhile"]
    checks = {
        f"age p99 ≤ {cameras + 1.5:g} service times": run.stages_ms["age"]["p99"] <= (cameras + 1.5) * service_ms,
        f"memory grows by ≤ {MAX_GROWTH:g} %": figures["growth"] <= MAX_GROWTH,
        "received = published + dropped": all(
            int(values["received"]) == int(values["published"]) + int(values["dropped"])
            for values in node.diagnostics.values()
        ),
        "published = masks that came": figures["published"] == len(ages),
        "no error": not (figures["errors"] or figures["dropped: failed"] or figures["dropped: malformed"]),
    }
    return figures, checks


def memory_growth(memory: list[tuple[float, float]]) -> float:
    """Return by how many per cent the median of the last tenth exceeds that of the second tenth.

    The first tenth is warm-up.

    Args:
        memory: Time in s and memory, in order of time.
    """
    tenth = math.ceil(len(memory) / 10)
    sizes = [size for _, size in memory]
    return 100 * (statistics.median(sizes[-tenth:]) / statistics.median(sizes[tenth : 2 * tenth] or sizes) - 1)


def _count(node: NodeUnderTest, name: str) -> int:
    return sum(int(values[name]) for values in node.diagnostics.values())


def _print(figures: dict[str, Any], checks: dict[str, bool]) -> None:
    service, stages, ages = figures["service_ms"], figures["stages_ms"], figures["stages_ms"]["age"]
    sizes = [size for _, size in figures["memory_mb"]]
    width, height = figures["size"]
    rows = {
        "duration, s": f"{figures['seconds']:.0f}",
        "images sent": f"{figures['sent']}, {figures['cameras']} × {figures['rate']:g} Hz, {width}×{height}",
        "service time S, ms": f"{service['before']:.1f} measured before, {service['meanwhile']:.1f} on average",
        "sent / served": f"{figures['sent'] / figures['published']:.2f}",
        "age p50, p95, p99, max, ms": ", ".join(f"{age:.0f}" for age in (*ages.values(), figures["age_max_ms"])),
        "age p99, service times": f"{ages['p99'] / service['meanwhile']:.2f}",
        "latency p50, p95, p99, ms": ", ".join(f"{value:.0f}" for value in stages["total"].values()),
        **{name: str(figures[name]) for name in figures if name in ("received", "missed", "published")},
        **{name: str(figures[name]) for name in figures if name.startswith("dropped: ")},
        "errors": "; ".join(figures["errors"]) or "none",
        "memory, MB": f"{sizes[0]:.0f} at first, {max(sizes):.0f} at most, {sizes[-1]:.0f} at last",
        "memory growth after warm-up": f"{figures['growth']:+.2f} %",
        "processors kept busy": f"{figures['cpu']:.2f}",
        **{name: "yes" if passed else "NO" for name, passed in checks.items()},
    }
    print("| | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")


def main() -> None:
    """Measure the service time, soak, and print the figures and checks."""
    parser = argparse.ArgumentParser(description="Send a segment node more images than it can serve, for a long time.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--size", default="480x360", help="WIDTHxHEIGHT of the images")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--viewed", action="store_true", help="subscribe to all overlays")
    parser.add_argument("--json", type=Path, help="file for all figures, with the series of memory measurements")
    arguments = parser.parse_args()
    if arguments.json:
        refuse_foreign(arguments.json, written_by("soak"))
    width, height = map(int, arguments.size.split("x"))
    seconds, parameters = 60 * arguments.minutes, {"model": arguments.model}
    system = "viewed" if arguments.viewed else "netwarp"
    service_s = service_time(system, arguments.cameras, (width, height), min(20.0, seconds / 4), **parameters)
    figures, checks = soak(system, arguments.cameras, (width, height), seconds, service_s, **parameters)
    _print(figures, checks)
    if arguments.json:
        results = {"environment": {**environment(torch.device("cpu")), "versions": versions()}, **parameters, **figures}
        write_marked_json(arguments.json, {**results, "checks": checks}, "soak")
    raise SystemExit(not all(checks.values()))


if __name__ == "__main__":
    main()
