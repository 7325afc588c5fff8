# SPDX-License-Identifier: Apache-2.0
"""Plays a folder of images, a video or a bag as a camera."""

from __future__ import annotations

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
from netwarp_ros.node.parameters import parameter
from netwarp_ros.node.process import executing, ros_process
from netwarp_ros.recordings.frames import Frame
from netwarp_ros.recordings.open import open_frames

QUEUE = 10
"""Images kept for reliable subscribers that lag."""

POLL_S = 0.02
"""Time between two looks at the number of subscribers."""

FAREWELL = Duration(seconds=10)
"""Longest wait at the end for reliable subscribers to have all images."""


@dataclass(frozen=True)
class ReplayParameters:
    """What is played, and how."""

    path: str = parameter("", "A folder of images, an image, a video, or a rosbag2. Must be given.")
    topic: str = parameter("", "Image topic of a bag that has several.")
    camera: str = parameter("camera", "The camera to be: images go to <camera>/image_raw.", is_topic=True)
    frame_id: str = parameter("camera_optical_frame", "Coordinate frame in the headers.")
    rate: float = parameter(0.0, "Images per second; 0 is as recorded.", limits=(0.0, 1000.0))
    stamp: str = parameter(
        "now",
        "Stamp in the headers: the time of publishing, or that of the recording (of the rate, where one is given).",
        choices=("now", "recorded"),
    )
    loop: bool = parameter(False, "Start over at the end, until told to stop.")
    subscribers: int = parameter(1, "Number of subscribers to wait for before the first image.", limits=(0, 100))


class ReplayNode(Node):
    """A camera whose images were recorded.

    Images are ``bgr8``. The publisher is reliable, which matches best-effort and reliable subscribers; the latter get
    every image unless they fall behind by more than its queue. An image that comes late from the disk goes out late;
    none is left out.

    Raises:
        ValueError: If a parameter or the recording is not usable.
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
            QoSProfile(depth=QUEUE, reliability=ReliabilityPolicy.RELIABLE),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def play(self, executor: Executor) -> None:
        """Wait for the subscribers, then publish the recording, once or until told to stop."""
        topic, wanted = self._publisher.topic_name, self.settings.subscribers
        self.get_logger().info(f"{self.settings.path} goes to {topic} once that has {wanted} subscribers")
        while self._publisher.get_subscription_count() < wanted:
            executor.spin_once(timeout_sec=POLL_S)
        count = self._play_once(executor)
        while self.settings.loop:
            _spin_until(monotonic() + 1 / self.frames.rate, executor)
            count += self._play_once(executor)
        self._publisher.wait_for_all_acked(FAREWELL)
        self.get_logger().info(f"{count} images published on {topic}")

    def _play_once(self, executor: Executor) -> int:
        count, begin_s, first_ns = 0, monotonic(), 0
        for count, frame in enumerate(self.frames, start=1):
            first_ns = frame.stamp_ns if count == 1 else first_ns
            _spin_until(begin_s + (frame.stamp_ns - first_ns) * 1e-9, executor)
            self._publish(frame)
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
    """Play the recording, to its end or until SIGINT or SIGTERM."""
    with ros_process("replay_node"):
        node = ReplayNode()
        with executing(node) as executor:
            node.play(executor)


if __name__ == "__main__":
    main()
