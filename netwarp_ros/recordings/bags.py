# SPDX-License-Identifier: Apache-2.0
"""Images and label maps of rosbag2 recordings, read without ROS."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from netwarp_ros.recordings.bag_reader import BagReader, Topic
from netwarp_ros.recordings.frames import DEFAULT_RATE, Frame, FrameSource, stamp
from netwarp_ros.recordings.image_messages import samples, to_bgr
from netwarp_ros.recordings.messages import IMAGE, IMAGES, deserialize, stamp_of


class BagFrames(FrameSource):
    """The images of one or more topics of a rosbag2, in the order they were recorded.

    Stamps are those of the message headers; where a header has none (0), the time of recording stands in. An image that
    cannot be read is noted and left out; it keeps its number.

    Args:
        path: The bag's folder, or a ``.mcap`` or ``.db3`` file.
        topics: Topics of type ``sensor_msgs/Image`` or ``CompressedImage``; may be left out where the bag has only one.
        rate: Frames per second to stamp each topic's frames by, from 0 on, in place of the recorded stamps.
        leave_out: Topics that are not meant where none is named.

    Raises:
        ValueError: If the bag cannot be read, or has no such topic, or several and none was named. Taking the frames,
            if none of the images can be read.
    """

    def __init__(
        self,
        path: Path,
        *,
        topics: Sequence[str] = (),
        rate: float | None = None,
        leave_out: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.path = path
        with BagReader(path, self.damage.append) as bag:
            self.cameras = topics or [_only_topic(path, bag.topics, leave_out)]
            for topic in self.cameras:
                check_image_topic(path, bag.topics, topic)
            self._count = sum(bag.topics[topic].count for topic in self.cameras)
            seconds, count = bag.duration_ns * 1e-9, self._count / len(self.cameras)
        if not self._count:
            raise ValueError(f"{path} holds no message on its image topic {', '.join(self.cameras)}")
        self._keeps_stamps = rate is None
        # The bag's duration spans the intervals between the images, one fewer than there are images.
        self.rate = rate or ((count - 1) / seconds if count > 1 and seconds > 0 else DEFAULT_RATE)

    def __len__(self) -> int:
        return self._count

    def read(self, begin: int = 0, end: int | None = None) -> Iterator[Frame]:
        self.damage = []
        counts: Counter[str] = Counter()
        last_ns: dict[str, int] = {}
        late: Counter[str] = Counter()
        with BagReader(self.path, self.note_damage) as bag:
            for index, (topic, kind, recorded_ns, data) in enumerate(bag.messages(self.cameras)):
                if index == end:
                    break
                number, counts[topic] = counts[topic], counts[topic] + 1
                if index < begin:
                    continue
                try:
                    with naming_message(f"{self.path}: image {number} of {topic}"):
                        message = deserialize(kind, data)
                        image = decode(message)
                except ValueError as error:
                    self.note_damage(str(error))
                    continue
                stamp_ns = stamp_of(message, recorded_ns) if self._keeps_stamps else stamp(number, self.rate)
                late[topic] += stamp_ns <= last_ns.get(topic, -1)
                last_ns[topic] = stamp_ns
                yield Frame(
                    index,
                    stamp_ns,
                    f"{index:06d}",
                    image,
                    topic,
                    message.header.frame_id,
                    getattr(message, "encoding", "") or message.format,
                    recorded_ns if self._keeps_stamps else stamp_ns,
                )
        if not last_ns and begin == 0 and end is None:
            raise ValueError(f"none of the {self._count} images in {self.path} can be read. {self.damage[0]}")
        for topic, count in (+late).items():
            self.note_damage(
                f"{self.path}: {count} of the {counts[topic]} images of {topic} have a stamp that is not later than "
                "the one before"
            )


class BagLabels:
    """Label maps on topics of a rosbag2, found by the stamps of frames; kept in memory, compressed.

    Args:
        path: The bag's folder, or a ``.mcap`` or ``.db3`` file; that of the images, or another.
        topics: The topic of label maps, ``sensor_msgs/Image`` of encoding ``mono8``, by the camera that they are for.

    Raises:
        ValueError: If the bag cannot be read, or has no such topic.
    """

    def __init__(self, path: str | Path, topics: Mapping[str, str]) -> None:
        self.path, self.topics = Path(path), topics
        self.damage: list[str] = []
        self._labels: dict[tuple[str, int], bytes] = {}
        self._taken: set[tuple[str, int]] = set()
        with BagReader(self.path, self.damage.append) as bag:
            for topic in topics.values():
                check_image_topic(self.path, bag.topics, topic)
                if bag.topics[topic].kind != IMAGE:
                    raise ValueError(f"{path}: {topic} is compressed; label maps are sensor_msgs/Image, of mono8")
            for index, (topic, kind, recorded_ns, data) in enumerate(bag.messages(set(topics.values()))):
                try:
                    with naming_message(f"{self.path}: label map {index}, on {topic},"):
                        stamp_ns = stamp_of(deserialize(kind, data), recorded_ns)
                except ValueError as error:
                    self.damage.append(str(error))
                    continue
                self._labels[topic, stamp_ns] = zlib.compress(data, level=1)

    def __call__(self, frame: Frame) -> np.ndarray | None:
        """Return the label map of a frame, ``(H, W)`` uint8, or None where it has none.

        Raises:
            ValueError: If it is no label map, or not of the frame's size.
        """
        key = self.topics[frame.camera], frame.stamp_ns
        if key not in self._labels:
            return None
        self._taken.add(key)
        with naming_message(f"{self.path}: the label map of image {frame.name}, on {key[0]},"):
            message = deserialize(IMAGE, zlib.decompress(self._labels[key]))
            return decode_label_of(message, frame.image.shape[:2])

    def unmatched(self) -> list[str]:
        """Tell of each topic how many of its label maps no frame has asked for."""
        count = Counter(topic for topic, _ in self._labels)
        left = Counter(topic for topic, _ in self._labels.keys() - self._taken)
        return [
            f"{self.path}: {left[topic]} of the {count[topic]} label maps of {topic} have the stamp of no image"
            for topic in left
        ]


def decode(message: Any) -> np.ndarray:
    """Decode an image message as `to_bgr` does, to an array that can be written to: what a bag gives cannot."""
    return np.require(to_bgr(message), requirements=["C", "W"])


def decode_label(message: Any) -> np.ndarray:
    """Turn an image message of class ids into a label map.

    Args:
        message: ``sensor_msgs/Image`` of encoding ``mono8`` or ``8UC1``.

    Returns:
        ``(H, W)`` uint8.

    Raises:
        ValueError: If it has another encoding, or data that do not fit height and step.
    """
    encoding = getattr(message, "encoding", "compressed")
    if encoding not in ("mono8", "8UC1"):
        raise ValueError(f"label maps are mono8, and not {encoding}: colours and lossy pictures hold no class ids")
    return samples(message)[..., 0].copy()


def decode_label_of(message: Any, size: tuple[int, ...]) -> np.ndarray:
    """Decode the label map of an image of a height and width."""
    label = decode_label(message)
    if label.shape != size:
        raise ValueError(f"it is {label.shape[1]}x{label.shape[0]}, but its image is {size[1]}x{size[0]}")
    return label


@contextmanager
def naming_message(message: str) -> Iterator[None]:
    """Let what is wrong with a message of a bag become a ValueError that names it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{message} cannot be read: {error}") from error


def _only_topic(path: Path, topics: Mapping[str, Topic], leave_out: Collection[str]) -> str:
    """Return the one image topic of a bag that there is, beside those left out."""
    images = sorted(name for name, topic in topics.items() if topic.kind in IMAGES and name not in leave_out)
    if not images:
        others = ", ".join(sorted(f"{name} ({topic.kind})" for name, topic in topics.items())) or "no topic at all"
        raise ValueError(f"{path} has no topic of sensor_msgs/Image or CompressedImage to take; it has {others}")
    if len(images) > 1:
        raise ValueError(f"{path} has {len(images)} image topics, {', '.join(images)}: name the topic to take")
    return images[0]


def check_image_topic(path: Path, topics: Mapping[str, Topic], wanted: str) -> None:
    """Check that a bag has an image topic of a name."""
    images = ", ".join(sorted(name for name, topic in topics.items() if topic.kind in IMAGES)) or "none"
    if wanted not in topics:
        raise ValueError(f"{path} has no image topic {wanted!r}: choose one of {images}")
    if topics[wanted].kind not in IMAGES:
        raise ValueError(
            f"{path}: {wanted} is of {topics[wanted].kind}, and not of sensor_msgs/Image or CompressedImage: choose "
            f"one of {images}"
        )
