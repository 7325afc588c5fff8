# SPDX-License-Identifier: Apache-2.0
"""The segment node from start to end. Each test starts a process of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from graph import (
    FRAME_ID,
    PYTHON,
    SECOND,
    DiagnosticStatus,
    Graph,
    Program,
    SegmentClient,
    array_of,
    header,
    image_message,
    lossless,
    moving_images,
    node_command,
    open_graph,
    running,
)
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger

from netwarp_ros.msg import FrameTiming
from netwarp_ros.node.lifecycle import LifecycleError
from netwarp_ros.node.tools.load_test import PROFILES_VARIABLE
from netwarp_ros.resources import resource
from netwarp_ros.segmenter import Reset, Segmenter

pytestmark = pytest.mark.ros

PERIOD = SECOND // 10


@contextmanager
def segmenting(graph: Graph, log: Path, model: Path, **parameters: Any) -> Iterator[Program]:
    """Run an active segment node."""
    with running(node_command("segment_node", model=model, **parameters), log) as program:
        lifecycle = graph.lifecycle()
        lifecycle.configure()
        lifecycle.activate()
        yield program


def ends_quietly(program: Program, signal_number: int, *, again: bool = False) -> None:
    """Check that a signal ends the node, and that it has logged nothing above INFO.

    With ``again``, signals are sent until it ends: Ctrl-C on a launch sends two.
    """
    if again:
        program.send(signal_number)
        while not program.has_ended(0.02):
            program.send(signal_number)
    assert program.end(signal_number) == 0, program.output
    assert [line for line in program.output.splitlines() if "[INFO]" not in line] == []


def test_lifecycle_from_a_wrong_model_to_cleaned_up(graph: Graph, model: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent.safetensors"

    def set_model(path: Path) -> Any:
        value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=str(path))
        request = SetParameters.Request(parameters=[Parameter(name="model", value=value)])
        return graph.call(SetParameters, "segmenter/set_parameters", request).results[0]

    with running(node_command("segment_node", model=absent, **lossless("camera")), tmp_path / "log") as program:
        lifecycle = graph.lifecycle()
        assert lifecycle.state() == "unconfigured"
        seen = graph.wait_for_status("segmenter", lambda status, values: status.level == DiagnosticStatus.WARN)
        assert seen["message"] == "the node is unconfigured: configure and activate it"

        with pytest.raises(LifecycleError, match="failed to configure, and is unconfigured"):
            lifecycle.configure()
        assert f"no weights file {absent}" in program.output
        graph.wait_for_status("segmenter", lambda status, values: f"no weights file {absent}" in values["last error"])

        assert set_model(model).successful
        lifecycle.configure()
        assert lifecycle.state() == "inactive"
        rejected = set_model(model)
        assert not rejected.successful
        assert rejected.reason == "model is read when the node is configured: clean up, set it, configure again."
        assert not graph.call(Trigger, "segmenter/reset").success

        lifecycle.activate()
        seen = graph.wait_for_status("segmenter: camera", lambda status, values: status.level == DiagnosticStatus.WARN)
        assert seen["message"] == "no image yet on /camera/image_raw"
        seen = graph.wait_for_status("segmenter", lambda status, values: status.level == DiagnosticStatus.OK)
        precision = Segmenter(model).precision
        assert (seen["message"], seen["model"], seen["precision"]) == ("segmenting on cpu", model.stem, precision)
        client = SegmentClient(graph)
        client.segment(image_message(moving_images(1)[0], SECOND))

        lifecycle.deactivate()
        graph.until(lambda: not graph.node.count_subscribers("camera/image_raw"), "end of the subscription")
        lifecycle.activate()
        graph.until(lambda: graph.node.count_subscribers("camera/image_raw"), "subscription")
        assert client.segment(image_message(moving_images(1)[0], 2 * SECOND))[1].reason == Reset.FIRST

        lifecycle.deactivate()
        lifecycle.cleanup()
        assert lifecycle.state() == "unconfigured"
        graph.until(lambda: not graph.node.count_publishers("camera/segmentation/mask"), "withdrawal of the topics")
        assert set_model(model).successful
        lifecycle.configure()


def test_cameras_are_swapped_by_remapping(graph: Graph, model: Path, tmp_path: Path) -> None:
    command = node_command("segment_node", model=model, cameras="[front, rear]", **lossless("front", "rear"))
    for topic in ("image_raw", "segmentation/timing"):
        for one, other in (("front", "rear"), ("rear", "front")):
            command += ["-r", f"{one}/{topic}:=/{other}/{topic}"]
    with running(command, tmp_path / "log"):
        lifecycle = graph.lifecycle()
        lifecycle.configure()
        lifecycle.activate()
        masks, timings = (
            graph.subscribe(Image, "rear/segmentation/mask"),
            graph.subscribe(FrameTiming, "front/segmentation/timing"),
        )
        message = image_message(moving_images(1)[0], SECOND)
        graph.publisher("front/image_raw", Image).publish(message)  # of the rear camera
        graph.until(lambda: masks and timings, "mask and timing")
        assert masks[0].header == timings[0].header == message.header
        seen = graph.wait_for_status("segmenter: rear", lambda status, values: values["published"] == "1")
        assert seen["topic"] == "/front/image_raw"


def test_incompatible_qos_is_named_with_the_parameter_that_fixes_it(graph: Graph, model: Path, tmp_path: Path) -> None:
    parameter, mask = "qos_overrides./camera/image_raw.subscription.reliability", "/camera/segmentation/mask"
    with segmenting(graph, tmp_path / "log", model, **{parameter: "reliable"}) as program:
        graph.node.create_publisher(
            Image, "camera/image_raw", QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        )
        problem = f"incompatible QoS policy reliability: start the node with {parameter}:=best_effort"
        seen = graph.wait_for_status("segmenter: camera", lambda status, values: "QoS" in status.message)
        assert seen["message"] == f"no image yet on /camera/image_raw ({problem})"
        assert problem in program.output

        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        graph.node.create_subscription(Image, mask, lambda message: None, latched)
        override = f"qos_overrides.{mask}.publisher.durability:=transient_local"
        problem = f"incompatible QoS policy durability: start the node with {override}"
        graph.until(lambda: f"a subscriber of {mask} gets nothing: {problem}" in program.output, "warning")


def test_a_wrong_qos_override_of_the_images_is_named_and_leaves_the_node_inactive(
    graph: Graph, model: Path, tmp_path: Path
) -> None:
    parameters = {"qos_overrides./camera/image_raw.subscription.reliability": "sometimes"}
    with running(node_command("segment_node", model=model, **parameters), tmp_path / "log") as program:
        lifecycle = graph.lifecycle()
        lifecycle.configure()
        with pytest.raises(LifecycleError, match="failed to activate, and is inactive"):
            lifecycle.activate()
        assert "cannot be activated: Unexpected QoS override for policy `reliability`: `sometimes`" in program.output


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_work_ends_the_node_quietly(
    graph: Graph, model: Path, tmp_path: Path, signal_number: int, again: bool
) -> None:
    with segmenting(graph, tmp_path / "log", model) as program:
        client = SegmentClient(graph)
        for index, image in enumerate(moving_images(20)):
            client.publish(image_message(image, SECOND + index * PERIOD))
        graph.until(lambda: client.masks, "first mask")
        ends_quietly(program, signal_number, again=again)


def test_the_state_is_requested_again_when_a_response_is_lost(
    graph: Graph, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(node_command("segment_node", model=model), tmp_path / "log"):
        lifecycle = graph.lifecycle()
        spin, futures = graph.executor.spin_until_future_complete, []

        def lose_the_first(future: Any, timeout_s: float) -> None:
            futures.append(future)
            if len(futures) > 1:
                spin(future, timeout_s)

        monkeypatch.setattr(graph.executor, "spin_until_future_complete", lose_the_first)
        assert lifecycle.state() == "unconfigured"
        assert len(futures) > 1


def test_a_signal_before_activation_ends_the_node_quietly(graph: Graph, model: Path, tmp_path: Path) -> None:
    with ExitStack() as ends:
        programs = {}
        for state, number in product(("unconfigured", "inactive"), (signal.SIGINT, signal.SIGTERM)):
            namespace = f"{state}_{number.name.lower()}"
            command = [*node_command("segment_node", model=model), "-r", f"__ns:=/{namespace}"]
            programs[state, number] = ends.enter_context(running(command, tmp_path / namespace)), namespace
        for (state, number), (program, namespace) in programs.items():
            lifecycle = graph.lifecycle(f"/{namespace}/segmenter")
            if state == "inactive":
                lifecycle.configure()
            assert lifecycle.state() == state
            ends_quietly(program, number)


STUCK = """
from time import sleep
from netwarp_ros import segmenter
from netwarp_ros.node import segment_node

def never_return(*arguments, **keywords):
    print("[INFO] stuck", flush=True)
    sleep(1e6)

segmenter.Segmenter.warm_up = lambda *arguments: None
segmenter.{function} = never_return
segment_node.main()
"""


@pytest.mark.parametrize(
    ("function", "signal_number", "doing"),
    [
        ("Segmenter.__init__", signal.SIGTERM, "loading {model}"),
        ("Segmenter.warm_up", signal.SIGINT, "compiling for images of 640x480"),
        ("Segmenter.warm_up", signal.SIGTERM, "compiling for images of 640x480"),
        ("Stream.segment", signal.SIGINT, "compiling for images of 64x48 on /camera/image_raw"),
    ],
)
def test_a_signal_ends_the_node_quietly_whatever_it_does(
    graph: Graph, model: Path, tmp_path: Path, function: str, signal_number: int, doing: str
) -> None:
    """Python cannot interrupt the thread that is stuck."""
    doing = doing.format(model=model)
    command = [
        *PYTHON,
        "-c",
        STUCK.format(function=function),
        "--ros-args",
        "-p",
        f"model:={model}",
        "-p",
        "engine:=torch",
    ]
    with running(command, tmp_path / "log") as program:
        lifecycle = graph.lifecycle()
        assert lifecycle.state() == "unconfigured"
        if function == "Stream.segment":
            lifecycle.configure()
            lifecycle.activate()
            SegmentClient(graph).publish(image_message(moving_images(1)[0], SECOND))
        else:
            client = graph.node.create_client(ChangeState, "/segmenter/change_state")
            assert client.wait_for_service()
            client.call_async(ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE)))
        graph.wait_for_status("segmenter", lambda status, values: status.message.endswith(doing))
        graph.until(lambda: "stuck" in program.output, "work")
        ends_quietly(program, signal_number)
        assert f"the node ends in the middle of {doing}" in program.output


def test_a_wrong_parameter_ends_the_node_with_a_message(graph: Graph, tmp_path: Path) -> None:
    program = Program(node_command("segment_node", transport="theora"), tmp_path / "log")
    assert program.wait() == 2
    assert program.output == "segment_node: transport is 'theora'. Give one of raw, compressed.\n"


def test_compressed_images_give_the_same_masks(graph: Graph, model: Path, tmp_path: Path) -> None:
    stream = Segmenter(model).stream()
    with segmenting(graph, tmp_path / "log", model, transport="compressed", **lossless("camera")):
        client = SegmentClient(graph, image_type=CompressedImage)
        client.publish(CompressedImage(header=header(SECOND), format="jpeg", data=b"no JPEG"))
        # Wait: an image that is replaced in the queue before the first one was received is not counted.
        graph.wait_for_status("segmenter: camera", lambda status, values: values["dropped: malformed"] == "1")
        for index, image in enumerate(moving_images(3)):
            png = cv2.imencode(".png", image)[1].tobytes()
            stamp_ns = 2 * SECOND + index * PERIOD
            message = CompressedImage(header=header(stamp_ns), format="bgr8; png compressed bgr8", data=png)
            mask, timing = client.segment(message)
            np.testing.assert_array_equal(array_of(mask), stream.segment(image, stamp_ns, FRAME_ID).mask)
            assert mask.header == message.header
            assert timing.dropped == 1


def test_a_damaged_jpeg_is_counted_and_not_remembered(graph: Graph, model: Path, tmp_path: Path) -> None:
    stream = Segmenter(model).stream()
    with segmenting(graph, tmp_path / "log", model, transport="compressed", **lossless("camera")):
        client = SegmentClient(graph, image_type=CompressedImage)
        for index, image in enumerate(moving_images(2)):
            stamp_ns = SECOND + index * PERIOD
            jpeg = cv2.imencode(".jpg", image)[1].tobytes()
            _, timing = client.segment(CompressedImage(header=header(stamp_ns), format="jpeg", data=jpeg))
            stream.segment(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), stamp_ns, FRAME_ID)
            closed = jpeg[: len(jpeg) * 6 // 10] + jpeg[-2:]
            client.publish(CompressedImage(header=header(stamp_ns + PERIOD // 2), format="jpeg", data=closed))
            graph.wait_for_status(
                "segmenter: camera", lambda status, values, count=index + 1: values["dropped: malformed"] == str(count)
            )
        assert timing.memory == FrameTiming.MEMORY_KEPT
        third = moving_images(3)[2]
        png = CompressedImage(
            header=header(SECOND + 2 * PERIOD), format="jpeg", data=cv2.imencode(".png", third)[1].tobytes()
        )
        mask, timing = client.segment(png)
        expected = stream.segment(third, SECOND + 2 * PERIOD, FRAME_ID)
        np.testing.assert_array_equal(array_of(mask), expected.mask)
        assert (timing.memory, timing.dropped) == (FrameTiming.MEMORY_KEPT, 2)


def test_fast_dds_accepts_the_profile(
    ros_domain: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROFILES_VARIABLE, str(resource("fastdds_large_images.xml")))
    with open_graph() as graph, segmenting(graph, tmp_path / "log", model, **lossless("camera")) as program:
        mask, _ = SegmentClient(graph).segment(image_message(np.zeros((1080, 1920, 3), np.uint8), SECOND))
        assert (mask.width, mask.height) == (1920, 1080)
        assert "XMLPARSER" not in program.output  # the category of Fast DDS's errors about a profile
