# SPDX-License-Identifier: Apache-2.0
"""What tests of the ROS graph share: nodes in processes of their own, and a node in this process to talk to them.

A test module that imports this one is skipped, with the reason, if ROS is missing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import cv2
import numpy as np
import pytest
import torch
from conftest import why_no_ros

if reason := why_no_ros():
    pytest.skip(reason, allow_module_level=True)

import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from domain_coordinator import domain_id
from rclpy.executors import SingleThreadedExecutor
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from netwarp_ros.classes import load_classes
from netwarp_ros.models import ModelSpec, NetWarpSpec, build, save_model
from netwarp_ros.msg import FrameTiming
from netwarp_ros.node.images import bgr_message
from netwarp_ros.node.lifecycle import RETRY_S, LifecycleClient
from netwarp_ros.node.process import parameter_arguments

SIZE = (64, 48)
"""Width and height of the test images."""

DEADLINE_S = 100.0
"""How long to wait for a condition. Tests wait on conditions only, so they pass on slow machines, only later."""

FRAME_ID = "camera_optical_frame"
SECOND = 10**9

T = TypeVar("T")


class Graph:
    """The node in this process."""

    def __init__(self) -> None:
        self.node = rclpy.create_node("test")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)

    def until(self, condition: Callable[[], T], what: str) -> T:
        """Spin until a condition returns a true value, and return that."""
        deadline = monotonic() + DEADLINE_S
        while not (result := condition()):
            assert monotonic() < deadline, f"no {what} within {DEADLINE_S:g} s"
            self.executor.spin_once(timeout_sec=0.1)
        return result

    def subscribe(self, message_type: Any, topic: str) -> list[Any]:
        """Subscribe, wait for the publisher, and return the list to which received messages are appended."""
        received: list[Any] = []
        subscription = self.node.create_subscription(message_type, topic, received.append, QoSProfile(depth=100))
        # A publisher that ends soon may be gone before it is counted.
        self.until(lambda: received or subscription.get_publisher_count(), f"publisher of {topic}")
        return received

    def publisher(self, topic: str, message_type: Any) -> Publisher:
        """Return a publisher, after it has a subscriber."""
        publisher = self.node.create_publisher(message_type, topic, QoSProfile(depth=100))
        self.until(publisher.get_subscription_count, f"subscriber of {topic}")
        return publisher

    def call(self, service_type: Any, name: str, request: Any = None) -> Any:
        """Call a service, and return its response. The request may be sent twice; this must do no harm."""
        client = self.node.create_client(service_type, name)
        assert client.wait_for_service(DEADLINE_S), f"no service {name}"

        def response() -> Any:
            # The response is lost if the node has not discovered this client yet.
            future = client.call_async(request or service_type.Request())
            self.executor.spin_until_future_complete(future, RETRY_S)
            return future.result()

        return self.until(response, f"response of {name}")

    def lifecycle(self, target: str = "/segmenter") -> LifecycleClient:
        """Return a client that changes the state of the segment node."""
        return LifecycleClient(self.node, self.executor, target, timeout_s=DEADLINE_S)

    def wait_for_status(
        self, name: str, condition: Callable[[DiagnosticStatus, dict[str, str]], bool]
    ) -> dict[str, str]:
        """Wait for a status on ``/diagnostics`` that meets a condition; return its values and its message.

        Args:
            name: Name of the status.
            condition: Is called with the status and its values.
        """
        received = self.subscribe(DiagnosticArray, "/diagnostics")

        def matching() -> dict[str, str] | None:
            for status in (status for array in received for status in array.status if status.name == name):
                values = {pair.key: pair.value for pair in status.values}
                if condition(status, values):
                    return {**values, "message": status.message}
            received.clear()
            return None

        return self.until(matching, f"such status of {name}")


@contextmanager
def own_domain() -> Iterator[None]:
    """Do what the fixture `ros_domain` does, during the body of a ``with`` statement."""
    with domain_id() as domain, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_DOMAIN_ID", str(domain))
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        yield


@contextmanager
def open_graph(*arguments: str) -> Iterator[Graph]:
    """Start ROS with its arguments, and yield a node in the graph."""
    rclpy.init(args=["--ros-args", *arguments])
    graph = Graph()
    try:
        yield graph
    finally:
        graph.executor.shutdown()
        graph.node.destroy_node()
        rclpy.shutdown()


PYTHON = [sys.executable, "-W", "ignore:failed to send response:RuntimeWarning"]
"""Python without rclpy's warning of a lost response: the request is repeated."""


def node_command(module: str, **parameters: Any) -> list[str]:
    """Return the command that runs a module of `netwarp_ros.node` with parameters; engine torch starts at once."""
    if module == "segment_node":
        parameters.setdefault("engine", "torch")
    return [*PYTHON, "-m", f"netwarp_ros.node.{module}", "--ros-args", *parameter_arguments(**parameters)]


class Program:
    """A process, and its output. If it has to be killed, so are the processes that it has started."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, process_group=0)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal unless the process has ended, wait for its end, and return the exit status."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end, and return the exit status."""
        try:
            return self._process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            raise

    def send(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def has_ended(self, within_s: float) -> bool:
        """Tell whether it ends within some seconds."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(within_s)
        return self._process.returncode is not None

    @property
    def output(self) -> str:
        """What the process has written so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")


@contextmanager
def running(command: list[str], log: Path) -> Iterator[Program]:
    """Run a program. At the end, check that SIGTERM ends it with status 0 and without a traceback."""
    program = Program(command, log)
    try:
        yield program
    finally:
        status = program.end()
    assert status == 0, program.output
    assert "Traceback" not in program.output, program.output


def lossless(*cameras: str) -> dict[str, Any]:
    """Return QoS parameters with which no image or mask is lost, even before both ends have discovered each other."""
    return {
        f"qos_overrides./{topic}": value
        for camera in cameras
        for topic, value in (
            (f"{camera}/image_raw.publisher.depth", 100),
            (f"{camera}/segmentation/mask.publisher.depth", 100),
            (f"{camera}/segmentation/timing.publisher.depth", 100),
        )
    }


class SegmentClient:
    """Publishes the images of a camera, and receives their masks and timings."""

    def __init__(self, graph: Graph, name: str = "camera", image_type: Any = Image) -> None:
        self._graph = graph
        self.masks = graph.subscribe(Image, f"{name}/segmentation/mask")
        self.timings = graph.subscribe(FrameTiming, f"{name}/segmentation/timing")
        suffix = "/compressed" if image_type is CompressedImage else ""
        self._publisher = graph.publisher(f"{name}/image_raw{suffix}", image_type)

    def publish(self, message: Image | CompressedImage) -> None:
        """Publish an image."""
        self._publisher.publish(message)

    def segment(self, message: Image | CompressedImage) -> tuple[Image, FrameTiming]:
        """Publish an image, and return the next mask and timing."""
        count = len(self.masks)
        self.publish(message)
        self._graph.until(lambda: len(self.masks) > count and len(self.timings) > count, "mask and timing")
        return self.masks[-1], self.timings[-1]


def tiny_model(path: Path) -> Path:
    """Write a video CNN of random weights, for images of `SIZE`."""
    torch.manual_seed(0)
    spec = ModelSpec(
        host="ddrnet23slim",
        classes=load_classes("camvid"),
        host_arguments={"num_classes": 11},
        netwarp=NetWarpSpec(layers=("fusion",), flow_grid="features"),
        input_height=SIZE[1],
    )
    network = build(spec).eval()
    with torch.no_grad():  # with the initial w1 = 1, w2 = 0 the memory would not change the masks
        for name, parameter in network.named_parameters():
            if name.endswith(("w1", "w2")):
                parameter.fill_(0.5)
    return save_model(path, network, spec)


def moving_images(count: int, seed: int = 0, step: int = 3) -> list[np.ndarray]:
    """Return images ``(48, 64, 3)`` BGR uint8: a window that moves to the right over a coarse texture.

    Args:
        count: Number of images.
        seed: Seed of the texture.
        step: Motion from one image to the next, in pixels.
    """
    width, height = SIZE
    length = width + step * count
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4, length // 4, 3), np.uint8)
    texture = cv2.resize(noise, (length, height), interpolation=cv2.INTER_CUBIC)
    return [np.ascontiguousarray(texture[:, step * index : step * index + width]) for index in range(count)]


def header(stamp_ns: int, frame_id: str = FRAME_ID) -> Header:
    seconds, nanoseconds = divmod(stamp_ns, SECOND)
    return Header(stamp=Time(sec=seconds, nanosec=nanoseconds), frame_id=frame_id)


def image_message(image: np.ndarray, stamp_ns: int, frame_id: str = FRAME_ID) -> Image:
    return bgr_message(image, header(stamp_ns, frame_id))


def array_of(message: Image) -> np.ndarray:
    """Return a mono8 or rgb8 image as an array."""
    shape = (message.height, message.width, 3) if message.encoding == "rgb8" else (message.height, message.width)
    return np.frombuffer(message.data, np.uint8).reshape(shape)
