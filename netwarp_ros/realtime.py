# SPDX-License-Identifier: Apache-2.0
"""A recording as the node would take it: at its own rate, and the newest frame wins while another is in work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from netwarp_ros.mailbox import Mailbox

T = TypeVar("T")


class Realtime(Generic[T]):
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
