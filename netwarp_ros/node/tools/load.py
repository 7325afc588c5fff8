# SPDX-License-Identifier: Apache-2.0
"""Nodes under load: cameras on one side of them, somebody who takes their masks on the other.

The cameras are one process, each node is one, and this process takes what comes out; they meet over DDS alone.
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
from netwarp_ros.node.tools.cameras import send
from netwarp_ros.recordings.messages import STAGES, stamp_of
from netwarp_ros.resources import resource
from netwarp_ros.timing import percentiles

SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "netwarp": ("netwarp_ros.node.segment_node", {}),
    "host": ("netwarp_ros.node.segment_node", {"host_only": True}),
    "plain": ("netwarp_ros.node.tools.plain_node", {}),
}
"""Module and parameters of the nodes that are compared."""

DURATIONS = ("receive", *STAGES, "total", "age")
"""The durations in `FrameTiming`."""

PROFILES_FILE = f"{'FASTRTPS' if os.environ.get('ROS_DISTRO') == 'jazzy' else 'FASTDDS'}_DEFAULT_PROFILES_FILE"
"""The variable of the environment that names a profile for Fast DDS, which changed its name after Jazzy."""

WARM_UP_S = 2.0
"""How long the cameras send before anything is measured."""

SILENCE_S = 2.0
"""After which nothing more is expected of a node; the last image of a camera may have been lost on its way."""


class Subject:
    """A node under test, and what comes out of it.

    Attributes:
        system: Which of `SYSTEMS` it is.
        namespace: Where it is.
        cameras: Full names of its cameras.
        process: Its process.
        rows: For each camera, stamp in ns and `DURATIONS` in ms of every frame that came out since the latest load.
        accounts: For each camera of a segment node, the latest values on ``/diagnostics``.
    """

    def __init__(self, system: str, namespace: str, cameras: Sequence[str], process: NodeProcess) -> None:
        self.system, self.namespace, self.process = system, namespace, process
        self.cameras = [f"{namespace}/{camera}" for camera in cameras]
        self.rows: list[list[tuple[int, tuple[float, ...]]]] = [[] for _ in cameras]
        self.accounts: dict[str, dict[str, str]] = {}
        self._statuses = {f"{namespace[1:]}/segmenter: {camera}": camera for camera in cameras}

    def on_timing(self, camera: int, timing: FrameTiming) -> None:
        """Note where the time of a frame went."""
        self.rows[camera].append((stamp_of(timing), tuple(getattr(timing, f"{name}_ms") for name in DURATIONS)))

    def on_diagnostics(self, report: DiagnosticArray) -> None:
        """Note what the node says of its cameras."""
        for status in report.status:
            if status.name in self._statuses:
                self.accounts[self._statuses[status.name]] = {pair.key: pair.value for pair in status.values}

    def durations(self, begin_ns: int, end_ns: int) -> dict[str, list[float]]:
        """Return the durations in ms, and ``own``, of the frames whose mask came out in a span of time."""
        age = DURATIONS.index("age")
        chosen = [
            values for rows in self.rows for stamp, values in rows if begin_ns <= stamp + 1e6 * values[age] < end_ns
        ]
        found = {name: [values[index] for values in chosen] for index, name in enumerate(DURATIONS)}
        found["own"] = [
            total - flow - network
            for total, flow, network in zip(found["total"], found["flow"], found["network"], strict=True)
        ]
        return found


class Bench:
    """Where nodes are put under load; a context manager, which ends them.

    The graph is a ROS domain of this machine alone, whatever the environment says. Fast DDS has room for images, unless
    the environment names another profile.
    """

    def __init__(self) -> None:
        self._ends = ExitStack()

    def __enter__(self) -> Bench:
        with self._ends as ends:
            os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
            os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
            os.environ.setdefault(PROFILES_FILE, str(resource("fastdds_large_images.xml")))
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

    def start(self, systems: Sequence[str], cameras: int, **parameters: Any) -> list[Subject]:
        """Start nodes, all at once, and wait until they are ready.

        Args:
            systems: Of `SYSTEMS`.
            cameras: How many each has.
            parameters: Of the nodes.

        Raises:
            NodeError: If a process ends, or a node cannot be configured.
        """
        subjects = [self._launch(system, cameras, parameters) for system in systems]
        for subject in subjects:
            self._make_ready(subject)
        return subjects

    def _launch(self, system: str, cameras: int, parameters: dict[str, Any]) -> Subject:
        """Start the process of a node."""
        (module, own), namespace = SYSTEMS[system], f"/{system}"
        names = [f"camera{index}" for index in range(cameras)]
        # Not one of the timings may be lost, however busy this process is.
        qos = {f"qos_overrides.{namespace}/{name}/segmentation/timing.publisher.depth": 1000 for name in names}
        folder = self._folder / system
        folder.mkdir()
        process = NodeProcess(module, namespace, folder, cameras=names, **own, **parameters, **qos)
        self._ends.enter_context(process)
        return Subject(system, namespace, names, process)

    def load(
        self,
        subject: Subject,
        size: tuple[int, int],
        rate: float,
        seconds: float,
        *,
        warm_up: float = WARM_UP_S,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Run:
        """Have the cameras send, and take what comes of it.

        Args:
            subject: The node.
            size: Width and height of the images.
            rate: Images that each camera sends per second; all fire together.
            seconds: How long, after the warm-up.
            warm_up: How long they send before.
            meanwhile: Called ten times a second at most.

        Raises:
            NodeError: If the node ends, or does not subscribe.
        """
        for rows in subject.rows:
            rows.clear()
        future = self._cameras.submit(send, subject.cameras, size, rate, warm_up, seconds, subject.process.pid)

        def sending() -> bool:
            meanwhile()
            return future.done()

        self.spin_until(sending, subject)
        sent = future.result()
        heard, latest = -1, 0.0

        def served() -> bool:
            nonlocal heard, latest
            if (count := sum(map(len, subject.rows))) != heard:
                heard, latest = count, time.monotonic()
            ended = all(rows and rows[-1][0] == last for rows, last in zip(subject.rows, sent.last_ns, strict=True))
            return ended or time.monotonic() - latest > SILENCE_S

        self.spin_until(served, subject)
        found = subject.durations(sent.begin_ns, sent.end_ns)
        masks = len(found["age"])
        return Run(
            subject.system,
            len(subject.cameras),
            *size,
            rate,
            (sent.end_ns - sent.begin_ns) / 1e9,
            sent.sent,
            masks,
            {name: percentiles(values) for name, values in found.items()} if masks else {},
            sent.cpu,
            sent.memory_mb,
        )

    def spin_until(self, done: Callable[[], bool], subject: Subject, patience_s: float = math.inf) -> None:
        """Take messages in until something is done.

        Raises:
            NodeError: If the node ends before, or patience does.
            KeyboardInterrupt: If a signal ends ROS.
        """
        deadline = time.monotonic() + patience_s
        while not done():
            if time.monotonic() > deadline:
                raise NodeError(f"{subject.system} is not ready within {patience_s:g} s")
            try:
                self._executor.spin_once(timeout_sec=0.1)
            except ExternalShutdownException:
                raise KeyboardInterrupt from None
            subject.process.check()

    def _make_ready(self, subject: Subject) -> None:
        """Bring a node to work, and subscribe to what it says."""
        if SYSTEMS[subject.system][0] == "netwarp_ros.node.segment_node":
            target = f"{subject.namespace}/segmenter"
            lifecycle = LifecycleClient(self._node, self._executor, target, timeout_s=TIMEOUT_S)
            try:
                lifecycle.configure()
                lifecycle.activate()
            except LifecycleError as error:
                raise NodeError(f"{error}\n{subject.process.output}") from error
        self._node.create_subscription(DiagnosticArray, "/diagnostics", subject.on_diagnostics, QoSProfile(depth=10))
        newest = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        timings = []
        for index, camera in enumerate(subject.cameras):
            # The masks are taken as whoever needs them would, but not looked at.
            self._node.create_subscription(Image, f"{camera}/segmentation/mask", lambda _: None, newest, raw=True)
            on_timing, topic = partial(subject.on_timing, index), f"{camera}/segmentation/timing"
            timings.append(self._node.create_subscription(FrameTiming, topic, on_timing, QoSProfile(depth=1000)))
        self.spin_until(lambda: all(timing.get_publisher_count() for timing in timings), subject, TIMEOUT_S)


def middleware() -> dict[str, str]:
    """Tell which ROS and which middleware the messages go through."""
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
    """Put nodes under load, which take turns at each, so that whatever disturbs the machine disturbs all alike.

    Args:
        systems: Of `SYSTEMS`.
        cameras: Numbers of cameras.
        sizes: Widths and heights of images.
        rates: Of each camera, in Hz.
        seconds: How long each load is measured.
        peak: Whether to look for the highest rate with less than 5 % dropped, too.
        parameters: Of the nodes.

    Yields:
        What came of each load, and of each node's peak where there is one.

    Raises:
        ValueError: If there is no such system.
        NodeError: If a node ends, or cannot be configured.
    """
    if unknown := set(systems) - set(SYSTEMS):
        raise ValueError(f"nodes are {', '.join(sorted(unknown))!r}: give some of {', '.join(SYSTEMS)}")
    for number, size in ((number, size) for number in cameras for size in sizes):
        with Bench() as bench:
            runs: dict[str, list[Run]] = {system: [] for system in systems}
            subjects = bench.start(systems, number, **parameters)
            for rate in rates:
                for subject in subjects:
                    run = bench.load(subject, size, rate, seconds)
                    runs[subject.system].append(run)
                    yield run
            for subject in subjects if peak else ():
                start = max(run.masks / run.seconds for run in runs[subject.system]) / number
                load = partial(bench.load, subject, size, seconds=seconds)
                if (best := find_peak(load, start)) is not None:
                    yield replace(best, peak=True)
