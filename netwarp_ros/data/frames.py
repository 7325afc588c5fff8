# SPDX-License-Identifier: Apache-2.0
"""Recorded frames, one at a time: from a folder of images, a video or a rosbag2, and their label maps."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar, cast

import cv2
import numpy as np

DEFAULT_RATE = 15.0
"""Frames per second of a folder of images, which has no stamps of its own, unless another rate is given."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
BAG_SUFFIXES = (".mcap", ".db3")

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

    def report(self, damage: str) -> None:
        """Note what cannot be read, and log it."""
        self.damage.append(damage)
        _log.warning("%s", damage)


class ImageFiles(FrameSource):
    """Image files as a stream of a steady rate, the first stamped 0.

    Args:
        paths: Files in the order of the stream.
        rate: Frames per second.

    Raises:
        ValueError: If two files have the same stem: what is made from one would overwrite the other's.
    """

    def __init__(self, paths: Sequence[Path], rate: float = DEFAULT_RATE) -> None:
        super().__init__()
        self.paths, self.rate = list(paths), rate
        seen: dict[str, Path] = {}
        for path in self.paths:
            if path.stem in seen:
                raise ValueError(f"{seen[path.stem]} and {path} have the same name but for the ending: rename one")
            seen[path.stem] = path

    @classmethod
    def in_folder(cls, folder: Path, rate: float = DEFAULT_RATE) -> ImageFiles:
        """Take all image files in a folder, sorted by name.

        Raises:
            FileNotFoundError: If it holds none.
        """
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        if not paths:
            raise FileNotFoundError(f"{folder} holds no image ({' '.join(IMAGE_SUFFIXES)})")
        return cls(paths, rate)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, begin: int = 0, end: int | None = None) -> Iterator[Frame]:
        for index, path in islice(enumerate(self.paths), begin, end):
            yield Frame(index, stamp(index, self.rate), path.stem, read_image(path))


class VideoFile(FrameSource):
    """A video that OpenCV reads.

    Args:
        path: The file.
        rate: Frames per second to stamp the frames by; by default they have the stamps of the container.

    Raises:
        ValueError: If it cannot be opened, or holds no frame.
    """

    def __init__(self, path: Path, rate: float | None = None) -> None:
        super().__init__()
        self.path = path
        capture = self._open()
        declared = capture.get(cv2.CAP_PROP_FPS)
        self._count = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        capture.release()
        self._keeps_stamps = rate is None
        self.rate = rate or (declared if math.isfinite(declared) and declared > 0 else DEFAULT_RATE)

    def __len__(self) -> int:
        return self._count

    def read(self, begin: int = 0, end: int | None = None) -> Iterator[Frame]:
        capture, index, last_ns = self._open(), 0, -1
        self.damage = []
        try:
            while end is None or index < end:
                if not capture.grab():
                    break
                stamp_ns = stamp(index, self.rate)
                if self._keeps_stamps:
                    stamp_ns = round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
                    # Some containers give no stamps, or the same one twice.
                    if stamp_ns <= last_ns:
                        stamp_ns = last_ns + stamp(1, self.rate)
                if index >= begin:
                    read, image = capture.retrieve()
                    if not read:
                        break
                    yield Frame(index, stamp_ns, f"{index:06d}", image)
                index, last_ns = index + 1, stamp_ns
        finally:
            capture.release()
        if index == 0:
            raise ValueError(f"{self.path} holds no frame that OpenCV can decode: convert it to MP4 or MKV")
        if index < (self._count if end is None else min(end, self._count)):
            self.report(f"{self.path} ended after {index} of the {self._count} frames it claims to hold")

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self.path))
        if not capture.isOpened():
            raise ValueError(
                f"{self.path} cannot be opened as a video: give a video, an image, a folder of images, or a bag "
                f"({' or '.join(BAG_SUFFIXES)})"
            )
        return capture


def open_frames(
    path: str | Path, *, rate: float | None = None, topics: Sequence[str] = (), leave_out: Collection[str] = ()
) -> FrameSource:
    """Open a recording.

    Args:
        path: A folder of images (taken in the order of their names), an image, a video, or a rosbag2 (its folder, or a
            ``.mcap`` or ``.db3`` file of it).
        rate: Frames per second to stamp the frames by, from 0 on, in place of recorded stamps; for images, which have
            none, it is `DEFAULT_RATE` unless given.
        topics: Image topics of a bag; needed where it has several.
        leave_out: Topics that are not meant where none is named, such as those of label maps.

    Raises:
        FileNotFoundError: If there is nothing at the path, or no image in the folder.
        ValueError: If it cannot be read, the rate is not > 0, or a topic does not fit.
    """
    path = Path(path)
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"rate is {rate}: give frames per second > 0")
    if not path.exists():
        raise FileNotFoundError(f"nothing at {path}: give a folder of images, an image, a video or a bag")
    if is_bag(path):
        from netwarp_ros.data.bags import BagFrames  # what reads bags is needed for nothing else

        return BagFrames(path, topics=topics, rate=rate, leave_out=leave_out)
    if topics:
        raise ValueError(f"the topic {topics[0]} is named, but {path} is no bag: leave it out")
    if path.is_dir():
        return ImageFiles.in_folder(path, rate or DEFAULT_RATE)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageFiles([path], rate or DEFAULT_RATE)
    return VideoFile(path, rate)


def is_bag(path: Path) -> bool:
    """Tell whether a path is that of a rosbag2: a file of one, or a folder of them, be it without metadata."""
    if not path.is_dir():
        return path.suffix in BAG_SUFFIXES
    if (path / "metadata.yaml").is_file():
        return True
    suffixes = {file.suffix.lower() for file in path.iterdir()}
    return not suffixes.isdisjoint(BAG_SUFFIXES) and suffixes.isdisjoint(IMAGE_SUFFIXES)


class LabelFolder:
    """Label maps ``folder/NAME.png``, found by the names of frames.

    Args:
        folder: Holds 8-bit single-channel PNGs of class ids.

    Raises:
        FileNotFoundError: If there is no such folder, or no PNG in it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no folder {self.folder}: give one of label maps NAME.png")
        if not any(self.folder.glob("*.png")):
            raise FileNotFoundError(f"{self.folder} holds no label map NAME.png, named like the images")

    def __call__(self, frame: Frame) -> np.ndarray | None:
        """Return the label map of a frame, ``(H, W)`` uint8, or None where it has none.

        Raises:
            ValueError: If the file is no such image, or not of the frame's size.
        """
        path = self.folder / f"{frame.name}.png"
        if not path.is_file():
            return None
        return read_label(path, frame.image.shape[:2])


def read_image(path: Path, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Read an image file, by default as ``(H, W, 3)`` uint8, BGR.

    Raises:
        ValueError: If it is none that OpenCV reads.
    """
    image = cv2.imread(str(path), flags)
    if image is None:
        raise ValueError(f"{path} cannot be read as an image: mend or remove it")
    return image


def read_label(
    path: Path, size: tuple[int, ...], from_colors: Callable[[np.ndarray, str], np.ndarray] | None = None
) -> np.ndarray:
    """Read a label map, ``(H, W)`` uint8.

    Args:
        path: An image of one channel of 8 bits.
        size: Height and width of the image that it labels.
        from_colors: Turns an image of colours, ``(H, W, 3)`` uint8, BGR, of the given name, into a label map. Without
            it, colours are refused.

    Raises:
        ValueError: If the file is no such image, or not of that size.
    """
    label = read_image(path, cv2.IMREAD_UNCHANGED)
    if from_colors and label.ndim == 3:
        label = from_colors(label, str(path))
    if label.ndim != 2 or label.dtype != np.uint8:
        raise ValueError(
            f"{path} is {label.shape} {label.dtype}: a label map holds class ids, one channel of 8 bits; colours "
            "must be turned into ids first"
        )
    if label.shape != size:
        raise ValueError(f"{path} is {label.shape[1]}x{label.shape[0]}, but its image is {size[1]}x{size[0]}")
    return label


def ahead(items: Iterable[T], count: int = 4) -> Iterator[T]:
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
