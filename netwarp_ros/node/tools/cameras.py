# SPDX-License-Identifier: Apache-2.0
"""The cameras of `netwarp benchmark node`: a process that sends images, and watches what they cost the node."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path

import cv2
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
"""Images of the street that a camera sends, there and back again."""

FAREWELL = Duration(seconds=2)
"""Longest wait at the end for reliable subscribers to have all images."""


@dataclass(frozen=True)
class Sending:
    """What cameras sent, and what the node took to serve it.

    Attributes:
        begin_ns: When the warm-up ended, on the clock of the stamps.
        end_ns: When sending ended.
        sent: Images sent between the two, by all cameras.
        last_ns: Stamp of the last image of each camera.
        cpu: Processors that the node's process kept busy between the two.
        memory_mb: Its resident memory at the end, in 10^6 bytes.
    """

    begin_ns: int
    end_ns: int
    sent: int
    last_ns: list[int]
    cpu: float
    memory_mb: float


def send(
    cameras: Sequence[str], size: tuple[int, int], rate: float, warm_up: float, seconds: float, pid: int
) -> Sending:
    """Be cameras that fire together, in a process of its own.

    Args:
        cameras: Their full names.
        size: Width and height of the images, which are ``bgr8``.
        rate: Images that each sends per second; where that is more than can be sent, fewer are.
        warm_up: How long to send before the measurement, in s.
        seconds: How long to send for it.
        pid: The process of the node that is measured.

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
        _fire(publishers, messages, rate, warm_up)
        begin_ns, begin_s = time.time_ns(), cpu_seconds(pid)
        count, last_ns = _fire(publishers, messages, rate, seconds)
        end_ns, end_s = time.time_ns(), cpu_seconds(pid)
        for publisher in publishers:
            publisher.wait_for_all_acked(FAREWELL)
        node.destroy_node()
    return Sending(begin_ns, end_ns, count, last_ns, (end_s - begin_s) / (end_ns - begin_ns) * 1e9, memory_mb(pid))


@cache
def _messages(size: tuple[int, int]) -> list[Image]:
    """Return images of the street, drawn at 480x360 and scaled: there, and back again."""
    street = Street(rate=10.0)
    images = [cv2.resize(street.frame(index).image, size) for index in range(FRAMES)]
    return [bgr_message(image, Header()) for image in images + images[-2:0:-1]]


def _fire(
    publishers: Sequence[Publisher], messages: Iterator[Image], rate: float, seconds: float
) -> tuple[int, list[int]]:
    """Publish at a rate for a while; return how many images that were, and the last stamp of each camera in ns.

    An image that is late puts off those after it: a camera sends no bursts.
    """
    count, last_ns, due = 0, [0] * len(publishers), time.monotonic()
    end = due + seconds
    while due < end:
        message = next(messages)
        for index, publisher in enumerate(publishers):
            last_ns[index] = time.time_ns()
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(last_ns[index], 10**9)
            publisher.publish(message)
        count += len(publishers)
        due = max(due + 1 / rate, time.monotonic())
        time.sleep(max(0.0, min(due, end) - time.monotonic()))
    return count, last_ns


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process, in 10^6 bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
