# SPDX-License-Identifier: Apache-2.0
"""Nodes that read masks as the programs in docs/integration.md do. Each writes what it has read as JSON, and ends.

    python test/consumers.py NAME OUT.json COUNT [--ros-args ...]

They do what the sources of these programs do, with the same QoS, topics and arithmetic, and use nothing of netwarp_ros
but its message. They have no costmap, no map and no tf: what they write is what would go there.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

Report = Callable[..., None]
"""Takes what was read of one frame, by name."""


def best_effort(depth: int) -> QoSProfile:
    return QoSProfile(depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)


def stamp_ns(message: Any) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


class Synchronizer:
    """Calls back with one message of each topic, when their stamps are at most ``slop_ns`` apart.

    `message_filters`, which PyPI does not have, does this with longer queues, and also when frames are closer together
    than the slop. The tests' frames are not.
    """

    def __init__(
        self,
        node: Node,
        topics: Sequence[tuple[Any, str]],
        qos: QoSProfile,
        slop_ns: int,
        callback: Callable[..., None],
    ) -> None:
        self._queues: list[list[Any]] = [[] for _ in topics]
        self._slop_ns, self._callback = slop_ns, callback
        for queue, (kind, topic) in zip(self._queues, topics, strict=True):
            node.create_subscription(kind, topic, partial(self._receive, queue), qos)

    def _receive(self, queue: list[Any], message: Any) -> None:
        queue.append(message)
        stamp = stamp_ns(message)
        chosen = [min(queue, key=lambda one: abs(stamp_ns(one) - stamp), default=None) for queue in self._queues]
        if any(one is None for one in chosen):
            return
        stamps = [stamp_ns(one) for one in chosen]
        if max(stamps) - min(stamps) <= self._slop_ns:
            for one, queue in zip(chosen, self._queues, strict=True):
                queue.remove(one)
            self._callback(*chosen)


def nav2(node: Node, report: Report) -> None:
    """The costmap layer `semantic_segmentation_layer`: an id and a confidence for each valid point of the cloud."""

    def read(mask: Image, confidence: Image, cloud: PointCloud2) -> None:
        size = mask.width * mask.height
        if size != cloud.width * cloud.height or len(mask.data) < size:  # it warns, and reads no more
            report(stamp=stamp_ns(mask), refused=[mask.width, mask.height, cloud.width, cloud.height, len(mask.data)])
            return
        points = []
        for v in range(mask.height):
            for u in range(mask.width):
                index = v * mask.width + u  # without step, in mask and confidence
                x, y, z = struct.unpack_from("<fff", cloud.data, index * cloud.point_step)
                if math.isfinite(z):
                    points.append([round(x), round(y), mask.data[index], confidence.data[index]])
        report(stamp=stamp_ns(mask), cloud_stamp=stamp_ns(cloud), encoding=mask.encoding, points=points)

    topics = [
        (Image, "camera/segmentation/mask"),
        (Image, "camera/segmentation/confidence"),
        (PointCloud2, "camera/points"),
    ]
    Synchronizer(node, topics, best_effort(50), 10**8, read)


def autoware(node: Node, report: Report) -> None:
    """`segmentation_pointcloud_fusion`: ids at the size of the calibration, from run lengths."""
    info: list[CameraInfo] = []

    def read(mask: Image) -> None:
        if not info:
            return
        ids = np.zeros(mask.height * mask.width, np.uint8)
        done = 0
        for value, length in struct.iter_unpack("<Bi", bytes(mask.data)):
            ids[done : done + length] = value
            done += length
        size = (info[0].width, info[0].height)
        enlarged = cv2.resize(ids.reshape(mask.height, mask.width), size, interpolation=cv2.INTER_NEAREST)
        report(
            stamp=stamp_ns(mask),
            encoding=mask.encoding,
            frame_id=mask.header.frame_id,
            size=[mask.width, mask.height],
            runs=done,
            ids=enlarged.tolist(),
        )

    node.create_subscription(CameraInfo, "/sensing/camera/camera0/camera_info", info.append, best_effort(1))
    node.create_subscription(Image, "/sensing/camera/camera0/segmentation/mask", read, best_effort(1))


def hydra(node: Node, report: Report) -> None:
    """Hydra's `ClosedSetImageReceiver`: labels as int32, beside the color image."""

    def read(labels: Image, color: Image) -> None:
        kind = {"16SC1": "<i2", "mono8": "u1"}[labels.encoding]
        rows = np.frombuffer(labels.data, kind).reshape(labels.height, -1)[:, : labels.width]
        report(
            stamp=stamp_ns(labels),
            color_stamp=stamp_ns(color),
            encoding=labels.encoding,
            same_size=(labels.width, labels.height) == (color.width, color.height),
            labels=rows.astype(np.int32).tolist(),
        )

    topics = [(Image, "hydra/input/camera/semantic/image_raw"), (Image, "hydra/input/camera/rgb/image_raw")]
    Synchronizer(node, topics, QoSProfile(depth=1), 10**8, read)


def nvblox(node: Node, report: Report) -> None:
    """`nvblox_node` with segmentation: color image, mask and the calibrations of both, with exactly the same stamps."""

    def read(color: Image, info: CameraInfo, mask: Image, mask_info: CameraInfo) -> None:
        report(
            stamp=stamp_ns(mask),
            encoding=mask.encoding,
            size=[mask.width, mask.height],
            color_size=[color.width, color.height],
            info_size=[mask_info.width, mask_info.height],
            frame_ids=[color.header.frame_id, mask.header.frame_id, mask_info.header.frame_id],
            k=list(mask_info.k),
            color_k=list(info.k),
            masked=np.frombuffer(mask.data, np.uint8).reshape(mask.height, mask.width).tolist(),
        )

    topics = [(Image, "camera_0/color/image"), (CameraInfo, "camera_0/color/camera_info")]
    topics += [(Image, "camera_0/mask/image"), (CameraInfo, "camera_0/mask/camera_info")]
    Synchronizer(node, topics, best_effort(5), 0, read)


def elevation_mapping(node: Node, report: Report) -> None:
    """`elevation_mapping_cupy`: one channel of an image, and the camera matrix for its size."""

    def read(image: Image, info: CameraInfo) -> None:
        channel = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width)
        report(
            stamp=stamp_ns(image),
            size=[info.width, info.height],
            k=list(info.k),
            d=list(info.d),
            channel=channel.tolist(),
        )

    topics = [(Image, "camera/segmentation/people"), (CameraInfo, "camera/segmentation/camera_info")]
    Synchronizer(node, topics, QoSProfile(depth=10), 10**8, read)


def rviz(node: Node, report: Report) -> None:
    """RViz and Foxglove: color and overlay as rgb8, and the timing of the same image."""
    from netwarp_ros.msg import FrameTiming

    def read(color: Image, overlay: Image, timing: FrameTiming) -> None:
        pictures = {}
        for name, image in (("color", color), ("overlay", overlay)):
            assert (image.encoding, image.step) == ("rgb8", 3 * image.width)
            pictures[name] = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3).tolist()
        report(stamp=stamp_ns(color), total_ms=timing.total_ms, **pictures)

    topics = [(Image, "camera/segmentation/color"), (Image, "camera/segmentation/overlay")]
    topics += [(FrameTiming, "camera/segmentation/timing")]
    Synchronizer(node, topics, QoSProfile(depth=5), 0, read)


def labels(node: Node, report: Report) -> None:
    """The names of the ids, as the costmap layer reads them: reliable and transient local, in any order of starting."""
    from vision_msgs.msg import LabelInfo

    def read(info: LabelInfo) -> None:
        report(names={one.class_id: one.class_name for one in info.class_map}, threshold=info.threshold)

    qos = QoSProfile(depth=5, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node.create_subscription(LabelInfo, "camera/segmentation/label_info", read, qos)


CONSUMERS = {
    function.__name__: function for function in (nav2, autoware, hydra, nvblox, elevation_mapping, rviz, labels)
}


def main(name: str, out: Path, count: int) -> None:
    """Run a consumer until it has read some frames."""
    frames: list[dict[str, Any]] = []
    rclpy.init(args=sys.argv)
    node = rclpy.create_node("consumer")
    CONSUMERS[name](node, lambda **read: frames.append(read))
    while len(frames) < count:
        rclpy.spin_once(node)
    out.write_text(json.dumps(frames[:count]))
    node.destroy_node()
    rclpy.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
