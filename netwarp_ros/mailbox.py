# SPDX-License-Identifier: Apache-2.0
"""The mailbox through which cameras pass frames to the worker, and a simulation of it for recordings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from threading import Condition
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A queue with one slot for each camera. A newer item replaces the one that waits, and cameras are served in turn.

    Any number of threads may put; one thread takes.

    Args:
        cameras: Names of the cameras, in the order of their first turns. Unlisted cameras are appended at their first
            `put`.
    """

    def __init__(self, cameras: Iterable[str] = ()) -> None:
        self._slots: dict[str, T | None] = dict.fromkeys(cameras)  # the camera served last is last
        self._changed = Condition()
        self._closed = False

    def put(self, camera: str, item: T) -> T | None:
        """Put an item into the camera's slot.

        Returns:
            The item that it replaces, or None if the slot was empty. After `close`, the item itself.
        """
        with self._changed:
            if self._closed:
                return item
            replaced, self._slots[camera] = self._slots.get(camera), item
            self._changed.notify()
            return replaced

    def take(self) -> tuple[str, T] | None:
        """Wait for an item, and return it with the name of its camera. After `close`, return None."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or any(item is not None for item in self._slots.values()))
            if self._closed:
                return None
            camera, item = next((camera, item) for camera, item in self._slots.items() if item is not None)
            del self._slots[camera]
            self._slots[camera] = None
            return camera, item

    def close(self) -> list[str]:
        """Wake up the thread that takes, and return the cameras whose items were not taken."""
        with self._changed:
            self._closed = True
            left = [camera for camera, item in self._slots.items() if item is not None]
            self._slots = dict.fromkeys(self._slots)
            self._changed.notify_all()
            return left


class SimulatedRealtime(Generic[T]):
    """Replays recorded frames through a `Mailbox` in simulated time, as the node would receive them.

    Use it as ``clock`` here::

        clock = SimulatedRealtime(frames, camera, arrival_ns)
        for frame, wait_ms in clock:
            clock.work(process(frame))

    Simulated time advances only through `work`, or jumps to the next frame when idle. So whatever else the loop does,
    such as scoring, delays no frame, and a replay takes no longer than its work.

    Args:
        frames: Frames in order of arrival.
        camera: Returns the name of a frame's camera.
        arrival_ns: Returns the time of a frame's arrival in ns.

    Attributes:
        dropped: By camera, the number of frames that a newer one replaced.
    """

    def __init__(self, frames: Iterable[T], camera: Callable[[T], str], arrival_ns: Callable[[T], int]) -> None:
        self._frames, self._camera, self._arrival_ns = frames, camera, arrival_ns
        self._now_ns = 0
        self.dropped: Counter[str] = Counter()

    def work(self, duration_ms: float) -> None:
        """Advance the time by the duration of processing the current frame."""
        self._now_ns += round(duration_ms * 1e6)

    def __iter__(self) -> Iterator[tuple[T, float]]:
        """Yield each frame that is not dropped, and its waiting time in the mailbox in ms."""
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
