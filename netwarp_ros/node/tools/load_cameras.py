# SPDX-License-Identifier: Apache-2.0
"""The cameras of `netwarp benchmark node`: a process that publishes images and measures the node's CPU and memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle

import cv2
import psutil
import rclpy
from rclpy.duration import Duration
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from netwarp_ros.node.images import bgr_message
from netwarp_ros.node.process import TIMEOUT_S, ros_process
from netwarp_ros.street import Street

FRAMES = 10
"""Number of different images that a camera publishes, forwards and backwards."""

ACK_TIMEOUT = Duration(seconds=2)
"""How long to wait at the end until reliable subscribers have received all images."""


@dataclass(frozen=True)
class SentImages:
    """The images that cameras published during a measurement, and the node's CPU and memory.

    Attributes:
        begin_ns: Start of the measurement, on the clock of the stamps.
        end_ns: End of the measurement.
        count: Images published during it, by all cameras together.
        last_stamps_ns: Stamp of each camera's last image.
        cpu: CPU cores that the node's process kept busy on average.
        memory_mb: Resident memory of the node's process at the end, in 10^6 bytes.
    """

    begin_ns: int
    end_ns: int
    count: int
    last_stamps_ns: list[int]
    cpu: float
    memory_mb: float


def send_images(
    cameras: Sequence[str], size: tuple[int, int], rate: float, warm_up: float, seconds: float, pid: int
) -> SentImages:
    """Publish the images of cameras that fire together. Call this in a process of its own.

    Args:
        cameras: Full names of the cameras.
        size: Width and height of the images, which are ``bgr8``.
        rate: Images per second of each camera. If this process cannot publish that many, it publishes fewer.
        warm_up: Seconds to publish before the measurement.
        seconds: Seconds to publish during the measurement.
        pid: Process of the node that is measured.

    Raises:
        RuntimeError: If nobody subscribes to a camera.
    """
    messages = cycle(_messages(size))
    with ros_process("cameras"):
        node = rclpy.create_node("cameras")
        publishers = [node.create_publisher(Image, f"{camera}/image_raw", QoSProfile(depth=10)) for camera in cameras]
        deadline = time.monotonic() + TIMEOUT_S
        while not all(publisher.get_subscription_count() for publisher in publishers):
            if time.monotonic() > deadline:
                raise RuntimeError(f"nobody subscribes to {', '.join(cameras)}")
            time.sleep(0.02)
        _publish(publishers, messages, rate, warm_up)
        measured = psutil.Process(pid)
        measured.cpu_percent()  # the next call returns the mean since this one
        begin_ns = time.time_ns()
        count, last_stamps_ns = _publish(publishers, messages, rate, seconds)
        end_ns, cpu = time.time_ns(), measured.cpu_percent() / 100
        for publisher in publishers:
            publisher.wait_for_all_acked(ACK_TIMEOUT)
        node.destroy_node()
    return SentImages(begin_ns, end_ns, count, last_stamps_ns, cpu, memory_mb(pid))


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process, in 10^6 bytes."""
    return psutil.Process(pid).memory_info().rss / 1e6


@cache
def _messages(size: tuple[int, int]) -> list[Image]:
    """Return images of the synthetic street, forwards and backwards. They are rendered at 480x360 and scaled."""
    street = Street(rate=10.0)
    images = [cv2.resize(street.frame(index).image, size) for index in range(FRAMES)]
    return [bgr_message(image, Header()) for image in images + images[-2:0:-1]]


def _publish(
    publishers: Sequence[Publisher], messages: Iterator[Image], rate: float, seconds: float
) -> tuple[int, list[int]]:
    """Publish at a rate for some seconds; return the number of images, and the last stamp of each camera in ns.

    A late image delays those after it: cameras send no bursts.
    """
    count, last_stamps_ns, due = 0, [0] * len(publishers), time.monotonic()
    end = due + seconds
    while due < end:
        message = next(messages)
        for index, publisher in enumerate(publishers):
            last_stamps_ns[index] = time.time_ns()
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(last_stamps_ns[index], 10**9)
            publisher.publish(message)
        count += len(publishers)
        due = max(due + 1 / rate, time.monotonic())
        time.sleep(max(0.0, min(due, end) - time.monotonic()))
    return count, last_stamps_ns
