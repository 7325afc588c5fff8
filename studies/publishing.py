# SPDX-License-Identifier: Apache-2.0
"""How long does it take to publish an image, as a message and as bytes that Python has serialized?

``python studies/publishing.py`` prints the table in docs/benchmarks.md. A subscriber in another process takes the
images; both limit discovery to this machine. The ways take turns.
"""

from __future__ import annotations

import os
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import rclpy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from netwarp_ros.node.images import mask_message, rgb_message
from netwarp_ros.recordings.messages import IMAGE, header, image_message, typestore

SUBSCRIBER = """
import rclpy
from sensor_msgs.msg import Image
rclpy.init()
node = rclpy.create_node("subscriber")
node.create_subscription(Image, "published", lambda data: None, 1, raw=True)
rclpy.spin(node)
"""

PUBLISHED = 200
PAUSE_S = 0.003


def by_rclpy(image: np.ndarray) -> Image:
    """Return the node's message: rclpy serializes it."""
    return mask_message(image, Header()) if image.ndim == 2 else rgb_message(image, Header())


def by_rosbags(image: np.ndarray) -> bytes:
    """Serialize by rosbags."""
    message = image_message(image, "mono8" if image.ndim == 2 else "rgb8", header(0, ""))
    return bytes(typestore.serialize_cdr(message, IMAGE))


def by_joining(image: np.ndarray) -> bytes:
    """Serialize all but the data, and append these: one copy of them, the least that is possible."""
    message = by_rclpy(image[:1, :1])
    message.height, message.width, message.step = image.shape[0], image.shape[1], image[0].nbytes
    head = serialize_message(message)
    return b"".join((head[: -4 - len(message.data)], struct.pack("<I", image.nbytes), image.data))


WAYS: dict[str, Callable[[np.ndarray], Image | bytes]] = {
    "message": by_rclpy,
    "bytes by rosbags": by_rosbags,
    "bytes by joining": by_joining,
}


def main() -> None:
    """Measure and print the table."""
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    rclpy.init()
    publisher = rclpy.create_node("publisher").create_publisher(Image, "published", 1)
    subscriber = subprocess.Popen([sys.executable, "-c", SUBSCRIBER])
    try:
        while not publisher.get_subscription_count():
            time.sleep(0.1)
        print(f"| ms | {' | '.join(WAYS)} |\n|---|{'---:|' * len(WAYS)}")
        for shape in ((360, 480), (1080, 1920), (1080, 1920, 3)):
            image = np.random.default_rng(0).integers(0, 11, shape, np.uint8)
            times: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(PUBLISHED):
                for way, make in WAYS.items():
                    begun = time.perf_counter()
                    publisher.publish(make(image))
                    times[way].append(1e3 * (time.perf_counter() - begun))
                    time.sleep(PAUSE_S)
            medians = " | ".join(f"{statistics.median(times[way]):.2f}" for way in WAYS)
            print(f"| {'mono8' if len(shape) == 2 else 'rgb8'} {shape[1]}×{shape[0]} | {medians} |")
    finally:
        subscriber.kill()


if __name__ == "__main__":
    main()
