# SPDX-License-Identifier: Apache-2.0
"""The launch file, where the launch stack is installed; PyPI has none."""

from __future__ import annotations

import importlib.util
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from graph import SECOND, Graph, Program, Viewer, image_message, lossless, moving_images, open_graph, tiny_model

pytestmark = [
    pytest.mark.ros,
    pytest.mark.skipif(
        importlib.util.find_spec("launch_ros") is None or shutil.which("ros2") is None,
        reason="no launch stack in this environment: PyPI has none, a ROS 2 installation brings it",
    ),
]


@pytest.fixture
def graph(ros_domain: int) -> Iterator[Graph]:
    with open_graph() as graph:
        yield graph


def ros2_launch(log: Path, *arguments: str) -> Program:
    return Program(["ros2", "launch", "netwarp_ros", "segment.launch.py", *arguments], log)


def test_launched_node_gets_active_and_segments(graph: Graph, tmp_path: Path) -> None:
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
            mask, _ = Viewer(graph, f"robot/{name}").see(message)
            assert mask.header == message.header
        assert graph.lifecycle("/robot/segmenter").state() == "active"
    finally:
        status = program.end(signal.SIGINT)
    assert status == 0
    assert "process has finished cleanly" in program.said
    assert "ERROR" not in program.said


def test_without_autostart_the_node_waits(graph: Graph, tmp_path: Path) -> None:
    program = ros2_launch(tmp_path / "log", "autostart:=false")
    try:
        assert graph.lifecycle().state() == "unconfigured"
    finally:
        assert program.end(signal.SIGINT) == 0


def test_launch_ends_with_a_node_that_cannot_start(ros_domain: int, tmp_path: Path) -> None:
    program = ros2_launch(tmp_path / "log", "precision:=int8")
    program.end(by=None)
    assert "segment_node: precision is 'int8'. Give one of auto, float32, bfloat16, float16." in program.said


def test_missing_file_of_parameters_is_named(ros_domain: int, tmp_path: Path) -> None:
    program = ros2_launch(tmp_path / "log", "params_file:=/nowhere.yaml")
    assert program.end(by=None) != 0
    assert "params_file is /nowhere.yaml: give an existing YAML file" in program.said


def test_every_argument_is_described(tmp_path: Path) -> None:
    program = ros2_launch(tmp_path / "log", "--show-args")
    assert program.end(by=None) == 0
    for name in (
        "cameras",
        "transport",
        "model",
        "device",
        "precision",
        "params_file",
        "namespace",
        "autostart",
        "log_level",
    ):
        assert f"'{name}':" in program.said
    assert "no description given" not in program.said.lower()
