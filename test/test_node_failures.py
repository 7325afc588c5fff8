# SPDX-License-Identifier: Apache-2.0
"""The segment node when parts of it fail. It runs in the process of the test, which replaces those parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import cv2
import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from graph import (
    DEADLINE_S,
    FRAME_ID,
    SECOND,
    DiagnosticStatus,
    Graph,
    SegmentClient,
    header,
    image_message,
    lossless,
    moving_images,
    open_graph,
)
from rclpy.context import Context
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image

from netwarp_ros.classes import ClassSet
from netwarp_ros.mailbox import Mailbox
from netwarp_ros.node import camera, outputs
from netwarp_ros.node.frame_counts import DropReason
from netwarp_ros.node.process import executing, parameter_arguments, ros_process
from netwarp_ros.node.segment_node import SegmentNode
from netwarp_ros.segmenter import Reset, Segmenter, Stream, masks

pytestmark = pytest.mark.ros

PERIOD = SECOND // 10


# A namespace of its own: in Kilted, the services of a destroyed lifecycle node stay in the process, where clients of
# other tests would find them.
NAMESPACE = "inside"


@pytest.fixture
def graph(ros_domain: int, model: Path) -> Iterator[Graph]:
    parameters = {"model": model, **lossless(f"{NAMESPACE}/camera")}
    with open_graph("-r", f"__ns:=/{NAMESPACE}", *parameter_arguments(**parameters)) as graph:
        yield graph


@pytest.fixture
def node(graph: Graph) -> Iterator[SegmentNode]:
    node = SegmentNode()
    graph.executor.add_node(node)
    yield node
    node.destroy_node()


def test_a_failed_frame_is_counted_with_its_cause_and_the_next_is_segmented(
    graph: Graph, node: SegmentNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = Stream.segment

    def fail_once(self: Stream, image: Any, stamp_ns: int, *arguments: Any, **options: Any) -> Any:
        if stamp_ns == 2 * SECOND:
            raise RuntimeError("out of memory")
        return segment(self, image, stamp_ns, *arguments, **options)

    monkeypatch.setattr(Stream, "segment", fail_once)
    assert node.trigger_configure() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    client = SegmentClient(graph)
    image = moving_images(1)[0]
    client.segment(image_message(image, SECOND))
    client.publish(image_message(image, 2 * SECOND))
    seen = graph.wait_for_status(
        f"{NAMESPACE}/segmenter: camera", lambda status, values: status.level == DiagnosticStatus.ERROR
    )
    assert seen["message"] == "1 frames failed: RuntimeError: out of memory"
    assert (seen["received"], seen["published"], seen["dropped: failed"]) == ("2", "1", "1")
    mask, timing = client.segment(image_message(image, 2 * SECOND + PERIOD))
    assert mask.header.stamp.nanosec == PERIOD
    assert timing.dropped == 1


def test_missed_images_are_counted_even_before_their_publisher_is_discovered(
    graph: Graph, node: SegmentNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert node.trigger_configure() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    camera = node._cameras["camera"]
    monkeypatch.setattr(camera._subscription, "get_publisher_count", lambda: 0)
    client = SegmentClient(graph)
    image = moving_images(1)[0]
    client.segment(image_message(image, SECOND))
    for index in range(1, 10):  # the executor does not run meanwhile, and the queue holds one image
        client.publish(image_message(image, SECOND + index * PERIOD))
    graph.until(lambda: client.masks[-1].header == header(SECOND + 9 * PERIOD), "mask of the newest image")
    counts = camera.counter.snapshot()
    assert counts.missed > 0
    assert counts.received + counts.missed == 10


def test_the_first_image_of_the_publisher_that_is_left_is_not_blended(
    graph: Graph, node: SegmentNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert node.trigger_configure() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    subscription = node._cameras["camera"]._subscription
    client, image, reasons = SegmentClient(graph), moving_images(1)[0], []
    for index, publishers in enumerate((1, 1, 2, 1, 1)):
        monkeypatch.setattr(subscription, "get_publisher_count", lambda: publishers)  # noqa: B023
        reasons.append(client.segment(image_message(image, SECOND + index * PERIOD))[1].reason)
    assert reasons == [Reset.FIRST, "", Reset.PUBLISHERS, Reset.PUBLISHERS, ""]


def test_undecodable_bytes_are_counted_and_the_next_image_is_segmented(graph: Graph, node: SegmentNode) -> None:
    assert node.trigger_configure() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    client, counter = SegmentClient(graph), node._cameras["camera"].counter
    image = image_message(moving_images(1)[0], SECOND)
    sound = serialize_message(image)
    for number, data in enumerate((sound[:-1], sound.replace(FRAME_ID.encode(), b"\xff" * len(FRAME_ID))), start=1):
        client.publish(data)
        graph.until(lambda: counter.snapshot().dropped[DropReason.MALFORMED] == number, "refusal")  # noqa: B023
    mask, timing = client.segment(image)
    assert mask.header == image.header
    assert timing.dropped == 2


@pytest.mark.parametrize("reliability", [ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE])
def test_the_subscription_is_as_reliable_as_the_camera(
    graph: Graph, node: SegmentNode, reliability: ReliabilityPolicy
) -> None:
    assert node.trigger_configure() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    masks = graph.subscribe(Image, "camera/segmentation/mask")
    publisher = graph.node.create_publisher(Image, "camera/image_raw", QoSProfile(depth=1, reliability=reliability))
    image = image_message(moving_images(1)[0], SECOND)

    def segmented() -> bool:  # published again and again: a new subscription may miss the first images
        publisher.publish(image)
        return bool(masks)

    graph.until(segmented, "mask")
    (ours,) = graph.node.get_subscriptions_info_by_topic("camera/image_raw")
    assert ours.qos_profile.reliability == reliability
    assert node._cameras["camera"].qos_problem == ""


def test_the_final_diagnostics_count_the_image_that_waited_at_deactivation(
    graph: Graph, node: SegmentNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment, working, deactivating = Stream.segment, Event(), Event()

    def segment_slowly(self: Stream, *arguments: Any, **options: Any) -> Any:
        working.set()
        assert deactivating.wait(DEADLINE_S)
        return segment(self, *arguments, **options)

    def close(self: Mailbox[Any]) -> list[str]:
        left = close_mailbox(self)
        deactivating.set()
        return left

    close_mailbox = Mailbox.close
    assert node.trigger_configure() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    monkeypatch.setattr(Stream, "segment", segment_slowly)
    monkeypatch.setattr(Mailbox, "close", close)
    client, counter = SegmentClient(graph), node._cameras["camera"].counter
    messages = graph.subscribe(DiagnosticArray, "/diagnostics")
    client.publish(image_message(moving_images(1)[0], SECOND))
    graph.until(working.is_set, "work")
    client.publish(image_message(moving_images(1)[0], 2 * SECOND))
    graph.until(lambda: counter.snapshot().received == 2, "image that waits")
    assert node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS

    def camera_values() -> list[dict[str, str]]:
        statuses = [status for message in messages for status in message.status if status.name.endswith(": camera")]
        return [{pair.key: pair.value for pair in status.values} for status in statuses]

    # A message from before the images came may still arrive: it counts none.
    expected = {"received": "2", "in flight": "0"}
    graph.until(lambda: camera_values() and expected.items() <= camera_values()[-1].items(), "final diagnostics")
    assert [camera_values()[-1][key] for key in ("published", "dropped: deactivated")] == ["1", "1"]


def test_color_and_overlay_are_not_made_without_subscribers(
    graph: Graph, node: SegmentNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anything else that somebody must subscribe to: counted, not timed."""
    made: list[str] = []
    for owner, name in (
        (outputs, "rgb_message"),
        (outputs, "scaled_camera_info"),
        (ClassSet, "overlay"),
        (ClassSet, "colorize"),
        (camera, "deserialize_message"),
        (masks, "enlarge"),
        (cv2, "LUT"),
    ):
        monkeypatch.setattr(owner, name, lambda *arguments, name=name: made.append(name))
    assert node.trigger_configure() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    SegmentClient(graph).segment(image_message(moving_images(1)[0], SECOND))
    assert made == []


def test_any_error_while_configuring_leaves_the_node_unconfigured(
    graph: Graph, node: SegmentNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Segmenter | outputs.Outputs, *arguments: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image")

    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "warm_up", fail)
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    with monkeypatch.context() as patch:
        patch.setattr(outputs.Outputs, "advertise", fail)
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS


def test_the_network_runs_at_every_image_size_before_the_first_image(
    ros_domain: int, model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    infer, shapes = Segmenter.infer, []

    def note(self: Segmenter, frame: Any, *arguments: Any, **options: Any) -> Any:
        shapes.append(tuple(frame.shape[2:]))
        return infer(self, frame, *arguments, **options)

    monkeypatch.setattr(Segmenter, "infer", note)
    sizes, topic = "image_sizes:=[64x48, 96x96]", f"/{NAMESPACE}/camera/image_raw"
    with open_graph("-r", f"__ns:=/{NAMESPACE}", "-p", f"model:={model}", "-p", sizes) as graph:
        node = SegmentNode()
        graph.executor.add_node(node)
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert shapes == [(48, 64)] * 2 + [(48, 48)] * 2  # without and with memory, at the input's height
        assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        client = SegmentClient(graph)
        client.segment(image_message(np.zeros((96, 96, 3), np.uint8), SECOND))
        assert "image_sizes" not in capfd.readouterr().err
        for _ in range(2):
            client.segment(image_message(np.zeros((24, 64, 3), np.uint8), SECOND))
        assert capfd.readouterr().err.count(f"the first image of 64x24 on {topic} may take longer") == 1
        node.destroy_node()


def test_a_wrong_qos_override_of_an_output_leaves_no_topics(ros_domain: int, model: Path) -> None:
    override = f"qos_overrides./{NAMESPACE}/camera/segmentation/color.publisher.reliability:=sometimes"
    with open_graph("-r", f"__ns:=/{NAMESPACE}", "-p", f"model:={model}", "-p", override):
        node = SegmentNode()
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
        assert not [publisher for publisher in node.publishers if "segmentation" in publisher.topic_name]
        node.destroy_node()


def test_an_error_while_deactivating_is_told_and_leaves_the_node_unconfigured(
    node: SegmentNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**arguments: Any) -> None:
        raise RuntimeError("cannot publish")

    assert node.trigger_configure() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    with monkeypatch.context() as patch:
        patch.setattr(node, "_publish_diagnostics", fail)
        assert node.trigger_deactivate() == TransitionCallbackReturn.ERROR
    assert node._last_error == "on_deactivate failed: RuntimeError: cannot publish"
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS


def test_shutdown_while_active_destroys_the_topics(graph: Graph, node: SegmentNode) -> None:
    assert node.trigger_configure() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    SegmentClient(graph).segment(image_message(moving_images(1)[0], SECOND))
    assert node.trigger_shutdown() == TransitionCallbackReturn.SUCCESS
    graph.until(lambda: not graph.node.count_subscribers("camera/image_raw"), "end of the subscription")
    graph.until(lambda: not graph.node.count_publishers("camera/segmentation/mask"), "withdrawal of the topics")


def test_shutdown_while_active_sends_the_last_report(graph: Graph, node: SegmentNode) -> None:
    assert node.trigger_configure() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    client, messages = SegmentClient(graph), graph.subscribe(DiagnosticArray, "/diagnostics")
    for index in range(3):
        client.segment(image_message(moving_images(1)[0], SECOND + index * PERIOD))
    node._diagnostics_timer.cancel()
    assert node.trigger_shutdown() == TransitionCallbackReturn.SUCCESS

    def last_report() -> dict[str, str] | None:
        statuses = [status for message in messages for status in message.status if status.name.endswith(": camera")]
        values = {pair.key: pair.value for pair in statuses[-1].values} if statuses else {}
        return values if values.get("published") == "3" else None

    values = graph.until(last_report, "last report")
    assert values is not None and (values["received"], values["in flight"]) == ("3", "0")


def test_an_idle_executor_wakes_up(ros_domain: int) -> None:
    context = Context()
    rclpy.init(context=context)
    with executing(rclpy.create_node("idle", context=context)) as executor:
        thread = Thread(target=executor.spin_once, daemon=True)
        thread.start()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()  # it woke up, and can see whether ROS was shut down
    rclpy.shutdown(context=context)


def test_the_error_of_a_callback_is_logged_and_the_executor_goes_on(
    ros_domain: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with ros_process("failing"):
        node, calls = rclpy.create_node("failing"), []

        def fail() -> None:
            calls.append("timer")
            raise RuntimeError("out of memory")

        node.create_timer(0.01, fail)
        with executing(node) as executor:
            while len(calls) < 3:
                executor.spin_once(timeout_sec=DEADLINE_S)
    assert "a callback failed: RuntimeError: out of memory" in capfd.readouterr().err


def test_an_error_after_which_rclpy_executes_nothing_more_ends_the_process(
    ros_domain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(entity: Any) -> None:
        raise RuntimeError("failed to take a message")

    with ros_process("failing"), executing(rclpy.create_node("failing")) as executor:
        monkeypatch.setattr(executor, "_take_timer", fail)
        with pytest.raises(RuntimeError, match="failed to take a message"):
            executor.spin()


def test_a_keyboard_interrupt_ends_a_process_quietly(ros_domain: int) -> None:
    with ros_process("interrupted"):
        assert rclpy.ok()
        raise KeyboardInterrupt
    assert not rclpy.ok()
