# SPDX-License-Identifier: Apache-2.0
"""Masks arrive where docs/integration.md says: each preset runs in a node, and a consumer in another process reads it.

The consumers (consumers.py) do what the sources of Nav2's layer, Autoware, Hydra, nvblox and elevation mapping do.
These programs themselves are not run. What the consumers read is compared with what `Segmenter` computes.

Frames are published until the consumer has read enough: any of them may be lost or superseded. Their stamps are 0.6 s
apart. So each has only one partner within 0.1 s, and is segmented without memory, whichever came before it.
"""

from __future__ import annotations

import importlib.util
import re
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from json import loads
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from graph import (
    FRAME_ID,
    PYTHON,
    SECOND,
    SIZE,
    Graph,
    Program,
    header,
    image_message,
    moving_images,
    open_graph,
    own_domain,
    running,
)
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.srv import GetParameters, SetParametersAtomically
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField

from netwarp_ros import Segmenter
from netwarp_ros.classes import load_label_map
from netwarp_ros.node.process import parameter_arguments
from netwarp_ros.resources import resource
from netwarp_ros.segmenter import Confidence, Result

pytestmark = pytest.mark.ros

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "integration.md").read_text(encoding="utf-8")
PERIOD = 6 * SECOND // 10
CLOUD_DELAY = SECOND // 33
COUNT = 3
"""How many frames a consumer reads."""

K = [50.0, 0.0, 31.0, 0.0, 48.0, 24.5, 0.0, 0.0, 1.0]
PEOPLE = (9, 10)  # pedestrian and bicyclist of CamVid


@dataclass(frozen=True)
class Preset:
    """A preset that a node was started with.

    Attributes:
        camera: Name of its camera, with the namespace.
        program: The node's process, unconfigured.
        target: Name of the node.
    """

    camera: str
    program: Program
    target: str


@pytest.fixture(scope="module")
def ego(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ego mask: the robot is in the lowest sixth."""
    mask = np.zeros((12, 16), np.uint8)
    mask[10:] = 255
    file = tmp_path_factory.mktemp("ego") / "ego.png"
    assert cv2.imwrite(str(file), mask)
    return file


@pytest.fixture(scope="module")
def preset(
    request: pytest.FixtureRequest, model: Path, ego: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Preset]:
    """A node with a preset, another model, and small images."""
    name = request.param
    namespace = "/sensing/camera" if name == "autoware_pointcloud_fusion" else ""
    changes: dict[str, Any] = {"model": model, "engine": "torch", "image_sizes": ["64x48"]}
    if name == "hydra":
        changes["camera.ego_mask"] = ego
    command = [
        *PYTHON,
        "-m",
        "netwarp_ros.node.segment_node",
        "--ros-args",
        "--params-file",
        str(resource(f"{name}.yaml")),
    ]
    command += [*parameter_arguments(**changes), *(["-r", f"__ns:={namespace}"] if namespace else [])]
    camera = "sensing/camera/camera0" if namespace else "camera"
    with own_domain(), running(command, tmp_path_factory.mktemp(name) / "log") as program:
        yield Preset(camera, program, f"{namespace}/segmenter")
        assert "have no effect" not in program.output


def with_preset(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("preset", [name], indirect=True)


@contextmanager
def active(preset: Preset, **changes: Any) -> Iterator[Graph]:
    """Configure and activate the node, with changed parameters; at the end, undo all that."""
    with open_graph() as graph, changed(graph, preset, changes) if changes else nullcontext():
        lifecycle = graph.lifecycle(preset.target)
        lifecycle.configure()
        lifecycle.activate()
        yield graph
        lifecycle.deactivate()
        lifecycle.cleanup()


@contextmanager
def changed(graph: Graph, preset: Preset, changes: Mapping[str, Any]) -> Iterator[None]:
    """Change parameters, and change them back."""

    def set_all(parameters: list[ParameterMessage]) -> None:
        request = SetParametersAtomically.Request(parameters=parameters)
        result = graph.call(SetParametersAtomically, f"{preset.target}/set_parameters_atomically", request).result
        assert result.successful, result.reason

    request = GetParameters.Request(names=list(changes))
    before = graph.call(GetParameters, f"{preset.target}/get_parameters", request).values
    set_all([Parameter(name, value=value).to_parameter_msg() for name, value in changes.items()])
    yield
    set_all([ParameterMessage(name=name, value=value) for name, value in zip(changes, before, strict=True)])


def camera_info(stamp_ns: int, width: int, height: int) -> CameraInfo:
    """Return the calibration of images of a size."""
    p = [*K[:3], 0.0, *K[3:6], 0.0, *K[6:], 0.0]
    return CameraInfo(header=header(stamp_ns), width=width, height=height, k=K, p=p, d=[0.0] * 5)


def cloud(stamp_ns: int, width: int, height: int) -> PointCloud2:
    """Return an organized cloud, whose point of column u and row v is (u, v, 1). The upper third has no depth."""
    points = np.zeros(
        (height, width), np.dtype({"names": "xyz", "formats": ["<f4"] * 3, "offsets": (0, 4, 8), "itemsize": 16})
    )
    points["y"], points["x"] = np.mgrid[:height, :width]
    points["z"] = 1.0
    points["z"][: height // 3] = np.nan
    fields = [
        PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1)
        for index, name in enumerate("xyz")
    ]
    return PointCloud2(
        header=header(stamp_ns),
        height=height,
        width=width,
        fields=fields,
        point_step=16,
        row_step=16 * width,
        data=array("B", points.tobytes()),
        is_dense=False,
    )


@dataclass(frozen=True)
class Read:
    """A frame that a consumer has read.

    Attributes:
        got: What it has read.
        image: The image that was published.
        result: What the segmenter makes of that image.
    """

    got: dict[str, Any]
    image: np.ndarray
    result: Result


def play(
    graph: Graph,
    preset: Preset,
    consumer: str,
    segmenter: Segmenter,
    folder: Path,
    *,
    remap: Mapping[str, str] | None = None,
    cloud_size: tuple[int, int] = SIZE,
    ego_mask: np.ndarray | None = None,
    scale: int = 1,
) -> list[Read]:
    """Publish images, calibrations and clouds, until a consumer in another process has read `COUNT` frames."""
    images = [np.kron(one, np.ones((scale, scale, 1), np.uint8)) for one in moving_images(20)]
    names = {Image: "image_raw", CameraInfo: "camera_info", PointCloud2: "points"}
    publishers = {
        kind: graph.node.create_publisher(kind, f"{preset.camera}/{name}", QoSProfile(depth=10))
        for kind, name in names.items()
    }
    out, stamps = folder / "read.json", count(PERIOD, PERIOD)
    command = [*PYTHON, str(ROOT / "test" / "consumers.py"), consumer, str(out), str(COUNT), "--ros-args"]
    for name, topic in (remap or {}).items():
        command += ["-r", f"{name}:={topic}"]

    def image_of(stamp_ns: int) -> np.ndarray:
        return images[stamp_ns // PERIOD % len(images)]

    with running(command, folder / "consumer.log") as program:

        def has_read_all() -> bool:
            stamp_ns = next(stamps)
            image = image_of(stamp_ns)
            publishers[CameraInfo].publish(camera_info(stamp_ns, image.shape[1], image.shape[0]))
            publishers[PointCloud2].publish(cloud(stamp_ns + CLOUD_DELAY, *cloud_size))
            publishers[Image].publish(image_message(image, stamp_ns))
            return program.has_ended(0)

        graph.until(has_read_all, f"{COUNT} frames in the consumer")
        assert out.exists(), program.output
    read = loads(out.read_text())
    assert len(read) == COUNT
    return [
        Read(got, image, segmenter.stream(ego_mask=ego_mask).segment(image, got["stamp"], FRAME_ID, confidence=True))
        for got in read
        for image in [image_of(got["stamp"])]
    ]


# Nav2


@with_preset("nav2_semantic_layer")
@pytest.mark.parametrize(("mask_size", "size"), [("image", SIZE), ("32x24", (32, 24))])
def test_nav2_gets_class_and_confidence_of_every_point(
    preset: Preset, model: Path, tmp_path: Path, mask_size: str, size: tuple[int, int]
) -> None:
    """The preset has mask_size image; that of another cloud is given as WIDTHxHEIGHT."""
    segmenter = Segmenter(model, engine="torch", label_map="nav2", mask_size=mask_size)
    with active(preset, **({} if mask_size == "image" else {"mask_size": mask_size})) as graph:
        frames = play(graph, preset, "nav2", segmenter, tmp_path, cloud_size=size)
    seen = set()
    for frame in frames:
        assert "refused" not in frame.got
        assert frame.got["encoding"] == "mono8" and frame.got["cloud_stamp"] - frame.got["stamp"] == CLOUD_DELAY
        result = frame.result
        assert result.mask.shape == size[::-1] and result.confidence is not None
        expected = [
            [u, v, int(result.mask[v, u]), int(result.confidence[v, u])]
            for v in range(size[1] // 3, size[1])
            for u in range(size[0])
        ]
        assert frame.got["points"] == expected
        seen |= {one for _, _, one, _ in expected}
    assert {1, 2} <= seen <= {0, 1, 2, 255}


@pytest.mark.skipif(
    importlib.util.find_spec("vision_msgs") is None, reason="no vision_msgs: source a ROS 2 installation that has it"
)
@with_preset("nav2_semantic_layer")
def test_nav2_gets_the_names_of_the_ids_after_they_were_published(preset: Preset, tmp_path: Path) -> None:
    command = [*PYTHON, str(ROOT / "test" / "consumers.py"), "labels", str(tmp_path / "read.json"), "1"]
    with active(preset) as graph, running(command, tmp_path / "consumer.log") as program:
        graph.until(lambda: program.has_ended(0), "names in the consumer")
    (read,) = loads((tmp_path / "read.json").read_text())
    assert read == {"names": {"0": "traversable", "1": "obstacle", "2": "dynamic"}, "threshold": 0.0}


@with_preset("nav2_semantic_layer")
def test_rviz_gets_color_at_the_size_of_the_mask_and_overlay_at_that_of_the_image(
    preset: Preset, model: Path, tmp_path: Path
) -> None:
    segmenter = Segmenter(model, engine="torch", label_map="nav2", mask_size="32x24")
    with active(preset, mask_size="32x24") as graph:
        frames = play(graph, preset, "rviz", segmenter, tmp_path)
    classes = load_label_map("nav2").classes
    for frame in frames:
        mask, image = frame.result.mask, frame.image
        np.testing.assert_array_equal(frame.got["color"], classes.colorize(mask))
        enlarged = np.kron(mask, np.ones((2, 2), np.uint8))
        np.testing.assert_array_equal(frame.got["overlay"], classes.overlay(image, enlarged, 0.5)[..., ::-1])
        assert frame.got["total_ms"] > 0


# Autoware


@with_preset("autoware_pointcloud_fusion")
def test_autoware_gets_the_mask_of_the_image_from_run_lengths_of_a_smaller_one(
    preset: Preset, model: Path, tmp_path: Path
) -> None:
    segmenter = Segmenter(model, engine="torch", label_map="autoware", mask_size="image")
    # A higher temperature, so that this model is unsure somewhere.
    segmenter.confidence = Confidence(3.0, {"BUILDING": 0.5, "WALL": 0.5, "ROAD": 0.5, "VEGETATION": 0.5})
    with active(preset, temperature=3.0) as graph:
        frames = play(graph, preset, "autoware", segmenter, tmp_path, scale=2)
    values = set()
    for frame in frames:
        assert (frame.got["encoding"], frame.got["frame_id"]) == ("mono8", FRAME_ID)
        assert frame.got["size"] == [*SIZE] and frame.got["runs"] == SIZE[0] * SIZE[1]
        np.testing.assert_array_equal(frame.got["ids"], frame.result.mask)
        values |= set(np.unique(frame.got["ids"]).tolist())
    # A sign is not removed, so it has no threshold; 255 are unsure buildings and trees.
    assert {1, 5, 255} <= values <= {*range(16), 255}


# Hydra


@with_preset("hydra")
def test_hydra_gets_signed_labels_with_its_ids_and_none_on_the_robot(
    preset: Preset, model: Path, ego: Path, tmp_path: Path
) -> None:
    segmenter = Segmenter(model, engine="torch", label_map="hydra")
    mask = cv2.imread(str(ego), cv2.IMREAD_UNCHANGED)
    remap = snippet_remaps("hydra/input/")
    with active(preset) as graph:
        frames = play(graph, preset, "hydra", segmenter, tmp_path, remap=remap, ego_mask=mask)
    for frame in frames:
        assert (
            frame.got["encoding"] == "16SC1"
            and frame.got["same_size"]
            and frame.got["color_stamp"] == frame.got["stamp"]
        )
        ids = frame.result.mask.astype(int)
        np.testing.assert_array_equal(frame.got["labels"], np.where(ids == 255, -1, ids))
        labels = np.array(frame.got["labels"])
        assert (labels[40:] == -1).all() and (labels[:40] >= 0).all() and labels.max() < 46


# nvblox and elevation mapping


@with_preset("nvblox")
def test_nvblox_gets_people_and_a_calibration_with_the_stamp_of_the_image(
    preset: Preset, model: Path, tmp_path: Path
) -> None:
    segmenter = Segmenter(model, engine="torch")
    with active(preset) as graph:
        frames = play(graph, preset, "nvblox", segmenter, tmp_path, remap=snippet_remaps("camera_0/"))
    for frame in frames:
        assert frame.got["encoding"] == "mono8" and frame.got["frame_ids"] == [FRAME_ID] * 3
        assert frame.got["size"] == frame.got["info_size"] == frame.got["color_size"] == [*SIZE]
        assert frame.got["k"] == frame.got["color_k"] == K
        expected = np.isin(frame.result.mask, PEOPLE)
        assert expected.any() and not expected.all()
        np.testing.assert_array_equal(frame.got["masked"], np.where(expected, 255, 0))


@with_preset("nvblox")
def test_elevation_mapping_gets_a_channel_and_the_camera_matrix_of_its_size(
    preset: Preset, model: Path, tmp_path: Path
) -> None:
    segmenter = Segmenter(model, engine="torch", mask_size="32x24")
    with active(preset, mask_size="32x24") as graph:
        frames = play(graph, preset, "elevation_mapping", segmenter, tmp_path)
    for frame in frames:
        assert frame.got["size"] == [32, 24] and frame.got["d"] == [0.0] * 5
        # A point x of the image is at (x + 0.5) / 2 - 0.5 of the mask.
        assert frame.got["k"] == [25.0, 0.0, 15.25, 0.0, 24.0, 12.0, 0.0, 0.0, 1.0]
        people = np.isin(frame.result.mask, PEOPLE)
        np.testing.assert_array_equal(frame.got["channel"], np.where(people, 255, 0))


# The guide


def snippet(word: str) -> Any:
    """Return the YAML in docs/integration.md that has a word."""
    (text,) = [text for text in re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL) if word in text]
    return yaml.safe_load(text)


def snippet_remaps(prefix: str) -> dict[str, str]:
    """Return the remappings in docs/integration.md of topics with a prefix."""
    pairs = re.findall(rf"from: ({prefix}[\w/]+), to: ([\w/]+)", GUIDE)
    assert pairs
    return dict(pairs)


def test_the_layer_in_the_guide_knows_every_class_and_reads_our_topics() -> None:
    """The layer logs an error for each class of `LabelInfo` that its parameters do not name."""
    costmap = snippet("SemanticSegmentationLayer")["local_costmap"]["local_costmap"]["ros__parameters"]
    layer = costmap["semantic_layer"]
    assert "semantic_layer" in costmap["plugins"]
    assert layer["plugin"] == "semantic_segmentation_layer::SemanticSegmentationLayer"
    (source,) = layer["observation_sources"].split()
    camera = layer[source]
    topics = [camera[f"{name}_topic"] for name in ("segmentation", "confidence", "labels")]
    assert topics == [f"/camera/segmentation/{name}" for name in ("mask", "confidence", "label_info")]
    names = [name for kind in camera["class_types"] for name in camera[kind]["classes"]]
    assert sorted(names) == sorted(load_label_map("nav2").classes.names)
    for kind in camera["class_types"]:
        settings = camera[kind]
        assert 0 <= settings["base_cost"] <= settings["max_cost"] <= 254
        assert 0 <= settings.get("mark_confidence", 0) < 255


def test_autoware_in_the_guide_removes_classes_with_a_threshold() -> None:
    targets = snippet("filter_semantic_label_target")["/**"]["ros__parameters"]["filter_semantic_label_target"]
    assert tuple(targets) == load_label_map("autoware").classes.names
    preset = yaml.safe_load(resource("autoware_pointcloud_fusion.yaml").read_text())["/**"]["ros__parameters"]
    assert set(preset["thresholds"]) == {name for name, removed in targets.items() if removed}


@pytest.mark.parametrize("name", ["nav2_semantic_layer", "autoware_pointcloud_fusion", "hydra", "nvblox"])
def test_every_preset_is_in_the_guide_with_its_command(name: str) -> None:
    command = f"params_file:=$(ros2 pkg prefix --share netwarp_ros)/config/{name}.yaml"
    assert command in GUIDE
    assert command in resource(f"{name}.yaml").read_text()
