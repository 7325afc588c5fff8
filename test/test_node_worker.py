# SPDX-License-Identifier: Apache-2.0
"""What the segment node's worker does, and what the node says of it. It runs in the process of the test."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
from graph import (
    DEADLINE_S,
    SECOND,
    DiagnosticStatus,
    Graph,
    SegmentClient,
    image_message,
    lossless,
    moving_images,
    open_graph,
)
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image

from netwarp_ros.models import VideoCNN
from netwarp_ros.node import pipeline
from netwarp_ros.node.frame_counts import DropReason
from netwarp_ros.node.outputs import Outputs
from netwarp_ros.node.process import parameter_arguments
from netwarp_ros.node.segment_node import SegmentNode
from netwarp_ros.segmenter import Segmenter, Stream

pytestmark = pytest.mark.ros

NAMESPACE = "working"  # see test_node_failures.py
STATUS = f"{NAMESPACE}/segmenter"


@pytest.fixture
def graph(ros_domain: int, model: Path) -> Iterator[Graph]:
    parameters = {"model": model, "image_sizes": "[64x48, 96x48]", **lossless(f"{NAMESPACE}/camera")}
    with open_graph("-r", f"__ns:=/{NAMESPACE}", *parameter_arguments(**parameters)) as graph:
        yield graph


@pytest.fixture
def node(graph: Graph) -> Iterator[SegmentNode]:
    node = SegmentNode()
    graph.executor.add_node(node)
    yield node
    node.destroy_node()


def before(patch: pytest.MonkeyPatch, kind: type, method: str, do: Callable[..., object]) -> None:
    """Let a method first call a function, with its own arguments."""
    original = getattr(kind, method)

    def patched(*arguments: Any, **keywords: Any) -> Any:
        do(*arguments, **keywords)
        return original(*arguments, **keywords)

    patch.setattr(kind, method, patched)


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition in a thread that does not spin."""
    deadline = monotonic() + DEADLINE_S
    while not condition():
        assert monotonic() < deadline
        sleep(0.01)


def succeed(*transitions: Callable[[], TransitionCallbackReturn]) -> None:
    for transition in transitions:
        assert transition() == TransitionCallbackReturn.SUCCESS


def test_the_thread_that_makes_the_segmenter_warms_it_up_runs_it_and_frees_it(
    graph: Graph, node: SegmentNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a second configuration: PyTorch keeps CUDA graphs, cuDNN its plans, OpenMP its team for one thread."""
    seen: list[tuple[str, int]] = []

    def note(what: str) -> None:
        seen.append((what, threading.get_ident()))

    def note_made(segmenter: Segmenter, *arguments: Any, **keywords: Any) -> None:
        note("made")
        weakref.finalize(segmenter, note, "freed")

    before(monkeypatch, Segmenter, "__init__", note_made)
    before(monkeypatch, Segmenter, "warm_up", lambda *arguments: note("warmed up"))
    before(monkeypatch, Stream, "segment", lambda *arguments, **options: note("segmented"))
    client = None
    for _ in range(2):
        succeed(node.trigger_configure, node.trigger_activate)
        client = client or SegmentClient(graph)
        graph.until(client._publisher.get_subscription_count, "subscription")
        client.segment(image_message(moving_images(1)[0], SECOND))
        succeed(node.trigger_deactivate, node.trigger_cleanup)
    assert [what for what, _ in seen] == 2 * [
        "made",
        *2 * ["warmed up", "segmented", "segmented"],
        "segmented",
        "freed",
    ]
    idents = {ident for _, ident in seen}
    assert len(idents) == 1 and threading.get_ident() not in idents


def test_a_node_that_is_being_configured_says_what_it_does(
    graph: Graph, node: SegmentNode, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step waits until it was published."""
    published: list[tuple[str, str]] = []
    steps = [f"loading {model}", "compiling for images of 64x48", "compiling for images of 96x48"]

    def publish(message: Any) -> None:
        (status,) = message.status
        published.append(({pair.key: pair.value for pair in status.values}["state"], status.message))

    def wait(*arguments: Any, **keywords: Any) -> None:
        expected = ("configuring", f"the node is configuring: {waited_for.pop(0)}")
        until(lambda: expected in published)

    waited_for = steps.copy()
    monkeypatch.setattr(node._diagnostics_publisher, "publish", publish)
    before(monkeypatch, Segmenter, "__init__", wait)
    before(monkeypatch, Segmenter, "warm_up", wait)
    configured = threading.Thread(target=node.trigger_configure)
    configured.start()
    graph.until(lambda: not configured.is_alive(), "configured node")
    messages = [("configuring", f"the node is configuring: {step}") for step in steps]
    assert [message for message in dict.fromkeys(published) if message[0] == "configuring"] == messages
    published.clear()
    node._publish_diagnostics()
    assert published == [("inactive", "the node is inactive: activate it")]


def test_the_first_image_of_a_new_size_is_told_until_its_mask_is_published(
    graph: Graph, node: SegmentNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One-off work for images without and with a memory is done before it, so the second image is not late."""
    sizes, go_on = [], Event()

    def wait(stream: Stream, image: np.ndarray, stamp_ns: int, *arguments: Any, **options: Any) -> None:
        if image.shape[:2] == (24, 64) and stamp_ns == SECOND:
            assert go_on.wait(DEADLINE_S)

    succeed(node.trigger_configure, node.trigger_activate)
    before(monkeypatch, Segmenter, "warm_up", lambda segmenter, *size: sizes.append(size))
    before(monkeypatch, Stream, "segment", wait)
    client, image = SegmentClient(graph), np.zeros((24, 64, 3), np.uint8)
    client.publish(image_message(image, SECOND))
    message = f"compiling for images of 64x24 on /{NAMESPACE}/camera/image_raw"
    graph.wait_for_status(
        STATUS, lambda status, values: (status.level, status.message) == (DiagnosticStatus.WARN, message)
    )
    assert not client.masks and sizes == [(64, 24)]
    go_on.set()
    graph.until(lambda: client.masks, "mask")
    graph.wait_for_status(STATUS, lambda status, values: status.level == DiagnosticStatus.OK)
    client.segment(image_message(image, 2 * SECOND))
    client.segment(image_message(np.zeros((48, 96, 3), np.uint8), 3 * SECOND))  # one of image_sizes
    assert sizes == [(64, 24)]


def test_a_first_image_that_fails_is_not_told_forever(
    graph: Graph, node: SegmentNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        assert camera.compiling == f"compiling for images of 64x24 on {camera.topic}"
        raise RuntimeError("out of memory")

    succeed(node.trigger_configure, node.trigger_activate)
    camera = node._cameras["camera"]
    before(monkeypatch, Segmenter, "warm_up", fail)
    SegmentClient(graph).publish(image_message(np.zeros((24, 64, 3), np.uint8), SECOND))
    graph.until(lambda: camera.counter.snapshot().dropped.total(), "failure")
    assert camera.counter.snapshot().last_error == "RuntimeError: out of memory"
    assert camera.compiling == ""


def test_a_worker_that_ends_by_a_fault_leaves_the_node_unconfigured_and_usable(
    graph: Graph, node: SegmentNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise SystemExit("a fault of a library")

    succeed(node.trigger_configure, node.trigger_activate)
    with monkeypatch.context() as patch:
        before(patch, Stream, "segment", fail)
        SegmentClient(graph).publish(image_message(moving_images(1)[0], SECOND))
        graph.until(lambda: node._state() == "unconfigured", "unconfigured node")
    assert node._failure == "on_deactivate failed: RuntimeError: segmenting has ended: SystemExit: a fault of a library"
    succeed(node.trigger_configure, node.trigger_activate)
    client = SegmentClient(graph)
    graph.until(client._publisher.get_subscription_count, "subscription")
    client.segment(image_message(moving_images(1)[0], 2 * SECOND))


def test_a_slow_frame_is_named_when_it_is_given_up_and_its_model_is_freed_when_it_ends(
    graph: Graph, node: SegmentNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it has not taken long yet, and nobody looks at pictures. It is counted."""
    working, go_on, made = Event(), Event(), list[weakref.ref[Any]]()

    def wait(stream: Stream, image: np.ndarray, stamp_ns: int, *arguments: Any, **options: Any) -> None:
        if stamp_ns == SECOND:
            working.set()
            assert go_on.wait(DEADLINE_S)

    monkeypatch.setattr(pipeline, "STOP_S", 0.01)
    before(monkeypatch, VideoCNN, "__init__", lambda self, *arguments, **keywords: made.append(weakref.ref(self)))
    before(monkeypatch, Stream, "segment", wait)
    succeed(node.trigger_configure, node.trigger_activate)
    counter = node._cameras["camera"].counter
    SegmentClient(graph).publish(image_message(moving_images(1)[0], SECOND))
    graph.until(working.is_set, "work")
    assert node.trigger_deactivate() == TransitionCallbackReturn.ERROR
    topic = f"/{NAMESPACE}/camera/image_raw"
    assert node._failure == (
        f"on_deactivate failed: RuntimeError: segmenting an image on {topic} does not end within 0.01 s, and is given "
        "up with the model"
    )
    counts = counter.snapshot()
    assert (counts.received, counts.in_flight, counts.dropped[DropReason.DEACTIVATED]) == (1, 0, 1)
    assert any(reference() for reference in made) and node.is_busy()
    go_on.set()
    graph.until(lambda: not any(reference() for reference in made), "end of the model")
    graph.until(lambda: not node.is_busy(), "end of the thread")


def test_a_picture_that_hangs_is_told_and_costs_no_mask_and_no_model(
    graph: Graph, node: SegmentNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = Event()
    before(monkeypatch, Outputs, "draw", lambda *arguments: go_on.wait(DEADLINE_S))
    monkeypatch.setattr(pipeline, "STOP_S", 0.01)
    node.set_parameters([Parameter("stuck_error", value=0.1)])
    succeed(node.trigger_configure, node.trigger_activate)
    graph.subscribe(Image, "camera/segmentation/overlay")
    client, model = SegmentClient(graph), node._pipeline.segmenter
    graph.until(lambda: node._cameras["camera"].outputs.wants_pictures, "subscriber of the overlay")
    for index in range(3):
        client.segment(image_message(moving_images(1)[0], SECOND + index * SECOND // 10))
    seen = graph.wait_for_status(
        f"{STATUS}: camera", lambda status, values: "a picture has been drawn for" in status.message
    )
    assert (seen["published"], seen["pictures dropped"]) == ("3", "1")
    succeed(node.trigger_deactivate)
    assert node._last_error == "drawing a picture does not end within 0.01 s, and is given up"
    assert node._pipeline.segmenter is model
    succeed(node.trigger_activate)
    go_on.set()
    graph.until(client._publisher.get_subscription_count, "subscription")
    client.segment(image_message(moving_images(1)[0], 2 * SECOND))


def test_what_is_set_while_the_node_is_being_configured_is_in_effect(
    graph: Graph, node: SegmentNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [Parameter("overlay_alpha", value=0.9), Parameter("max_gap", value=2.5)]
    before(
        monkeypatch,
        Segmenter,
        "warm_up",
        lambda *arguments: [node.set_parameters_atomically([change]) for change in changes],
    )
    succeed(node.trigger_configure)
    assert node._cameras["camera"].alpha == 0.9
    assert node._pipeline.segmenter is not None and node._pipeline.segmenter.max_gap == 2.5


def test_a_node_that_was_never_active_can_be_shut_down(node: SegmentNode) -> None:
    succeed(node.trigger_configure, node.trigger_shutdown)


def test_a_refused_value_of_a_new_camera_can_be_corrected(node: SegmentNode) -> None:
    node.set_parameters([Parameter("cameras", value=["front"])])
    node._declare_cameras()
    assert not node.set_parameters([Parameter("front.transport", value="bogus")])[0].successful
    node.set_parameters([Parameter("front.ego_mask", value="/no/such.png")])
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    node.set_parameters([Parameter("front.ego_mask", value="")])
    succeed(node.trigger_configure)


@pytest.mark.parametrize("failing", ["warm_up", "stream"])
def test_a_model_that_cannot_be_used_is_freed_at_once(
    node: SegmentNode, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Even though the error that was raised refers to it."""
    made: list[weakref.ref[Any]] = []

    def fail(*arguments: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image")

    for kind in (Segmenter, VideoCNN):
        before(monkeypatch, kind, "__init__", lambda self, *arguments, **keywords: made.append(weakref.ref(self)))
    before(monkeypatch, Segmenter, failing, fail)
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert len(made) > 1 and not any(reference() for reference in made)
    assert node._last_error == "cannot be configured: CUDA error: no kernel image"


def test_a_node_with_a_busy_worker_can_be_destroyed(
    graph: Graph, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    working, go_on = Event(), Event()

    def wait(stream: Stream, image: np.ndarray, stamp_ns: int, *arguments: Any, **options: Any) -> None:
        if stamp_ns == SECOND:
            working.set()
            assert go_on.wait(DEADLINE_S)

    monkeypatch.setattr(pipeline, "STOP_S", 0.01)
    node = SegmentNode()
    graph.executor.add_node(node)
    succeed(node.trigger_configure, node.trigger_activate)
    before(monkeypatch, Stream, "segment", wait)
    SegmentClient(graph).publish(image_message(moving_images(1)[0], SECOND))
    graph.until(working.is_set, "work")
    node.destroy_node()
    assert not node._pipeline._worker.is_idle()
    assert "the node ends in the middle of segmenting an image" in capfd.readouterr().err
    go_on.set()
    assert node._pipeline._worker.is_idle(DEADLINE_S)
