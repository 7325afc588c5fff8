# SPDX-License-Identifier: Apache-2.0
"""One camera of the segment node: its topics and QoS, its stream, and the counts of its frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from time import perf_counter
from typing import Any

from builtin_interfaces.msg import Time
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from netwarp_ros.mailbox import Mailbox
from netwarp_ros.msg import FrameTiming
from netwarp_ros.node.diagnostics import MAX_PROBLEM, PERIOD_S, RATE_PERIODS
from netwarp_ros.node.frame_counts import DropReason, FrameCounter, FrameCounts
from netwarp_ros.node.outputs import OVERRIDABLE, Outputs, Picture, qos_problem
from netwarp_ros.node.process import executor_paused
from netwarp_ros.recordings.image_messages import to_bgr
from netwarp_ros.recordings.messages import COMPRESSED_IMAGE, IMAGE, deserialize, stamp_of
from netwarp_ros.resources import cut
from netwarp_ros.segmenter import Reset, Result, Segmenter, Stream


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
    """One camera. It has publishers from `advertise` to `close`, and subscriptions from `start` to `stop`.

    Args:
        node: The node that owns the topics.
        name: First part of the topics' names.
        outputs: What it publishes.
        transport: ``raw`` or ``compressed``.
        alpha: Weight of the colors in the overlay.

    Attributes:
        alpha: Weight of the colors in the overlay; may be changed at any time.
        outputs: What it publishes.
        topic: Resolved name of the image topic.
        counter: Counts of the frames since `start`.
        history: What the counter counted at `start` and at the latest messages on ``/diagnostics``.
        qos_problem: Why the QoS of an image publisher does not match; empty if all match.
        compiling: What takes the first image of a new size so long, until its mask is published; empty otherwise.
    """

    def __init__(self, node: Node, name: str, outputs: Outputs, *, transport: str, alpha: float) -> None:
        self.name, self.outputs, self.alpha, self._node = name, outputs, alpha, node
        self._compressed = transport == "compressed"
        # Relative names, because rclpy applies the remapping rules to every name that it is given: it would remap a
        # resolved name a second time.
        self._image_topic = f"{name}/image_raw/compressed" if self._compressed else f"{name}/image_raw"
        self.topic = node.resolve_topic_name(self._image_topic)
        self.counter = FrameCounter()
        self.history: deque[FrameCounts] = deque(maxlen=RATE_PERIODS + 1)
        self.qos_problem = ""
        self.compiling = ""
        self._working_since: float | None = None
        self._drawing_since: float | None = None
        self._subscription: Subscription | None = None
        self._info_subscription: Subscription | None = None
        self._info = b""  # the latest calibration, serialized
        self._stream: Stream | None = None
        self._sequence: int | None = None  # the publisher's sequence number of the latest image
        self._reset = Event()

    def start(self, stream: Stream, mailbox: Mailbox[ReceivedImage], pictures: Mailbox[Picture]) -> None:
        """Subscribe to the images, and set all counts to zero.

        Args:
            stream: Segments the images in `segment`.
            mailbox: Gets the received images.
            pictures: Gets what `draw` draws.
        """
        self._stream, self._mailbox, self._pictures = stream, mailbox, pictures
        self.counter = FrameCounter()
        self.history = deque([self.counter.snapshot()], RATE_PERIODS + 1)
        self.qos_problem = ""
        self._working_since = self._drawing_since = None
        self._reset.clear()
        self._info = b""
        with executor_paused(self._node):
            # Best effort matches every publisher; a lost calibration is the same as the next one.
            self._info_subscription = self._node.create_subscription(
                CameraInfo,
                f"{self.name}/camera_info",
                self._receive_info,
                QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT),
                qos_overriding_options=QoSOverridingOptions(OVERRIDABLE),
                raw=True,
            )
            self._subscribe()

    def stop(self) -> None:
        """Receive no more images. Those in the mailbox may still be segmented."""
        with executor_paused(self._node):
            for subscription in (self._subscription, self._info_subscription):
                if subscription is not None:
                    self._node.destroy_subscription(subscription)
            self._subscription = self._info_subscription = None

    def working_s(self) -> float:
        """Return for how many seconds an image has been in work; 0 if none is, or while compiling for it."""
        return 0.0 if self.compiling else _seconds_since(self._working_since)

    def drawing_s(self) -> float:
        """Return for how many seconds a picture has been drawn; 0 if none is."""
        return _seconds_since(self._drawing_since)

    def release_stream(self) -> None:
        """Free the stream and its memory. No image may be segmented until the next `start`."""
        self._stream = None

    def close(self) -> None:
        """Receive no more images, and destroy the publishers."""
        self.stop()
        self.outputs.close()

    def reset(self) -> None:
        """Reset the memory before the next frame is segmented."""
        self._reset.set()

    def segment(self, received: ReceivedImage) -> None:
        """Segment one image, and publish the results under the image's header.

        Raises:
            ImageError: If the image is malformed.
        """
        self._working_since = perf_counter()
        try:
            self._segment(received, self._working_since)
        finally:
            self._working_since = None

    def draw(self, picture: Picture) -> None:
        """Draw and publish color and overlay. This may take place in another thread than `segment`."""
        self._drawing_since = perf_counter()
        try:
            self.outputs.draw(picture, self.alpha)
        finally:
            self._drawing_since = None

    def note_problem(self, what: str, error: Exception) -> None:
        """Log an error that lost no mask, and keep it for the diagnostics."""
        problem = cut(f"{what} of {self.topic} failed: {type(error).__name__}: {error}", MAX_PROBLEM)
        self.counter.note(problem)
        if self._node.context.ok():  # after a signal, publishing fails as expected, and so does the log's
            self._node.get_logger().error(problem, throttle_duration_sec=PERIOD_S)

    def _segment(self, received: ReceivedImage, begun: float) -> None:
        assert self._stream is not None
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
            result = self._stream.segment(image, stamp_ns, frame_id, encoding, confidence=self.outputs.wants_confidence)
            segmented = perf_counter()
            self.outputs.publish_mask(result, header)
            mask_published, age_ns = perf_counter(), self._node.get_clock().now().nanoseconds - stamp_ns
        if received.from_several:  # the next image may be of another one, even if that is then the only one
            self._stream.reset(Reset.PUBLISHERS)
        try:
            wanted = bool(self._info) and self.outputs.wants_camera_info
            info = deserialize_message(self._info, CameraInfo) if wanted else None
            self.outputs.publish_beside_mask(result, image, header, info)
        except Exception as error:  # the mask is published: the frame has not failed
            self.note_problem("what goes with a mask", error)
        durations = {
            "receive_ms": (received.received_ns - stamp_ns) / 1e6,
            "wait_ms": 1e3 * (begun - received.received),
            "decode_ms": 1e3 * (decoded - begun),
            **{f"{stage}_ms": result.stages_ms[stage] for stage in ("prepare", "flow", "network")},
            "publish_ms": 1e3 * (perf_counter() - segmented),
            "total_ms": 1e3 * (mask_published - received.received),
            "age_ms": age_ns / 1e6,
        }
        counts = self.counter.snapshot()
        reset = "" if result.reason == Reset.HOST_ONLY else result.reason
        unstamped = stamp_of(message) == 0
        self.counter.count_published(
            durations["total_ms"], durations["age_ms"], reset, unstamped=unstamped, is_key=result.is_key
        )
        try:
            self._publish_timing(result, header, durations, counts)
            if self.outputs.wants_pictures and self._pictures.put(self.name, Picture(image, result.mask, header)):
                self.counter.count_late_picture()
        except Exception as error:
            self.note_problem("the timing of a mask", error)

    def _publish_timing(self, result: Result, header: Header, durations: dict[str, float], before: FrameCounts) -> None:
        """Publish the timing of a frame; ``before`` are the counts before it."""
        self.outputs.publish_timing(
            FrameTiming(
                header=header,
                sequence=before.published,
                **durations,
                dropped=before.dropped.total() + before.missed,
                memory=result.memory,
                reason=result.reason,
                is_key=result.is_key,
            )
        )

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
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
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
        if (subscription := self._subscription) is None:  # it has just been destroyed
            return
        # The count is 0 if an image arrives before its publisher has been discovered.
        from_several = subscription.get_publisher_count() > 1
        received = ReceivedImage(data, perf_counter(), self._node.get_clock().now().nanoseconds, from_several)
        # Each publisher has its own sequence numbers, and some middlewares give none.
        sequence = None if from_several else info["publication_sequence_number"]
        self.counter.count_received(self._missed(sequence))
        if (left := self._mailbox.put(self.name, received)) is not None:
            self.counter.count_dropped(DropReason.DEACTIVATED if left is received else DropReason.SUPERSEDED)

    def _missed(self, sequence: int | None) -> int:
        """Return how many images were missed since the previous one; 0 if one of the two has no sequence number."""
        last, self._sequence = self._sequence, sequence
        return 0 if last is None or sequence is None else max(0, sequence - last - 1)

    def _receive_info(self, data: bytes) -> None:
        self._info = data

    def _on_incompatible_qos(self, event: Any) -> None:
        reliability = self._qos.reliability  # after the override
        if event.last_policy_kind == QoSPolicyKind.RELIABILITY and reliability == ReliabilityPolicy.BEST_AVAILABLE:
            self._node.get_logger().info(f"a publisher of {self.topic} is best effort: images may get lost on the way")
            self._subscribe()
            return
        self.qos_problem = qos_problem(self.topic, "subscription", event)
        self._node.get_logger().warning(f"nothing comes from a publisher of {self.topic}: {self.qos_problem}")


def _seconds_since(moment: float | None) -> float:
    return 0.0 if moment is None else perf_counter() - moment
