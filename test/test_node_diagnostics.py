# SPDX-License-Identifier: Apache-2.0
"""The statuses of cameras and of the node, without a ROS graph."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from graph import DiagnosticStatus

from netwarp_ros.node.diagnostics import Thresholds, camera_status, node_status
from netwarp_ros.node.frame_counts import DropReason, FrameCounts
from netwarp_ros.ops import compiled
from netwarp_ros.segmenter import Reset

pytestmark = pytest.mark.ros

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
NOW = 100.0
TOPIC = "/front/image_raw"
FRESH = FrameCounts(time=NOW, first_received=NOW - 50, last_received=NOW, received=1, published=1)


def status_of(
    present: FrameCounts, previous: FrameCounts | None = None, qos_problem: str = "", **thresholds: float
) -> DiagnosticStatus:
    history = deque([previous or FrameCounts(time=NOW - 10), present])
    return camera_status("segmenter: front", "front", TOPIC, history, Thresholds(**thresholds), qos_problem)


def values(status: DiagnosticStatus) -> dict[str, str]:
    return {pair.key: pair.value for pair in status.values}


@pytest.mark.parametrize(
    ("present", "level", "message"),
    [
        (FrameCounts(time=NOW, started=NOW - 1), WARN, f"no image yet on {TOPIC}"),
        (FrameCounts(time=NOW, started=NOW - 11), ERROR, f"no image yet on {TOPIC}"),
        (replace(FRESH, last_received=NOW - 1), OK, "segmenting"),
        (replace(FRESH, received=9, dropped=Counter({DropReason.SUPERSEDED: 8})), OK, "segmenting"),
        (replace(FRESH, last_received=NOW - 4), WARN, f"no image on {TOPIC} for 4 s"),
        (replace(FRESH, last_received=NOW - 11), ERROR, f"no image on {TOPIC} for 11 s"),
        (
            replace(FRESH, dropped=Counter({DropReason.MALFORMED: 2}), last_error="step is 0"),
            WARN,
            "2 images malformed: step is 0",
        ),
        (
            replace(FRESH, dropped=Counter({DropReason.FAILED: 1}), last_error="out of memory"),
            ERROR,
            "1 frames failed: out of memory",
        ),
        (replace(FRESH, unstamped=3), WARN, "3 images without stamp: the time of receipt stands in for it"),
        (
            replace(FRESH, resets=Counter({Reset.PUBLISHERS: 2, Reset.GAP: 1})),
            WARN,
            f"2 images segmented without memory: {TOPIC} has several publishers",
        ),
        (
            replace(FRESH, dropped=Counter({DropReason.MALFORMED: 1}), last_error="step is 0", last_received=NOW - 11),
            ERROR,
            f"no image on {TOPIC} for 11 s; 1 images malformed: step is 0",
        ),
    ],
)
def test_level_and_message(present: FrameCounts, level: bytes, message: str) -> None:
    status = status_of(present)
    assert (status.level, status.message) == (level, message)
    assert (status.name, status.hardware_id) == ("segmenter: front", "front")


@pytest.mark.parametrize(
    ("thresholds", "level", "message"),
    [
        ({}, OK, "segmenting"),
        ({"rate_warn": 5.0}, OK, "segmenting"),
        ({"rate_warn": 5.1}, WARN, "5.0 masks per second"),
        ({"rate_warn": 9.0, "rate_error": 5.1}, ERROR, "5.0 masks per second"),
        ({"latency_warn": 0.2, "latency_error": 0.3}, OK, "segmenting"),
        ({"latency_warn": 0.1, "latency_error": 0.2}, WARN, "150 ms from callback to mask (p95)"),
        ({"latency_error": 0.1}, ERROR, "150 ms from callback to mask (p95)"),
        ({"age_warn": 0.1, "age_error": 1.0}, WARN, "250 ms from stamp to mask (p95)"),
        ({"age_error": 0.2, "rate_warn": 6.0}, ERROR, "250 ms from stamp to mask (p95); 5.0 masks per second"),
        ({"stale_warn": 0.5}, WARN, f"no image on {TOPIC} for 1 s"),
    ],
)
def test_thresholds(thresholds: dict[str, float], level: bytes, message: str) -> None:
    lists = {"latencies_ms": deque([150.0] * 9), "ages_ms": deque([250.0] * 9)}
    status = status_of(replace(FRESH, received=80, published=50, last_received=NOW - 1, **lists), **thresholds)
    assert (status.level, status.message) == (level, message)


def test_stale_thresholds_of_0_never_raise_the_level() -> None:
    status = status_of(replace(FRESH, last_received=NOW - 99), stale_warn=0.0, stale_error=0.0)
    assert (status.level, status.message) == (OK, "segmenting")


def test_rates_are_measured_since_the_oldest_counts_or_the_first_image() -> None:
    before = FrameCounts(time=NOW - 10, received=100, published=40, first_received=NOW - 20, last_received=NOW - 10)
    present = replace(before, time=NOW, received=400, published=140, last_received=NOW)
    seen = values(status_of(present, before))
    assert (seen["rate of images (Hz)"], seen["rate of masks (Hz)"]) == ("30.0", "10.0")
    late = FrameCounts(time=NOW, received=60, published=20, first_received=NOW - 2, last_received=NOW)
    assert values(status_of(late))["rate of images (Hz)"] == "30.0"
    just_now = replace(late, received=1, published=0, first_received=NOW - 0.1)
    status = status_of(just_now, rate_error=5.0)
    assert status.level == OK and "rate of images (Hz)" not in values(status)


def test_a_failure_raises_the_level_once_and_stays_the_last_error() -> None:
    present = replace(
        FRESH,
        received=2,
        dropped=Counter({DropReason.FAILED: 1}),
        last_error="boom",
        unstamped=1,
        resets=Counter({Reset.PUBLISHERS: 1}),
    )
    assert status_of(present).level == ERROR
    later = status_of(present, previous=present)
    assert later.level == OK
    assert values(later)["last error"] == "boom"


def test_a_qos_problem_is_named_as_the_cause() -> None:
    nothing = FrameCounts(time=NOW, started=NOW)
    assert status_of(nothing, qos_problem="incompatible").message == f"no image yet on {TOPIC} (incompatible)"
    assert status_of(FRESH, qos_problem="incompatible").message == "segmenting"


def test_values() -> None:
    present = FrameCounts(
        time=NOW,
        first_received=NOW - 5,
        last_received=NOW,
        missed=3,
        received=10,
        published=5,
        key_frames=2,
        dropped=Counter({DropReason.SUPERSEDED: 4}),
        resets=Counter({"first frame": 1, "request": 2}),
        late_pictures=6,
        latencies_ms=deque([10.0, 20.0, 30.0]),
        ages_ms=deque([110.0, 120.0, 130.0]),
    )
    assert values(status_of(present)) == {
        "topic": TOPIC,
        "missed": "3",
        "received": "10",
        "published": "5",
        "published without stamp": "0",
        "key frames": "2",
        "in flight": "1",
        "dropped": "4",
        "dropped: superseded": "4",
        "dropped: malformed": "0",
        "dropped: failed": "0",
        "dropped: deactivated": "0",
        "resets": "3",
        "resets: first frame": "1",
        "resets: request": "2",
        "pictures dropped": "6",
        "rate of images (Hz)": "2.0",
        "rate of masks (Hz)": "1.0",
        "latency p50 (ms)": "20.0",
        "latency p95 (ms)": "29.0",
        "latency p99 (ms)": "29.8",
        "age p50 (ms)": "120.0",
        "age p95 (ms)": "129.0",
        "age p99 (ms)": "129.8",
        "last error": "none",
    }


def segmenter(device: str, *, uses_netwarp: bool = True) -> Any:
    return SimpleNamespace(
        model=SimpleNamespace(name="tiny"),
        device=torch.device(device),
        precision="float16",
        engine=SimpleNamespace(name="openvino"),
        engine_problem="no room",
        uses_netwarp=uses_netwarp,
    )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU with 8 GB of memory, of which half is in use, and PyTorch and the operators for it."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4_000_000_000, 8_000_000_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Orin")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(compiled, "DEVICES", frozenset({"cpu", "cuda"}))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("unconfigured", "the node is unconfigured: configure and activate it"),
        ("inactive", "the node is inactive: activate it"),
    ],
)
def test_a_node_that_is_not_active_says_what_to_do(state: str, message: str) -> None:
    status = node_status("segmenter", state, None, Thresholds(), "cannot be configured: no weights")
    assert (status.level, status.message) == (WARN, message)
    assert values(status) == {"state": state, "last error": "cannot be configured: no weights"}


@pytest.mark.parametrize(
    ("state", "message"),
    [("configuring", "the node is configuring: loading tiny"), ("active", "loading tiny")],
)
def test_what_takes_the_node_long_is_named(state: str, message: str) -> None:
    status = node_status("segmenter", state, None, Thresholds(), doing="loading tiny")
    assert (status.level, status.message, values(status)["state"]) == (WARN, message, state)


def test_an_active_node_names_what_it_uses() -> None:
    status = node_status("segmenter", "active", segmenter("cpu"), Thresholds())
    assert (status.level, status.message, status.hardware_id) == (OK, "segmenting on cpu", "cpu")
    assert values(status) == {
        "state": "active", "model": "tiny", "device": "cpu", "engine": "openvino", "precision": "float16",
        "engine problem": "no room", "last error": "none",
    }  # fmt: skip


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("used", "level", "message"),
    [
        (0.5, OK, "segmenting on cuda:1"),
        (0.95, WARN, "95 % of the GPU's memory is in use"),
        (0.99, ERROR, "99 % of the GPU's memory is in use"),
    ],
)
def test_memory_of_the_gpu(monkeypatch: pytest.MonkeyPatch, used: float, level: bytes, message: str) -> None:
    total = 8_000_000_000
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (round((1 - used) * total), total))
    status = node_status("segmenter", "active", segmenter("cuda:1"), Thresholds())
    assert (status.level, status.message, status.hardware_id) == (level, message, "cuda:1")
    seen = values(status)
    assert (seen["GPU"], seen["GPU memory (MB)"], seen["GPU memory of the node (MB)"]) == ("Orin", "8000", "300")
    assert seen["GPU memory in use (MB)"] == f"{8000 * used:.0f}"


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_does_not_answer_gives_level_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> None:
        raise RuntimeError("unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    status = node_status("segmenter", "active", segmenter("cuda:0"), Thresholds())
    assert (status.level, status.message) == (ERROR, "CUDA does not answer: unspecified launch failure")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("devices", [{"cpu"}, set()])
def test_operators_without_cuda_give_level_error_on_a_gpu(monkeypatch: pytest.MonkeyPatch, devices: set[str]) -> None:
    monkeypatch.setattr(compiled, "DEVICES", frozenset(devices))
    status = node_status("segmenter", "active", segmenter("cuda:0"), Thresholds())
    assert status.level == ERROR
    assert status.message.startswith("the warp runs in plain PyTorch on the GPU, several times slower: ")
    assert "install the CUDA toolkit 12.8" in status.message and "`make setup`" in status.message
    for other in (segmenter("cpu"), segmenter("cuda:0", uses_netwarp=False)):
        assert node_status("segmenter", "active", other, Thresholds()).level == OK
