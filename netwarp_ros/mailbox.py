# SPDX-License-Identifier: Apache-2.0
"""Where cameras leave their frames for the worker."""

from __future__ import annotations

from collections.abc import Iterable
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
