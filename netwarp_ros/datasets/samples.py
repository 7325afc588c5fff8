# SPDX-License-Identifier: Apache-2.0
"""The one shape of all that is trained on: labelled frames, and clips of the frames that lead up to them."""

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
    def read(self, index: int, before: int = 0) -> Sample:
        """Read a labelled frame, or one that led up to it.

        Args:
            index: Which labelled frame, from 0.
            before: How many frames before it, from 0 to `frames_before`. A frame that has no label is void throughout.

        Raises:
            ValueError: If a file is not what it should be; the message names it.
        """

    @abstractmethod
    def name(self, index: int, before: int = 0) -> str:
        """Return the name of a labelled frame, or of one that led up to it, as `read` gives it, without reading it."""

    def frames_before(self, index: int) -> int:
        """Return how many frames lead up to a labelled frame without a gap; none where the data set is of stills."""
        return 0

    def instances(self, index: int) -> np.ndarray | None:
        """Read which object each pixel of a labelled frame is of; None where the data set does not tell.

        Returns:
            ``(H, W)`` integers: a number > 0 for each object of a class, 0 where objects are not told apart.

        Raises:
            ValueError: If a file is not what it should be; the message names it.
        """
        return None


class Selection(Samples):
    """The labelled frames of a data set that are to be used, by their names.

    Args:
        samples: The data set.
        names: Patterns (`fnmatch`) of the names of frames to take; none takes all.
        leave_out: Patterns of the names of frames to leave out; they lead up to no other either.

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
        reaches = [samples.frames_before(index) for index in range(len(samples))]
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
        frames = [self._samples.read(last, before) for before in reversed(range(self._length))]
        for frame in frames:
            if frame.label.shape != frames[-1].label.shape:
                raise ValueError(
                    f"{frame.name} is {frame.label.shape[1]}x{frame.label.shape[0]}, but {frames[-1].name}, which it "
                    f"leads up to, is {frames[-1].label.shape[1]}x{frames[-1].label.shape[0]}"
                )
        return Clip(np.stack([frame.image for frame in frames]), np.stack([frame.label for frame in frames]))


class SampleFrames(FrameSource):
    """The labelled frames of a data set as a recording to judge a model on, each led up to by the frames before it.

    Each labelled frame ends a stream of its own: a minute passes before the next begins.

    Args:
        samples: The data set.
        length: Frames of a stream, the labelled one among them; fewer where not as many lead up to it.
        rate: Frames per second.

    Raises:
        ValueError: If the length is not > 0.
    """

    def __init__(self, samples: Samples, length: int, rate: float = DEFAULT_RATE) -> None:
        if length < 1:
            raise ValueError(f"length is {length}: give at least 1 frame")
        super().__init__()
        self.samples, self.rate = samples, rate
        self._before = [min(length - 1, samples.frames_before(index)) for index in range(len(samples))]
        self._labelled: dict[int, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._before) + sum(self._before)

    def read(self, begin: int = 0, end: int | None = None) -> Iterator[Frame]:
        return islice(self._read(), begin, end)

    def _read(self) -> Iterator[Frame]:
        number = stamp_ns = 0
        for index, most_before in enumerate(self._before):
            for before in range(most_before, -1, -1):
                sample = self.samples.read(index, before)
                self._labelled = {} if before else {number: (index, sample.label)}
                yield Frame(number, stamp_ns, sample.name, sample.image)
                number, stamp_ns = number + 1, stamp_ns + stamp(1, self.rate)
            stamp_ns += 60 * 10**9

    def label(self, frame: Frame) -> np.ndarray | None:
        """Return the label map of the frame that was taken last; None for one that leads up to another."""
        return self._labelled[frame.index][1] if frame.index in self._labelled else None

    def instances(self, frame: Frame) -> np.ndarray | None:
        """Return which object each pixel of the frame that was taken last is of; None where that is not told."""
        return self.samples.instances(self._labelled[frame.index][0]) if frame.index in self._labelled else None
