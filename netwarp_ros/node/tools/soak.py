# SPDX-License-Identifier: Apache-2.0
"""A segment node with more to do than it can, for long: are its masks fresh, does its memory grow, do its counts agree?

``python -m netwarp_ros.node.tools.soak --minutes 30`` first measures the service time S: the time between two masks of
a node that always has an image waiting, whichever cameras they are of. Then the cameras, which fire together, send 1.5
times what can be served, and what comes out is held to the checks that `soak` returns. One that fails is exit status 1.

How old may a mask be? Cameras are served in turn, and of each the newest image is taken. With N cameras each of them
sends one every N/1.5 S, so the image that is taken has waited N/1.5 S at most, and its mask comes one S later: after
N/1.5 + 1 service times, if all are alike. For one camera that is 1.67, and 2.5 allows them to be half as long again.
The same allowance for N cameras is 1.5 * (N/1.5 + 1) = N + 1.5 service times.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from netwarp_ros.evaluation.provenance import environment, versions
from netwarp_ros.models import DEFAULT_MODEL
from netwarp_ros.node.tools.cameras import memory_mb
from netwarp_ros.node.tools.load import Bench, Subject

OVERLOAD = 1.5
GROWTH = 1.0
"""Per cent that memory may grow by after the warm-up."""

SAMPLE_S = 5.0
"""Time between two looks at the memory."""


def service_time(cameras: int, size: tuple[int, int], seconds: float, **parameters: Any) -> float:
    """Return the time between two masks under overload, in s."""
    with Bench() as bench:
        [subject] = bench.start(["netwarp"], cameras, **parameters)
        rate = 40 / cameras
        for _ in range(2):  # the second time under the load that is to come: sending takes its share of the machine
            run = bench.load(subject, size, rate, seconds)
            rate = OVERLOAD * run.masks / run.seconds / cameras
    return run.seconds / run.masks


def soak(
    cameras: int, size: tuple[int, int], seconds: float, service_s: float, **parameters: Any
) -> tuple[dict[str, Any], dict[str, bool]]:
    """Send 1.5 times what can be served for a while.

    Returns:
        What was found, and which checks it passes.
    """
    memory: list[tuple[float, float]] = []
    with Bench() as bench:
        [subject] = bench.start(["netwarp"], cameras, **parameters)
        begun = time.monotonic()

        def watch() -> None:
            now = time.monotonic() - begun
            if now >= SAMPLE_S * len(memory):
                memory.append((round(now, 1), memory_mb(subject.process.pid)))

        rate = OVERLOAD / service_s / cameras
        run = bench.load(subject, size, rate, seconds, warm_up=0, meanwhile=watch)
        subject.accounts.clear()
        bench.spin_until(lambda: len(subject.accounts) == cameras and not _count(subject, "in flight"), subject)
    ages = subject.durations(0, 2**63)["age"]
    reasons = [name for name in next(iter(subject.accounts.values())) if name.startswith("dropped: ")]
    found: dict[str, Any] = {
        "cameras": cameras,
        "size": list(size),
        "seconds": round(run.seconds, 1),
        "rate": round(rate, 2),
        "service_ms": {"before": 1e3 * service_s, "meanwhile": 1e3 * run.seconds / run.masks},
        "stages_ms": run.stages_ms,
        "age_max_ms": max(ages),
        "sent": run.sent,
        **{name: _count(subject, name) for name in ("received", "missed", "published", "dropped", *reasons)},
        "cpu": run.cpu,
        "memory_mb": memory,
        "growth": growth(memory),
        "errors": sorted({account["last error"] for account in subject.accounts.values()} - {"none"}),
        "accounts": subject.accounts,
    }
    service_ms = found["service_ms"]["meanwhile"]
    checks = {
        f"age p99 ≤ {cameras + 1.5:g} service times": run.stages_ms["age"]["p99"] <= (cameras + 1.5) * service_ms,
        f"memory grows by ≤ {GROWTH:g} %": found["growth"] <= GROWTH,
        "received = published + dropped": all(
            int(account["received"]) == int(account["published"]) + int(account["dropped"])
            for account in subject.accounts.values()
        ),
        "published = masks that came": found["published"] == len(ages),
        "no error": not (found["errors"] or found["dropped: failed"] or found["dropped: malformed"]),
    }
    return found, checks


def growth(memory: list[tuple[float, float]]) -> float:
    """Return by how many per cent the median of the last tenth exceeds that of the second; the first is warm-up."""
    tenth = math.ceil(len(memory) / 10)
    sizes = [size for _, size in memory]
    return 100 * (statistics.median(sizes[-tenth:]) / statistics.median(sizes[tenth : 2 * tenth] or sizes) - 1)


def _count(subject: Subject, name: str) -> int:
    return sum(int(account[name]) for account in subject.accounts.values())


def _print(found: dict[str, Any], checks: dict[str, bool]) -> None:
    service, stages, ages = found["service_ms"], found["stages_ms"], found["stages_ms"]["age"]
    sizes = [size for _, size in found["memory_mb"]]
    width, height = found["size"]
    rows = {
        "duration, s": f"{found['seconds']:.0f}",
        "images sent": f"{found['sent']}, {found['cameras']} × {found['rate']:g} Hz, {width}×{height}",
        "service time S, ms": f"{service['before']:.1f} measured before, {service['meanwhile']:.1f} on average",
        "sent / served": f"{found['sent'] / found['published']:.2f}",
        "age p50, p95, p99, max, ms": ", ".join(f"{age:.0f}" for age in (*ages.values(), found["age_max_ms"])),
        "age p99, service times": f"{ages['p99'] / service['meanwhile']:.2f}",
        "latency p50, p95, p99, ms": ", ".join(f"{value:.0f}" for value in stages["total"].values()),
        **{name: str(found[name]) for name in found if name in ("received", "missed", "published")},
        **{name: str(found[name]) for name in found if name.startswith("dropped: ")},
        "errors": "; ".join(found["errors"]) or "none",
        "memory, MB": f"{sizes[0]:.0f} at first, {max(sizes):.0f} at most, {sizes[-1]:.0f} at last",
        "memory growth after warm-up": f"{found['growth']:+.2f} %",
        "processors kept busy": f"{found['cpu']:.2f}",
        **{name: "yes" if passed else "NO" for name, passed in checks.items()},
    }
    print("| | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")


def main() -> None:
    """Measure, soak, and print what came of it."""
    parser = argparse.ArgumentParser(description="Send a segment node more than it can serve, for long.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--size", default="480x360", help="WIDTHxHEIGHT of the images")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--json", type=Path, help="file for all figures, the series of the memory included")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    seconds, parameters = 60 * arguments.minutes, {"model": arguments.model}
    service_s = service_time(arguments.cameras, (width, height), min(20.0, seconds / 4), **parameters)
    found, checks = soak(arguments.cameras, (width, height), seconds, service_s, **parameters)
    _print(found, checks)
    if arguments.json:
        report = {"environment": {**environment(torch.device("cpu")), "versions": versions()}, **parameters, **found}
        arguments.json.write_text(json.dumps({**report, "checks": checks}, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(not all(checks.values()))


if __name__ == "__main__":
    main()
