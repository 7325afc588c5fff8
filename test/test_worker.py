# SPDX-License-Identifier: Apache-2.0
"""The worker of a node, without ROS: one thread for all tasks, which keeps nothing of them."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from threading import Event
from time import monotonic, sleep

import pytest

from netwarp_ros.node.worker import Worker

DEADLINE_S = 60.0


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("test")
    yield worker
    worker.stop()


class Thing:
    """What a task uses or returns."""


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    deadline = monotonic() + DEADLINE_S
    while not condition():
        assert monotonic() < deadline
        sleep(0.001)


def test_all_tasks_run_in_one_thread_in_order(worker: Worker) -> None:
    seen: list[tuple[int, int]] = []
    futures = [worker.submit(lambda number=number: seen.append((number, threading.get_ident()))) for number in range(9)]
    for future in futures:
        future.result(DEADLINE_S)
    assert [number for number, _ in seen] == list(range(9))
    idents = {ident for _, ident in seen}
    assert len(idents) == 1 and threading.get_ident() not in idents


def test_an_error_is_in_the_future_and_the_next_task_runs(worker: Worker) -> None:
    def fail() -> None:
        raise ValueError("wrong model")

    with pytest.raises(ValueError, match="wrong model"):
        worker.submit(fail).result(DEADLINE_S)
    assert worker.submit(lambda: 7).result(DEADLINE_S) == 7


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness of their own on Linux alone")
def test_a_thread_may_be_favored_less_than_the_others() -> None:
    worker = Worker("nice", niceness=7)
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    nice = worker.submit(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())).result(DEADLINE_S)
    worker.stop()
    assert nice == own + 7 and os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_a_task_is_kept(worker: Worker, fails: bool) -> None:
    """Nor must it wait for the garbage collection."""
    made: list[weakref.ref[Thing]] = []

    def task(argument: Thing) -> Thing:
        local = Thing()
        made.extend(map(weakref.ref, (argument, local)))
        if fails:
            raise RuntimeError(local)
        return local

    def run() -> None:
        argument = Thing()
        try:
            worker.submit(lambda: task(argument)).result(DEADLINE_S)
        except RuntimeError:
            assert fails

    run()
    until(lambda: not any(reference() for reference in made))
    assert len(made) == 2 and worker.is_idle()


def test_it_is_idle_once_all_tasks_have_ended(worker: Worker) -> None:
    assert worker.is_idle()
    begun, go_on = Event(), Event()
    worker.submit(begun.set)
    worker.submit(lambda: go_on.wait(DEADLINE_S))
    assert begun.wait(DEADLINE_S)
    assert not worker.is_idle() and not worker.is_idle(0.01)
    go_on.set()
    assert worker.is_idle(DEADLINE_S)


def test_stop_ends_the_thread_after_its_present_task(worker: Worker) -> None:
    threads = [*threading.enumerate()]
    begun, go_on = Event(), Event()
    worker.submit(begun.set)
    present, waiting = worker.submit(lambda: go_on.wait(DEADLINE_S)), worker.submit(lambda: None)
    assert begun.wait(DEADLINE_S)
    until(present.running)
    (thread,) = {*threading.enumerate()} - {*threads}
    worker.stop()
    with pytest.raises(CancelledError):
        waiting.result(DEADLINE_S)
    assert not worker.is_idle()
    go_on.set()
    assert present.result(DEADLINE_S)
    thread.join(DEADLINE_S)
    assert not thread.is_alive() and worker.is_idle()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        worker.submit(lambda: None)
