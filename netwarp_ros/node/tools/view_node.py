# SPDX-License-Identifier: Apache-2.0
"""What `netwarp view` shows, taken from the ROS graph."""

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
"""Number of latest frames whose timings are shown."""

WIDTH = 960
"""Pixels that pictures are scaled down to."""

PERIOD_S = 0.5
"""Time between two looks at the graph."""

TIMING, OVERLAY = "/segmentation/timing", "/segmentation/overlay"
LEVELS = ("OK", "WARN", "ERROR", "STALE")


@dataclass
class _Camera:
    """What is known of one camera.

    Attributes:
        name: What its topics begin with, resolved.
        node: Full name of the node that publishes its timings; empty when none does.
        frames: Stages in ms, total, age, and whether the memory started anew, of the latest frames.
        heard: When the latest timing came, on the monotonic clock in s; None when none came.
        pictures: Number of overlays that came.
        picture: The newest of them; None when there is none.
        overlay: The subscription that they come by, while there is one.
        encoded: What `pictures` was for the newest JPEG, and that.
    """

    name: str
    node: str = ""
    frames: deque[list[float]] = field(default_factory=lambda: deque(maxlen=FRAMES))
    heard: float | None = None
    pictures: int = 0
    picture: Image | None = None
    overlay: Subscription | None = None
    encoded: tuple[int, bytes] = (0, b"")

    def statuses(self) -> tuple[str, str]:
        """Return by which names the node and this camera are on ``/diagnostics``; empty ones when there is no node."""
        if not self.node:
            return "", ""
        name, namespace = self.node.removeprefix("/"), str(PurePosixPath(self.node).parent)
        return name, f"{name}: {self.name.removeprefix(namespace).removeprefix('/')}"


class ViewNode(Node):
    """Keeps the newest of what the segment nodes say of their cameras.

    A segment node makes overlays only while somebody subscribes, so this node does while a page is open.

    Args:
        cameras: Cameras to show, by the names that their topics begin with; without any, those of all segment nodes
            in the namespace.
        namespace: Where the cameras are.

    Raises:
        ValueError: If a name is none.
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
        self._wanted = [self.resolve_topic_name(name) for name in cameras]
        self._lock = Lock()  # of all below, which the page's server reads from its own threads
        self._cameras: dict[str, _Camera] = {}
        self._statuses: dict[str, DiagnosticStatus] = {}
        self._pages = 0
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, QoSProfile(depth=10))
        # On the steady clock: it must also tick where simulated time stands still.
        self.create_timer(PERIOD_S, self._look_around, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._look_around()

    def is_open(self) -> bool:
        """Tell whether ROS runs."""
        return bool(self.context.ok())

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Have overlays made for the body of a ``with`` statement."""
        with self._lock:
            self._pages += 1
        try:
            yield
        finally:
            with self._lock:
                self._pages -= 1

    def state(self) -> list[dict[str, Any]]:
        """Return how the cameras stand, sorted by name."""
        with self._lock:
            return [self._state(self._cameras[name]) for name in sorted(self._cameras)]

    def picture(self, camera: str) -> bytes | None:
        """Return a camera's newest overlay as a JPEG, if there is one that can be decoded."""
        with self._lock:
            if (view := self._cameras.get(camera)) is None or view.picture is None:
                return None
            count, message = view.pictures, view.picture
            if view.encoded[0] == count:
                return view.encoded[1]
        try:
            image = to_bgr(message)
        except ImageError:
            return None
        height, width = image.shape[:2]
        if width > WIDTH:
            image = cv2.resize(image, (WIDTH, max(1, round(height * WIDTH / width))), interpolation=cv2.INTER_AREA)
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
        with self._lock:
            view.encoded = max(view.encoded, (count, jpeg))
        return jpeg

    def _state(self, camera: _Camera) -> dict[str, Any]:
        node, own = (self._statuses.get(name) for name in camera.statuses())
        level, message = DiagnosticStatus.STALE, "no diagnostics yet"
        if not camera.node:
            level, message = DiagnosticStatus.ERROR, f"nothing publishes {camera.name}{TIMING}"
        elif known := [status for status in (own, node) if status is not None]:
            worst = max(known, key=lambda status: status.level)  # of two alike, the camera's
            level, message = worst.level, worst.message
        return {
            "name": camera.name,
            "node": camera.node,
            "level": LEVELS[min(ord(level), 3)],
            "message": message,
            "about": _values(node),
            "values": _values(own),
            "silence": None if camera.heard is None else round(monotonic() - camera.heard, 1),
            "picture": camera.pictures if camera.picture is not None else 0,
            "frames": list(camera.frames),
        }

    def _look_around(self) -> None:
        """Find cameras and their nodes, and subscribe to overlays if they are looked at."""
        within = self.get_namespace().rstrip("/") + "/"
        found = [
            topic.removesuffix(TIMING)
            for topic, types in self.get_topic_names_and_types()
            if topic.startswith(within) and topic.endswith(TIMING) and "netwarp_ros/msg/FrameTiming" in types
        ]
        for name in self._wanted or found:
            if name not in self._cameras:
                self._add(_Camera(name))
        for camera in self._cameras.values():
            publishers = self.get_publishers_info_by_topic(camera.name + TIMING)
            nodes = [str(PurePosixPath(found.node_namespace, found.node_name)) for found in publishers]
            with self._lock:
                camera.node = nodes[0] if nodes else ""
                looked_at = self._pages > 0
            if looked_at and camera.overlay is None:
                self._subscribe(camera)
            elif camera.overlay is not None and not looked_at:
                self.destroy_subscription(camera.overlay)
                with self._lock:
                    camera.overlay = camera.picture = None

    def _add(self, camera: _Camera) -> None:
        def take(timing: FrameTiming) -> None:
            times = [getattr(timing, f"{stage}_ms") for stage in (*STAGES, "total", "age")]
            if all(map(math.isfinite, times)):
                with self._lock:
                    camera.heard = monotonic()
                    camera.frames.append([round(ms, 1) for ms in times] + [int(timing.memory == timing.MEMORY_NEW)])

        with self._lock:
            self._cameras[camera.name] = camera
        self.create_subscription(
            FrameTiming, camera.name + TIMING, take, QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
        )

    def _subscribe(self, camera: _Camera) -> None:
        def take(overlay: Image) -> None:
            with self._lock:
                camera.pictures += 1
                camera.picture = overlay

        # Of the overlays that wait, the newest replaces the others; by best effort, large ones would get lost.
        newest = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_AVAILABLE)
        camera.overlay = self.create_subscription(Image, camera.name + OVERLAY, take, newest)

    def _on_diagnostics(self, report: DiagnosticArray) -> None:
        with self._lock:
            ours = {name for camera in self._cameras.values() for name in camera.statuses()}
            self._statuses |= {status.name: status for status in report.status if status.name in ours}


def _values(status: DiagnosticStatus | None) -> dict[str, str]:
    return {pair.key: pair.value for pair in status.values} if status is not None else {}


def view(cameras: Sequence[str], namespace: str, host: str, port: int) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Args:
        cameras: As of `ViewNode`.
        namespace: As of `ViewNode`.
        host: Name or address to listen on.
        port: Port to listen on; 0: any that is free.

    Raises:
        SystemExit: With status 2, if a name is none or the host and port cannot be listened on.
    """
    with ros_process("netwarp view"):
        node = ViewNode(cameras, namespace)
        with executing(node) as executor, serving(node, host, port) as address:
            print(f"{address} (Ctrl-C ends it)", flush=True)
            executor.spin()
