# SPDX-License-Identifier: Apache-2.0
"""The interface of all data sets: labelled frames, and clips of consecutive frames that end with one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from typing import overload

import numpy as np

from netwarp_ros.classes import ClassSet
from netwarp_ros.recordings.frames import DEFAULT_RATE, Frame, FrameSource, stamp


@dataclass(frozen=True)
class Sample:
    """A frame and its label map.

    Attributes:
        name: The stem of the image file, for instance ``0016E5_07959``, or another unique name.
        image: ``(H, W, 3)`` uint8, BGR.
        label: ``(H, W)`` uint8 class ids or void.
        motion: ``(H, W, 2)`` float32, the exact reverse flow to the frame before, in pixels; NaN where a pixel was
            hidden or out of view. None if it is not known.
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    motion: np.ndarray | None = None


@dataclass(frozen=True)
class Clip:
    """Consecutive frames.

    Attributes:
        images: ``(T, H, W, 3)`` uint8, BGR.
        labels: ``(T, H, W)`` uint8 class ids or void.
        motion: ``(T, H, W, 2)`` float32, see `Sample`; of no use for the first frame. None if it is not known.
    """

    images: np.ndarray
    labels: np.ndarray
    motion: np.ndarray | None = None


class Samples(Sequence[Sample]):
    """The labelled frames of a data set. Files are read when a frame is accessed.

    Attributes:
        classes: The classes of the ids in the label maps.
    """

    classes: ClassSet

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        """Read one labelled frame, or the list of a slice."""
        chosen = range(len(self))[index]
        return self.read(chosen) if isinstance(chosen, int) else [self.read(i) for i in chosen]

    @abstractmethod
    def read(self, index: int, before: int = 0) -> Sample:
        """Read a labelled frame, or a frame before it.

        Args:
            index: Number of the labelled frame, from 0.
            before: 0 for the labelled frame, 1 for the frame before it, and so on up to ``frames_before(index)``. All
                pixels of a frame without a label map are void.

        Raises:
            ValueError: If a file cannot be used; the message names the file.
        """

    @abstractmethod
    def name(self, index: int, before: int = 0) -> str:
        """Return the name that `read` gives to a frame, without reading the frame."""

    def frames_before(self, index: int) -> int:
        """Return how many consecutive frames there are before a labelled frame; 0 if the data set has no video."""
        return 0

    def instances(self, index: int) -> np.ndarray | None:
        """Read the instance map of a labelled frame; None if the data set has none.

        Returns:
            ``(H, W)`` integers: one number > 0 for each object, 0 for pixels that belong to no single object.

        Raises:
            ValueError: If a file cannot be used; the message names the file.
        """
        return None

    def without_label(self, name: str, image: np.ndarray) -> Sample:
        """Return the sample of a frame without a label map: all pixels are void."""
        return Sample(name, image, np.full(image.shape[:2], self.classes.void, np.uint8))


class Selection(Samples):
    """Those labelled frames of a data set whose names match patterns (`fnmatch`).

    Args:
        samples: The data set.
        names: Patterns of the frames to take; empty takes all.
        leave_out: Patterns of the frames to leave out, also from clips that end with another frame.

    Raises:
        ValueError: If no frame is left.
    """

    def __init__(self, samples: Samples, names: Sequence[str] = (), leave_out: Sequence[str] = ()) -> None:
        self.classes, self.samples, self.names, self.leave_out = samples.classes, samples, names, leave_out
        self._chosen = [index for index in range(len(samples)) if self._is_wanted(samples.name(index))]
        if not self._chosen:
            raise ValueError(
                f"none of the {len(samples)} frames of {samples} has a name like {' or '.join(names) or '*'}"
                + (f" and not like {' or '.join(leave_out)}" if leave_out else "")
            )

    def __str__(self) -> str:
        return str(self.samples)

    def __len__(self) -> int:
        return len(self._chosen)

    def frames_before(self, index: int) -> int:
        chosen = self._chosen[index]
        for before in range(1, self.samples.frames_before(chosen) + 1):
            if not self._is_wanted(self.samples.name(chosen, before)):
                return before - 1
        return self.samples.frames_before(chosen)

    def name(self, index: int, before: int = 0) -> str:
        return self.samples.name(self._chosen[index], before)

    def read(self, index: int, before: int = 0) -> Sample:
        return self.samples.read(self._chosen[index], before)

    def instances(self, index: int) -> np.ndarray | None:
        return self.samples.instances(self._chosen[index])

    def _is_wanted(self, name: str) -> bool:
        taken = not self.names or any(fnmatchcase(name, pattern) for pattern in self.names)
        return taken and not any(fnmatchcase(name, pattern) for pattern in self.leave_out)


def clips(samples: Samples, length: int) -> Sequence[Clip]:
    """Return the clips of a data set: each ends with a labelled frame that has enough frames before it.

    Args:
        samples: The data set.
        length: Frames per clip, T.

    Returns:
        The clips in the order of their labelled frames. Files are read when a clip is accessed.

    Raises:
        ValueError: If the length is not > 0, or no clip is that long.
    """
    return _Clips(samples, length)


class _Clips(Sequence[Clip]):
    def __init__(self, samples: Samples, length: int) -> None:
        if length < 1:
            raise ValueError(f"length is {length}: give at least 1 frame")
        self._samples, self._length = samples, length
        counts = [samples.frames_before(index) for index in range(len(samples))]
        self._ends = [index for index, count in enumerate(counts) if count >= length - 1]
        if not self._ends:
            raise ValueError(f"{samples} has no clip of {length} frames; the longest clip has {max(counts) + 1}")

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Clip: ...

    @overload
    def __getitem__(self, index: slice) -> list[Clip]: ...

    def __getitem__(self, index: int | slice) -> Clip | list[Clip]:
        chosen = self._ends[index]
        return self._read(chosen) if isinstance(chosen, int) else [self._read(i) for i in chosen]

    def _read(self, end: int) -> Clip:
        frames = [self._samples.read(end, before) for before in reversed(range(self._length))]
        for frame in frames:
            if frame.label.shape != frames[-1].label.shape:
                raise ValueError(
                    f"{frame.name} is {frame.label.shape[1]}x{frame.label.shape[0]}, but {frames[-1].name}, the last "
                    f"frame of its clip, is {frames[-1].label.shape[1]}x{frames[-1].label.shape[0]}"
                )
        motion = [frame.motion for frame in frames if frame.motion is not None]
        return Clip(
            np.stack([frame.image for frame in frames]),
            np.stack([frame.label for frame in frames]),
            np.stack(motion) if len(motion) == len(frames) else None,
        )


class SampleFrames(FrameSource):
    """The clips of a data set as a recording to evaluate a model on.

    Each clip ends with a labelled frame. The stamps of two clips are a minute apart, so a stream resets its memory
    between them.

    Args:
        samples: The data set.
        length: Frames per clip; a clip is shorter if its labelled frame has fewer frames before it.
        rate: Frames per second.

    Raises:
        ValueError: If the length is not > 0.
    """

    def __init__(self, samples: Samples, length: int, rate: float = DEFAULT_RATE) -> None:
        if length < 1:
            raise ValueError(f"length is {length}: give at least 1 frame")
        super().__init__()
        self.samples, self.rate = samples, rate
        self._counts_before = [min(length - 1, samples.frames_before(index)) for index in range(len(samples))]
        self._latest_labelled: tuple[int, int, np.ndarray] | None = None  # frame index, sample index, label map

    def __len__(self) -> int:
        return len(self._counts_before) + sum(self._counts_before)

    def read(self, begin: int = 0, end: int | None = None) -> Iterator[Frame]:
        for number, (stamp_ns, index, before) in islice(enumerate(self._positions()), begin, end):
            sample = self.samples.read(index, before)
            self._latest_labelled = None if before else (number, index, sample.label)
            yield Frame(number, stamp_ns, sample.name, sample.image)

    def _positions(self) -> Iterator[tuple[int, int, int]]:
        """Yield the stamp of each frame, and where it is in the data set: the arguments of `Samples.read`."""
        stamp_ns = 0
        for index, count in enumerate(self._counts_before):
            for before in range(count, -1, -1):
                yield stamp_ns, index, before
                stamp_ns += stamp(1, self.rate)
            stamp_ns += 60 * 10**9

    def label(self, frame: Frame) -> np.ndarray | None:
        """Return the label map of the latest frame read; None if it is not the labelled one of its clip."""
        if self._latest_labelled is None or self._latest_labelled[0] != frame.index:
            return None
        return self._latest_labelled[2]

    def instances(self, frame: Frame) -> np.ndarray | None:
        """Return the instance map of the latest frame read; None if it has none, or is not the labelled one."""
        if self._latest_labelled is None or self._latest_labelled[0] != frame.index:
            return None
        return self.samples.instances(self._latest_labelled[1])
