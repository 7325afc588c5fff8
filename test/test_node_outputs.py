# SPDX-License-Identifier: Apache-2.0
"""What the segment node publishes beside the mask, and the forms that masks can have: real nodes, compared with NumPy.

The node runs in a process of its own, so this process is the consumer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from graph import (
    FRAME_ID,
    SECOND,
    Graph,
    SegmentClient,
    array_of,
    header,
    image_message,
    lossless,
    moving_images,
    node_command,
    running,
)
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, RegionOfInterest

from netwarp_ros.classes import load_classes
from netwarp_ros.node.camera_info import scaled_camera_info
from netwarp_ros.node.images import mask_message
from netwarp_ros.node.lifecycle import LifecycleError
from netwarp_ros.recordings.bag_writer import write_bag
from netwarp_ros.recordings.frames import Frame
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.segmenter import Confidence, Reset, Result, Segmenter

pytestmark = pytest.mark.ros

PERIOD = SECOND // 10
CAMVID = load_classes("camvid")
COUNT = 4


@contextmanager
def segmenting(graph: Graph, log: Path, model: Path, **parameters: Any) -> Iterator[None]:
    """Run an active node."""
    given = {"model": model, "precision": "float32", **lossless("camera"), **parameters}
    with running(node_command("segment_node", **given), log):
        lifecycle = graph.lifecycle()
        lifecycle.configure()
        lifecycle.activate()
        yield


def set_parameters(graph: Graph, **values: float) -> None:
    parameters = [
        ParameterMessage(name=name.replace("__", "."), value=ParameterValue(type=3, double_value=value))
        for name, value in values.items()
    ]
    response = graph.call(SetParameters, "/segmenter/set_parameters", SetParameters.Request(parameters=parameters))
    assert all(result.successful for result in response.results), response


def expected(model: Path, confidence: Confidence | None = None, **options: Any) -> list[Result]:
    ego_mask = options.pop("ego_mask", None)
    segmenter = Segmenter(model, precision="float32", engine="torch", **options)
    segmenter.confidence = confidence or Confidence()
    stream = segmenter.stream(ego_mask=ego_mask)
    return [
        stream.segment(image, SECOND + index * PERIOD, FRAME_ID, confidence=True)
        for index, image in enumerate(moving_images(COUNT))
    ]


def publish_all(graph: Graph, client: SegmentClient, start: int = 0, end: int = COUNT) -> None:
    for index, image in list(enumerate(moving_images(COUNT)))[start:end]:
        client.segment(image_message(image, SECOND + index * PERIOD))


def test_the_confidence_has_the_masks_size_and_header_and_follows_temperature_and_thresholds(
    graph: Graph, model: Path, tmp_path: Path
) -> None:
    plain = expected(model, Confidence(0.5))
    assert plain[2].confidence is not None
    common = np.bincount(plain[2].mask.ravel()).argmax()
    threshold = float(np.median(plain[2].confidence[plain[2].mask == common])) / 255
    unsure = expected(model, Confidence(0.5, {CAMVID.names[common]: threshold}))
    assert 0 < (unsure[2].mask == 255).sum() < unsure[2].mask.size
    with segmenting(graph, tmp_path / "log", model, temperature=0.5):
        received = graph.subscribe(Image, "camera/segmentation/confidence")
        client = SegmentClient(graph)
        publish_all(graph, client, end=2)
        set_parameters(graph, **{f"thresholds__{CAMVID.names[common]}": threshold})
        publish_all(graph, client, start=2)
        graph.until(lambda: len(received) == COUNT, "confidence of each frame")
        for index, (mask, confidence) in enumerate(zip(client.masks, received, strict=True)):
            wanted = (plain if index < 2 else unsure)[index]
            assert confidence.header == mask.header == header(SECOND + index * PERIOD)
            assert (confidence.encoding, confidence.height, confidence.width) == ("mono8", mask.height, mask.width)
            assert np.array_equal(array_of(mask), wanted.mask)
            assert wanted.confidence is not None
            assert np.abs(array_of(confidence).astype(int) - wanted.confidence).max() <= 1


@pytest.mark.parametrize(
    ("options", "encoding", "shape"),
    [
        ({"mask_size": "network"}, "mono8", (48, 64)),
        ({"mask_size": "20x30"}, "16SC1", (30, 20)),
        ({"label_map": "nav2"}, "mono8_rle", (48, 64)),
        ({"label_map": "nav2", "mask_size": "31x17"}, "16SC1", (17, 31)),
    ],
)
def test_masks_have_the_labels_size_and_encoding_that_are_asked_for(
    graph: Graph, model: Path, tmp_path: Path, options: dict[str, str], encoding: str, shape: tuple[int, int]
) -> None:
    wanted = expected(model, **options)
    with segmenting(graph, tmp_path / "log", model, mask_encoding=encoding, **options):
        client = SegmentClient(graph)
        publish_all(graph, client)
        for message, result in zip(client.masks, wanted, strict=True):
            assert (message.height, message.width) == result.mask.shape == shape
            assert np.array_equal(decoded(message, encoding), result.mask)


def decoded(message: Image, encoding: str) -> np.ndarray:
    """Return class ids, void 255, as a consumer reads them."""
    assert message.encoding == encoding.removesuffix("_rle")
    data = bytes(message.data)
    if encoding == "mono8_rle":
        runs = [(data[at], int.from_bytes(data[at + 1 : at + 5], "little")) for at in range(0, len(data), 5)]
        ids = np.concatenate([np.full(length, value, np.uint8) for value, length in runs])
        return ids.reshape(message.height, message.width)
    if encoding == "16SC1":
        assert message.step == 2 * message.width
        ids = np.frombuffer(data, ">i2" if message.is_bigendian else "<i2").reshape(message.height, message.width)
        return np.where(ids == -1, 255, ids)
    return array_of(message)


@pytest.mark.parametrize(
    "mask", [np.zeros((1, 1), np.uint8), np.full((3, 5), 255, np.uint8), np.eye(9, dtype=np.uint8)]
)
@pytest.mark.parametrize("encoding", ["mono8", "16SC1", "mono8_rle"])
def test_every_encoding_can_be_read_back(mask: np.ndarray, encoding: str) -> None:
    assert np.array_equal(decoded(mask_message(mask, header(SECOND), encoding), encoding), mask)


def test_binary_masks_hold_the_pixels_of_their_classes(graph: Graph, model: Path, tmp_path: Path) -> None:
    wanted = expected(model)
    present = [CAMVID.names[index] for index in np.unique(wanted[-1].mask)]
    groups = {"masks.some": f"[{present[0]}]", "masks.more": f"[{', '.join(present[1:])}]"}
    with segmenting(graph, tmp_path / "log", model, **groups):
        some, more = (graph.subscribe(Image, f"camera/segmentation/{name}") for name in ("some", "more"))
        publish_all(graph, SegmentClient(graph))
        graph.until(lambda: len(some) == len(more) == COUNT, "binary masks")
        for binary, others, result in zip(some, more, wanted, strict=True):
            members = result.mask == CAMVID.names.index(present[0])
            assert np.array_equal(array_of(binary), np.where(members, 255, 0))
            rest = np.isin(result.mask, [CAMVID.names.index(name) for name in present[1:]])
            assert np.array_equal(array_of(others), np.where(rest, 255, 0))
        assert some[-1].header == header(SECOND + (COUNT - 1) * PERIOD)


def test_the_ego_mask_of_a_camera_leaves_out_its_pixels(graph: Graph, model: Path, tmp_path: Path) -> None:
    ego = np.zeros((24, 32), np.uint8)
    ego[12:, 5:20] = 255
    assert cv2.imwrite(str(tmp_path / "ego.png"), ego)
    wanted, without = expected(model, ego_mask=ego), expected(model)
    parameters = {"cameras": "[camera, other]", "camera.ego_mask": tmp_path / "ego.png", **lossless("other")}
    with segmenting(graph, tmp_path / "log", model, **parameters):
        received = graph.subscribe(Image, "camera/segmentation/confidence")
        client, other = SegmentClient(graph), SegmentClient(graph, "other")
        publish_all(graph, client)
        publish_all(graph, other)
        graph.until(lambda: len(received) == COUNT, "confidence")
        covered = cv2.resize(ego, (64, 48), interpolation=cv2.INTER_NEAREST) > 0
        for mask, confidence, result in zip(client.masks, received, wanted, strict=True):
            assert np.array_equal(array_of(mask), result.mask)
            assert (array_of(mask)[covered] == 255).all() and not array_of(confidence)[covered].any()
        for mask, result in zip(other.masks, without, strict=True):
            assert np.array_equal(array_of(mask), result.mask)


def calibration(stamp_ns: int) -> CameraInfo:
    k = [100.0, 0.0, 31.5, 0.0, 110.0, 23.5, 0.0, 0.0, 1.0]
    p = [101.0, 0.0, 30.0, -7.0, 0.0, 111.0, 22.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    return CameraInfo(
        header=header(stamp_ns, "elsewhere"), height=48, width=64, distortion_model="plumb_bob", d=[0.1] * 5, k=k, p=p
    )


def test_the_calibration_is_that_of_the_mask_with_the_images_header(graph: Graph, model: Path, tmp_path: Path) -> None:
    with segmenting(graph, tmp_path / "log", model, mask_size="32x96"):
        received = graph.subscribe(CameraInfo, "camera/segmentation/camera_info")
        client = SegmentClient(graph)
        client.segment(image_message(moving_images(1)[0], SECOND))  # the camera's calibration has not come yet
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)  # as sensors publish; later than the node
        publisher = graph.node.create_publisher(CameraInfo, "camera/camera_info", qos)

        def calibrated() -> bool:
            publisher.publish(calibration(7 * SECOND))
            stamp_ns = SECOND + (len(client.masks) + 1) * PERIOD
            client.segment(image_message(moving_images(1)[0], stamp_ns))
            return bool(received)

        graph.until(calibrated, "calibration")
        info = received[0]
        assert info.header in [mask.header for mask in client.masks]
        assert (info.width, info.height) == (32, 96)
        assert list(info.k) == pytest.approx([50.0, 0.0, 15.5, 0.0, 220.0, 47.5, 0.0, 0.0, 1.0])
        assert list(info.p) == pytest.approx([50.5, 0.0, 14.75, -3.5, 0.0, 222.0, 44.5, 0.0, 0.0, 0.0, 1.0, 0.0])
        assert list(info.d) == [0.1] * 5 and info.distortion_model == "plumb_bob"


def test_a_point_is_projected_to_the_same_place_of_the_scene_in_image_and_mask() -> None:
    """Also if the image is a binned region of the sensor."""
    info = calibration(0)
    info.width, info.height, info.binning_x, info.binning_y = 640, 480, 2, 4
    info.roi = RegionOfInterest(x_offset=100, y_offset=40, width=200, height=160)
    image, mask = (40, 100), (20, 300)
    scaled = scaled_camera_info(info, image, mask, header(SECOND))
    ray = np.array([0.3, -0.2, 2.0])
    full, own = (np.reshape(one.k, (3, 3)) @ ray / ray[2] for one in (info, scaled))
    # Edges correspond: -0.5 is the left edge of the first pixel.
    assert own[0] == pytest.approx((full[0] + 0.5 - 100) / 200 * 300 - 0.5)
    assert own[1] == pytest.approx((full[1] + 0.5 - 40) / 160 * 20 - 0.5)
    assert (scaled.roi.width, scaled.binning_x) == (0, 0)
    uncalibrated = scaled_camera_info(CameraInfo(width=64, height=48), (48, 64), mask, header(SECOND))
    assert not any(uncalibrated.k) and not any(uncalibrated.p) and uncalibrated.width == 300


def test_each_camera_may_have_its_own_transport(graph: Graph, model: Path, tmp_path: Path) -> None:
    parameters = {"cameras": "[camera, other]", "other.transport": "compressed", **lossless("other")}
    with segmenting(graph, tmp_path / "log", model, **parameters):
        raw, compressed = SegmentClient(graph), SegmentClient(graph, "other", CompressedImage)
        image = moving_images(1)[0]
        mask, _ = raw.segment(image_message(image, SECOND))
        png = cv2.imencode(".png", image)[1].tobytes()
        other, _ = compressed.segment(CompressedImage(header=header(SECOND), format="png", data=png))
        assert np.array_equal(array_of(mask), array_of(other))


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        (
            {"masks.people": "[pedestrain]"},
            "masks.people has 'pedestrain', which is no class of camvid: give some of sky",
        ),
        ({"masks.color": "[car]"}, "masks.color has the name of another topic"),
        ({"thresholds.raod": 0.5}, "thresholds.raod is given, and 'raod' is no class of camvid: give some of sky"),
        ({"label_map": "mars"}, "no label map named 'mars'"),
        ({"front.ego_mask": "ego.png"}, "front.ego_mask is given, and 'front' is not among cameras: correct one"),
        ({"camera.ego_mask": "/no/such.png"}, "the ego mask /no/such.png cannot be read"),
    ],
)
def test_wrong_names_leave_the_node_unconfigured_with_the_way_out(
    graph: Graph, model: Path, tmp_path: Path, parameters: dict[str, Any], problem: str
) -> None:
    with running(node_command("segment_node", model=model, **parameters), tmp_path / "log") as program:
        with pytest.raises(LifecycleError, match="unconfigured"):
            graph.lifecycle().configure()
        seen = graph.wait_for_status("segmenter", lambda status, values: status.level == b"\x02")
        assert f"cannot be configured: {problem}" in seen["message"] and problem in program.output


def test_parameters_that_do_not_exist_are_told(graph: Graph, model: Path, tmp_path: Path) -> None:
    command = node_command("segment_node", model=model, **{"maks.people": "[car]", "treshold": 1.0})
    with running(command, tmp_path / "log") as program:
        graph.lifecycle().configure()
        graph.until(lambda: "there are no parameters" in program.output, "warning")
        assert "there are no parameters maks.people, treshold: they have no effect" in program.output


def test_with_simulated_time_ages_are_of_its_clock(graph: Graph, model: Path, tmp_path: Path) -> None:
    """A bag is played as at rate 2, in steps: the clock shows 100 ms after each stamp while its image is segmented."""
    start, images = 1_000 * SECOND, moving_images(COUNT)
    frames = [Frame(i, start + i * PERIOD, FRAME_ID, image) for i, image in enumerate(images)]
    write_bag(tmp_path / "drive.mcap", frames, topic="/camera/image_raw")
    with segmenting(graph, tmp_path / "log", model, use_sim_time=True):
        clock, client = graph.publisher("/clock", Clock), SegmentClient(graph)
        diagnostics = graph.subscribe(DiagnosticArray, "/diagnostics")
        for frame in open_frames(tmp_path / "drive.mcap"):
            now = header(frame.stamp_ns + PERIOD).stamp

            def node_shows_now(now: Time = now) -> bool:  # the clock must reach the node before the image does
                clock.publish(Clock(clock=now))
                return any(message.header.stamp == now for message in diagnostics)

            graph.until(node_shows_now, "clock")
            client.segment(image_message(frame.image, frame.stamp_ns))
        assert len(client.timings) == COUNT
        for timing in client.timings:
            assert (timing.receive_ms, timing.age_ms) == (pytest.approx(100.0), pytest.approx(100.0))
            assert timing.total_ms > 0 and timing.reason == ("" if timing.sequence else Reset.FIRST)
