# SPDX-License-Identifier: Apache-2.0
"""The segment node when its inside fails, for which it runs in the test's own process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from graph import (
    DEADLINE_S,
    FRAME_ID,
    SECOND,
    DiagnosticStatus,
    Graph,
    Viewer,
    header,
    image_message,
    lossless,
    moving_images,
    open_graph,
    tiny_model,
)
from rclpy.context import Context
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image

from netwarp_ros.classes import ClassSet
from netwarp_ros.mailbox import Mailbox
from netwarp_ros.node import camera
from netwarp_ros.node.frame_counts import DropReason
from netwarp_ros.node.process import executing, ros_process
from netwarp_ros.node.segment_node import SegmentNode
from netwarp_ros.segmenter import Segmenter, Stream

pytestmark = pytest.mark.ros

PERIOD = SECOND // 10


# A namespace of its own: in Kilted, a lifecycle node leaves its services behind in the process, where the clients of
# other tests would find them.
NAMESPACE = "inside"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "tiny.safetensors")


@pytest.fixture
def graph(ros_domain: int, model: Path) -> Iterator[Graph]:
    parameters = {"model": model, **lossless(f"{NAMESPACE}/camera")}
    given = (part for name, value in parameters.items() for part in ("-p", f"{name}:={value}"))
    with open_graph("-r", f"__ns:=/{NAMESPACE}", *given) as graph:
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

    def fail_once(self: Stream, image: Any, stamp_ns: int, *arguments: Any) -> Any:
        if stamp_ns == 2 * SECOND:
            raise RuntimeError("out of memory")
        return segment(self, image, stamp_ns, *arguments)

    monkeypatch.setattr(Stream, "segment", fail_once)
    assert node.trigger_configure() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    viewer = Viewer(graph)
    image = moving_images(1)[0]
    viewer.see(image_message(image, SECOND))
    viewer.publish(image_message(image, 2 * SECOND))
    seen = graph.diagnosis(
        f"{NAMESPACE}/segmenter: camera", lambda status, values: status.level == DiagnosticStatus.ERROR
    )
    assert seen["message"] == "1 frames failed: RuntimeError: out of memory"
    assert (seen["received"], seen["published"], seen["dropped: failed"]) == ("2", "1", "1")
    mask, timing = viewer.see(image_message(image, 2 * SECOND + PERIOD))
    assert mask.header.stamp.nanosec == PERIOD
    assert timing.dropped == 1


def test_missed_images_are_counted_even_before_their_publisher_is(
    graph: Graph, node: SegmentNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert node.trigger_configure() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    camera = node._cameras["camera"]
    monkeypatch.setattr(camera._subscription, "get_publisher_count", lambda: 0)
    viewer = Viewer(graph)
    image = moving_images(1)[0]
    viewer.see(image_message(image, SECOND))
    for index in range(1, 10):  # while nothing takes them from the queue of one
        viewer.publish(image_message(image, SECOND + index * PERIOD))
    graph.until(lambda: viewer.masks[-1].header == header(SECOND + 9 * PERIOD), "mask of the newest image")
    balance = camera.counter.snapshot()
    assert balance.missed > 0
    assert balance.received + balance.missed == 10


def test_bytes_that_are_no_image_are_counted_and_the_next_image_is_segmented(graph: Graph, node: SegmentNode) -> None:
    assert node.trigger_configure() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    viewer, counter = Viewer(graph), node._cameras["camera"].counter
    image = image_message(moving_images(1)[0], SECOND)
    sound = serialize_message(image)
    for number, data in enumerate((sound[:-1], sound.replace(FRAME_ID.encode(), b"\xff" * len(FRAME_ID))), start=1):
        viewer.publish(data)
        graph.until(lambda: counter.snapshot().dropped[DropReason.MALFORMED] == number, "refusal")  # noqa: B023
    mask, timing = viewer.see(image)
    assert mask.header == image.header
    assert timing.dropped == 2


@pytest.mark.parametrize("reliability", [ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE])
def test_images_come_by_best_effort_from_a_camera_that_offers_no_more(
    graph: Graph, node: SegmentNode, reliability: ReliabilityPolicy
) -> None:
    assert node.trigger_configure() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    masks = graph.hear(Image, "camera/segmentation/mask")
    publisher = graph.node.create_publisher(Image, "camera/image_raw", QoSProfile(depth=1, reliability=reliability))
    image = image_message(moving_images(1)[0], SECOND)

    def segmented() -> bool:  # what is lost on the way to a subscription that is only just there is sent again
        publisher.publish(image)
        return bool(masks)

    graph.until(segmented, "mask")
    (ours,) = graph.node.get_subscriptions_info_by_topic("camera/image_raw")
    assert ours.qos_profile.reliability == reliability
    assert node._cameras["camera"].qos_problem == ""


def test_the_last_report_tells_of_what_waited_at_deactivation(
    graph: Graph, node: SegmentNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment, working, deactivating = Stream.segment, Event(), Event()

    def be_slow(self: Stream, *arguments: Any) -> Any:
        working.set()
        assert deactivating.wait(DEADLINE_S)
        return segment(self, *arguments)

    def close(self: Mailbox[Any]) -> list[str]:
        left = close_mailbox(self)
        deactivating.set()
        return left

    close_mailbox = Mailbox.close
    assert node.trigger_configure() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    monkeypatch.setattr(Stream, "segment", be_slow)
    monkeypatch.setattr(Mailbox, "close", close)
    viewer, counter = Viewer(graph), node._cameras["camera"].counter
    reports = graph.hear(DiagnosticArray, "/diagnostics")
    viewer.publish(image_message(moving_images(1)[0], SECOND))
    graph.until(working.is_set, "work")
    viewer.publish(image_message(moving_images(1)[0], 2 * SECOND))
    graph.until(lambda: counter.snapshot().received == 2, "image that waits")
    assert node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS

    def told() -> list[dict[str, str]]:
        statuses = [status for report in reports for status in report.status if status.name.endswith(": camera")]
        return [{pair.key: pair.value for pair in status.values} for status in statuses]

    graph.until(lambda: told() and told()[-1]["in flight"] == "0", "last report")
    assert [told()[-1][key] for key in ("received", "published", "dropped: deactivated")] == ["2", "1", "1"]


def test_color_and_overlay_are_not_made_for_nobody(
    graph: Graph, node: SegmentNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(camera, "rgb_message", lambda *arguments: made.append("rgb"))
    monkeypatch.setattr(ClassSet, "overlay", lambda *arguments: made.append("overlay"))
    assert node.trigger_configure() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    Viewer(graph).see(image_message(moving_images(1)[0], SECOND))
    assert made == []


def test_whatever_goes_wrong_in_configuring_leaves_it_unconfigured(
    graph: Graph, node: SegmentNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Segmenter | camera.Camera) -> None:
        raise RuntimeError("CUDA error: no kernel image")

    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "warm_up", fail)
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    with monkeypatch.context() as patch:
        patch.setattr(camera.Camera, "advertise", fail)
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS


def test_wrong_qos_of_an_output_leaves_no_topics(ros_domain: int, model: Path) -> None:
    override = f"qos_overrides./{NAMESPACE}/camera/segmentation/color.publisher.reliability:=sometimes"
    with open_graph("-r", f"__ns:=/{NAMESPACE}", "-p", f"model:={model}", "-p", override):
        node = SegmentNode()
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
        assert not [publisher for publisher in node.publishers if "segmentation" in publisher.topic_name]
        node.destroy_node()


def test_shutdown_from_any_state_ends_the_work(graph: Graph, node: SegmentNode) -> None:
    assert node.trigger_configure() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    Viewer(graph).see(image_message(moving_images(1)[0], SECOND))
    assert node.trigger_shutdown() == TransitionCallbackReturn.SUCCESS
    graph.until(lambda: not graph.node.count_subscribers("camera/image_raw"), "end of the subscription")
    graph.until(lambda: not graph.node.count_publishers("camera/segmentation/mask"), "withdrawal of the topics")


def test_an_idle_node_does_not_wait_for_ever(ros_domain: int) -> None:
    context = Context()
    rclpy.init(context=context)
    with executing(rclpy.create_node("idle", context=context)) as executor:
        thread = Thread(target=executor.spin_once, daemon=True)
        thread.start()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()  # it has looked up, and sees whether ROS has ended
    rclpy.shutdown(context=context)


def test_an_interrupt_that_comes_before_the_end_of_ros_ends_a_process_quietly(ros_domain: int) -> None:
    with ros_process("interrupted"):
        assert rclpy.ok()
        raise KeyboardInterrupt
    assert not rclpy.ok()
