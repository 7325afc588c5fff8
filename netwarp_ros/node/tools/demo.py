# SPDX-License-Identifier: Apache-2.0
"""The demonstration: ``python -m netwarp_ros.node.tools.demo`` sends a street clip through the ROS graph.

It writes the clip as a bag. A replay node publishes the bag over DDS and a segment node segments it, each in a process
of its own; this process records the masks. Every frame must get a mask or be counted as dropped.

The bag and the logs of the nodes are temporary. Results go to the folder only when all are there, and replace only the
results of an earlier demonstration: `summary.json` holds the hashes of the files that were written with it.
"""

from __future__ import annotations

if __name__ == "__main__":
    from netwarp_ros.environment import configure_libraries

    configure_libraries()

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import rclpy
import typer
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sensor_msgs.msg import Image

from netwarp_ros.classes import ClassSet, load_classes
from netwarp_ros.metrics import ConfusionMatrix
from netwarp_ros.models import DEFAULT_MODEL, read_spec
from netwarp_ros.models.weights import find_weights
from netwarp_ros.msg import FrameTiming
from netwarp_ros.node.lifecycle import LifecycleClient
from netwarp_ros.node.process import TIMEOUT_S, NodeError, NodeProcess, ros_process
from netwarp_ros.recordings.atomic import is_as_written, temporary_folder, written_files
from netwarp_ros.recordings.bag_writer import write_bag
from netwarp_ros.recordings.frames import Frame
from netwarp_ros.recordings.messages import STAGES, stamp_of
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.recordings.video_writer import VideoWriter
from netwarp_ros.resources import sha256
from netwarp_ros.street import Street
from netwarp_ros.timing import percentiles

CLASSES = "camvid"
"""Class set of the street's labels."""

PICTURES, SUMMARY = ("overlay.mp4", "overlay.png"), "summary.json"
"""The results."""


def run(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("out/demo"),
    model: Annotated[str, typer.Option(help="A shipped model's name or a .safetensors file.")] = DEFAULT_MODEL,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    frames: Annotated[int, typer.Option(help="Length of the clip.", min=2)] = 120,
    rate: Annotated[float, typer.Option(help="Frames per second.", min=1.0, max=240.0)] = 10.0,
) -> None:
    """Send a street clip through the ROS graph; write summary.json, overlay.mp4 and overlay.png."""
    classes = load_classes(CLASSES)
    classes.check_names(read_spec(find_weights(model)).classes, f"model {model}")
    refuse_foreign_results(out)
    out.mkdir(parents=True, exist_ok=True)
    with temporary_folder(out / "demo") as work, Progress() as progress:
        bag, results = work / "street", work / "results"
        results.mkdir()
        labels = write_clip(bag, frames, rate, progress)
        recorder = play(bag, frames, work, model, device, progress)
        confusion = draw(bag, labels, recorder, classes, results, progress)
        summary = _summarise(recorder, confusion, frames, rate, model, device)
        publish(results, summary, out)
    _print(summary, out)


def refuse_foreign_results(out: Path) -> None:
    """Check that what is in the folder under the names of results is an earlier demonstration's, and unchanged.

    Raises:
        FileExistsError: It is something else.
    """
    written = written_files(out / SUMMARY)
    for name in (*PICTURES, SUMMARY):
        path = out / name
        if path.exists() and not is_as_written(path, written):
            raise FileExistsError(
                f"{path} exists already, and is no unchanged result of a demonstration: remove it, or give another "
                "--out"
            )


def publish(results: Path, summary: dict[str, Any], out: Path) -> None:
    """Move the pictures to the folder of the results, and write the summary with their hashes."""
    summary = {**summary, "files": {name: sha256(results / name) for name in PICTURES}}
    (results / SUMMARY).write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    refuse_foreign_results(out)  # something may have been put there in the meantime
    for name in (*PICTURES, SUMMARY):
        (results / name).replace(out / name)


def _summarise(
    recorder: Recorder, confusion: ConfusionMatrix, frames: int, rate: float, model: str, device: str
) -> dict[str, Any]:
    return {
        "frames_in": frames,
        "frames_out": len(recorder.masks),
        "frames_dropped": recorder.dropped,
        "latency_ms": _percentiles(timing.total_ms for timing in recorder.timings.values()),
        "stages_ms": {
            stage: _percentiles(getattr(timing, f"{stage}_ms") for timing in recorder.timings.values())
            for stage in STAGES
        },
        "miou": round(confusion.miou(), 2),
        "rate": rate,
        "model": model,
        "device": device,
        "engine": recorder.in_use["engine"],
        "precision": recorder.in_use["precision"],
        "ros_distro": os.environ.get("ROS_DISTRO", "unknown"),
    }


def write_clip(bag: Path, frames: int, rate: float, progress: Progress) -> dict[int, np.ndarray]:
    """Write a clip of the synthetic street as a bag.

    Returns:
        The labels ``(H, W)`` uint8, by the stamps of their frames in ns.

    Raises:
        FileExistsError: If the path of the bag exists.
    """
    street, begin_ns = Street(rate=rate), time.time_ns()
    labels: dict[int, np.ndarray] = {}

    def drive() -> Iterator[Frame]:
        for index in progress.track(range(frames), description="driving down the street"):
            view, stamp_ns = street.frame(index), begin_ns + round(index * 1e9 / rate)
            labels[stamp_ns] = view.label
            yield Frame(index, stamp_ns, f"{index:06d}", view.image)

    write_bag(bag, drive(), topic="/camera/image_raw")
    return labels


def play(bag: Path, frames: int, logs: Path, model: str, device: str, progress: Progress) -> Recorder:
    """Play the bag through a segment node, and record its results.

    The logs of the nodes go to the folder ``logs``; an error quotes them.

    Raises:
        NodeError: If a process fails, or a frame neither gets a mask nor is counted as dropped.
    """
    # A namespace of its own, so that two demonstrations on one machine do not mix.
    namespace = f"/demo_{os.getpid()}"
    camera = f"{namespace}/camera"
    # A robot needs the newest frame. The demonstration needs every frame, so its queues are long.
    lossless = {
        f"qos_overrides.{camera}/image_raw.publisher.depth": frames,
        f"qos_overrides.{camera}/image_raw.subscription.depth": frames,
        f"qos_overrides.{camera}/segmentation/mask.publisher.depth": frames,
        f"qos_overrides.{camera}/segmentation/timing.publisher.depth": frames,
    }
    recorder = Recorder(namespace)
    task = progress.add_task("starting the segment node", total=frames)
    with NodeProcess(
        "netwarp_ros.node.segment_node", namespace, logs, model=model, device=device, **lossless
    ) as segment_node:
        lifecycle = LifecycleClient(recorder.node, recorder.executor, f"{namespace}/segmenter", timeout_s=TIMEOUT_S)
        lifecycle.configure()
        lifecycle.activate()

        def show_and_check() -> None:
            progress.update(task, completed=len(recorder.masks))
            segment_node.check()

        recorder.spin_until(recorder.connected, show_and_check)
        progress.update(task, description="segmenting, over DDS")
        with NodeProcess(
            "netwarp_ros.node.replay_node", namespace, logs, path=bag, stamp="recorded", **lossless
        ) as replay_node:
            recorder.spin_until(replay_node.has_ended, show_and_check)
            replay_node.check()
        recorder.spin_until(lambda: recorder.is_complete(frames), show_and_check)
    progress.update(task, completed=frames)
    recorder.close()
    return recorder


class Recorder:
    """Records the results of the segment node.

    Attributes:
        masks: Masks ``(H, W)`` uint8, by the stamps of their frames in ns.
        timings: Timings, by the same stamps.
        counts: The latest values of the camera on ``/diagnostics``.
        in_use: The latest values of the node there: engine, precision and others.
    """

    def __init__(self, namespace: str) -> None:
        self.masks: dict[int, np.ndarray] = {}
        self.timings: dict[int, FrameTiming] = {}
        self.counts: dict[str, str] = {}
        self.node = rclpy.create_node("recorder", namespace=namespace)
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.in_use: dict[str, str] = {}
        self._node = f"{namespace.removeprefix('/')}/segmenter"
        self._status = f"{self._node}: camera"
        lossless = QoSProfile(depth=1000)
        self._subscriptions = [
            self.node.create_subscription(message_type, topic, callback, lossless)
            for message_type, topic, callback in (
                (Image, "camera/segmentation/mask", self._on_mask),
                (FrameTiming, "camera/segmentation/timing", self._on_timing),
                (DiagnosticArray, "/diagnostics", self._on_diagnostics),
            )
        ]

    @property
    def dropped(self) -> int:
        """Number of frames that the node has dropped or missed."""
        return int(self.counts["dropped"]) + int(self.counts["missed"])

    def connected(self) -> bool:
        """Tell whether all topics have publishers."""
        return all(subscription.get_publisher_count() for subscription in self._subscriptions)

    def is_complete(self, frames: int) -> bool:
        """Tell whether the node has counted all frames, and all its masks and timings have arrived."""
        if not self.counts or int(self.counts["received"]) + int(self.counts["missed"]) < frames:
            return False
        return len(self.masks) == len(self.timings) == frames - self.dropped

    def spin_until(self, done: Callable[[], bool], meanwhile: Callable[[], None]) -> None:
        """Receive messages until a condition holds.

        Raises:
            NodeError: If no mask arrives for `TIMEOUT_S` before it holds.
        """
        count, deadline = -1, 0.0
        while not done():
            if len(self.masks) != count:
                count, deadline = len(self.masks), time.monotonic() + TIMEOUT_S
            if time.monotonic() > deadline:
                raise NodeError(f"no mask for {TIMEOUT_S:g} s after {count} masks; counts: {self.counts}")
            self.executor.spin_once(timeout_sec=0.1)
            meanwhile()

    def close(self) -> None:
        """Destroy the node."""
        self.executor.shutdown()
        self.node.destroy_node()

    def _on_mask(self, message: Image) -> None:
        self.masks[stamp_of(message)] = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width)

    def _on_timing(self, message: FrameTiming) -> None:
        self.timings[stamp_of(message)] = message

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == self._status:
                self.counts = {pair.key: pair.value for pair in status.values}
            elif status.name == self._node:
                self.in_use = {pair.key: pair.value for pair in status.values}


def draw(
    bag: Path, labels: dict[int, np.ndarray], recorder: Recorder, classes: ClassSet, out: Path, progress: Progress
) -> ConfusionMatrix:
    """Compare the masks with the labels, and write overlay.mp4 of all frames and overlay.png of one in the middle.

    Returns:
        The confusion matrix of the frames with a mask.

    Raises:
        NodeError: If no frame has a mask.
    """
    if not recorder.masks:
        raise NodeError("the node segmented no frame; its log has the reason")
    middle = sorted(labels)[len(labels) // 2]
    shown = min(recorder.masks, key=lambda stamp: abs(stamp - middle))  # the one in the middle may have been dropped
    confusion = ConfusionMatrix(len(classes), classes.void)
    frames = open_frames(bag)
    legend = _legend(classes, 2 * next(iter(labels.values())).shape[1])
    with VideoWriter(out / "overlay.mp4", frames.rate) as video:
        for frame in progress.track(frames, total=len(frames), description="drawing"):
            if frame.stamp_ns not in recorder.masks:
                continue
            mask, timing = recorder.masks[frame.stamp_ns], recorder.timings[frame.stamp_ns]
            confusion.update(mask, labels[frame.stamp_ns])
            caption = legend.copy()
            text = f"frame {frame.index}  |  network {timing.network_ms:.0f} ms  |  mask after {timing.total_ms:.0f} ms"
            _write(caption, text, (12, 50))
            picture = np.vstack([np.hstack([frame.image, classes.overlay(frame.image, mask)]), caption])
            video.write(picture)
            if frame.stamp_ns == shown and not cv2.imwrite(str(out / "overlay.png"), picture):
                raise OSError(f"{out / 'overlay.png'} cannot be written")
    return confusion


def _legend(classes: ClassSet, width: int) -> np.ndarray:
    """Return a strip ``(64, width, 3)`` BGR with the classes' colors and names, and space for a line of text."""
    strip = np.full((64, width, 3), 24, np.uint8)
    for index, (name, color) in enumerate(zip(classes.names, classes.palette, strict=True)):
        left = 12 + index * (width - 12) // len(classes)
        cv2.rectangle(strip, (left, 12), (left + 11, 23), color[::-1].tolist(), cv2.FILLED)
        _write(strip, name, (left + 16, 22))
    return strip


def _write(image: np.ndarray, text: str, origin: tuple[int, int]) -> None:
    cv2.putText(image, text, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.38, (235, 235, 235), 1, cv2.LINE_AA)


def _print(summary: dict[str, Any], out: Path) -> None:
    counts = "{frames_in} frames in, {frames_out} out, {frames_dropped} dropped".format(**summary)
    table = Table("stage", "p50 ms", "p95 ms", "p99 ms", title=counts)
    for stage, values in {**summary["stages_ms"], "image to mask": summary["latency_ms"]}.items():
        table.add_row(stage, *(f"{values[key]:.1f}" for key in ("p50", "p95", "p99")))
    console = Console(markup=False, emoji=False)
    console.print(table)
    console.print(
        "mIoU {miou:.1f} % by {engine} on {device} in {precision}, ROS 2 {ros_distro}".format(**summary),
        highlight=False,
    )
    console.print(f"{out / 'summary.json'}, overlay.mp4 and overlay.png", highlight=False, soft_wrap=True)


def _percentiles(values: Iterator[float]) -> dict[str, float]:
    return {key: round(value, 2) for key, value in percentiles(values).items()}


def main() -> None:
    """Run the demonstration. The exit status is 1 for a failure, 2 for wrong input."""
    # Robots on the same network must not receive the demonstration.
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    with ros_process("demo"):
        try:
            typer.run(run)
        except NodeError as error:
            sys.stderr.write(f"demo: {error}\n")
            raise SystemExit(1) from None


if __name__ == "__main__":
    main()
