# SPDX-License-Identifier: Apache-2.0
"""The one shape of all that is trained on: labelled frames, and clips of the frames that lead up to them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from netwarp_ros.data.classes import ClassSet


@dataclass(frozen=True)
class Sample:
    """One frame and its label map.

    Attributes:
        name: The file's stem, for instance ``0016E5_07959``.
        image: ``(H, W, 3)`` uint8, BGR.
        label: ``(H, W)`` uint8 class ids or void.
    """

    name: str
    image: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class Clip:
    """Consecutive frames.

    Attributes:
        images: ``(T, H, W, 3)`` uint8, BGR.
        labels: ``(T, H, W)`` uint8 class ids or void.
    """

    images: np.ndarray
    labels: np.ndarray


class Samples(Sequence[Sample]):
    """The labelled frames of a data set, read when asked for.

    Attributes:
        classes: What the ids in the label maps mean.
    """

    classes: ClassSet

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        """Read one labelled frame, or a list of them."""
        chosen = range(len(self))[index]
        return self.read(chosen) if isinstance(chosen, int) else [self.read(i) for i in chosen]

    @abstractmethod
    def read(self, index: int, age: int = 0) -> Sample:
        """Read a labelled frame, or one that led up to it.

        Args:
            index: Which labelled frame, from 0.
            age: How many frames before it, from 0 to `reach`. A frame that has no label is void throughout.

        Raises:
            ValueError: If a file is not what it should be; the message names it.
        """

    def reach(self, index: int) -> int:
        """Return how many frames lead up to a labelled frame without a gap; none where the data set is of stills."""
        return 0


def clips(samples: Samples, length: int) -> Sequence[Clip]:
    """Return the clips that end with a labelled frame, one for each that enough frames lead up to.

    Args:
        samples: A video, or several.
        length: Frames of a clip, T.

    Returns:
        The clips in the order of the labelled frames, each read when asked for.

    Raises:
        ValueError: If the length is not > 0, or not a single clip is that long.
    """
    return _Clips(samples, length)


class _Clips(Sequence[Clip]):
    def __init__(self, samples: Samples, length: int) -> None:
        if length < 1:
            raise ValueError(f"length is {length}: give at least 1 frame")
        self._samples, self._length = samples, length
        reaches = [samples.reach(index) for index in range(len(samples))]
        self._last = [index for index, reach in enumerate(reaches) if reach >= length - 1]
        if not self._last:
            raise ValueError(f"{samples} has no clip of {length} frames, the longest is of {max(reaches) + 1}")

    def __len__(self) -> int:
        return len(self._last)

    @overload
    def __getitem__(self, index: int) -> Clip: ...

    @overload
    def __getitem__(self, index: slice) -> list[Clip]: ...

    def __getitem__(self, index: int | slice) -> Clip | list[Clip]:
        chosen = self._last[index]
        return self._read(chosen) if isinstance(chosen, int) else [self._read(i) for i in chosen]

    def _read(self, last: int) -> Clip:
        frames = [self._samples.read(last, age) for age in reversed(range(self._length))]
        for frame in frames:
            if frame.label.shape != frames[-1].label.shape:
                raise ValueError(
                    f"{frame.name} is {frame.label.shape[1]}x{frame.label.shape[0]}, but {frames[-1].name}, which it "
                    f"leads up to, is {frames[-1].label.shape[1]}x{frames[-1].label.shape[0]}"
                )
        return Clip(np.stack([frame.image for frame in frames]), np.stack([frame.label for frame in frames]))
