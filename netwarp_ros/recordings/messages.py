# SPDX-License-Identifier: Apache-2.0
"""The ROS messages of recordings, made and taken apart without ROS, through ``rosbags``.

Images are read with Jazzy's definitions of ``sensor_msgs/Image`` and ``CompressedImage``, which have been the same in
every ROS 2, so that other topics of a bag, of whatever types, cannot get in the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from netwarp_ros.classes import ClassSet
from netwarp_ros.recordings.image_messages import ImageError

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
IMAGES = (IMAGE, COMPRESSED_IMAGE)
FRAME_TIMING = "netwarp_ros/msg/FrameTiming"
LABEL_INFO = "vision_msgs/msg/LabelInfo"
_VISION_CLASS = "vision_msgs/msg/VisionClass"

STAGES = ("wait", "decode", "prepare", "flow", "network", "publish")
"""The durations in ``FrameTiming`` of what the node does with a frame, in their order."""

_DEFINITIONS = {
    # The fields of msg/FrameTiming.msg, which says what they mean and is not installed where there is no ROS.
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
        """,
    _VISION_CLASS: "uint16 class_id\nstring class_name",
    LABEL_INFO: "std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold",
}

typestore = get_typestore(Stores.ROS2_JAZZY)
"""Jazzy's types, ``netwarp_ros/FrameTiming`` and ``vision_msgs/LabelInfo``."""

for _name, _text in _DEFINITIONS.items():
    typestore.register(get_types_from_msg(_text, _name))


def deserialize(kind: str, data: bytes) -> Any:
    """Take a serialized image message apart.

    Args:
        kind: `IMAGE` or `COMPRESSED_IMAGE`.
        data: The message in CDR.

    Returns:
        Its fields; the data of the image are a view of ``data``, which cannot be written to.

    Raises:
        ValueError: If it is of another kind, or no such message.
    """
    if kind not in IMAGES:
        raise ValueError(f"it is of {kind}")
    try:
        return typestore.deserialize_cdr(data, kind)
    except SerdeError as error:
        raise ImageError(f"{len(data)} bytes are no {kind}: {error}") from error


def header(stamp_ns: int, frame_id: str) -> Any:
    """Return a ``std_msgs/Header``."""
    seconds, nanoseconds = divmod(stamp_ns, 10**9)
    time = typestore.types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanoseconds)
    return typestore.types["std_msgs/msg/Header"](stamp=time, frame_id=frame_id)


def stamp_of(message: Any, recorded_ns: int = 0) -> int:
    """Return the stamp of a message's header in ns; where it has none (0), the time of recording.

    Args:
        message: Of this module or of ROS.
        recorded_ns: That time.
    """
    time = message.header.stamp
    return time.sec * 10**9 + time.nanosec or recorded_ns


def image_message(image: np.ndarray, encoding: str, header: Any) -> Any:
    """Return a ``sensor_msgs/Image``.

    Args:
        image: ``(H, W)`` or ``(H, W, C)`` uint8.
        encoding: What it is: ``mono8`` or ``bgr8``.
        header: Its header.
    """
    rows = np.ascontiguousarray(image).reshape(image.shape[0], -1)
    return typestore.types[IMAGE](
        header=header,
        height=image.shape[0],
        width=image.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=rows.shape[1],
        data=rows.reshape(-1),
    )


def timing_message(header: Any, sequence: int, stages_ms: Mapping[str, float], memory: int, reason: str) -> Any:
    """Return a ``netwarp_ros/FrameTiming`` of a frame that no node segmented.

    What only a node has (the way of the image to it, and of the mask from it) is not a number.

    Args:
        header: Of the image.
        sequence: Frames of its camera before this one.
        stages_ms: Durations of ``prepare``, ``flow`` and ``network``.
        memory: ``MEMORY_NEW`` or ``MEMORY_KEPT``.
        reason: Why the memory started anew.
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
    )


def label_info(header: Any, classes: ClassSet) -> Any:
    """Return a ``vision_msgs/LabelInfo``: names of the ids in masks; every pixel has a class, so the threshold is 0."""
    named = typestore.types[_VISION_CLASS]
    class_map = [named(class_id=index, class_name=name) for index, name in enumerate(classes.names)]
    return typestore.types[LABEL_INFO](header=header, class_map=class_map, threshold=0.0)
