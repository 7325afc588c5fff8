# SPDX-License-Identifier: Apache-2.0
"""The mailbox and the accounts, which need no ROS."""

from __future__ import annotations

from threading import Thread

from netwarp_ros.mailbox import Mailbox
from netwarp_ros.node.frame_counts import LATENCY_FRAMES, DropReason, FrameCounter


def test_the_newest_wins_its_slot() -> None:
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


def test_take_waits_for_a_frame_and_for_the_end() -> None:
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


def test_what_is_left_at_the_end_is_named_and_nothing_more_gets_in() -> None:
    mailbox: Mailbox[int] = Mailbox(["front", "rear"])
    mailbox.put("rear", 1)
    assert mailbox.close() == ["rear"]
    assert mailbox.close() == []
    assert mailbox.put("front", 2) == 2
    assert mailbox.take() is None


def test_every_frame_is_in_one_column_of_the_account() -> None:
    counter = FrameCounter()
    for _ in range(5):
        counter.count_received()
    assert counter.snapshot().in_flight == 5
    counter.count_dropped(DropReason.SUPERSEDED)
    counter.count_dropped(DropReason.MALFORMED, "no data")
    counter.count_published(12.0, 20.0, "first frame")
    counter.count_published(8.0, 15.0, "")
    balance = counter.snapshot()
    assert (balance.received, balance.published, balance.in_flight) == (5, 2, 1)
    assert balance.dropped == {"superseded": 1, "malformed": 1}
    assert balance.resets == {"first frame": 1}
    assert (list(balance.latencies_ms), list(balance.ages_ms)) == ([12.0, 8.0], [20.0, 15.0])
    assert balance.started <= balance.first_received <= balance.last_received <= balance.time
    assert balance.last_error == "no data"


def test_a_balance_does_not_change_afterwards() -> None:
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


def test_old_latencies_are_forgotten() -> None:
    counter = FrameCounter()
    for index in range(LATENCY_FRAMES + 5):
        counter.count_published(float(index), float(-index), "")
    latencies = counter.snapshot().latencies_ms
    assert len(latencies) == LATENCY_FRAMES
    assert (latencies[0], latencies[-1]) == (5.0, LATENCY_FRAMES + 4.0)
    assert list(counter.snapshot().ages_ms) == [-latency for latency in latencies]
