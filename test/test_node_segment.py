# SPDX-License-Identifier: Apache-2.0
"""What the segment node makes of images: one process for all tests, activated anew for each.

Frames are published one at a time. Not asserted: how long anything takes, and which frames are dropped when more come
than it can do.
"""

from __future__ import annotations

import importlib.util
import runpy
import signal
from collections import Counter
from collections.abc import Callable, Iterator
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
    Viewer,
    array_of,
    header,
    image_message,
    lossless,
    moving_images,
    node_command,
    open_graph,
    own_domain,
    running,
    tiny_model,
)
from rcl_interfaces.srv import GetParameters, SetParametersAtomically
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
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


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
    """The graph with that node active."""
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

    viewer = Viewer(graph)
    for frame in open_frames(folder):
        message = image_message(frame.image, frame.stamp_ns)
        mask, timing = viewer.see(message)
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
    assert len(viewer.masks) == 6


def test_a_replayed_bag_gives_the_masks_that_are_evaluated(graph: Graph, model: Path, tmp_path: Path) -> None:
    images = enumerate(moving_images(6))
    # As slowly as the memory allows, that none be superseded.
    gap_ns = round(MAX_GAP * SECOND)
    frames = [Frame(index, 100 * SECOND + index * gap_ns, "", image) for index, image in images]
    write_bag(tmp_path / "drive.mcap", frames, topic="/camera/image_raw")
    masks = graph.hear(Image, "camera/segmentation/mask")
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
    viewer = Viewer(graph)
    viewer.see(image_message(images[0], SECOND))
    for index, (spoil, problem) in enumerate(bad):
        stamp_ns = SECOND + (2 * index + 1) * PERIOD
        malformed = image_message(images[2 * index + 1], stamp_ns)
        spoil(malformed)
        viewer.publish(malformed)
        seen = graph.diagnosis(
            "segmenter: camera", lambda status, values, problem=problem: problem in values["last error"]
        )
        assert seen["dropped: malformed"] == str(index + 1)
        good = image_message(images[2 * index + 2], stamp_ns + PERIOD)
        mask, timing = viewer.see(good)
        assert mask.header == good.header
        assert timing.memory == FrameTiming.MEMORY_KEPT
        assert timing.dropped == index + 1
    seen = graph.diagnosis("segmenter: camera", lambda status, values: values["published"] == str(len(bad) + 1))
    assert (seen["received"], seen["dropped"], seen["in flight"]) == (str(2 * len(bad) + 1), str(len(bad)), "0")


def test_every_damaged_image_is_counted_and_none_fails(graph: Graph) -> None:
    fuzz = runpy.run_path(str(Path(__file__).parent / "fuzz_images.py"))
    viewer, rng, outcomes = Viewer(graph), np.random.default_rng(1), Counter()
    for index in range(60):
        message = fuzz["FUZZED"]["raw"](rng, Image)
        message.header = header(SECOND + index * PERIOD)
        outcomes[outcome := fuzz["outcome"](message)] += 1
        (viewer.see if outcome == "decoded" else viewer.publish)(message)
    viewer.see(image_message(moving_images(1)[0], SECOND + 60 * PERIOD))
    seen = graph.diagnosis("segmenter: camera", lambda status, values: int(values["published"]) > outcomes["decoded"])
    count = {key: int(seen[key]) for key in ("published", "received", "missed", "dropped: failed", "in flight")}
    assert count["published"] == outcomes["decoded"] + 1
    assert count["received"] + count["missed"] == 61
    assert count["dropped: failed"] == count["in flight"] == 0


def test_breaks_in_the_stream_start_the_memory_anew_and_say_why(graph: Graph) -> None:
    small, large = moving_images(1)[0], np.tile(moving_images(1)[0], (2, 2, 1))
    steps = [
        (image_message(small, 10 * SECOND), Reset.FIRST),
        (image_message(small, 10 * SECOND + PERIOD), ""),
        (image_message(large, 10 * SECOND + 2 * PERIOD), Reset.SIZE),
        (image_message(large, 9 * SECOND), Reset.STAMP),
        (image_message(large, 0), Reset.STAMP),
        (image_message(large, 0), Reset.STAMP),
        (image_message(large, -SECOND), Reset.STAMP),
        (image_message(large, 20 * SECOND), Reset.GAP),
        (image_message(large, 20 * SECOND + PERIOD, "other_frame"), Reset.FRAME_ID),
        (image_message(large, 20 * SECOND + 2 * PERIOD, "other_frame"), ""),
    ]
    viewer = Viewer(graph)
    for message, reason in steps:
        mask, timing = viewer.see(message)
        assert timing.reason == reason
        assert timing.memory == (FrameTiming.MEMORY_NEW if reason else FrameTiming.MEMORY_KEPT)
        assert mask.header == message.header
        assert (mask.width, mask.height) == (message.width, message.height)
        assert len(mask.data) == message.width * message.height
    seen = graph.diagnosis("segmenter: camera", lambda status, values: values["published"] == str(len(steps)))
    assert seen["resets"] == "8"
    assert seen[f"resets: {Reset.STAMP}"] == "4"
    assert seen["dropped"] == "0"


def test_reset_service_starts_the_memory_anew(graph: Graph, model: Path) -> None:
    images = moving_images(3)
    viewer = Viewer(graph)
    for index in range(2):
        viewer.see(image_message(images[index], SECOND + index * PERIOD))
    assert viewer.timings[-1].memory == FrameTiming.MEMORY_KEPT
    answer = graph.ask(Trigger, "segmenter/reset")
    assert answer.success and "camera" in answer.message
    mask, timing = viewer.see(image_message(images[2], SECOND + 2 * PERIOD))
    assert (timing.memory, timing.reason) == (FrameTiming.MEMORY_NEW, Reset.REQUEST)
    alone = Segmenter(model).stream().segment(images[2], 0)
    np.testing.assert_array_equal(array_of(mask), alone.mask)


def test_cameras_have_memories_of_their_own(graph: Graph, model: Path) -> None:
    images = {name: moving_images(4, seed) for seed, name in enumerate(CAMERAS)}
    segmenter = Segmenter(model)
    streams = {name: segmenter.stream() for name in CAMERAS}
    viewers = {name: Viewer(graph, name) for name in CAMERAS}
    for index in range(4):
        for name in CAMERAS:
            image, stamp_ns = images[name][index], SECOND + index * PERIOD
            mask, timing = viewers[name].see(image_message(image, stamp_ns))
            expected = streams[name].segment(image, stamp_ns, FRAME_ID)
            np.testing.assert_array_equal(array_of(mask), expected.mask)
            assert timing.memory == (FrameTiming.MEMORY_KEPT if index else FrameTiming.MEMORY_NEW)
            assert timing.sequence == index


def test_color_and_overlay_show_the_mask_to_those_who_subscribe(graph: Graph) -> None:
    viewer, classes = Viewer(graph), load_classes("camvid")
    colors, overlays = (graph.hear(Image, f"camera/segmentation/{topic}") for topic in ("color", "overlay"))
    for index, image in enumerate(moving_images(100)):  # until the node knows of these subscribers too
        mask, _ = viewer.see(image_message(image, SECOND + index * PERIOD))
        if colors and overlays:
            break
    graph.until(lambda: colors[-1].header == overlays[-1].header == mask.header, "color and overlay of the mask")
    assert colors[-1].encoding == overlays[-1].encoding == "rgb8"
    np.testing.assert_array_equal(array_of(colors[-1]), classes.colorize(array_of(mask)))
    np.testing.assert_array_equal(array_of(overlays[-1]), classes.overlay(image, array_of(mask), 0.5)[..., ::-1])


def set_parameters(graph: Graph, **values: Any) -> str:
    """Set parameters of the node, and return why it refuses; empty if it does not."""
    changes = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
    answer = graph.ask(SetParametersAtomically, "segmenter/set_parameters_atomically",
                       SetParametersAtomically.Request(parameters=changes)).result  # fmt: skip
    assert answer.successful == (not answer.reason)
    return answer.reason


def test_parameters_that_are_taken_at_once_change_the_next_frame(graph: Graph, model: Path) -> None:
    images, classes = moving_images(6), load_classes("camvid")
    segmenter = Segmenter(model)
    stream, viewer = segmenter.stream(), Viewer(graph)
    overlays = graph.hear(Image, "camera/segmentation/overlay")
    unchanged = Segmenter(model).stream()
    others = [unchanged.segment(image, SECOND + index * PERIOD).mask for index, image in enumerate(images)]

    def see(index: int) -> tuple[np.ndarray, str]:
        mask, timing = viewer.see(image_message(images[index], SECOND + index * PERIOD))
        expected = stream.segment(images[index], SECOND + index * PERIOD, FRAME_ID)
        np.testing.assert_array_equal(array_of(mask), expected.mask)
        assert timing.reason == expected.reason
        return expected.mask, timing.reason

    assert see(0)[1] == Reset.FIRST and see(1)[1] == ""
    assert set_parameters(graph, flow_preset="medium") == ""
    segmenter.flow = DisFlow("medium")
    mask, reason = see(2)
    assert reason == "" and (mask != others[2]).any()
    assert set_parameters(graph, max_gap=PERIOD / SECOND / 2) == ""
    segmenter.max_gap = PERIOD / SECOND / 2
    assert see(3)[1] == Reset.GAP
    assert set_parameters(graph, overlay_alpha=0.9) == ""
    mask, _ = see(4)
    graph.until(lambda: overlays and overlays[-1].header == header(SECOND + 4 * PERIOD), "overlay")
    np.testing.assert_array_equal(array_of(overlays[-1]), classes.overlay(images[4], mask, 0.9)[..., ::-1])
    assert set_parameters(graph, flow_preset="fast", max_gap=0.5, overlay_alpha=0.5) == ""


def test_thresholds_of_the_diagnostics_are_taken_at_once(graph: Graph) -> None:
    viewer = Viewer(graph)
    viewer.see(image_message(moving_images(1)[0], SECOND))
    graph.diagnosis("segmenter: camera", lambda status, values: status.level == DiagnosticStatus.OK)
    assert set_parameters(graph, age_error=1.0, stale_warn=0.0, stale_error=0.0) == ""
    seen = graph.diagnosis("segmenter: camera", lambda status, values: status.level == DiagnosticStatus.ERROR)
    assert "ms from stamp to mask (p95)" in seen["message"]  # the stamp is of 1970
    assert set_parameters(graph, age_error=0.0, stale_warn=3.0, stale_error=10.0) == ""


def test_changes_that_cannot_be_made_are_refused_with_a_reason(graph: Graph) -> None:
    for values, reason in (
        ({"model": "other"}, "model is read when the node is configured: clean up, set it, configure again."),
        ({"max_gap": 1.0, "cameras": ["a"]}, "cameras is read when the node is configured"),
        ({"flow_preset": "best"}, "flow_preset is 'best'. Give one of ultrafast, fast, medium."),
        ({"overlay_alpha": 1.5}, "1.5"),
        ({"max_gap": "long"}, "type"),
    ):
        question = GetParameters.Request(names=list(values))
        before = graph.ask(GetParameters, "segmenter/get_parameters", question)
        assert reason in set_parameters(graph, **values)
        assert graph.ask(GetParameters, "segmenter/get_parameters", question) == before


@pytest.mark.skipif(
    importlib.util.find_spec("vision_msgs") is None, reason="no vision_msgs: source a ROS 2 installation that has it"
)
def test_whoever_comes_late_learns_the_names_of_the_ids(graph: Graph) -> None:
    from vision_msgs.msg import LabelInfo

    heard: list[LabelInfo] = []
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    graph.node.create_subscription(LabelInfo, "camera/segmentation/label_info", heard.append, latched)
    graph.until(lambda: heard, "names of the ids")
    assert [(item.class_id, item.class_name) for item in heard[0].class_map] == list(
        enumerate(load_classes("camvid").names)
    )


def test_every_frame_of_a_flood_is_accounted_for(graph: Graph, program: Program) -> None:
    images = moving_images(40)
    viewer = Viewer(graph)
    viewer.see(image_message(images[0], SECOND))
    for index, image in enumerate(images[1:], start=1):
        if index == 10:
            program.send(signal.SIGSTOP)  # what it cannot take from its queue of one, it must miss
        viewer.publish(image_message(image, SECOND + index * PERIOD))
    program.send(signal.SIGCONT)
    last = SECOND + 39 * PERIOD
    graph.until(lambda: viewer.masks[-1].header == header(last), "mask of the newest image")
    seen = graph.diagnosis("segmenter: camera", lambda status, values: values["in flight"] == "0")
    received, published, dropped, missed = (int(seen[key]) for key in ("received", "published", "dropped", "missed"))
    assert received + missed == 40
    assert received == published + dropped
    assert dropped == int(seen["dropped: superseded"])
    assert dropped + missed > 0
    graph.until(lambda: len(viewer.masks) == published, "mask of each published frame")
    assert viewer.timings[-1].dropped == dropped + missed
