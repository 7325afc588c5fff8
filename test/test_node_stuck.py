# SPDX-License-Identifier: Apache-2.0
"""A segment node that cannot go on says so, and can be deactivated and ended. Its model is a stub that hangs or raises.

Each test runs real nodes in processes of their own. Not asserted: how long anything takes.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from graph import (
    PYTHON,
    SECOND,
    DiagnosticStatus,
    Graph,
    Program,
    SegmentClient,
    image_message,
    lossless,
    moving_images,
    running,
)
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import GetParameters
from sensor_msgs.msg import Image

from netwarp_ros.node.lifecycle import LifecycleError
from netwarp_ros.node.process import parameter_arguments

pytestmark = pytest.mark.ros

PERIOD = SECOND // 10

STUB = """
from pathlib import Path
from time import sleep
from netwarp_ros.node import segment_node
from netwarp_ros.segmenter import Segmenter, Stream

folder, segment, warm_up = Path({folder!r}), Stream.segment, Segmenter.warm_up

def segment_as_told(self, image, stamp_ns, *arguments, **options):
    told = folder / str(stamp_ns)  # the test tells what happens to the image of a stamp
    if told.exists():
        if told.read_text() == "hang":
            sleep(1e6)
        raise RuntimeError(told.read_text())
    return segment(self, image, stamp_ns, *arguments, **options)

def warm_up_as_told(self, *arguments):
    while (folder / "compiling").exists():
        sleep(0.01)
    return warm_up(self, *arguments)

Stream.segment, Segmenter.warm_up = segment_as_told, warm_up_as_told
segment_node.main()
"""


def stub(model: Path, folder: Path, **parameters: Any) -> list[str]:
    """Return the command of a node that does with the image of a stamp what the file of that name says."""
    given = {"model": model, "engine": "torch", "image_sizes": "[64x48]", **lossless("camera"), **parameters}
    return [*PYTHON, "-c", STUB.format(folder=str(folder)), "--ros-args", *parameter_arguments(**given)]


def tell(folder: Path, stamp_ns: int, what: str) -> None:
    (folder / str(stamp_ns)).write_text(what)


def wait_for_message(graph: Graph, name: str, level: bytes, *parts: str) -> dict[str, str]:
    """Wait for a status of a level, whose message has these parts."""
    return graph.wait_for_status(
        name, lambda status, values: status.level == level and all(part in status.message for part in parts)
    )


def test_a_stuck_worker_is_an_error_and_deactivation_leaves_the_node_unconfigured_and_usable(
    graph: Graph, model: Path, tmp_path: Path
) -> None:
    with running(stub(model, tmp_path, stuck_error=0.2, cameras="[camera, other]"), tmp_path / "log") as program:
        lifecycle, image = graph.lifecycle(), moving_images(1)[0]
        for time in (1, 10):  # the second time with a new worker
            lifecycle.configure()
            lifecycle.activate()
            client = SegmentClient(graph)
            client.segment(image_message(image, time * SECOND))
            tell(tmp_path, time * SECOND + PERIOD, "hang")
            client.publish(image_message(image, time * SECOND + PERIOD))
            for name in ("segmenter: camera", "segmenter"):
                wait_for_message(
                    graph, name, DiagnosticStatus.ERROR, "an image on /camera/image_raw has been in work for", "stuck"
                )
            assert lifecycle.state() == "active"
            with pytest.raises(LifecycleError, match="/segmenter refused or failed to deactivate, and is unconfigured"):
                lifecycle.deactivate()
            reason = "segmenting an image on /camera/image_raw does not end within 1 s, and is given up with the model"
            wait_for_message(graph, "segmenter", DiagnosticStatus.ERROR, reason, "configure and activate it")
            assert reason in program.output
        lifecycle.configure()
        lifecycle.activate()
        SegmentClient(graph).segment(image_message(image, 20 * SECOND))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("given_up", [False, True])
def test_a_signal_ends_a_stuck_node_with_status_0_and_a_line_in_the_log(
    graph: Graph, model: Path, tmp_path: Path, number: int, given_up: bool
) -> None:
    program = Program(stub(model, tmp_path, stuck_error=0.2), tmp_path / "log")
    lifecycle = graph.lifecycle()
    lifecycle.configure()
    lifecycle.activate()
    tell(tmp_path, SECOND, "hang")
    SegmentClient(graph).publish(image_message(moving_images(1)[0], SECOND))
    wait_for_message(graph, "segmenter: camera", DiagnosticStatus.ERROR, "stuck")
    if given_up:
        with pytest.raises(LifecycleError):
            lifecycle.deactivate()
    assert program.end(number) == 0, program.output
    assert "Traceback" not in program.output
    assert ("the node ends in the middle of segmenting an image" in program.output) == (not given_up)


def test_a_node_that_is_being_configured_answers_and_says_what_it_does(
    graph: Graph, model: Path, tmp_path: Path
) -> None:
    compiling = tmp_path / "compiling"
    compiling.touch()
    with running(stub(model, tmp_path), tmp_path / "log"):
        lifecycle = graph.lifecycle()
        assert lifecycle.state() == "unconfigured"
        client = graph.node.create_client(ChangeState, "/segmenter/change_state")
        assert client.wait_for_service()
        configured = client.call_async(ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE)))
        for _ in range(2):  # again and again
            wait_for_message(
                graph, "segmenter", DiagnosticStatus.WARN, "the node is configuring: compiling for images of 64x48"
            )
            assert lifecycle.state() == "configuring"
            request = GetParameters.Request(names=["max_gap"])
            assert graph.call(GetParameters, "/segmenter/get_parameters", request).values[0].double_value == 0.5
        assert not configured.done()
        compiling.unlink()
        graph.until(configured.done, "configured node")
        assert configured.result().success
        assert lifecycle.state() == "inactive"


def test_cuda_errors_on_end_leave_the_node_unconfigured_and_one_does_not(
    graph: Graph, model: Path, tmp_path: Path
) -> None:
    error = "CUDA error: an illegal memory access was encountered"
    with running(stub(model, tmp_path), tmp_path / "log"):
        lifecycle, image = graph.lifecycle(), moving_images(1)[0]
        lifecycle.configure()
        lifecycle.activate()
        client = SegmentClient(graph)
        failures = {2: error, 3: error, 5: error, 6: "another error", 7: error, 8: error}
        for index in range(1, 10):  # never three on end
            stamp_ns = SECOND + index * PERIOD
            if index in failures:
                tell(tmp_path, stamp_ns, failures[index])
                client.publish(image_message(image, stamp_ns))
                failed = str(sum(bad <= index for bad in failures))
                graph.wait_for_status(
                    "segmenter: camera", lambda status, values, failed=failed: values["dropped: failed"] == failed
                )
            else:
                client.segment(image_message(image, stamp_ns))
        assert lifecycle.state() == "active"
        for index in range(10, 13):
            tell(tmp_path, SECOND + index * PERIOD, error)
            client.publish(image_message(image, SECOND + index * PERIOD))
            if index < 12:
                failed = str(len(failures) + index - 9)
                graph.wait_for_status(
                    "segmenter: camera", lambda status, values, failed=failed: values["dropped: failed"] == failed
                )
        reason = f"3 frames on end failed: RuntimeError: {error}"
        wait_for_message(graph, "segmenter", DiagnosticStatus.ERROR, reason, "the node is unconfigured")
        assert lifecycle.state() == "unconfigured"
        lifecycle.configure()
        wait_for_message(graph, "segmenter", DiagnosticStatus.WARN, "the node is inactive: activate it")
        lifecycle.activate()
        SegmentClient(graph).segment(image_message(image, 10 * SECOND))
        wait_for_message(graph, "segmenter", DiagnosticStatus.OK, "segmenting on cpu")


def test_a_camera_whose_images_are_too_far_apart_is_told_with_what_to_do(
    graph: Graph, model: Path, tmp_path: Path
) -> None:
    with running(stub(model, tmp_path, max_gap=0.2), tmp_path / "log"):
        lifecycle = graph.lifecycle()
        lifecycle.configure()
        lifecycle.activate()
        client = SegmentClient(graph)
        for index in range(6):
            client.segment(image_message(moving_images(1)[0], SECOND + index * SECOND))
        seen = wait_for_message(graph, "segmenter: camera", DiagnosticStatus.WARN, "images segmented without memory")
        assert "5 of 6 images segmented without memory (gap over max_gap)" in seen["message"]
        assert "raise max_gap" in seen["message"]


def test_topics_come_and_go_while_the_executor_waits_for_them(graph: Graph, model: Path, tmp_path: Path) -> None:
    """Threads change so often that an executor which waits for a destroyed topic fails in the first cycle."""
    cameras, image, index = [f"c{number}" for number in range(4)], moving_images(1)[0], 0
    command = stub(model, tmp_path, cameras=f"[{', '.join(cameras)}]")
    command[command.index("-c") + 1] = f"import sys\nsys.setswitchinterval(2e-6)\n{STUB.format(folder=str(tmp_path))}"
    with running(command, tmp_path / "log"):
        lifecycle = graph.lifecycle()
        publishers = [graph.node.create_publisher(Image, f"{name}/image_raw", 1) for name in cameras]

        def publish() -> None:
            nonlocal index
            index += 1
            for publisher in publishers:
                publisher.publish(image_message(image, SECOND + index * PERIOD))

        timer = graph.node.create_timer(0.005, publish)
        for _ in range(6):
            lifecycle.configure()
            lifecycle.activate()
            lifecycle.deactivate()
            lifecycle.cleanup()
        timer.cancel()
        assert index > 0
