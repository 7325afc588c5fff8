# SPDX-License-Identifier: Apache-2.0
"""ROS 2 messages, built, serialized and deserialized without ROS, by ``rosbags``.

Images are read with Jazzy's definitions of ``sensor_msgs/Image`` and ``CompressedImage``, which are the same in every
ROS 2, and not with the definitions in the bag: a bag may hold types that cannot be parsed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from netwarp_ros.classes import ClassSet
from netwarp_ros.recordings.image_messages import ImageError
from netwarp_ros.resources import cut

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
IMAGES = (IMAGE, COMPRESSED_IMAGE)
FRAME_TIMING = "netwarp_ros/msg/FrameTiming"
LABEL_INFO = "vision_msgs/msg/LabelInfo"
_VISION_CLASS = "vision_msgs/msg/VisionClass"

STAGES = ("wait", "decode", "prepare", "flow", "network", "publish")
"""The durations in ``FrameTiming`` of the node's work on a frame, in their order."""

_DEFINITIONS = {
    # The fields of msg/FrameTiming.msg, which explains them. That file is not installed on machines without ROS.
    FRAME_TIMING: """
        uint8 MEMORY_NEW=0
        uint8 MEMORY_KEPT=1
        std_msgs/Header header
        uint64 sequence
        float32 receive_ms
        float32 wait_ms
        float32 decode_ms
        float32 prepare_ms
        float32 flow_ms
        float32 network_ms
        float32 publish_ms
        float32 total_ms
        float32 age_ms
        uint64 dropped
        uint8 memory
        string reason
        bool is_key
        """,
    _VISION_CLASS: "uint16 class_id\nstring class_name",
    LABEL_INFO: "std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold",
}

typestore = get_typestore(Stores.ROS2_JAZZY)
"""Jazzy's types, and ``netwarp_ros/FrameTiming`` and ``vision_msgs/LabelInfo``."""

for _name, _text in _DEFINITIONS.items():
    typestore.register(get_types_from_msg(_text, _name))


def deserialize(message_type: str, data: bytes | memoryview) -> Any:
    """Deserialize an image message.

    Args:
        message_type: `IMAGE` or `COMPRESSED_IMAGE`.
        data: The message, serialized in CDR.

    Returns:
        The message. Its image data are a read-only view of ``data``.

    Raises:
        ValueError: If the type is different, or the data are not such a message (`ImageError`).
    """
    if message_type not in IMAGES:
        raise ValueError(f"its type is {cut(message_type)}, not one of {' and '.join(IMAGES)}")
    try:
        return typestore.deserialize_cdr(data, message_type)
    except SerdeError as error:
        raise ImageError(f"{len(data)} bytes are not a {message_type}: {error}") from error


def header(stamp_ns: int, frame_id: str) -> Any:
    """Return a ``std_msgs/Header``."""
    seconds, nanoseconds = divmod(stamp_ns, 10**9)
    time = typestore.types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanoseconds)
    return typestore.types["std_msgs/msg/Header"](stamp=time, frame_id=frame_id)


def stamp_of(message: Any, recorded_ns: int = 0) -> int:
    """Return the stamp of a message's header in ns, or the time of recording if the header has no stamp (0).

    Args:
        message: A message with a header, built by this module or by ROS.
        recorded_ns: The time of recording.
    """
    time = message.header.stamp
    return time.sec * 10**9 + time.nanosec or recorded_ns


def image_message(image: np.ndarray, encoding: str, header: Any) -> Any:
    """Return a ``sensor_msgs/Image``.

    Args:
        image: ``(H, W)`` or ``(H, W, C)`` uint8 or uint16.
        encoding: ``mono8``, ``mono16`` or ``bgr8``.
        header: A ``std_msgs/Header``.
    """
    rows = np.ascontiguousarray(image).reshape(image.shape[0], -1).view(np.uint8)
    return typestore.types[IMAGE](
        header=header,
        height=image.shape[0],
        width=image.shape[1],
        encoding=encoding,
        is_bigendian=int(image.dtype.itemsize > 1 and sys.byteorder == "big"),
        step=rows.shape[1],
        data=rows.reshape(-1),
    )


def timing_message(
    header: Any, sequence: int, stages_ms: Mapping[str, float], memory: int, reason: str, *, is_key: bool
) -> Any:
    """Return a ``netwarp_ros/FrameTiming`` of a frame that was segmented without a node.

    The durations that only a node can measure (receive, wait, decode, publish, age) are NaN.

    Args:
        header: The image's header.
        sequence: Number of earlier frames of this camera.
        stages_ms: Durations of ``prepare``, ``flow`` and ``network``.
        memory: ``MEMORY_NEW`` or ``MEMORY_KEPT``.
        reason: Why the memory was reset; empty if it was kept.
        is_key: Whether the network was run on the frame.
    """
    nan = float("nan")
    return typestore.types[FRAME_TIMING](
        header=header,
        sequence=sequence,
        receive_ms=nan,
        wait_ms=nan,
        decode_ms=nan,
        prepare_ms=stages_ms["prepare"],
        flow_ms=stages_ms["flow"],
        network_ms=stages_ms["network"],
        publish_ms=nan,
        total_ms=sum(stages_ms.values()),
        age_ms=nan,
        dropped=0,
        memory=memory,
        reason=reason,
        is_key=is_key,
    )


def label_info(header: Any, classes: ClassSet) -> Any:
    """Return a ``vision_msgs/LabelInfo``, the names of class ids. The threshold is 0: none is too unsure."""
    vision_class = typestore.types[_VISION_CLASS]
    class_map = [vision_class(class_id=index, class_name=name) for index, name in enumerate(classes.names)]
    return typestore.types[LABEL_INFO](header=header, class_map=class_map, threshold=0.0)
