# SPDX-License-Identifier: Apache-2.0
"""The masks, timings and counts of the segment node. All tests share one process; each activates it.

Frames are published one at a time. Not asserted: how long anything takes, and which frames are dropped under overload.
"""

from __future__ import annotations

import importlib.util
import runpy
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from graph import (
    FRAME_ID,
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
    own_domain,
    running,
)
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import GetParameters, SetParameters, SetParametersAtomically
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from netwarp_ros.classes import load_classes
from netwarp_ros.cli import main as netwarp
from netwarp_ros.evaluation.scoring import ScoredFrame, evaluate
from netwarp_ros.flow import DisFlow
from netwarp_ros.msg import FrameTiming
from netwarp_ros.recordings.bag_writer import write_bag
from netwarp_ros.recordings.frames import Frame
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.segmenter import MAX_GAP, Reset, Segmenter

pytestmark = pytest.mark.ros

PERIOD = SECOND // 10
CAMERAS = ("camera", "left/wide")


@pytest.fixture(scope="module")
def program(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A configured segment node."""
    log = tmp_path_factory.mktemp("segment_node") / "log"
    cameras = f"[{', '.join(CAMERAS)}]"
    with (
        own_domain(),
        running(node_command("segment_node", model=model, cameras=cameras, **lossless(*CAMERAS)), log) as program,
    ):
        with open_graph() as graph:
            graph.lifecycle().configure()
        yield program


@pytest.fixture
def graph(program: Program) -> Iterator[Graph]:
    """The graph, with that node active."""
    with open_graph() as graph:
        lifecycle = graph.lifecycle()
        lifecycle.activate()
        yield graph
        lifecycle.deactivate()


def test_each_image_gives_one_mask_with_its_header_equal_to_that_of_netwarp_segment(
    graph: Graph, model: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for index, image in enumerate(moving_images(6)):
        assert cv2.imwrite(str(folder / f"{index}.png"), image)
    with pytest.raises(SystemExit) as ended:
        netwarp(["segment", str(folder), "-o", str(out), "--model", str(model), "--no-video"])
    assert ended.value.code == 0
    stream = Segmenter(model).stream()

    client = SegmentClient(graph)
    for frame in open_frames(folder):
        message = image_message(frame.image, SECOND + frame.stamp_ns)  # ROS takes a stamp of 0 for none
        mask, timing = client.segment(message)
        assert mask.header == timing.header == message.header
        assert (mask.encoding, mask.step, mask.is_bigendian) == ("mono8", 64, 0)
        expected = stream.segment(frame.image, frame.stamp_ns, FRAME_ID)
        np.testing.assert_array_equal(array_of(mask), expected.mask)
        written = cv2.imread(str(out / "masks" / f"{frame.name}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(array_of(mask), written)
        assert timing.sequence == frame.index
        assert (timing.memory, timing.reason) == (expected.memory, expected.reason)
        assert timing.dropped == 0
        stages = timing.wait_ms + timing.decode_ms + timing.prepare_ms + timing.flow_ms + timing.network_ms
        assert 0 < stages <= timing.total_ms
        assert timing.age_ms == pytest.approx(timing.receive_ms + timing.total_ms)
    assert len(client.masks) == 6


def test_a_replayed_bag_gives_the_masks_that_are_evaluated(graph: Graph, model: Path, tmp_path: Path) -> None:
    images = enumerate(moving_images(6))
    # As slowly as max_gap allows, so that no frame is superseded.
    gap_ns = round(MAX_GAP * SECOND)
    frames = [Frame(index, 100 * SECOND + index * gap_ns, "", image) for index, image in images]
    write_bag(tmp_path / "drive.mcap", frames, topic="/camera/image_raw")
    masks = graph.subscribe(Image, "camera/segmentation/mask")
    replay = node_command("replay_node", path=tmp_path / "drive.mcap", stamp="recorded", **lossless("camera"))
    with running(replay, tmp_path / "log"):
        graph.until(lambda: len(masks) == 6, "six masks")

    segmenter = Segmenter(model)
    results: list[ScoredFrame] = []
    evaluate(
        open_frames(tmp_path / "drive.mcap"), None, segmenter, segmenter.model.spec.classes, on_frame=results.append
    )
    for mask, result, frame in zip(masks, results, frames, strict=True):
        assert mask.header.stamp == header(frame.stamp_ns).stamp
        np.testing.assert_array_equal(array_of(mask), result.mask)
    assert [result.record.reason for result in results] == [Reset.FIRST] + [""] * 5


def wrong_step(message: Image) -> None:
    message.step = 17


def no_data(message: Image) -> None:
    message.data = []


def unknown_encoding(message: Image) -> None:
    message.encoding = "rgb7"


def no_pixels(message: Image) -> None:
    message.width = message.height = 0


def test_malformed_images_are_counted_and_explained_and_the_next_one_is_segmented(graph: Graph) -> None:
    bad: list[tuple[Callable[[Image], None], str]] = [
        (wrong_step, "step is 17: expected at least 192"),
        (no_data, "data has 0 bytes: expected 9216"),
        (unknown_encoding, "encoding is 'rgb7': expected one of mono8,"),
        (no_pixels, "size is 0x0: expected at least one pixel"),
    ]
    images = moving_images(2 * len(bad) + 1)
    client = SegmentClient(graph)
    client.segment(image_message(images[0], SECOND))
    for index, (spoil, problem) in enumerate(bad):
        stamp_ns = SECOND + (2 * index + 1) * PERIOD
        malformed = image_message(images[2 * index + 1], stamp_ns)
        spoil(malformed)
        client.publish(malformed)
        seen = graph.wait_for_status(
            "segmenter: camera", lambda status, values, problem=problem: problem in values["last error"]
        )
        assert seen["dropped: malformed"] == str(index + 1)
        good = image_message(images[2 * index + 2], stamp_ns + PERIOD)
        mask, timing = client.segment(good)
        assert mask.header == good.header
        assert timing.memory == FrameTiming.MEMORY_KEPT
        assert timing.dropped == index + 1
    seen = graph.wait_for_status("segmenter: camera", lambda status, values: values["published"] == str(len(bad) + 1))
    assert (seen["received"], seen["dropped"], seen["in flight"]) == (str(2 * len(bad) + 1), str(len(bad)), "0")


def test_every_damaged_image_is_counted_and_none_fails(graph: Graph) -> None:
    fuzz = runpy.run_path(str(Path(__file__).parent / "fuzz_images.py"))
    client, rng, outcomes = SegmentClient(graph), np.random.default_rng(1), Counter()
    for index in range(60):
        message = fuzz["FUZZERS"]["raw"](rng, Image)
        message.header = header(SECOND + index * PERIOD)
        outcomes[outcome := fuzz["outcome"](message)] += 1
        (client.segment if outcome == "decoded" else client.publish)(message)
    client.segment(image_message(moving_images(1)[0], SECOND + 60 * PERIOD))
    seen = graph.wait_for_status(
        "segmenter: camera", lambda status, values: int(values["published"]) > outcomes["decoded"]
    )
    count = {key: int(seen[key]) for key in ("published", "received", "missed", "dropped: failed", "in flight")}
    assert count["published"] == outcomes["decoded"] + 1
    assert count["received"] + count["missed"] == 61
    assert count["dropped: failed"] == count["in flight"] == 0


def test_breaks_in_the_stream_reset_the_memory_and_say_why(graph: Graph) -> None:
    small, large = moving_images(1)[0], np.tile(moving_images(1)[0], (2, 2, 1))
    steps = [
        (image_message(small, 10 * SECOND), Reset.FIRST),
        (image_message(small, 10 * SECOND + PERIOD), ""),
        (image_message(large, 10 * SECOND + 2 * PERIOD), Reset.SIZE),
        (image_message(large, 9 * SECOND), Reset.STAMP),
        (image_message(large, 9 * SECOND), Reset.STAMP),
        (image_message(large, -SECOND), Reset.STAMP),
        (image_message(large, 20 * SECOND), Reset.GAP),
        (image_message(large, 20 * SECOND + PERIOD, "other_frame"), Reset.FRAME_ID),
        (image_message(large, 20 * SECOND + 2 * PERIOD, "other_frame"), ""),
    ]
    client = SegmentClient(graph)
    for message, reason in steps:
        mask, timing = client.segment(message)
        assert timing.reason == reason
        assert timing.memory == (FrameTiming.MEMORY_NEW if reason else FrameTiming.MEMORY_KEPT)
        assert mask.header == message.header
        assert (mask.width, mask.height) == (message.width, message.height)
        assert len(mask.data) == message.width * message.height
    seen = graph.wait_for_status("segmenter: camera", lambda status, values: values["published"] == str(len(steps)))
    assert seen["resets"] == "7"
    assert seen[f"resets: {Reset.STAMP}"] == "3"
    assert seen["dropped"] == "0"


def test_the_time_of_receipt_stands_in_for_a_missing_stamp(graph: Graph) -> None:
    assert set_parameters(graph, max_gap=3600.0) == ""  # however slow this machine is
    client = SegmentClient(graph)
    for index, image in enumerate(moving_images(3)):
        mask, timing = client.segment(image_message(image, 0))
        assert mask.header == timing.header == header(0)
        assert timing.reason == ("" if index else Reset.FIRST)
        assert timing.receive_ms == 0 and timing.age_ms == pytest.approx(timing.total_ms, abs=20)  # on another clock
    seen = graph.wait_for_status("segmenter: camera", lambda status, values: values["published"] == "3")
    assert seen["published without stamp"] == "3"
    assert set_parameters(graph, max_gap=MAX_GAP) == ""


def test_images_of_several_publishers_are_not_blended(graph: Graph) -> None:
    client, images, stamps = SegmentClient(graph), moving_images(2), count(SECOND, PERIOD)

    def reason() -> str:
        return client.segment(image_message(images[0], next(stamps)))[1].reason

    assert [reason(), reason()] == [Reset.FIRST, ""]
    other = graph.node.create_publisher(Image, "camera/image_raw", QoSProfile(depth=1))
    graph.until(lambda: reason() == Reset.PUBLISHERS, "discovery of the other publisher")
    other.publish(image_message(images[1], stamp_ns := next(stamps)))
    graph.until(lambda: client.timings[-1].header == header(stamp_ns), "mask of the other's image")

    assert client.timings[-1].reason == reason() == Reset.PUBLISHERS
    graph.node.destroy_publisher(other)
    graph.until(lambda: reason() == "", "end of the other publisher")


def test_reset_service_resets_the_memory(graph: Graph, model: Path) -> None:
    images = moving_images(3)
    client = SegmentClient(graph)
    for index in range(2):
        client.segment(image_message(images[index], SECOND + index * PERIOD))
    assert client.timings[-1].memory == FrameTiming.MEMORY_KEPT
    response = graph.call(Trigger, "segmenter/reset")
    assert response.success and "camera" in response.message
    mask, timing = client.segment(image_message(images[2], SECOND + 2 * PERIOD))
    assert (timing.memory, timing.reason) == (FrameTiming.MEMORY_NEW, Reset.REQUEST)
    alone = Segmenter(model).stream().segment(images[2], 0)
    np.testing.assert_array_equal(array_of(mask), alone.mask)


def test_cameras_have_memories_of_their_own(graph: Graph, model: Path) -> None:
    images = {name: moving_images(4, seed) for seed, name in enumerate(CAMERAS)}
    segmenter = Segmenter(model)
    streams = {name: segmenter.stream() for name in CAMERAS}
    clients = {name: SegmentClient(graph, name) for name in CAMERAS}
    for index in range(4):
        for name in CAMERAS:
            image, stamp_ns = images[name][index], SECOND + index * PERIOD
            mask, timing = clients[name].segment(image_message(image, stamp_ns))
            expected = streams[name].segment(image, stamp_ns, FRAME_ID)
            np.testing.assert_array_equal(array_of(mask), expected.mask)
            assert timing.memory == (FrameTiming.MEMORY_KEPT if index else FrameTiming.MEMORY_NEW)
            assert timing.sequence == index


def test_color_and_overlay_show_the_mask_to_subscribers(graph: Graph) -> None:
    client, classes = SegmentClient(graph), load_classes("camvid")
    colors, overlays = (graph.subscribe(Image, f"camera/segmentation/{topic}") for topic in ("color", "overlay"))
    for index, image in enumerate(moving_images(100)):  # until the node has discovered these subscribers too
        mask, _ = client.segment(image_message(image, SECOND + index * PERIOD))
        if colors and overlays:
            break
    graph.until(lambda: colors[-1].header == overlays[-1].header == mask.header, "color and overlay of the mask")
    assert colors[-1].encoding == overlays[-1].encoding == "rgb8"
    np.testing.assert_array_equal(array_of(colors[-1]), classes.colorize(array_of(mask)))
    np.testing.assert_array_equal(array_of(overlays[-1]), classes.overlay(image, array_of(mask), 0.5)[..., ::-1])


def set_parameters(graph: Graph, **values: Any) -> str:
    """Set parameters of the node, and return why it rejects them; empty if it accepts them."""
    changes = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
    result = graph.call(SetParametersAtomically, "segmenter/set_parameters_atomically",
                       SetParametersAtomically.Request(parameters=changes)).result  # fmt: skip
    assert result.successful == (not result.reason)
    return result.reason


def test_live_parameters_change_the_next_frame(graph: Graph, model: Path) -> None:
    # No preset can follow a motion of 10 pixels in images this small: the flows then differ by pixels, and so the masks
    # differ in every precision.
    images, classes = moving_images(6, step=10), load_classes("camvid")
    greys = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in images]
    slow, fast = (DisFlow(preset)(greys[2], greys[1])[..., 0] for preset in ("medium", "ultrafast"))
    assert np.abs(slow - fast).mean() > 1
    segmenter = Segmenter(model)
    stream, client = segmenter.stream(), SegmentClient(graph)
    overlays = graph.subscribe(Image, "camera/segmentation/overlay")
    unchanged = Segmenter(model).stream()
    ultrafast = [unchanged.segment(image, SECOND + index * PERIOD).mask for index, image in enumerate(images)]

    def segment(index: int) -> tuple[np.ndarray, str]:
        mask, timing = client.segment(image_message(images[index], SECOND + index * PERIOD))
        expected = stream.segment(images[index], SECOND + index * PERIOD, FRAME_ID)
        np.testing.assert_array_equal(array_of(mask), expected.mask)
        assert timing.reason == expected.reason
        return expected.mask, timing.reason

    assert segment(0)[1] == Reset.FIRST and segment(1)[1] == ""
    assert set_parameters(graph, flow_preset="medium") == ""
    segmenter.flow = DisFlow("medium")
    mask, reason = segment(2)
    assert reason == "" and (mask != ultrafast[2]).mean() > 0.005
    assert set_parameters(graph, max_gap=PERIOD / SECOND / 2) == ""
    segmenter.max_gap = PERIOD / SECOND / 2
    assert segment(3)[1] == Reset.GAP
    assert set_parameters(graph, overlay_alpha=0.9) == ""
    mask, _ = segment(4)
    graph.until(lambda: overlays and overlays[-1].header == header(SECOND + 4 * PERIOD), "overlay")
    np.testing.assert_array_equal(array_of(overlays[-1]), classes.overlay(images[4], mask, 0.9)[..., ::-1])
    assert set_parameters(graph, flow_preset="fast", max_gap=0.5, overlay_alpha=0.5) == ""


def test_thresholds_of_the_diagnostics_are_live_parameters(graph: Graph) -> None:
    client = SegmentClient(graph)
    client.segment(image_message(moving_images(1)[0], SECOND))
    graph.wait_for_status("segmenter: camera", lambda status, values: status.level == DiagnosticStatus.OK)
    assert set_parameters(graph, age_error=1.0, stale_warn=0.0, stale_error=0.0) == ""
    seen = graph.wait_for_status("segmenter: camera", lambda status, values: status.level == DiagnosticStatus.ERROR)
    assert "ms from stamp to mask (p95)" in seen["message"]  # the stamp is in 1970
    assert set_parameters(graph, age_error=0.0, stale_warn=3.0, stale_error=10.0) == ""


def test_invalid_changes_of_parameters_are_rejected_with_a_reason(graph: Graph) -> None:
    for values, reason in (
        ({"model": "other"}, "model is read when the node is configured: clean up, set it, configure again."),
        ({"max_gap": 1.0, "cameras": ["a"]}, "cameras is read when the node is configured"),
        ({"flow_preset": "best"}, "flow_preset is 'best'. Give one of ultrafast, fast, medium."),
        ({"overlay_alpha": 1.5}, "1.5"),
        ({"max_gap": "long"}, "type"),
    ):
        question = GetParameters.Request(names=list(values))
        before = graph.call(GetParameters, "segmenter/get_parameters", question)
        assert reason in set_parameters(graph, **values)
        assert graph.call(GetParameters, "segmenter/get_parameters", question) == before


def test_a_transition_that_is_not_possible_is_refused_with_the_reason(graph: Graph, program: Program) -> None:
    for transition, problem in (
        (Transition(id=Transition.TRANSITION_CONFIGURE), "cannot configure (1)"),
        (Transition(label="cleanup"), "cannot make transition cleanup"),
        (Transition(id=Transition.TRANSITION_UNCONFIGURED_SHUTDOWN), "cannot shutdown (5)"),
        (Transition(id=200), "cannot make transition 200"),
    ):
        request = ChangeState.Request(transition=transition)
        assert not graph.call(ChangeState, "segmenter/change_state", request).success
        problem += ": the node is active, and can deactivate (4) or shutdown (7)"
        assert problem in program.output
    seen = graph.wait_for_status("segmenter", lambda status, values: values["last error"] == problem)
    assert seen["state"] == "active"
    request = ChangeState.Request(transition=Transition(label="x" * 10**5))
    assert not graph.call(ChangeState, "segmenter/change_state", request).success
    seen = graph.wait_for_status("segmenter", lambda status, values: "transition xxx" in values["last error"])
    assert len(seen["last error"]) < 1100
    assert SegmentClient(graph).segment(image_message(moving_images(1)[0], SECOND))[1].reason == Reset.FIRST


def test_a_request_for_which_rclpy_raises_an_error_is_answered(graph: Graph, program: Program) -> None:
    unknown = ParameterMessage(name="max_gap", value=ParameterValue(type=77))
    request = SetParameters.Request(parameters=[unknown])
    assert graph.call(SetParameters, "segmenter/set_parameters", request).results == []
    assert "a request to /segmenter/set_parameters failed: ValueError: 77 is not a valid" in program.output
    assert graph.lifecycle().state() == "active"


@pytest.mark.skipif(
    importlib.util.find_spec("vision_msgs") is None, reason="no vision_msgs: source a ROS 2 installation that has it"
)
def test_label_info_reaches_late_subscribers(graph: Graph) -> None:
    from vision_msgs.msg import LabelInfo

    received: list[LabelInfo] = []
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    graph.node.create_subscription(LabelInfo, "camera/segmentation/label_info", received.append, latched)
    graph.until(lambda: received, "names of the ids")
    assert [(item.class_id, item.class_name) for item in received[0].class_map] == list(
        enumerate(load_classes("camvid").names)
    )


def test_every_frame_is_counted_under_overload(graph: Graph, program: Program) -> None:
    images = moving_images(40)
    client = SegmentClient(graph)
    client.segment(image_message(images[0], SECOND))
    for index, image in enumerate(images[1:], start=1):
        if index == 10:
            program.send(signal.SIGSTOP)  # it misses the images that its queue of one cannot hold
        client.publish(image_message(image, SECOND + index * PERIOD))
    program.send(signal.SIGCONT)
    last = SECOND + 39 * PERIOD
    graph.until(lambda: client.masks[-1].header == header(last), "mask of the newest image")
    seen = graph.wait_for_status("segmenter: camera", lambda status, values: values["in flight"] == "0")
    received, published, dropped, missed = (int(seen[key]) for key in ("received", "published", "dropped", "missed"))
    assert received + missed == 40
    assert received == published + dropped
    assert dropped == int(seen["dropped: superseded"])
    assert dropped + missed > 0
    graph.until(lambda: len(client.masks) == published, "mask of each published frame")
    assert client.timings[-1].dropped == dropped + missed
