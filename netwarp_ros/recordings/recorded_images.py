# SPDX-License-Identifier: Apache-2.0
"""The image messages of recordings: those of ROS 2, of ROS 1, and of Foxglove in protobuf; packets of video too."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from netwarp_ros.recordings.bag_file import RecordedMessage, Topic
from netwarp_ros.recordings.image_messages import ImageError
from netwarp_ros.recordings.messages import COMPRESSED_IMAGE, IMAGE, deserialize, header, typestore
from netwarp_ros.recordings.video_messages import (
    COMPRESSED_VIDEO,
    FFMPEG_PACKET,
    FOXGLOVE_COMPRESSED_VIDEO,
    VIDEOS,
    read_foxglove_packet,
    read_ros_packet,
)
from netwarp_ros.resources import cut

_FOXGLOVE_IMAGE, _FOXGLOVE_COMPRESSED_IMAGE = "foxglove.RawImage", "foxglove.CompressedImage"


def is_image(topic: Topic) -> bool:
    """Return whether the messages of a topic are images that `read_image` reads."""
    return (topic.encoding, topic.message_type) in _READERS


def is_raw_image(topic: Topic) -> bool:
    """Return whether they are images that are not compressed."""
    return is_image(topic) and topic.message_type in (IMAGE, _FOXGLOVE_IMAGE)


def is_video(message: RecordedMessage) -> bool:
    """Return whether a message is a packet of a video, which only `TopicImages` decodes."""
    return message.message_type in VIDEOS


def read_image(message: RecordedMessage) -> Any:
    """Deserialize an image message.

    Args:
        message: A ``sensor_msgs/Image`` or ``CompressedImage`` of ROS 2 (``cdr``) or ROS 1 (``ros1``), or Foxglove's
            ``RawImage`` or ``CompressedImage`` in ``protobuf``; or a packet of a video (`video_messages`).

    Returns:
        A message with the fields of ``sensor_msgs/Image`` or ``CompressedImage``. Its image data are read-only. Or a
        `VideoPacket`.

    Raises:
        ValueError: If the message is lost, has another type, or its data are not such a message (`ImageError`).
    """
    if message.data is None:
        raise ValueError("it is lost")
    if (message.encoding, message.message_type) not in _READERS:
        raise ValueError(f"it is a {cut(message.message_type)} in {cut(message.encoding)}, which cannot be read")
    return _READERS[message.encoding, message.message_type](message.message_type, message.data)


def _read_ros1(message_type: str, data: bytes | memoryview) -> Any:
    try:
        return _ros1_types().deserialize_ros1(data, message_type)
    except SerdeError as error:
        raise ImageError(f"{len(data)} bytes are not a {message_type} of ROS 1: {error}") from error


@cache
def _ros1_types() -> Typestore:
    return get_typestore(Stores.ROS1_NOETIC)


def _read_foxglove(message_type: str, data: bytes | memoryview) -> Any:
    """Read an image of Foxglove, https://docs.foxglove.dev/docs/sdk/schemas; its fields are those of ROS."""
    try:
        from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
        from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ValueError(f"{message_type} needs more packages: pip install 'netwarp_ros[foxglove]'") from error
    image: Any = RawImage() if message_type == _FOXGLOVE_IMAGE else CompressedImage()
    try:
        image.ParseFromString(data)
    except DecodeError as error:
        raise ImageError(f"{len(data)} bytes are not a {message_type}: {error}") from error
    fields = {
        "header": header(image.timestamp.seconds * 10**9 + image.timestamp.nanos, image.frame_id),
        "data": np.frombuffer(image.data, np.uint8),
    }
    if message_type == _FOXGLOVE_COMPRESSED_IMAGE:
        return typestore.types[COMPRESSED_IMAGE](format=image.format, **fields)
    size = {name: getattr(image, name) for name in ("height", "width", "encoding", "step")}
    return typestore.types[IMAGE](**size, is_bigendian=0, **fields)


_READERS: dict[tuple[str, str], Callable[[str, bytes | memoryview], Any]] = {
    ("cdr", IMAGE): deserialize,
    ("cdr", COMPRESSED_IMAGE): deserialize,
    ("ros1", IMAGE): _read_ros1,
    ("ros1", COMPRESSED_IMAGE): _read_ros1,
    ("protobuf", _FOXGLOVE_IMAGE): _read_foxglove,
    ("protobuf", _FOXGLOVE_COMPRESSED_IMAGE): _read_foxglove,
    ("cdr", COMPRESSED_VIDEO): read_ros_packet,
    ("cdr", FFMPEG_PACKET): read_ros_packet,
    ("protobuf", FOXGLOVE_COMPRESSED_VIDEO): read_foxglove_packet,
}
"""By encoding and type."""
