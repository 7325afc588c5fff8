# SPDX-License-Identifier: Apache-2.0
"""One camera of the segment node: its topics and QoS, its stream, and the counts of its frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from time import perf_counter
from typing import Any

from builtin_interfaces.msg import Time
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy, qos_policy_name_from_kind
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from netwarp_ros.classes import ClassSet
from netwarp_ros.mailbox import Mailbox
from netwarp_ros.msg import FrameTiming
from netwarp_ros.node.frame_counts import DropReason, FrameCounter
from netwarp_ros.node.images import mask_message, rgb_message
from netwarp_ros.recordings.image_messages import to_bgr
from netwarp_ros.recordings.messages import COMPRESSED_IMAGE, IMAGE, deserialize, stamp_of
from netwarp_ros.segmenter import Reset, Segmenter, Stream

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


@dataclass(frozen=True)
class ReceivedImage:
    """An image message as received.

    Attributes:
        data: The serialized message. It is deserialized only when its turn comes: superseded images never are.
        received: Time of its callback on the steady clock, in s.
        received_ns: Time of its callback on the node's ROS clock, in ns.
        from_several: Whether its topic had several publishers. ROS does not tell which one sent it.
    """

    data: bytes
    received: float
    received_ns: int
    from_several: bool


class Camera:
    """One camera. It has publishers from `advertise` to `close`, and a subscription from `start` to `stop`.

    Args:
        node: The node that owns the topics.
        name: First part of the topics' names.
        classes: Names and colors of the ids in the masks.
        transport: ``raw`` or ``compressed``.
        alpha: Weight of the colors in the overlay.

    Attributes:
        alpha: Weight of the colors in the overlay; may be changed at any time.
        topic: Resolved name of the image topic.
        counter: Counts of the frames since `start`.
        qos_problem: Why the QoS of an image publisher does not match; empty if all match.
        compiling: What takes the first image of a new size so long, until its mask is published; empty otherwise.
    """

    def __init__(
        self,
        node: Node,
        name: str,
        classes: ClassSet,
        *,
        transport: str,
        alpha: float,
    ) -> None:
        self.name, self.alpha, self._node, self._classes = name, alpha, node, classes
        self._compressed = transport == "compressed"
        # Relative names, because rclpy applies the remapping rules to every name that it is given: it would remap a
        # resolved name a second time.
        self._image_topic = f"{name}/image_raw/compressed" if self._compressed else f"{name}/image_raw"
        self.topic = node.resolve_topic_name(self._image_topic)
        self.counter = FrameCounter()
        self.qos_problem = ""
        self.compiling = ""
        self._publishers: list[Publisher] = []
        self._subscription: Subscription | None = None
        self._stream: Stream | None = None
        self._sequence: int | None = None  # the publisher's sequence number of the latest image
        self._reset = Event()

    def advertise(self) -> None:
        """Create the publishers."""
        self._mask = self._publisher(Image, "mask")
        self._color = self._publisher(Image, "color")
        self._overlay = self._publisher(Image, "overlay")
        self._timing = self._publisher(FrameTiming, "timing")
        if LabelInfo is not None:
            latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
            self._publisher(LabelInfo, "label_info", latched).publish(_label_info(self._classes))

    def start(self, stream: Stream, mailbox: Mailbox[ReceivedImage]) -> None:
        """Subscribe to the images, and set all counts to zero.

        Args:
            stream: Segments the images in `segment`.
            mailbox: Gets the received images.
        """
        self._stream, self._mailbox = stream, mailbox
        self.counter = FrameCounter()
        self.qos_problem = ""
        self._reset.clear()
        self._subscribe()

    def stop(self) -> None:
        """Receive no more images. Those in the mailbox may still be segmented."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    def release_stream(self) -> None:
        """Free the stream and its memory. No image may be segmented until the next `start`."""
        self._stream = None

    def close(self) -> None:
        """Receive no more images, and destroy the publishers."""
        self.stop()
        while self._publishers:
            self._node.destroy_publisher(self._publishers.pop())

    def reset(self) -> None:
        """Reset the memory before the next frame is segmented."""
        self._reset.set()

    def segment(self, received: ReceivedImage) -> None:
        """Segment one image, and publish the results under the image's header.

        `netwarp_ros.segmenter.Stream.segment` returns the mask at the image's size.

        Raises:
            ImageError: If the image is malformed.
        """
        assert self._stream is not None
        begun = perf_counter()
        message = deserialize(COMPRESSED_IMAGE if self._compressed else IMAGE, received.data)
        image = to_bgr(message)
        decoded = perf_counter()
        stamp, frame_id = message.header.stamp, message.header.frame_id
        header = Header(stamp=Time(sec=stamp.sec, nanosec=stamp.nanosec), frame_id=frame_id)
        # Without a stamp, the time of receipt takes its place, as the time of recording does in a bag.
        stamp_ns = stamp_of(message, received.received_ns)
        if received.from_several:
            self._stream.reset(Reset.PUBLISHERS)
        if self._reset.is_set():
            self._reset.clear()
            self._stream.reset()
        encoding = message.format if self._compressed else message.encoding
        with self._warmed_up(image.shape[1], image.shape[0], self._stream.segmenter):
            result = self._stream.segment(image, stamp_ns, frame_id, encoding)
            segmented = perf_counter()
            self._mask.publish(mask_message(result.mask, header))
            mask_published = perf_counter()
        if received.from_several:  # the next image may be of another one, even if that is then the only one
            self._stream.reset(Reset.PUBLISHERS)

        if self._color.get_subscription_count():
            self._color.publish(rgb_message(self._classes.colorize(result.mask), header))
        if self._overlay.get_subscription_count():
            blended = self._classes.overlay(image, result.mask, self.alpha)
            self._overlay.publish(rgb_message(blended[..., ::-1], header))
        all_published = perf_counter()

        counts = self.counter.snapshot()
        receive_ms = (received.received_ns - stamp_ns) / 1e6
        total_ms = 1e3 * (mask_published - received.received)
        age_ms = receive_ms + total_ms
        self._timing.publish(
            FrameTiming(
                header=header,
                sequence=counts.published,
                receive_ms=receive_ms,
                wait_ms=1e3 * (begun - received.received),
                decode_ms=1e3 * (decoded - begun),
                prepare_ms=result.stages_ms["prepare"],
                flow_ms=result.stages_ms["flow"],
                network_ms=result.stages_ms["network"],
                publish_ms=1e3 * (all_published - segmented),
                total_ms=total_ms,
                age_ms=age_ms,
                dropped=counts.dropped.total() + counts.missed,
                memory=result.memory,
                reason=result.reason,
            )
        )
        reset = "" if result.reason == Reset.HOST_ONLY else result.reason
        self.counter.count_published(total_ms, age_ms, reset, unstamped=stamp_of(message) == 0)

    @contextmanager
    def _warmed_up(self, width: int, height: int, segmenter: Segmenter) -> Iterator[None]:
        """Warm up for images of a size that is new, and say so in the log and in `compiling` until the body ends.

        Without the warm-up, the second image would be late too: it is the first one with a memory.
        """
        if segmenter.is_warm(width, height):
            yield
            return
        self._node.get_logger().info(
            f"the first image of {width}x{height} on {self.topic} may take longer: its size is not in image_sizes"
        )
        self.compiling = f"compiling for images of {width}x{height} on {self.topic}"
        try:
            segmenter.warm_up(width, height)
            yield
        finally:
            self.compiling = ""

    def _subscribe(self) -> None:
        """Subscribe to the images, with a QoS that matches the publishers present."""
        self.stop()
        self._sequence = None
        # The queue holds one image; a newer one replaces it. The subscription is reliable unless a publisher present is
        # best effort: best effort loses large images. `_on_incompatible_qos` subscribes again for later publishers.
        self._qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_AVAILABLE)
        receive: Any = self._receive  # rclpy's type hint does not allow callbacks with message info
        self._subscription = self._node.create_subscription(
            CompressedImage if self._compressed else Image,
            self._image_topic,
            receive,
            self._qos,
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._on_incompatible_qos),
            qos_overriding_options=QoSOverridingOptions(OVERRIDABLE),
            raw=True,
        )

    def _receive(self, data: bytes, info: Mapping[str, int | None]) -> None:
        assert self._subscription is not None
        # The count is 0 if an image arrives before its publisher has been discovered.
        from_several = self._subscription.get_publisher_count() > 1
        received = ReceivedImage(data, perf_counter(), self._node.get_clock().now().nanoseconds, from_several)
        # Each publisher has its own sequence numbers, and some middlewares give none.
        sequence = None if from_several else info["publication_sequence_number"]
        self.counter.count_received(self._missed(sequence))
        if self._mailbox.put(self.name, received) is not None:
            self.counter.count_dropped(DropReason.SUPERSEDED)

    def _missed(self, sequence: int | None) -> int:
        """Return how many images were missed since the previous one; 0 if one of the two has no sequence number."""
        last, self._sequence = self._sequence, sequence
        return 0 if last is None or sequence is None else max(0, sequence - last - 1)

    def _publisher(self, message_type: Any, topic: str, qos: QoSProfile | None = None) -> Publisher:
        name = f"{self.name}/segmentation/{topic}"
        resolved = self._node.resolve_topic_name(name)

        def warn(event: Any) -> None:
            problem = _qos_problem(resolved, "publisher", event)
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

    def _on_incompatible_qos(self, event: Any) -> None:
        reliability = self._qos.reliability  # after the override
        if event.last_policy_kind == QoSPolicyKind.RELIABILITY and reliability == ReliabilityPolicy.BEST_AVAILABLE:
            self._node.get_logger().info(f"a publisher of {self.topic} is best effort: images may get lost on the way")
            self._subscribe()
            return
        self.qos_problem = _qos_problem(self.topic, "subscription", event)
        self._node.get_logger().warning(f"nothing comes from a publisher of {self.topic}: {self.qos_problem}")


def _qos_problem(topic: str, entity: str, event: Any) -> str:
    """Return which QoS policy of a topic is incompatible, and how to change it."""
    policy = qos_policy_name_from_kind(event.last_policy_kind).lower()
    if policy not in COMPATIBLE[entity]:
        return f"incompatible QoS policy {policy}: change it at the other end"
    value = COMPATIBLE[entity][policy]
    return f"incompatible QoS policy {policy}: start the node with qos_overrides.{topic}.{entity}.{policy}:={value}"


def _label_info(classes: ClassSet) -> LabelInfo:
    """Return the names of the ids in the masks. The threshold is 0: every pixel has a class."""
    class_map = [VisionClass(class_id=index, class_name=name) for index, name in enumerate(classes.names)]
    return LabelInfo(class_map=class_map, threshold=0.0)
