# SPDX-License-Identifier: Apache-2.0
"""Counts of a camera's frames, which need no ROS."""

from __future__ import annotations

from netwarp_ros.node.frame_counts import LATENCY_FRAMES, DropReason, FrameCounter


def test_a_frame_is_received_then_published_or_dropped() -> None:
    counter = FrameCounter()
    for _ in range(5):
        counter.count_received()
    assert counter.snapshot().in_flight == 5
    counter.count_dropped(DropReason.SUPERSEDED)
    counter.count_dropped(DropReason.MALFORMED, "no data")
    counter.count_published(12.0, 20.0, "first frame")
    counter.count_published(8.0, 15.0, "")
    counts = counter.snapshot()
    assert (counts.received, counts.published, counts.in_flight) == (5, 2, 1)
    assert counts.dropped == {"superseded": 1, "malformed": 1}
    assert counts.resets == {"first frame": 1}
    assert (list(counts.latencies_ms), list(counts.ages_ms)) == ([12.0, 8.0], [20.0, 15.0])
    assert counts.started <= counts.first_received <= counts.last_received <= counts.time
    assert counts.last_error == "no data"


def test_a_snapshot_does_not_change_afterwards() -> None:
    counter = FrameCounter()
    before = counter.snapshot()
    counter.count_received(missed=2)
    counter.count_dropped(DropReason.FAILED, "out of memory")
    counter.count_published(1.0, 2.0, "request")
    assert (before.missed, before.received, before.published) == (0, 0, 0)
    assert (before.last_received, before.last_error) == (None, "")
    assert before.first_received is None
    assert not before.dropped and not before.resets and not before.latencies_ms and not before.ages_ms
    assert counter.snapshot().missed == 2


def test_old_latencies_are_dropped() -> None:
    counter = FrameCounter()
    for index in range(LATENCY_FRAMES + 5):
        counter.count_published(float(index), float(-index), "")
    latencies = counter.snapshot().latencies_ms
    assert len(latencies) == LATENCY_FRAMES
    assert (latencies[0], latencies[-1]) == (5.0, LATENCY_FRAMES + 4.0)
    assert list(counter.snapshot().ages_ms) == [-latency for latency in latencies]
