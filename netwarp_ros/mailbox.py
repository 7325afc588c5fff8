# SPDX-License-Identifier: Apache-2.0
"""Where cameras leave their frames for the worker, and the same in simulated time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from threading import Condition
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """One slot for each camera, in which the newest frame wins; emptied in turn, so that no camera starves another.

    For any number of threads that put and one that takes.

    Args:
        cameras: Names of the cameras, in the order of their first turns; others come behind them with their first item.
    """

    def __init__(self, cameras: Iterable[str] = ()) -> None:
        self._slots: dict[str, T | None] = dict.fromkeys(cameras)  # the camera served last is last
        self._changed = Condition()
        self._closed = False

    def put(self, camera: str, item: T) -> T | None:
        """Leave an item; return the older one that it displaces, if any, or the item itself after `close`."""
        with self._changed:
            if self._closed:
                return item
            displaced, self._slots[camera] = self._slots.get(camera), item
            self._changed.notify()
            return displaced

    def take(self) -> tuple[str, T] | None:
        """Wait for an item and return it with its camera's name; None after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or any(item is not None for item in self._slots.values()))
            if self._closed:
                return None
            camera, item = next((camera, item) for camera, item in self._slots.items() if item is not None)
            del self._slots[camera]
            self._slots[camera] = None
            return camera, item

    def close(self) -> list[str]:
        """End all taking; return the cameras whose items were left behind."""
        with self._changed:
            self._closed = True
            left = [camera for camera, item in self._slots.items() if item is not None]
            self._slots = dict.fromkeys(self._slots)
            self._changed.notify_all()
            return left


class SimulatedRealtime(Generic[T]):
    """Frames in simulated time, taken by one worker through the node's mailbox.

    ``for frame, wait_ms in realtime: ...; realtime.work(took_ms)``. The clock stands still but for the work that is
    declared, and leaps to the next frame where there is none to take. So what else is done with a frame, such as to
    score it, delays no other, and a recording takes no longer than its work does.

    Args:
        frames: In the order of their recording.
        camera: Tells which camera a frame is of.
        arrival_ns: Tells when it comes, in ns; not earlier than the one before it.

    Attributes:
        dropped: How many frames of each camera were displaced by a newer one before their turn.
    """

    def __init__(self, frames: Iterable[T], camera: Callable[[T], str], arrival_ns: Callable[[T], int]) -> None:
        self._frames, self._camera, self._arrival_ns = frames, camera, arrival_ns
        self._now_ns = 0
        self.dropped: Counter[str] = Counter()

    def work(self, took_ms: float) -> None:
        """Let the clock go on by what the worker did with the frame that was taken last."""
        self._now_ns += round(took_ms * 1e6)

    def __iter__(self) -> Iterator[tuple[T, float]]:
        """Give each frame that is not displaced, and how long it waited, in ms."""
        mailbox: Mailbox[T] = Mailbox()
        frames = iter(self._frames)
        coming, waiting = next(frames, None), 0
        while waiting or coming is not None:
            if not waiting and coming is not None:
                self._now_ns = max(self._now_ns, self._arrival_ns(coming))
            while coming is not None and self._arrival_ns(coming) <= self._now_ns:
                camera = self._camera(coming)
                if mailbox.put(camera, coming) is None:
                    waiting += 1
                else:
                    self.dropped[camera] += 1
                coming = next(frames, None)
            taken = mailbox.take()
            assert taken is not None
            waiting -= 1
            yield taken[1], (self._now_ns - self._arrival_ns(taken[1])) * 1e-6
