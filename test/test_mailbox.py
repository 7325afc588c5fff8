# SPDX-License-Identifier: Apache-2.0
"""The mailbox, and the simulation of it in which recordings are replayed."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Thread

from netwarp_ros.mailbox import Mailbox, SimulatedRealtime

Arrival = tuple[str, int]
"""Camera and arrival of a frame, in ms."""


def replay(
    frames: Iterable[Arrival], durations_ms: Iterable[float]
) -> tuple[list[tuple[Arrival, float]], dict[str, int]]:
    """Process frames, the n-th one in ``durations_ms[n]``; return those taken with their waits in ms, and the drops."""
    clock = SimulatedRealtime(frames, camera=lambda frame: frame[0], arrival_ns=lambda frame: frame[1] * 10**6)
    taken = []
    for (frame, wait_ms), duration_ms in zip(clock, durations_ms, strict=False):
        taken.append((frame, wait_ms))
        clock.work(duration_ms)
    return taken, dict(clock.dropped)


def test_a_newer_item_replaces_the_one_that_waits() -> None:
    mailbox: Mailbox[str] = Mailbox(["front", "rear"])
    assert mailbox.put("front", "old") is None
    assert mailbox.put("rear", "other") is None
    assert mailbox.put("front", "new") == "old"
    assert {mailbox.take(), mailbox.take()} == {("front", "new"), ("rear", "other")}


def test_a_fast_camera_does_not_starve_a_slow_one() -> None:
    mailbox: Mailbox[int] = Mailbox(["slow", "fast", "faster"])
    served = []
    for index in range(6):
        for camera in ("fast", "faster") if index % 2 else ("fast", "faster", "slow"):
            mailbox.put(camera, index)
        taken = mailbox.take()
        assert taken is not None
        served.append(taken[0])
    assert served == ["slow", "fast", "faster", "slow", "fast", "faster"]


def test_take_waits_for_an_item_or_for_close() -> None:
    mailbox: Mailbox[int] = Mailbox(["camera"])
    taken: list[tuple[str, int] | None] = []

    def work() -> None:
        while taken[-1:] != [None]:
            taken.append(mailbox.take())

    worker = Thread(target=work)
    worker.start()
    mailbox.put("camera", 1)
    while not taken:
        worker.join(0.001)
    assert mailbox.close() == []
    worker.join(10)
    assert taken == [("camera", 1), None]


def test_close_names_what_was_not_taken_and_refuses_more() -> None:
    mailbox: Mailbox[int] = Mailbox(["front", "rear"])
    mailbox.put("rear", 1)
    assert mailbox.close() == ["rear"]
    assert mailbox.close() == []
    assert mailbox.put("front", 2) == 2
    assert mailbox.take() is None


# Simulated time


def test_a_fast_worker_takes_every_frame_at_once() -> None:
    frames = [("", 100 * index) for index in range(4)]
    assert replay(frames, [99, 100, 1, 0]) == ([(frame, 0) for frame in frames], {})


def test_frames_that_arrive_during_work_are_replaced_by_the_newest() -> None:
    frames = [("", 100 * index) for index in range(6)]
    # The first is done at 350: 300 has replaced 100 and 200, and is done at 450.
    taken, dropped = replay(frames, [350, 100, 50, 10])
    assert taken == [(("", 0), 0), (("", 300), 50), (("", 400), 50), (("", 500), 0)]
    assert dropped == {"": 2}


def test_the_last_frame_is_processed() -> None:
    taken, dropped = replay([("", 0), ("", 10), ("", 20)], [1000, 1])
    assert taken == [(("", 0), 0), (("", 20), 980)] and dropped == {"": 1}


def test_cameras_take_turns() -> None:
    frames = [(camera, 10 * index) for index in range(9) for camera in ("fast", "fast", "slow")]
    taken, dropped = replay(frames, [25] * 9)
    assert [camera for (camera, _), _ in taken] == ["fast", "slow"] * 3
    assert len(taken) + sum(dropped.values()) == len(frames)


def test_time_jumps_over_a_pause_of_the_recording() -> None:
    taken, dropped = replay([("", 0), ("", 10**9)], [5, 5])
    assert taken == [(("", 0), 0), (("", 10**9), 0)] and dropped == {}
    assert replay([], []) == ([], {})
