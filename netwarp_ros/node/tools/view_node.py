# SPDX-License-Identifier: Apache-2.0
"""The node behind `netwarp view`: it collects the overlays, timings and diagnostics of cameras."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from threading import Lock
from time import monotonic
from typing import Any

import cv2
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import NameValidationException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from rclpy.validate_namespace import validate_namespace
from rclpy.validate_topic_name import validate_topic_name
from sensor_msgs.msg import Image

from netwarp_ros.msg import FrameTiming
from netwarp_ros.node.process import executing, ros_process
from netwarp_ros.recordings.image_messages import ImageError, to_bgr
from netwarp_ros.recordings.messages import STAGES
from netwarp_ros.view import serving

FRAMES = 120
"""Number of latest frames whose timings are kept."""

MAX_WIDTH = 960
"""Width in pixels to which larger overlays are scaled."""

PERIOD_S = 0.5
"""Seconds between two searches of the graph for cameras."""

TIMING, OVERLAY = "/segmentation/timing", "/segmentation/overlay"
LEVELS = ("OK", "WARN", "ERROR", "STALE")


@dataclass
class _Camera:
    """One camera.

    Attributes:
        name: Resolved first part of its topics' names.
        node: Full name of the node that publishes its timings; empty if none does.
        frames: For each of the latest frames: stages, total and age in ms, and 1 if the memory was reset, else 0.
        last_timing_s: When the latest timing arrived, on the monotonic clock; None before the first.
        overlay_count: Number of overlays received.
        overlay: The newest overlay; None if there is none.
        subscription: Subscription to the overlays; None while no page is open.
        jpeg: The `overlay_count` of the newest encoded overlay, and its JPEG.
    """

    name: str
    node: str = ""
    frames: deque[list[float]] = field(default_factory=lambda: deque(maxlen=FRAMES))
    last_timing_s: float | None = None
    overlay_count: int = 0
    overlay: Image | None = None
    subscription: Subscription | None = None
    jpeg: tuple[int, bytes] = (0, b"")

    def status_names(self) -> tuple[str, str]:
        """Return the names of the node's and this camera's status on ``/diagnostics``; empty if there is no node."""
        if not self.node:
            return "", ""
        name, namespace = self.node.removeprefix("/"), str(PurePosixPath(self.node).parent)
        return name, f"{name}: {self.name.removeprefix(namespace).removeprefix('/')}"


class ViewNode(Node):
    """Keeps the newest overlays, timings and diagnostics of cameras.

    A segment node makes overlays only while somebody subscribes, so this node subscribes only while a page is open.

    Args:
        cameras: Names of the cameras to show; if empty, the cameras of all segment nodes in the namespace.
        namespace: Namespace of the cameras.

    Raises:
        ValueError: If a name is not a valid topic name, or the namespace is not valid.
    """

    def __init__(self, cameras: Sequence[str] = (), namespace: str = "") -> None:
        namespace = f"/{namespace.strip('/')}"
        try:
            validate_namespace(namespace)
            for name in cameras:
                validate_topic_name(name)
        except NameValidationException as error:
            raise ValueError(" ".join(str(error).split())) from error
        super().__init__("view", namespace=namespace)
        self._requested = [self.resolve_topic_name(name) for name in cameras]
        self._lock = Lock()  # guards what follows: the page's server calls from its own threads
        self._cameras: dict[str, _Camera] = {}
        self._statuses: dict[str, DiagnosticStatus] = {}
        self._pages = 0
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, QoSProfile(depth=10))
        # On the steady clock: the search goes on even while simulated time is paused.
        self.create_timer(PERIOD_S, self._discover, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._discover()

    def is_open(self) -> bool:
        """Tell whether ROS is running."""
        return bool(self.context.ok())

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Receive overlays during the body of a ``with`` statement."""
        with self._lock:
            self._pages += 1
        try:
            yield
        finally:
            with self._lock:
                self._pages -= 1

    def state(self) -> list[dict[str, Any]]:
        """Return the state of each camera, sorted by name."""
        with self._lock:
            return [self._state(self._cameras[name]) for name in sorted(self._cameras)]

    def picture(self, camera: str) -> bytes | None:
        """Return a camera's newest overlay as a JPEG; None if there is none, or it cannot be decoded."""
        with self._lock:
            if (shown := self._cameras.get(camera)) is None or shown.overlay is None:
                return None
            count, message = shown.overlay_count, shown.overlay
            if shown.jpeg[0] == count:
                return shown.jpeg[1]
        try:
            image = to_bgr(message)
        except ImageError:
            return None
        height, width = image.shape[:2]
        if width > MAX_WIDTH:
            size = (MAX_WIDTH, max(1, round(height * MAX_WIDTH / width)))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
        with self._lock:
            shown.jpeg = max(shown.jpeg, (count, jpeg))
        return jpeg

    def _state(self, camera: _Camera) -> dict[str, Any]:
        of_node, of_camera = (self._statuses.get(name) for name in camera.status_names())
        level, message = DiagnosticStatus.STALE, "no diagnostics yet"
        if not camera.node:
            level, message = DiagnosticStatus.ERROR, f"nothing publishes {camera.name}{TIMING}"
        elif statuses := [status for status in (of_camera, of_node) if status is not None]:
            worst = max(statuses, key=lambda status: status.level)  # the camera's if both are equal
            level, message = worst.level, worst.message
        return {
            "name": camera.name,
            "node": camera.node,
            "level": LEVELS[min(ord(level), 3)],
            "message": message,
            "about": _values(of_node),
            "values": _values(of_camera),
            "silence": None if camera.last_timing_s is None else round(monotonic() - camera.last_timing_s, 1),
            "picture": camera.overlay_count if camera.overlay is not None else 0,
            "frames": list(camera.frames),
        }

    def _discover(self) -> None:
        """Find new cameras and their nodes, and subscribe to the overlays while a page is open."""
        prefix = self.get_namespace().rstrip("/") + "/"
        names = [
            topic.removesuffix(TIMING)
            for topic, types in self.get_topic_names_and_types()
            if topic.startswith(prefix) and topic.endswith(TIMING) and "netwarp_ros/msg/FrameTiming" in types
        ]
        for name in self._requested or names:
            if name not in self._cameras:
                self._add(_Camera(name))
        for camera in self._cameras.values():
            publishers = self.get_publishers_info_by_topic(camera.name + TIMING)
            nodes = [str(PurePosixPath(info.node_namespace, info.node_name)) for info in publishers]
            with self._lock:
                camera.node = nodes[0] if nodes else ""
                watched = self._pages > 0
            if watched and camera.subscription is None:
                self._subscribe(camera)
            elif camera.subscription is not None and not watched:
                self.destroy_subscription(camera.subscription)
                with self._lock:
                    camera.subscription = camera.overlay = None

    def _add(self, camera: _Camera) -> None:
        def on_timing(timing: FrameTiming) -> None:
            times = [getattr(timing, f"{stage}_ms") for stage in (*STAGES, "total", "age")]
            if all(map(math.isfinite, times)):
                with self._lock:
                    camera.last_timing_s = monotonic()
                    camera.frames.append(
                        [round(ms, 1) for ms in times] + [int(timing.memory == FrameTiming.MEMORY_NEW)]
                    )

        with self._lock:
            self._cameras[camera.name] = camera
        self.create_subscription(
            FrameTiming,
            camera.name + TIMING,
            on_timing,
            QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT),
        )

    def _subscribe(self, camera: _Camera) -> None:
        def on_overlay(overlay: Image) -> None:
            with self._lock:
                camera.overlay_count += 1
                camera.overlay = overlay

        # The queue holds one overlay; a newer one replaces it. Best effort would lose large ones.
        newest = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_AVAILABLE)
        camera.subscription = self.create_subscription(Image, camera.name + OVERLAY, on_overlay, newest)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        with self._lock:
            ours = {name for camera in self._cameras.values() for name in camera.status_names()}
            self._statuses |= {status.name: status for status in message.status if status.name in ours}


def _values(status: DiagnosticStatus | None) -> dict[str, str]:
    return {pair.key: pair.value for pair in status.values} if status is not None else {}


def view(cameras: Sequence[str], namespace: str, host: str, port: int) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Args:
        cameras: See `ViewNode`.
        namespace: See `ViewNode`.
        host: Name or address to listen on.
        port: Port to listen on; 0: any free port.

    Raises:
        SystemExit: With status 2, if a name is not valid, or host and port cannot be opened.
    """
    with ros_process("netwarp view"):
        node = ViewNode(cameras, namespace)
        with executing(node) as executor, serving(node, host, port) as address:
            print(f"{address} (Ctrl-C ends it)", flush=True)
            executor.spin()
