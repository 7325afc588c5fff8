# SPDX-License-Identifier: Apache-2.0
"""The replay node: publishes a folder of images, a video or a bag as a camera does."""

from __future__ import annotations

if __name__ == "__main__":
    from netwarp_ros.environment import start_node

    start_node()

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from builtin_interfaces.msg import Time
from rclpy.duration import Duration
from rclpy.executors import Executor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from netwarp_ros.node import parameters
from netwarp_ros.node.images import bgr_message
from netwarp_ros.node.parameters import TOPIC, parameter
from netwarp_ros.node.process import executing, ros_process
from netwarp_ros.recordings.frames import Frame
from netwarp_ros.recordings.open import open_frames

QUEUE_DEPTH = 10
"""Images kept for slow reliable subscribers."""

POLL_S = 0.02
"""Seconds between two checks of the number of subscribers."""

MAX_PAUSE_S = 10.0
"""Longest time between two images if no rate is given. Pauses are longer if the clock was set while recording."""

MAX_DISAGREEMENT_S = 0.5
"""How far stamps and times of recording may drift apart before the node says so."""

ACK_TIMEOUT = Duration(seconds=10)
"""How long to wait at the end until reliable subscribers have received all images."""


@dataclass(frozen=True)
class ReplayParameters:
    """Parameters of the node."""

    path: str = parameter("", "A folder of images, an image, a video, or a rosbag2. Must be given.")
    topic: str = parameter("", "Image topic of a bag that has several.")
    camera: str = parameter("camera", "Name of the camera: images are published on <camera>/image_raw.", form=TOPIC)
    frame_id: str = parameter("camera_optical_frame", "Coordinate frame (frame_id) in the headers.")
    rate: float = parameter(0.0, "Images per second; 0: as recorded.", limits=(0.0, 1000.0))
    stamp: str = parameter(
        "now",
        "Stamps in the headers: the time of publishing, or those of the recording (which follow rate if that is set).",
        choices=("now", "recorded"),
    )
    loop: bool = parameter(False, "Start again at the end, until a signal ends the node.")
    subscribers: int = parameter(1, "Number of subscribers to wait for before the first image.", limits=(0, 100))


class Pacer:
    """Says when the images of a recording are due: at the intervals at which they were recorded.

    Stamps do not set the pace, because they jump if a camera's clock is set.

    Args:
        warn: Called with a sentence for each pause that is shortened, and for the first image whose stamp and time of
            recording disagree.
        max_pause_s: Longer pauses are shortened to this.
    """

    def __init__(self, warn: Callable[[str], object], max_pause_s: float = MAX_PAUSE_S) -> None:
        self._warn, self._max_pause_s = warn, max_pause_s
        self._first: Frame | None = None
        self._previous_ns = 0
        self._agrees = True

    def wait_s(self, frame: Frame) -> float:
        """Return the seconds from the image before to this one; 0 for the first, or if it was recorded earlier."""
        if self._first is None:
            self._first, self._previous_ns = frame, frame.arrival_ns
        recorded_s = (frame.arrival_ns - self._first.arrival_ns) * 1e-9
        stamped_s = (frame.stamp_ns - self._first.stamp_ns) * 1e-9
        if self._agrees and abs(stamped_s - recorded_s) > MAX_DISAGREEMENT_S:
            self._agrees = False
            self._warn(
                f"image {frame.name} is stamped {stamped_s:.1f} s after the first one, but was recorded "
                f"{recorded_s:.1f} s after it: images are published at the times of recording"
            )
        pause_s = (frame.arrival_ns - self._previous_ns) * 1e-9
        self._previous_ns = frame.arrival_ns
        if pause_s > self._max_pause_s:
            self._warn(
                f"image {frame.name} was recorded {pause_s:.1f} s after the one before: it is published after "
                f"{self._max_pause_s:g} s; give a rate to choose the pace"
            )
        return min(max(pause_s, 0.0), self._max_pause_s)


class ReplayNode(Node):
    """Publishes a recording as ``bgr8`` images.

    The publisher is reliable, which matches reliable and best-effort subscribers. Reliable subscribers receive every
    image unless they fall behind by more than the queue. An image that is read late from the disk is published late;
    none is skipped.

    Raises:
        ValueError: If a parameter is wrong, or the recording cannot be read.
        FileNotFoundError: If there is no recording at the path.
    """

    def __init__(self) -> None:
        super().__init__("replay")
        parameters.declare(self, ReplayParameters, read_only=True)
        self.settings = parameters.read(self, ReplayParameters)
        if not self.settings.path:
            raise ValueError("path is empty. Give a folder of images, an image, a video or a rosbag2.")
        self.frames = open_frames(
            self.settings.path,
            rate=self.settings.rate or None,
            topics=[self.settings.topic] if self.settings.topic else [],
        )
        self._publisher = self.create_publisher(
            Image,
            f"{self.settings.camera}/image_raw",
            QoSProfile(depth=QUEUE_DEPTH, reliability=ReliabilityPolicy.RELIABLE),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def play(self, executor: Executor) -> None:
        """Wait for the subscribers, then publish the recording once, or with ``loop`` until a signal."""
        topic, subscribers = self._publisher.topic_name, self.settings.subscribers
        self.get_logger().info(f"{self.settings.path} is published on {topic} once it has {subscribers} subscribers")
        while self._publisher.get_subscription_count() < subscribers:
            executor.spin_once(timeout_sec=POLL_S)
        count = self._play_once(executor)
        while self.settings.loop:
            _spin_until(monotonic() + 1 / self.frames.rate, executor)
            count += self._play_once(executor)
        self._publisher.wait_for_all_acked(ACK_TIMEOUT)
        self.get_logger().info(f"{count} images published on {topic}")

    def _play_once(self, executor: Executor) -> int:
        max_pause_s = math.inf if self.settings.rate else MAX_PAUSE_S
        count, due_s, pacer = 0, monotonic(), Pacer(self.get_logger().warning, max_pause_s)
        for frame in self.frames:
            due_s += pacer.wait_s(frame)
            _spin_until(due_s, executor)
            self._publish(frame)
            count += 1
        return count

    def _publish(self, frame: Frame) -> None:
        stamp = self.get_clock().now().to_msg()
        if self.settings.stamp == "recorded":
            seconds, nanoseconds = divmod(frame.stamp_ns, 10**9)
            stamp = Time(sec=seconds, nanosec=nanoseconds)
        self._publisher.publish(bgr_message(frame.image, Header(stamp=stamp, frame_id=self.settings.frame_id)))


def _spin_until(due_s: float, executor: Executor) -> None:
    while (wait_s := due_s - monotonic()) > 0:
        executor.spin_once(timeout_sec=wait_s)


def main() -> None:
    """Publish the recording, to its end or until SIGINT or SIGTERM."""
    with ros_process("replay_node"):
        node = ReplayNode()
        with executing(node) as executor:
            node.play(executor)


if __name__ == "__main__":
    main()
