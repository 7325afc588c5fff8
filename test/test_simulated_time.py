# SPDX-License-Identifier: Apache-2.0
"""A recording in simulated time: which frames are taken, how long they waited, and which are lost."""

from __future__ import annotations

from collections.abc import Iterable

from netwarp_ros.mailbox import SimulatedRealtime

Arrival = tuple[str, int]
"""Camera, and when its frame comes, in ms."""


def replay(frames: Iterable[Arrival], took_ms: Iterable[float]) -> tuple[list[tuple[Arrival, float]], dict[str, int]]:
    """Take frames by a worker that needs so long for each; return them, how long they waited, and what was lost."""
    realtime = SimulatedRealtime(frames, camera=lambda frame: frame[0], arrival_ns=lambda frame: frame[1] * 10**6)
    taken = []
    for (frame, wait_ms), took in zip(realtime, took_ms, strict=False):
        taken.append((frame, wait_ms))
        realtime.work(took)
    return taken, dict(realtime.dropped)


def test_a_worker_that_is_fast_enough_takes_every_frame_at_once() -> None:
    frames = [("", 100 * index) for index in range(4)]
    assert replay(frames, [99, 100, 1, 0]) == ([(frame, 0) for frame in frames], {})


def test_the_newest_frame_wins_while_another_is_in_work() -> None:
    frames = [("", 100 * index) for index in range(6)]
    # The first takes until 350: 100 and 200 are displaced by 300, which then takes until 450.
    taken, dropped = replay(frames, [350, 100, 50, 10])
    assert taken == [(("", 0), 0), (("", 300), 50), (("", 400), 50), (("", 500), 0)]
    assert dropped == {"": 2}


def test_the_last_frame_is_not_lost() -> None:
    taken, dropped = replay([("", 0), ("", 10), ("", 20)], [1000, 1])
    assert taken == [(("", 0), 0), (("", 20), 980)] and dropped == {"": 1}


def test_cameras_take_turns() -> None:
    frames = [(camera, 10 * index) for index in range(9) for camera in ("fast", "fast", "slow")]
    taken, dropped = replay(frames, [25] * 9)
    assert [camera for (camera, _), _ in taken] == ["fast", "slow"] * 3
    assert len(taken) + sum(dropped.values()) == len(frames)


def test_a_pause_of_the_recording_is_leapt_over() -> None:
    taken, dropped = replay([("", 0), ("", 10**9)], [5, 5])
    assert taken == [(("", 0), 0), (("", 10**9), 0)] and dropped == {}
    assert replay([], []) == ([], {})
