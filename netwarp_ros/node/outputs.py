# SPDX-License-Identifier: Apache-2.0
"""What one camera of the segment node publishes: its topics, and what is made only while somebody subscribes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy, qos_policy_name_from_kind
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from netwarp_ros.classes import ClassSet
from netwarp_ros.msg import FrameTiming
from netwarp_ros.node.camera_info import scaled_camera_info
from netwarp_ros.node.images import mask_message, rgb_message
from netwarp_ros.node.process import executor_paused
from netwarp_ros.resources import cut, quote
from netwarp_ros.segmenter import Result
from netwarp_ros.segmenter.masks import at_size

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:  # PyPI has no vision_msgs
    LabelInfo = None

OVERRIDABLE = (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY)
"""QoS policies that parameters ``qos_overrides.<topic>.<subscription or publisher>.<policy>`` change."""

COMPATIBLE = {
    "subscription": {"reliability": "best_effort", "durability": "volatile"},
    "publisher": {"reliability": "reliable", "durability": "transient_local"},
}
"""For the node's end of a topic: the QoS policies that match any other end."""

TOPICS = ("mask", "confidence", "camera_info", "color", "overlay", "timing", "label_info")
"""The topics under ``<camera>/segmentation``; binary masks have other names."""


@dataclass(frozen=True)
class Picture:
    """What color and overlay are drawn from.

    Attributes:
        image: ``(H, W, 3)`` BGR uint8.
        mask: ``(h, w)`` uint8 class ids.
        header: The image's header.
    """

    image: np.ndarray
    mask: np.ndarray
    header: Header


class Outputs:
    """The topics under ``<camera>/segmentation``. It has publishers from `advertise` to `close`.

    Args:
        node: The node that owns the topics.
        camera: First part of the topics' names.
        classes: Names and colors of the ids in the masks.
        encoding: Encoding of the mask; see `mask_message`.
        groups: By name of a binary mask, the names of its classes.

    Raises:
        ValueError: If a binary mask has the name of another topic, or a class that is not in the class set.
    """

    def __init__(
        self, node: Node, camera: str, classes: ClassSet, encoding: str, groups: Mapping[str, Sequence[str]]
    ) -> None:
        self._node, self._camera, self._classes, self._encoding = node, camera, classes, encoding
        self._members = {name: _members(name, members, classes) for name, members in groups.items()}
        self._publishers: list[Publisher] = []

    def advertise(self, threshold: float) -> None:
        """Create the publishers; see `tell_labels` for the threshold."""
        with executor_paused(self._node):
            self._mask = self._publisher(Image, "mask")
            self._confidence = self._publisher(Image, "confidence")
            self._camera_info = self._publisher(CameraInfo, "camera_info")
            self._color = self._publisher(Image, "color")
            self._overlay = self._publisher(Image, "overlay")
            self._timing = self._publisher(FrameTiming, "timing")
            self._groups = {name: self._publisher(Image, name) for name in self._members}
            if LabelInfo is not None:
                latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
                self._label_info = self._publisher(LabelInfo, "label_info", latched)
                self.tell_labels(threshold)

    def close(self) -> None:
        """Destroy the publishers."""
        with executor_paused(self._node):
            while self._publishers:
                self._node.destroy_publisher(self._publishers.pop())

    def tell_labels(self, threshold: float) -> None:
        """Publish the names of the ids in the masks.

        Args:
            threshold: No pixel with a class has less confidence than this, in [0, 1].
        """
        if LabelInfo is not None:
            class_map = [VisionClass(class_id=index, class_name=name) for index, name in enumerate(self._classes.names)]
            self._label_info.publish(LabelInfo(class_map=class_map, threshold=threshold))

    @property
    def wants_confidence(self) -> bool:
        """Whether somebody subscribes to the confidence."""
        return self._confidence.get_subscription_count() > 0

    @property
    def wants_pictures(self) -> bool:
        """Whether somebody subscribes to color or overlay."""
        return self._color.get_subscription_count() > 0 or self._overlay.get_subscription_count() > 0

    @property
    def wants_camera_info(self) -> bool:
        """Whether somebody subscribes to the calibration."""
        return self._camera_info.get_subscription_count() > 0

    def publish_mask(self, result: Result, header: Header) -> None:
        """Publish the mask."""
        self._mask.publish(mask_message(result.mask, header, self._encoding))

    def publish_beside_mask(self, result: Result, image: np.ndarray, header: Header, info: CameraInfo | None) -> None:
        """Publish what goes with a mask: the confidence and the camera's calibration, if given, and binary masks."""
        if result.confidence is not None:
            self._confidence.publish(mask_message(result.confidence, header))
        if info is not None:
            size = (image.shape[0], image.shape[1])
            self._camera_info.publish(
                scaled_camera_info(info, size, (result.mask.shape[0], result.mask.shape[1]), header)
            )
        for name, publisher in self._groups.items():
            if publisher.get_subscription_count():
                publisher.publish(mask_message(cv2.LUT(result.mask, self._members[name]), header))

    def publish_timing(self, timing: FrameTiming) -> None:
        """Publish the durations of a frame."""
        self._timing.publish(timing)

    def draw(self, picture: Picture, alpha: float) -> None:
        """Draw and publish color and overlay.

        Args:
            picture: What to draw.
            alpha: Weight of the colors in the overlay.
        """
        if self._color.get_subscription_count():
            self._color.publish(rgb_message(self._classes.colorize(picture.mask), picture.header))
        if self._overlay.get_subscription_count():
            image = picture.image
            mask = at_size(picture.mask, (image.shape[0], image.shape[1]))
            self._overlay.publish(rgb_message(self._classes.overlay(image, mask, alpha, rgb=True), picture.header))

    def _publisher(self, message_type: Any, topic: str, qos: QoSProfile | None = None) -> Publisher:
        name = f"{self._camera}/segmentation/{topic}"
        resolved = self._node.resolve_topic_name(name)

        def warn(event: Any) -> None:
            problem = qos_problem(resolved, "publisher", event)
            self._node.get_logger().warning(f"a subscriber of {resolved} gets nothing: {problem}")

        publisher = self._node.create_publisher(
            message_type,
            name,
            # Reliable matches reliable and best-effort subscribers. With depth 1, a slow subscriber gets the newest.
            qos or QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE),
            event_callbacks=PublisherEventCallbacks(incompatible_qos=warn),
            qos_overriding_options=QoSOverridingOptions(OVERRIDABLE),
        )
        self._publishers.append(publisher)
        return publisher


def qos_problem(topic: str, entity: str, event: Any) -> str:
    """Return which QoS policy of a topic is incompatible, and how to change it."""
    policy = qos_policy_name_from_kind(event.last_policy_kind).lower()
    if policy not in COMPATIBLE[entity]:
        return f"incompatible QoS policy {policy}: change it at the other end"
    value = COMPATIBLE[entity][policy]
    return f"incompatible QoS policy {policy}: start the node with qos_overrides.{topic}.{entity}.{policy}:={value}"


def _members(name: str, members: Sequence[str], classes: ClassSet) -> np.ndarray:
    """Return the table of a binary mask, ``(256,)`` uint8: 255 for the ids of its classes."""
    if name in TOPICS:
        raise ValueError(f"masks.{name} has the name of another topic: give another name than {', '.join(TOPICS)}")
    table = np.zeros(256, np.uint8)
    for member in members:
        if member not in classes.names:
            raise ValueError(
                f"masks.{name} has {quote(member)}, which is no class of {classes.name}: give some of "
                f"{cut(', '.join(classes.names))}"
            )
        table[classes.names.index(member)] = 255
    return table
