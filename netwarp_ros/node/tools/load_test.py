# SPDX-License-Identifier: Apache-2.0
"""Nodes under load: cameras publish images for them, and this process receives their results.

Three processes take part: one publishes for all cameras, one is the node, and this one receives. They communicate over
DDS alone.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from netwarp_ros.benchmarks.node import Run, find_peak
from netwarp_ros.msg import FrameTiming
from netwarp_ros.node.lifecycle import LifecycleClient, LifecycleError
from netwarp_ros.node.process import TIMEOUT_S, NodeError, NodeProcess, ros_process
from netwarp_ros.node.tools.load_cameras import send_images
from netwarp_ros.recordings.messages import STAGES, stamp_of
from netwarp_ros.resources import resource
from netwarp_ros.timing import percentiles

SEGMENT_NODE = "netwarp_ros.node.segment_node"

SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "netwarp": (SEGMENT_NODE, {}),
    "viewed": (SEGMENT_NODE, {}),
    "host": (SEGMENT_NODE, {"host_only": True}),
    "plain": ("netwarp_ros.node.tools.plain_node", {}),
}
"""Module and parameters of the nodes that can be compared. Somebody looks at the overlays of ``viewed``."""

DURATIONS = ("receive", *STAGES, "total", "age")
"""The durations in `FrameTiming`."""

PROFILES_VARIABLE = f"{'FASTRTPS' if os.environ.get('ROS_DISTRO') == 'jazzy' else 'FASTDDS'}_DEFAULT_PROFILES_FILE"
"""Environment variable that names a profile for Fast DDS. Its name changed after Jazzy."""

WARM_UP_S = 2.0
"""Seconds for which the cameras publish before the measurement."""

SILENCE_S = 2.0
"""Seconds without a result after which the wait ends: the last image of a camera may have been lost."""


class NodeUnderTest:
    """A node under load, and its results.

    Attributes:
        system: Key of `SYSTEMS`.
        namespace: Namespace of the node.
        cameras: Full names of its cameras.
        process: Its process.
        timings: For each camera, the stamp in ns and the `DURATIONS` in ms of every mask since the load began.
        diagnostics: For each camera of a segment node, the latest values on ``/diagnostics``.
    """

    def __init__(self, system: str, namespace: str, cameras: Sequence[str], process: NodeProcess) -> None:
        self.system, self.namespace, self.process = system, namespace, process
        self.cameras = [f"{namespace}/{camera}" for camera in cameras]
        self.timings: list[list[tuple[int, tuple[float, ...]]]] = [[] for _ in cameras]
        self.diagnostics: dict[str, dict[str, str]] = {}
        self._statuses = {f"{namespace[1:]}/segmenter: {camera}": camera for camera in cameras}

    def on_timing(self, camera: int, timing: FrameTiming) -> None:
        """Keep the durations of a frame."""
        self.timings[camera].append((stamp_of(timing), tuple(getattr(timing, f"{name}_ms") for name in DURATIONS)))

    def on_diagnostics(self, message: DiagnosticArray) -> None:
        """Keep the latest values of the cameras."""
        for status in message.status:
            if status.name in self._statuses:
                self.diagnostics[self._statuses[status.name]] = {pair.key: pair.value for pair in status.values}

    def durations(self, begin_ns: int, end_ns: int) -> dict[str, list[float]]:
        """Return the durations in ms, and ``own``, of the frames whose mask was published between two times.

        ``own`` is the node's own cost: the total less flow and network.
        """
        age = DURATIONS.index("age")
        rows = [
            row for timings in self.timings for stamp, row in timings if begin_ns <= stamp + 1e6 * row[age] < end_ns
        ]
        durations = {name: [row[index] for row in rows] for index, name in enumerate(DURATIONS)}
        durations["own"] = [
            total - flow - network
            for total, flow, network in zip(durations["total"], durations["flow"], durations["network"], strict=True)
        ]
        return durations


class Bench:
    """Context manager: puts nodes under load, and ends them at exit.

    Its ROS domain is limited to this machine, whatever the environment says. Fast DDS gets shared memory for large
    images, unless the environment names another profile.
    """

    def __init__(self) -> None:
        self._ends = ExitStack()

    def __enter__(self) -> Bench:
        with self._ends as ends:
            os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
            os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
            os.environ.setdefault(PROFILES_VARIABLE, str(resource("fastdds_large_images.xml")))
            self._folder = Path(ends.enter_context(TemporaryDirectory()))
            ends.enter_context(ros_process("benchmark"))
            self._cameras = ends.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
            self._cameras.submit(os.getpid)  # starts the process while the nodes start
            self._node = rclpy.create_node("benchmark")
            ends.callback(self._node.destroy_node)
            self._executor = SingleThreadedExecutor()
            ends.callback(self._executor.shutdown)
            self._executor.add_node(self._node)
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ends.__exit__(*error)

    def start(self, systems: Sequence[str], cameras: int, **parameters: Any) -> list[NodeUnderTest]:
        """Start nodes, all at once, and wait until they are ready.

        Args:
            systems: Keys of `SYSTEMS`.
            cameras: Number of cameras of each node.
            parameters: Parameters of the nodes.

        Raises:
            NodeError: If a process ends, or a node cannot be configured.
        """
        nodes = [self._launch(system, cameras, parameters) for system in systems]
        for node in nodes:
            self._make_ready(node)
        return nodes

    def _launch(self, system: str, cameras: int, parameters: dict[str, Any]) -> NodeUnderTest:
        """Start the process of a node."""
        (module, own_parameters), namespace = SYSTEMS[system], f"/{system}"
        names = [f"camera{index}" for index in range(cameras)]
        # No timing may be lost, however busy this process is.
        qos = {f"qos_overrides.{namespace}/{name}/segmentation/timing.publisher.depth": 1000 for name in names}
        folder = self._folder / system
        folder.mkdir()
        process = NodeProcess(module, namespace, folder, cameras=names, **own_parameters, **parameters, **qos)
        self._ends.enter_context(process)
        return NodeUnderTest(system, namespace, names, process)

    def load(
        self,
        node: NodeUnderTest,
        size: tuple[int, int],
        rate: float,
        seconds: float,
        *,
        warm_up: float = WARM_UP_S,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Run:
        """Let the cameras publish, and receive the results.

        Args:
            node: The node.
            size: Width and height of the images.
            rate: Images per second of each camera; all cameras fire together.
            seconds: Duration of the measurement.
            warm_up: Seconds for which the cameras publish before the measurement.
            meanwhile: Called repeatedly while the cameras publish, at least ten times a second.

        Raises:
            NodeError: If the node ends.
            RuntimeError: If the node does not subscribe to its cameras.
        """
        for timings in node.timings:
            timings.clear()
        future = self._cameras.submit(send_images, node.cameras, size, rate, warm_up, seconds, node.process.pid)

        def all_sent() -> bool:
            meanwhile()
            return future.done()

        self.spin_until(all_sent, node)
        sent = future.result()
        received, latest = -1, 0.0

        def all_received() -> bool:
            nonlocal received, latest
            if (count := sum(map(len, node.timings))) != received:
                received, latest = count, time.monotonic()
            last = [timings[-1][0] if timings else None for timings in node.timings]
            return last == sent.last_stamps_ns or time.monotonic() - latest > SILENCE_S

        self.spin_until(all_received, node)
        durations = node.durations(sent.begin_ns, sent.end_ns)
        masks = len(durations["age"])
        return Run(
            node.system,
            len(node.cameras),
            *size,
            rate,
            (sent.end_ns - sent.begin_ns) / 1e9,
            sent.count,
            masks,
            {name: percentiles(values) for name, values in durations.items()} if masks else {},
            sent.cpu,
            sent.memory_mb,
        )

    def spin_until(self, done: Callable[[], bool], node: NodeUnderTest, timeout_s: float = math.inf) -> None:
        """Receive messages until a condition holds.

        Raises:
            NodeError: If the node ends first, or on timeout.
            KeyboardInterrupt: If a signal ends ROS.
        """
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                raise NodeError(f"{node.system} is not ready within {timeout_s:g} s")
            try:
                self._executor.spin_once(timeout_sec=0.1)
            except ExternalShutdownException:
                raise KeyboardInterrupt from None
            node.process.check()

    def _make_ready(self, node: NodeUnderTest) -> None:
        """Activate a node, and subscribe to its topics."""
        if SYSTEMS[node.system][0] == SEGMENT_NODE:
            target = f"{node.namespace}/segmenter"
            lifecycle = LifecycleClient(self._node, self._executor, target, timeout_s=TIMEOUT_S)
            try:
                lifecycle.configure()
                lifecycle.activate()
            except LifecycleError as error:
                raise NodeError(f"{error}\n{node.process.output}") from error
        self._node.create_subscription(DiagnosticArray, "/diagnostics", node.on_diagnostics, QoSProfile(depth=10))
        newest = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        subscriptions = []
        for index, camera in enumerate(node.cameras):
            # Receive masks and overlays as a user would, and discard them.
            for name in ("mask", "overlay") if node.system == "viewed" else ("mask",):
                self._node.create_subscription(Image, f"{camera}/segmentation/{name}", lambda _: None, newest, raw=True)
            on_timing, topic = partial(node.on_timing, index), f"{camera}/segmentation/timing"
            subscriptions.append(self._node.create_subscription(FrameTiming, topic, on_timing, QoSProfile(depth=1000)))
        self.spin_until(
            lambda: all(subscription.get_publisher_count() for subscription in subscriptions), node, TIMEOUT_S
        )


def middleware() -> dict[str, str]:
    """Return the names of the ROS distribution and of the middleware."""
    return {
        "ros_distro": os.environ.get("ROS_DISTRO", "unknown"),
        "rmw": rclpy.get_rmw_implementation_identifier(),
    }


def benchmark(
    systems: Sequence[str],
    cameras: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    rates: Sequence[float],
    seconds: float,
    *,
    peak: bool = True,
    **parameters: Any,
) -> Iterator[Run]:
    """Put nodes under load. They alternate at each rate, so that other load on the machine slows all down alike.

    Args:
        systems: Keys of `SYSTEMS`.
        cameras: Numbers of cameras.
        sizes: Widths and heights of the images.
        rates: Images per second of each camera.
        seconds: Duration of each measurement.
        peak: Whether to search also for the highest rate with less than 5 % dropped.
        parameters: Parameters of the nodes.

    Yields:
        The result of each measurement, and the result at each node's peak, if it has one.

    Raises:
        ValueError: If a system is not one of `SYSTEMS`.
        NodeError: If a node ends, or cannot be configured.
    """
    if unknown := set(systems) - set(SYSTEMS):
        raise ValueError(f"unknown nodes {', '.join(sorted(unknown))!r}: give some of {', '.join(SYSTEMS)}")
    for number, size in ((number, size) for number in cameras for size in sizes):
        with Bench() as bench:
            runs: dict[str, list[Run]] = {system: [] for system in systems}
            nodes = bench.start(systems, number, **parameters)
            for rate in rates:
                for node in nodes:
                    run = bench.load(node, size, rate, seconds)
                    runs[node.system].append(run)
                    yield run
            for node in nodes if peak else ():
                start = max(run.masks / run.seconds for run in runs[node.system]) / number
                load = partial(bench.load, node, size, seconds=seconds)
                if (best := find_peak(load, start)) is not None:
                    yield replace(best, peak=True)
