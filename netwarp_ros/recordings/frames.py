# SPDX-License-Identifier: Apache-2.0
"""Recorded frames, one at a time, whatever they are recorded in."""

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
"""Frames per second of a folder of images, which has no stamps of its own, unless another rate is given."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frame:
    """One recorded image.

    Attributes:
        index: Counted from 0 in the order of the recording.
        stamp_ns: When it was taken, in ns.
        name: What files made from it are called: the stem of an image file, else the index in six digits.
        image: ``(H, W, 3)`` uint8, BGR.
        camera: Where it comes from, in a recording of several: its topic. Each camera is a stream of its own.
        frame_id: Name of the camera's optical frame.
        encoding: What the image was before it became BGR.
        recorded_ns: When it was recorded, in ns; None where that was not noted.
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
        """When it came, as far as that is known: when it was recorded, or else taken."""
        return self.stamp_ns if self.recorded_ns is None else self.recorded_ns


class FrameSource(ABC):
    """A recording to iterate over, as often as wanted; each time holds one frame in memory.

    Attributes:
        rate: Frames per second, as declared by the recording or given for it.
        cameras: Where its frames come from.
        damage: What could not be read in the latest iteration, and why, one sentence for each.
    """

    rate: float
    cameras: Sequence[str] = ("",)

    def __init__(self) -> None:
        self.damage: list[str] = []

    def __iter__(self) -> Iterator[Frame]:
        return self.read()

    @abstractmethod
    def read(self, begin: int = 0, end: int | None = None) -> Iterator[Frame]:
        """Read the frames whose index is from ``begin`` on and less than ``end``; those before are not decoded."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of frames; of a video it is what its container claims, 0 where it claims nothing."""

    def note_damage(self, damage: str) -> None:
        """Note what cannot be read, and log it."""
        self.damage.append(damage)
        _log.warning("%s", damage)


def read_ahead(items: Iterable[T], count: int = 4) -> Iterator[T]:
    """Take items in a thread of its own, so many ahead of whoever takes them from here; an error comes in its turn."""
    iterator, end = iter(items), object()
    reader = ThreadPoolExecutor(1)
    try:
        coming = deque(reader.submit(next, iterator, end) for _ in range(count))
        while (item := coming.popleft().result()) is not end:
            coming.append(reader.submit(next, iterator, end))
            yield cast(T, item)
    finally:
        reader.shutdown(cancel_futures=True)


def stamp(index: int, rate: float) -> int:
    """Return the stamp in ns of a frame of a steady stream that starts at 0."""
    return round(index * 1e9 / rate)
