# SPDX-License-Identifier: Apache-2.0
"""The launch files. The tests run if the launch stack is installed; PyPI has none."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
import yaml
from graph import SECOND, Graph, Program, SegmentClient, image_message, lossless, moving_images, open_graph, tiny_model
from sensor_msgs.msg import Image

from netwarp_ros.recordings.open import open_frames

REPLAY = ["path", "topic", "rate", "stamp", "camera", "record"]

pytestmark = [
    pytest.mark.ros,
    pytest.mark.skipif(
        importlib.util.find_spec("launch_ros") is None or shutil.which("ros2") is None,
        reason="no launch stack: source a ROS 2 installation that has it",
    ),
]


@pytest.fixture
def graph(ros_domain: int) -> Iterator[Graph]:
    with open_graph() as graph:
        yield graph


def ros2_launch(log: Path, *arguments: str, file: str = "segment.launch.py") -> Program:
    return Program(["ros2", "launch", "netwarp_ros", file, *arguments], log)


def test_the_launched_node_becomes_active_and_segments(graph: Graph, tmp_path: Path) -> None:
    params_file = tmp_path / "params.yaml"
    overrides = {name: value for camera in ("front", "rear") for name, value in lossless(f"robot/{camera}").items()}
    params_file.write_text(yaml.safe_dump({"/**": {"ros__parameters": {"cameras": ["other"], **overrides}}}))
    program = ros2_launch(
        tmp_path / "log",
        f"model:={tiny_model(tmp_path / 'tiny.safetensors')}",
        "cameras:=front, rear",
        "namespace:=robot",
        f"params_file:={params_file}",
    )
    try:
        for name in ("front", "rear"):
            message = image_message(moving_images(1)[0], SECOND)
            mask, _ = SegmentClient(graph, f"robot/{name}").segment(message)
            assert mask.header == message.header
        assert graph.lifecycle("/robot/segmenter").state() == "active"
    finally:
        status = program.end(signal.SIGINT)
    assert status == 0
    assert "process has finished cleanly" in program.output
    assert "ERROR" not in program.output


def test_without_autostart_the_node_stays_unconfigured(graph: Graph, tmp_path: Path) -> None:
    program = ros2_launch(tmp_path / "log", "autostart:=false")
    try:
        assert graph.lifecycle().state() == "unconfigured"
    finally:
        assert program.end(signal.SIGINT) == 0


def test_the_launch_ends_if_the_node_cannot_start(ros_domain: int, tmp_path: Path) -> None:
    program = ros2_launch(tmp_path / "log", "precision:=int8")
    program.wait()
    assert "segment_node: precision is 'int8'. Give one of auto, float32, bfloat16, float16." in program.output


def test_a_missing_parameter_file_is_named(ros_domain: int, tmp_path: Path) -> None:
    program = ros2_launch(tmp_path / "log", "params_file:=/nowhere.yaml")
    assert program.wait() != 0
    assert "params_file is /nowhere.yaml: give an existing YAML file" in program.output


def test_a_node_that_crashed_is_restarted(graph: Graph, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "tiny.safetensors")
    program = ros2_launch(tmp_path / "log", "respawn:=true", f"model:={model}")
    try:
        (first,) = wait_for_pids(graph, program, 1)
        graph.until(lambda: "for /camera/image_raw" in program.output, "first configuration")
        os.kill(first, signal.SIGKILL)
        assert len(wait_for_pids(graph, program, 2)) == 2
        graph.until(lambda: program.output.count("for /camera/image_raw") == 2, "second configuration")
        graph.until(lambda: program.output.count("[lifecycle-") >= 4, "second activation")
    finally:
        program.end(signal.SIGINT)


def wait_for_pids(graph: Graph, program: Program, count: int) -> list[int]:
    """Wait until so many segment nodes have been started, and return their process ids."""

    def started() -> list[int]:
        pids = re.findall(r"\[segment_node-\d+\]: process started with pid \[(\d+)\]", program.output)
        return [int(pid) for pid in pids] if len(pids) == count else []

    return graph.until(started, f"{count} starts")


def test_a_recording_is_played_to_its_end(graph: Graph, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index, image in enumerate(moving_images(5)):
        assert cv2.imwrite(str(folder / f"{index}.png"), image)
    model = tiny_model(tmp_path / "tiny.safetensors")
    arguments = [f"path:={folder}", f"model:={model}", "rate:=10", "namespace:=robot", "camera:=front"]
    if importlib.util.find_spec("ros2bag"):
        arguments.append(f"record:={tmp_path / 'drive'}")
    program = ros2_launch(tmp_path / "log", *arguments, file="replay.launch.py")
    masks = graph.subscribe(Image, "/robot/front/segmentation/mask")
    assert program.wait() == 0
    assert "5 images published on /robot/front/image_raw" in program.output
    assert "ERROR" not in program.output
    graph.until(lambda: masks, "mask")
    if importlib.util.find_spec("ros2bag"):
        frames = open_frames(tmp_path / "drive", topics=["/robot/front/segmentation/mask"])
        assert len(list(frames)) >= 1


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("path:=/nowhere", "replay_node: nothing at /nowhere: give a folder of images"),
        ("model:=nonesuch", "cannot be configured: no model named 'nonesuch'"),
        ("transport:=compressed", "transport is compressed: a replay needs raw, leave it out"),
        ("autostart:=false", "autostart is false: a replay needs true, leave it out"),
        ("rate:=fast", "rate is 'fast': give a number"),
    ],
)
def test_replay_ends_if_it_cannot_start(ros_domain: int, tmp_path: Path, argument: str, problem: str) -> None:
    image = tmp_path / "image.png"
    assert cv2.imwrite(str(image), moving_images(1)[0])
    model = tiny_model(tmp_path / "tiny.safetensors")
    arguments = [f"path:={image}", f"model:={model}", argument]
    program = ros2_launch(tmp_path / "log", *arguments, file="replay.launch.py")
    program.wait()
    assert problem in program.output


@pytest.mark.parametrize(("file", "own"), [("segment.launch.py", []), ("replay.launch.py", REPLAY)])
def test_every_argument_is_described(tmp_path: Path, file: str, own: list[str]) -> None:
    program = ros2_launch(tmp_path / "log", "--show-args", file=file)
    assert program.wait() == 0
    for name in (
        "cameras",
        "transport",
        "model",
        "device",
        "precision",
        "params_file",
        "namespace",
        "autostart",
        "respawn",
        "log_level",
        *own,
    ):
        assert f"'{name}':" in program.output
    assert "no description given" not in program.output.lower()
