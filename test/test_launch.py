# SPDX-License-Identifier: Apache-2.0
"""The launch files. The tests run if the launch stack is installed; PyPI has none."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import pytest
import yaml
from graph import SECOND, Graph, Program, SegmentClient, image_message, lossless, moving_images, tiny_model
from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python
from sensor_msgs.msg import Image

from netwarp_ros.node.lifecycle import LifecycleError
from netwarp_ros.node.parameters import specs_of
from netwarp_ros.node.segment_node import PARAMETERS
from netwarp_ros.recordings.open import open_frames

REPLAY = ["path", "topic", "rate", "stamp", "camera", "record"]

pytestmark = [
    pytest.mark.ros,
    pytest.mark.skipif(
        importlib.util.find_spec("launch_ros") is None or shutil.which("ros2") is None,
        reason="no launch stack: source a ROS 2 installation that has it",
    ),
]


def ros2_launch(log: Path, *arguments: str, file: str | Path = "segment.launch.py") -> Program:
    """Launch a file of the package, or another file if its path is given."""
    package = [] if isinstance(file, Path) else ["netwarp_ros"]
    return Program(["ros2", "launch", *package, str(file), *arguments], log)


def write_launch_file(file: Path, included: str, namespace: str, /, **arguments: str | Path) -> Path:
    """Write a launch file that includes one of the package, with arguments, in a namespace unless that is empty.

    Its launch process receives no transition event, as happens if it discovers the node too late.
    """
    given = [(name, str(value)) for name, value in arguments.items()]
    file.write_text(
        f"""
from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import GroupAction, IncludeLaunchDescription
from launch_ros.actions import LifecycleNode, PushRosNamespace

LifecycleNode._on_transition_event = lambda *_: None


def generate_launch_description():
    path = get_package_share_directory("netwarp_ros") + "/launch/{included}"
    include = IncludeLaunchDescription(path, launch_arguments={given})
    if {namespace!r}:
        include = GroupAction([PushRosNamespace({namespace!r}), include])
    return LaunchDescription([include])
"""
    )
    return file


def write_images(folder: Path) -> Path:
    """Write five images."""
    folder.mkdir()
    for index, image in enumerate(moving_images(5)):
        assert cv2.imwrite(str(folder / f"{index}.png"), image)
    return folder


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


ARGUMENTS: dict[str, tuple[str, Any]] = {
    "cameras": ("left/wide, on", ["left/wide", "on"]),
    "image_sizes": ("['64x48', '128x96']", ["64x48", "128x96"]),
    "transport": ("compressed", "compressed"),
    "threads": ("2", 2),
    "max_gap": ("2", 2.0),
    "stale_warn": ("1e-3", 0.001),
    "temperature": (" 0.5", 0.5),
    "host_only": ("True", True),
    "label_map": ("123", "123"),
    "use_sim_time": ("true", True),
}
"""Launch arguments of every type, and the values that the parameters must have."""


@pytest.mark.parametrize("name", ["segmenter", "front_segmenter"])
def test_launch_arguments_become_parameters_of_the_named_node(graph: Graph, tmp_path: Path, name: str) -> None:
    given = ARGUMENTS if name != "segmenter" else {}
    arguments = [f"name:={name}"] if given else []
    arguments += [f"{argument}:={text}" for argument, (text, _) in given.items()]
    program = ros2_launch(tmp_path / "log", "autostart:=false", "namespace:=robot", *arguments)
    try:
        defaults = {spec.name: spec.default for group in PARAMETERS for spec in specs_of(group)} | {
            "use_sim_time": False
        }
        expected = defaults | {argument: value for argument, (_, value) in given.items()}
        request = GetParameters.Request(names=list(expected))
        values = graph.call(GetParameters, f"/robot/{name}/get_parameters", request).values
        received = dict(zip(expected, map(parameter_value_to_python, values), strict=True))
        assert received == {key: list(value) if isinstance(value, tuple) else value for key, value in expected.items()}
    finally:
        assert program.end(signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("host_only:=yes", "host_only is 'yes': give true or false"),
        ("threads:=2.5", "threads is '2.5': give a whole number"),
        ("max_gap:=long", "max_gap is 'long': give a number"),
        ("stale_warn:=nan", "stale_warn is 'nan': give a number"),
        ("name:=2nd", "name is '2nd': give letters, digits and _, and no digit first"),
        ("threads:=-1", "segment_node: "),
        ("cameras:=front,,rear", "segment_node: cameras is ['front', '', 'rear']. Give a list of different names"),
    ],
)
def test_a_wrong_launch_argument_is_named(ros_domain: int, tmp_path: Path, argument: str, problem: str) -> None:
    program = ros2_launch(tmp_path / "log", argument)
    assert program.wait() == 1
    assert problem in program.output


FAILING = """#!{python}
from netwarp_ros.environment import start_node
start_node()
from pathlib import Path
from time import sleep
from netwarp_ros import segmenter
from netwarp_ros.node import segment_node

def fail(*arguments, **keywords):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def hang(*arguments, **keywords):
    print("hanging", flush=True)
    sleep(1e6)

once = Path(__file__).with_suffix(".once")
if not once.exists():
    once.touch()
    segmenter.Segmenter.warm_up = lambda *arguments: None
    segmenter.Stream.segment = {function}
segment_node.main()
"""
"""A segment node that fails on every image, or hangs. Once it is restarted, it works."""


def failing_node(folder: Path, function: str) -> list[str]:
    """Return arguments with which the launch files start `FAILING`, and the model that it needs."""
    script = folder / "segment_node"  # which gives the process its name in the output
    script.write_text(FAILING.format(python=sys.executable, function=function))
    script.chmod(0o755)
    model = tiny_model(folder / "tiny.safetensors")
    return [f"launch-prefix:={script}", "launch-prefix-filter:=segment_node", f"model:={model}", "engine:=torch"]


def fail_on(graph: Graph, program: Program, camera: str, what: str) -> None:
    """Publish images until the program's output names a failure."""
    publisher = graph.publisher(f"{camera}/image_raw", Image)
    image, stamps = moving_images(1)[0], iter(range(SECOND, 1000 * SECOND, SECOND // 10))

    def failed() -> bool:
        publisher.publish(image_message(image, next(stamps)))
        return what in program.output

    graph.until(failed, "failure")


CUDA_PROBLEM = "3 frames on end failed: RuntimeError: CUDA error: an illegal memory access was encountered"


@pytest.mark.parametrize("function", ["fail", "hang"])
def test_with_respawn_a_node_that_an_error_left_unconfigured_is_restarted(
    graph: Graph, tmp_path: Path, function: str
) -> None:
    program = ros2_launch(tmp_path / "log", "respawn:=true", "name:=eyes", *failing_node(tmp_path, function))
    try:
        if function == "fail":
            fail_on(graph, program, "camera", CUDA_PROBLEM)
        else:
            fail_on(graph, program, "camera", "hanging")
            with pytest.raises(LifecycleError, match="failed to deactivate"):
                graph.lifecycle("/eyes").deactivate()
        wait_for_pids(graph, program, 2)
        graph.until(lambda: program.output.count("for /camera/image_raw") == 2, "second configuration")
        SegmentClient(graph).segment(image_message(moving_images(1)[0], SECOND))
        assert graph.lifecycle("/eyes").state() == "active"
    finally:
        program.end(signal.SIGINT)
    assert program.output.count("an error has left the segment node unconfigured: see its log. It is restarted") == 1


def test_without_respawn_the_launch_fails_when_an_error_leaves_the_node_unconfigured(
    graph: Graph, tmp_path: Path
) -> None:
    program = ros2_launch(tmp_path / "log", *failing_node(tmp_path, "fail"))
    try:
        fail_on(graph, program, "camera", CUDA_PROBLEM)
    finally:
        status = program.wait()
    assert status == 1
    assert "an error has left the segment node unconfigured: see its log" in program.output


@pytest.mark.parametrize("respawn", ["false", "true"])
def test_without_autostart_only_respawn_cares_for_errors(graph: Graph, tmp_path: Path, respawn: str) -> None:
    arguments = ["autostart:=false", f"respawn:={respawn}", *failing_node(tmp_path, "fail")]
    program = ros2_launch(tmp_path / "log", *arguments)
    try:
        lifecycle = graph.lifecycle()
        lifecycle.configure()
        lifecycle.activate()
        fail_on(graph, program, "camera", CUDA_PROBLEM)
        if respawn == "true":
            wait_for_pids(graph, program, 2)
        else:
            graph.until(lambda: graph.lifecycle().state() == "unconfigured", "end of the transition")
            lifecycle.configure()  # in the same process
            assert len(wait_for_pids(graph, program, 1)) == 1
    finally:
        assert program.end(signal.SIGINT) == 0


def test_a_replay_fails_when_an_error_leaves_the_node_unconfigured(ros_domain: int, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    arguments = [f"path:={images}", "rate:=1", "name:=eyes", "namespace:=robot", *failing_node(tmp_path, "fail")]
    program = ros2_launch(tmp_path / "log", *arguments, file="replay.launch.py")
    assert program.wait() == 1
    assert CUDA_PROBLEM in program.output
    assert "an error has left the segment node unconfigured: see its log" in program.output


def test_without_autostart_the_node_stays_unconfigured(graph: Graph, tmp_path: Path) -> None:
    program = ros2_launch(tmp_path / "log", "autostart:=false")
    try:
        assert graph.lifecycle().state() == "unconfigured"
    finally:
        assert program.end(signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("precision:=int4", "segment_node: precision is 'int4'. Give one of auto, float32, bfloat16, float16, int8."),
        ("model:=nonesuch", "cannot be configured: no model named 'nonesuch'"),
    ],
)
def test_the_launch_fails_if_the_node_cannot_be_activated(
    ros_domain: int, tmp_path: Path, argument: str, problem: str
) -> None:
    program = ros2_launch(tmp_path / "log", argument)
    assert program.wait() == 1
    assert problem in program.output


def test_with_respawn_a_node_that_cannot_be_activated_is_restarted(graph: Graph, tmp_path: Path) -> None:
    model = tmp_path / "tiny.safetensors"
    program = ros2_launch(tmp_path / "log", "respawn:=true", f"model:={model}")
    try:
        graph.until(lambda: "cannot be configured" in program.output, "failure")
        tiny_model(model)
        graph.until(lambda: "for /camera/image_raw" in program.output, "configuration")
        graph.until(lambda: graph.lifecycle().state() == "active", "activation")
    finally:
        program.end(signal.SIGINT)


def test_a_second_launch_fails_and_the_first_goes_on(graph: Graph, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "tiny.safetensors")
    first = ros2_launch(tmp_path / "first", f"model:={model}")
    try:
        graph.until(lambda: "[lifecycle-2]: process has finished cleanly" in first.output, "activation")
        assert ros2_launch(tmp_path / "second", f"model:={model}").wait() == 1
        SegmentClient(graph).segment(image_message(moving_images(1)[0], SECOND))
    finally:
        assert first.end(signal.SIGINT) == 0


@pytest.mark.parametrize("file", ["segment.launch.py", "replay.launch.py"])
def test_undeclared_arguments_are_named(ros_domain: int, tmp_path: Path, file: str) -> None:
    arguments = ["path:=/nowhere", "camara:=front", "precision:=int4", "emulate_tty:=false"]
    program = ros2_launch(tmp_path / "log", *arguments, file=file)
    assert program.wait() == 1
    named = re.findall(r"WARNING.* (\S+): no launch file declares (\S+)\. (.*)", program.output)
    if file == "segment.launch.py":
        assert named == [
            ("path:=/nowhere", "path", "The option --show-args lists all."),
            ("camara:=front", "camara", "Did you mean cameras?"),
        ]
    else:
        assert named == [("camara:=front", "camara", "Did you mean camera or cameras?")]


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
    model = tiny_model(tmp_path / "tiny.safetensors")
    images = write_images(tmp_path / "images")
    arguments = [f"path:={images}", f"model:={model}", "rate:=10", "namespace:=robot", "camera:=front"]
    arguments += ["name:=eyes", "mask_size:=32x24"]
    if importlib.util.find_spec("ros2bag"):
        arguments.append(f"record:={tmp_path / 'drive'}")
    program = ros2_launch(tmp_path / "log", *arguments, file="replay.launch.py")
    masks = graph.subscribe(Image, "/robot/front/segmentation/mask")
    assert program.wait() == 0
    assert "5 images published on /robot/front/image_raw" in program.output
    assert not re.search("ERROR|WARNING", program.output)
    graph.until(lambda: masks, "mask")
    assert (masks[0].width, masks[0].height) == (32, 24)
    if importlib.util.find_spec("ros2bag"):
        frames = open_frames(tmp_path / "drive", topics=["/robot/front/segmentation/mask"])
        assert len(list(frames)) >= 1


@pytest.mark.parametrize("namespace", ["", "fleet"])
def test_a_replay_depends_on_no_event(ros_domain: int, tmp_path: Path, namespace: str) -> None:
    images, model = write_images(tmp_path / "images"), tiny_model(tmp_path / "tiny.safetensors")
    given = {"path": images, "namespace": "robot"}
    file = write_launch_file(tmp_path / "own.launch.py", "replay.launch.py", namespace, **given)
    program = ros2_launch(tmp_path / "log", f"model:={model}", "rate:=10", file=file)
    assert program.wait() == 0
    topic = PurePosixPath("/", namespace, "robot/camera/image_raw")
    assert f"5 images published on {topic}" in program.output
    assert not re.search("ERROR|WARNING", program.output)


def test_a_failed_replay_depends_on_no_event(ros_domain: int, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    file = write_launch_file(tmp_path / "own.launch.py", "replay.launch.py", "", path=images, model="nonesuch")
    program = ros2_launch(tmp_path / "log", file=file)
    assert program.wait() == 1
    assert "cannot be configured: no model named 'nonesuch'" in program.output


@pytest.mark.parametrize("namespace", ["", "fleet"])
def test_a_segment_launch_depends_on_no_event(graph: Graph, tmp_path: Path, namespace: str) -> None:
    model = tiny_model(tmp_path / "tiny.safetensors")
    file = write_launch_file(tmp_path / "own.launch.py", "segment.launch.py", namespace, model=model)
    program = ros2_launch(tmp_path / "log", file=file)
    try:
        SegmentClient(graph, f"{namespace}/camera").segment(image_message(moving_images(1)[0], SECOND))
    finally:
        assert program.end(signal.SIGINT) == 0


@pytest.mark.parametrize(("recorder_status", "launch_status"), [(0, 0), (signal.SIGINT, 0), (3, 1)])
def test_a_recorder_that_cannot_close_its_bag_fails_the_replay(
    ros_domain: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder_status: int, launch_status: int
) -> None:
    record = f"trap 'exit {recorder_status:d}' INT; while :; do sleep 0.1; done"
    fake = tmp_path / "ros2"
    fake.write_text(f'#!/bin/sh\n[ "$1" = bag ] || exec {shutil.which("ros2")} "$@"\n{record}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    images, model = write_images(tmp_path / "images"), tiny_model(tmp_path / "tiny.safetensors")
    arguments = [f"path:={images}", f"model:={model}", "rate:=10", f"record:={tmp_path / 'drive'}"]
    program = ros2_launch(tmp_path / "log", *arguments, file="replay.launch.py")
    assert program.wait() == launch_status
    assert "5 images published on /camera/image_raw" in program.output
    assert ("the recorder has ended with status 3" in program.output) == bool(launch_status)


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("path:=/nowhere", "replay_node: nothing at /nowhere: give a folder of images"),
        ("model:=nonesuch", "cannot be configured: no model named 'nonesuch'"),
        ("precision:=int4", "segment_node: precision is 'int4'."),
        ("record:=.", "the recorder has ended with status"),
        ("transport:=compressed", "transport is compressed: a replay needs raw, leave it out"),
        ("autostart:=false", "autostart is false: a replay needs true, leave it out"),
        ("respawn:=true", "respawn is true: a replay needs false, leave it out"),
        ("cameras:=front", "cameras is front: a replay has one camera, give camera:=NAME"),
        ("rate:=fast", "rate is 'fast': give a number"),
        ("max_gap:=long", "max_gap is 'long': give a number"),
    ],
)
def test_a_replay_fails_if_it_cannot_start(ros_domain: int, tmp_path: Path, argument: str, problem: str) -> None:
    image = tmp_path / "image.png"
    assert cv2.imwrite(str(image), moving_images(1)[0])
    model = tiny_model(tmp_path / "tiny.safetensors")
    arguments = [f"path:={image}", f"model:={model}", argument]
    program = ros2_launch(tmp_path / "log", *arguments, file="replay.launch.py")
    assert program.wait() == 1
    assert problem in program.output


@pytest.mark.parametrize(("file", "own"), [("segment.launch.py", []), ("replay.launch.py", REPLAY)])
def test_every_argument_is_described(tmp_path: Path, file: str, own: list[str]) -> None:
    program = ros2_launch(tmp_path / "log", "--show-args", file=file)
    assert program.wait() == 0
    for name in (
        *(spec.name for group in PARAMETERS for spec in specs_of(group)),
        "use_sim_time",
        "params_file",
        "name",
        "namespace",
        "autostart",
        "respawn",
        "log_level",
        *own,
    ):
        assert f"'{name}':" in program.output
    assert "no description given" not in program.output.lower()
