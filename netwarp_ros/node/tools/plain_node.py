# SPDX-License-Identifier: Apache-2.0
"""A node as in tutorials. `netwarp benchmark node` compares the segment node with it.

Its callback decodes the image, runs the network and publishes the mask; up to ten images wait in the queue. Network,
precision and messages are those of the segment node with ``host_only``, so only the nodes differ.
"""

from __future__ import annotations

if __name__ == "__main__":
    from netwarp_ros.environment import start_node

    start_node()

from dataclasses import dataclass
from time import perf_counter

from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image

from netwarp_ros.msg import FrameTiming
from netwarp_ros.node import parameters
from netwarp_ros.node.images import mask_message
from netwarp_ros.node.process import executing, ros_process
from netwarp_ros.node.segment_parameters import SegmentParameters, engine_arguments
from netwarp_ros.recordings.image_messages import to_bgr
from netwarp_ros.recordings.messages import stamp_of
from netwarp_ros.segmenter import Segmenter, Stream

QUEUE = QoSProfile(depth=10)
"""QoS of the topics, as in tutorials: reliable, depth 10."""


@dataclass(frozen=True)
class _Camera:
    """One camera's stream and publishers."""

    stream: Stream
    mask: Publisher
    timing: Publisher

    def on_image(self, node: Node, message: Image) -> None:
        """Segment an image and publish the mask."""
        received, now_ns = perf_counter(), node.get_clock().now().nanoseconds
        stamp_ns = stamp_of(message)
        image = to_bgr(message)
        decoded = perf_counter()
        result = self.stream.segment(image, stamp_ns)
        segmented = perf_counter()
        self.mask.publish(mask_message(result.mask, message.header))
        published = perf_counter()
        receive_ms, total_ms = (now_ns - stamp_ns) / 1e6, 1e3 * (published - received)
        self.timing.publish(
            FrameTiming(
                header=message.header,
                receive_ms=receive_ms,
                decode_ms=1e3 * (decoded - received),
                prepare_ms=result.stages_ms["prepare"],
                network_ms=result.stages_ms["network"],
                publish_ms=1e3 * (published - segmented),
                total_ms=total_ms,
                age_ms=receive_ms + total_ms,
                is_key=result.is_key,
            )
        )


class PlainNode(Node):
    """Has the parameters of the segment node; those of flow and memory have no effect."""

    def __init__(self) -> None:
        super().__init__("segmenter")
        parameters.declare(self, SegmentParameters, read_only=True)
        settings = parameters.read(self, SegmentParameters)
        segmenter = Segmenter(
            settings.model,
            **engine_arguments(settings),
            input_height=settings.input_height,
            max_input_width=settings.max_input_width,
            host_only=True,
        )
        for name in settings.cameras:
            self._add(name, segmenter.stream())

    def _add(self, name: str, stream: Stream) -> None:
        camera = _Camera(
            stream,
            self.create_publisher(Image, f"{name}/segmentation/mask", QUEUE),
            self.create_publisher(
                FrameTiming,
                f"{name}/segmentation/timing",
                QUEUE,
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            ),
        )
        self.create_subscription(Image, f"{name}/image_raw", lambda message: camera.on_image(self, message), QUEUE)


def main() -> None:
    """Run the node until SIGINT or SIGTERM."""
    with ros_process("plain_node"), executing(PlainNode()) as executor:
        executor.spin()


if __name__ == "__main__":
    main()
