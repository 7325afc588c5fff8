# SPDX-License-Identifier: Apache-2.0
"""The frames of a recording, one at a time: the interface that image folders, videos and bags share."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np

DEFAULT_RATE = 15.0
"""Frames per second of a recording without stamps, such as a folder of images, if no rate is given."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frame:
    """One recorded image.

    Attributes:
        index: Position in the recording, from 0.
        stamp_ns: When the image was taken.
        name: The stem of the image file, or else the index in six digits. Files made from the frame get this name.
        image: ``(H, W, 3)`` uint8, BGR.
        camera: The image topic in a bag; empty in other recordings. Each camera is a stream of its own.
        frame_id: Name of the camera's optical frame.
        encoding: The image's encoding before it was converted to BGR.
        recorded_ns: When the image was recorded; None if that is unknown.
    """

    index: int
    stamp_ns: int
    name: str
    image: np.ndarray
    camera: str = ""
    frame_id: str = ""
    encoding: str = "bgr8"
    recorded_ns: int | None = None

    @property
    def arrival_ns(self) -> int:
        """When the image was recorded, or else when it was taken."""
        return self.stamp_ns if self.recorded_ns is None else self.recorded_ns


class FrameSource(ABC):
    """A recording to iterate over, any number of times. An iteration holds one frame in memory.

    Attributes:
        rate: Frames per second, from the recording or given by the caller.
        cameras: The values of `Frame.camera`.
        damage: What could not be read in the latest iteration and why, one sentence each.
    """

    rate: float
    cameras: Sequence[str] = ("",)

    def __init__(self) -> None:
        self.damage: list[str] = []

    def __iter__(self) -> Iterator[Frame]:
        return self.read()

    @abstractmethod
    def read(self, begin: int = 0, end: int | None = None) -> Iterator[Frame]:
        """Read the frames with ``begin <= index < end``. Earlier frames are not decoded."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of frames, those included that cannot be read."""

    def note_damage(self, damage: str) -> None:
        """Add a sentence to `damage` and log it as a warning."""
        self.damage.append(damage)
        _log.warning("%s", damage)


def read_ahead(items: Iterable[T], count: int = 4) -> Iterator[T]:
    """Iterate in a thread of its own, up to ``count`` items ahead of the caller.

    An error of the iterable is raised in the place of its item.
    """
    iterator, end = iter(items), object()
    thread = ThreadPoolExecutor(1)
    try:
        pending = deque(thread.submit(next, iterator, end) for _ in range(count))
        while (item := pending.popleft().result()) is not end:
            pending.append(thread.submit(next, iterator, end))
            yield cast(T, item)
    finally:
        thread.shutdown(cancel_futures=True)


def stamp(index: int, rate: float) -> int:
    """Return the stamp in ns of a frame in a stream that starts at 0 and has a constant rate."""
    return round(index * 1e9 / rate)
