# SPDX-License-Identifier: Apache-2.0
"""What diagnostics make of an account, without a graph."""

from __future__ import annotations

from collections import Counter, deque

import pytest
from graph import DiagnosticStatus

from netwarp_ros.node.account import Balance, Drop
from netwarp_ros.node.diagnostics import SILENCE_S, camera_status, idle_status

pytestmark = pytest.mark.ros

NOW = 100.0
TOPIC = "/front/image_raw"


def report(present: Balance, previous: Balance | None = None, qos_problem: str = "") -> DiagnosticStatus:
    return camera_status("segmenter: front", "front", TOPIC, present, previous or Balance(), NOW, qos_problem)


@pytest.mark.parametrize(
    ("present", "level", "message"),
    [
        (Balance(), DiagnosticStatus.WARN, f"no image yet on {TOPIC}"),
        (Balance(received=1, published=1, last_received=NOW - 1), DiagnosticStatus.OK, "segmenting"),
        (
            Balance(received=9, published=1, dropped=Counter({Drop.SUPERSEDED: 8}), last_received=NOW),
            DiagnosticStatus.OK,
            "segmenting",
        ),
        (
            Balance(received=1, published=1, last_received=NOW - SILENCE_S - 1),
            DiagnosticStatus.WARN,
            f"no image on {TOPIC} for 4 s",
        ),
        (
            Balance(received=2, dropped=Counter({Drop.MALFORMED: 2}), last_received=NOW, last_error="step is 0"),
            DiagnosticStatus.WARN,
            "2 images malformed: step is 0",
        ),
        (
            Balance(received=1, dropped=Counter({Drop.FAILED: 1}), last_received=NOW, last_error="out of memory"),
            DiagnosticStatus.ERROR,
            "1 frames failed: out of memory",
        ),
    ],
)
def test_level_and_message(present: Balance, level: bytes, message: str) -> None:
    status = report(present)
    assert (status.level, status.message) == (level, message)
    assert (status.name, status.hardware_id) == ("segmenter: front", "front")


def test_a_failure_is_reported_once_and_its_cause_kept() -> None:
    present = Balance(received=2, published=1, dropped=Counter({Drop.FAILED: 1}), last_received=NOW, last_error="boom")
    assert report(present).level == DiagnosticStatus.ERROR
    later = report(present, previous=present)
    assert later.level == DiagnosticStatus.OK
    assert {pair.key: pair.value for pair in later.values}["last error"] == "boom"


def test_a_qos_problem_explains_the_silence() -> None:
    assert report(Balance(), qos_problem="incompatible").message == f"no image yet on {TOPIC} (incompatible)"
    assert report(Balance(received=1, last_received=NOW), qos_problem="incompatible").message == "segmenting"


def test_values() -> None:
    present = Balance(
        missed=3,
        received=10,
        published=5,
        dropped=Counter({Drop.SUPERSEDED: 4}),
        resets=Counter({"first frame": 1, "request": 2}),
        latencies_ms=deque([10.0, 20.0, 30.0]),
        last_received=NOW,
    )
    assert {pair.key: pair.value for pair in report(present).values} == {
        "topic": TOPIC,
        "missed": "3",
        "received": "10",
        "published": "5",
        "in flight": "1",
        "dropped": "4",
        "dropped: superseded": "4",
        "dropped: malformed": "0",
        "dropped: failed": "0",
        "dropped: deactivated": "0",
        "resets": "3",
        "resets: first frame": "1",
        "resets: request": "2",
        "latency p50 (ms)": "20.0",
        "latency p95 (ms)": "29.0",
        "latency p99 (ms)": "29.8",
        "last error": "none",
    }


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("unconfigured", "the node is unconfigured: configure and activate it"),
        ("inactive", "the node is inactive: activate it"),
    ],
)
def test_a_node_that_is_not_active_says_what_to_do(state: str, message: str) -> None:
    status = idle_status("segmenter", state)
    assert (status.level, status.message) == (DiagnosticStatus.WARN, message)
