# SPDX-License-Identifier: Apache-2.0
"""Image topics of rosbag2 recordings, read and written without ROS, through ``rosbags``.

Images are read with Jazzy's definitions of ``sensor_msgs/Image`` and ``CompressedImage``, which have been the same in
every ROS 2, so that other topics of a bag, of whatever types, cannot get in the way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from rosbags.image import ImageError, image_to_cvimage, message_to_cvimage
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader, ReaderError, StoragePlugin, Writer
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_typestore

from netwarp_ros.data.frames import DEFAULT_RATE, Frame, FrameSource, stamp

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"

_METADATA_VERSION: Literal[9] = 9  # what Jazzy and later write; Jazzy reads none above
_typestore = get_typestore(Stores.ROS2_JAZZY)


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
            self._count = sum(connection.msgcount for connection in self._connections(reader))
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
            messages = reader.messages(connections=self._connections(reader))
            for index, (connection, recorded_ns, data) in enumerate(messages):
                try:
                    message: Any = _typestore.deserialize_cdr(data, connection.msgtype)
                    image = decode(message)
                except (ValueError, SerdeError, ImageError, cv2.error) as error:
                    raise ValueError(f"{self.path}: image {index} of {self.topic} cannot be read: {error}") from error
                header = message.header.stamp
                stamp_ns = header.sec * 10**9 + header.nanosec or recorded_ns
                yield Frame(index, stamp_ns if self._keeps_stamps else stamp(index, self.rate), f"{index:06d}", image)

    def _connections(self, reader: Reader) -> list[Connection]:
        return [connection for connection in reader.connections if connection.topic == self.topic]


def decode(message: Any) -> np.ndarray:
    """Turn an image message into an array.

    Args:
        message: ``sensor_msgs/Image`` or ``CompressedImage``.

    Returns:
        ``(H, W, 3)`` uint8, BGR.

    Raises:
        ValueError: If the data do not fit the encoding, height and step, or cannot be decoded.
        ImageError: If ``rosbags-image`` does not know the encoding, or cannot turn it into BGR.
    """
    if not hasattr(message, "encoding"):
        # Not through rosbags-image, which leaves a grey JPEG with one channel.
        image = cv2.imdecode(message.data, cv2.IMREAD_COLOR) if len(message.data) else None
        if image is None:
            raise ValueError(f"{len(message.data)} bytes of format {message.format!r} are not a JPEG or PNG image")
        return image
    height, width, step = message.height, message.width, message.step
    # Without a target, rosbags-image only lays an array over the data, as if no row were padded: for its row length.
    try:
        row = image_to_cvimage(message).strides[0] if height and width else 0
    except TypeError:  # the data are shorter than that array
        row = 0
    if not 0 < row <= step or len(message.data) < height * step:
        raise ValueError(
            f"{width}x{height} {message.encoding} with step {step} and {len(message.data)} bytes of data: expected "
            "rows of a positive length no greater than step, and height * step bytes"
        )
    if step > row:
        rows = message.data[: height * step].reshape(height, step)
        message = dataclasses.replace(message, data=rows[:, :row].copy(), step=row)
    image = message_to_cvimage(message, "bgr8")
    if image.shape != (height, width, 3):
        raise ValueError(f"encoding {message.encoding!r} is not read from bags: record bgr8, or compressed images")
    return np.require(image, requirements=["C", "W"])  # a copy where it only lies over the message's bytes


def write_bag(path: str | Path, frames: Iterable[Frame], *, topic: str, frame_id: str = "camera") -> int:
    """Write frames as a rosbag2 of raw ``bgr8`` images with MCAP storage, which Jazzy and later play.

    Args:
        path: Folder to make; must not exist.
        frames: Taken one at a time; recorded at their stamps.
        topic: For instance ``/camera/image_raw``.
        frame_id: For the headers.

    Returns:
        Number of frames written.

    Raises:
        FileExistsError: If there is something at the path.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists already: remove it, or give another path")
    types = _typestore.types
    count = 0
    with Writer(path, version=_METADATA_VERSION, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection(topic, IMAGE, typestore=_typestore)
        for frame in frames:
            height, width = frame.image.shape[:2]
            seconds, nanoseconds = divmod(frame.stamp_ns, 10**9)
            message = types[IMAGE](
                header=types["std_msgs/msg/Header"](
                    stamp=types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanoseconds), frame_id=frame_id
                ),
                height=height,
                width=width,
                encoding="bgr8",
                is_bigendian=0,
                step=3 * width,
                data=np.ascontiguousarray(frame.image).reshape(-1),
            )
            writer.write(connection, frame.stamp_ns, _typestore.serialize_cdr(message, IMAGE))
            count += 1
    return count


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
