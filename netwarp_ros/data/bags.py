# SPDX-License-Identifier: Apache-2.0
"""Image topics of rosbag2 recordings, read without ROS, through ``rosbags``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader, ReaderError
from rosbags.serde import SerdeError

from netwarp_ros.data.classes import ClassSet
from netwarp_ros.data.frames import DEFAULT_RATE, Frame, FrameSource, stamp
from netwarp_ros.data.image_messages import samples, to_bgr
from netwarp_ros.data.messages import COMPRESSED_IMAGE, IMAGE, stamp_of, typestore
from netwarp_ros.data.samples import Sample, Samples


class BagFrames(FrameSource):
    """The images of one topic of a rosbag2, in the order they were recorded.

    Stamps are those of the message headers; where a header has none (0), the time of recording stands in.

    Args:
        path: The bag's folder, or a ``.mcap`` or ``.db3`` file.
        topic: Topic of type ``sensor_msgs/Image`` or ``CompressedImage``; may be left out where the bag has only one.
        rate: Frames per second to stamp the frames by, from 0 on, in place of the recorded stamps.

    Raises:
        ValueError: If the bag cannot be read, or has no such topic, or several and none was named.
    """

    def __init__(self, path: Path, *, topic: str | None = None, rate: float | None = None) -> None:
        self.path = path
        with _open(path) as reader:
            self.topic = _choose_topic(path, reader, topic)
            self._count = sum(connection.msgcount for connection in _connections(reader, self.topic))
            seconds = reader.duration * 1e-9
        if not self._count:
            raise ValueError(f"{path} holds no message on its image topic {self.topic}")
        self._keeps_stamps = rate is None
        # The bag's duration spans the intervals between the images, one fewer than there are images.
        self.rate = rate or ((self._count - 1) / seconds if self._count > 1 and seconds > 0 else DEFAULT_RATE)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Frame]:
        with _open(self.path) as reader:
            messages = reader.messages(connections=_connections(reader, self.topic))
            for index, (connection, recorded_ns, data) in enumerate(messages):
                with _naming(f"{self.path}: image {index} of {self.topic}"):
                    message: Any = typestore.deserialize_cdr(data, connection.msgtype)
                    image = decode(message)
                stamp_ns = stamp_of(message, recorded_ns) if self._keeps_stamps else stamp(index, self.rate)
                yield Frame(index, stamp_ns, f"{index:06d}", image)


class BagVideo(Samples):
    """The images of a rosbag2 that have a label map on another topic, matched by the stamps of their headers.

    Such a bag may come from a labelling tool, or from recording a segmenter's ``mask`` beside its images. Images
    without a label map are the frames in between, which only clips show.

    Args:
        path: The bag's folder, or a ``.mcap`` or ``.db3`` file.
        image_topic: Topic of type ``sensor_msgs/Image`` or ``CompressedImage``.
        label_topic: Topic of type ``sensor_msgs/Image`` and encoding ``mono8``, of class ids.
        classes: What the ids mean.
        max_gap: Seconds between the stamps of two images over which the second does not follow the first.

    Raises:
        ValueError: If the bag cannot be read, lacks a topic, or no label map has the stamp of an image.
    """

    def __init__(
        self, path: str | Path, image_topic: str, label_topic: str, classes: ClassSet, *, max_gap: float = 0.5
    ) -> None:
        self.path, self.classes = Path(path), classes
        self.image_topic, self.label_topic = image_topic, label_topic
        self._images, labels = (_stamps(self.path, topic) for topic in (image_topic, label_topic))
        self._labels = dict(labels)
        self._labelled = [index for index, (stamp_ns, _) in enumerate(self._images) if stamp_ns in self._labels]
        if not self._labelled:
            raise ValueError(
                f"{path}: none of the {len(labels)} label maps of {label_topic} has the stamp of one of the "
                f"{len(self._images)} images of {image_topic}"
            )
        self._reach = [0]
        for (before, _), (present, _) in pairwise(self._images):
            self._reach.append(self._reach[-1] + 1 if 0 < present - before <= max_gap * 1e9 else 0)

    def __str__(self) -> str:
        return f"{self.path} ({self.image_topic}, {self.label_topic})"

    def __len__(self) -> int:
        return len(self._labelled)

    def reach(self, index: int) -> int:
        return self._reach[self._labelled[index]]

    def name(self, index: int, age: int = 0) -> str:
        return f"{self._labelled[index] - age:06d}"

    def read(self, index: int, age: int = 0) -> Sample:
        position, name = self._labelled[index] - age, self.name(index, age)
        stamp_ns, recorded_ns = self._images[position]
        with _naming(f"{self.path}: image {position} of {self.image_topic}"):
            image = decode(self._message(self.image_topic, stamp_ns, recorded_ns))
        if stamp_ns not in self._labels:
            return Sample(name, image, np.full(image.shape[:2], self.classes.void, np.uint8))
        label_name = f"{self.path}: the label map of image {position}, on {self.label_topic},"
        with _naming(label_name):
            label = decode_label(self._message(self.label_topic, stamp_ns, self._labels[stamp_ns]))
            (height, width), size = label.shape, image.shape[:2]
            if (height, width) != size:
                raise ValueError(f"it is {width}x{height}, but its image is {size[1]}x{size[0]}")
        self.classes.check(label, label_name)
        return Sample(name, image, label)

    def _message(self, topic: str, stamp_ns: int, recorded_ns: int) -> Any:
        """Read the message of this stamp that was recorded then."""
        with _open(self.path) as reader:
            connections = _connections(reader, topic)
            for connection, _, data in reader.messages(connections, recorded_ns, recorded_ns + 1):
                message = typestore.deserialize_cdr(data, connection.msgtype)
                if stamp_of(message, recorded_ns) == stamp_ns:
                    return message
        raise ValueError("it is no longer there")


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


def _stamps(path: Path, topic: str) -> list[tuple[int, int]]:
    """Return the stamp of each message of an image topic and when it was recorded, both in ns."""
    stamps = []
    with _open(path) as reader:
        connections = _connections(reader, _choose_topic(path, reader, topic))
        for index, (connection, recorded_ns, data) in enumerate(reader.messages(connections)):
            with _naming(f"{path}: message {index} of {topic}"):
                message = typestore.deserialize_cdr(data, connection.msgtype)
            stamps.append((stamp_of(message, recorded_ns), recorded_ns))
    return stamps


def _connections(reader: Reader, topic: str) -> list[Connection]:
    return [connection for connection in reader.connections if connection.topic == topic]


@contextmanager
def _naming(message: str) -> Iterator[None]:
    """Let what is wrong with a message of a bag become a ValueError that names it."""
    try:
        yield
    except (ValueError, SerdeError) as error:
        raise ValueError(f"{message} cannot be read: {error}") from error


@contextmanager
def _open(path: Path) -> Iterator[Reader]:
    """Open a bag; what makes it unreadable, on opening or later, becomes a ValueError that names it."""
    try:
        with Reader(path) as reader:
            yield reader
    except (ReaderError, OSError) as error:
        raise ValueError(f"{path} is not a readable rosbag2: {error}") from error


def _choose_topic(path: Path, reader: Reader, wanted: str | None) -> str:
    topics = sorted({c.topic for c in reader.connections if c.msgtype in (IMAGE, COMPRESSED_IMAGE)})
    if not topics:
        others = ", ".join(sorted(f"{c.topic} ({c.msgtype})" for c in reader.connections)) or "no topic at all"
        raise ValueError(f"{path} has no topic of sensor_msgs/Image or CompressedImage; it has {others}")
    if wanted is None and len(topics) == 1:
        return topics[0]
    if wanted is None:
        raise ValueError(f"{path} has {len(topics)} image topics, {', '.join(topics)}: name the topic to take")
    if wanted not in topics:
        raise ValueError(f"{path} has no image topic {wanted!r}: choose one of {', '.join(topics)}")
    return wanted
