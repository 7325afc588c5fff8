# SPDX-License-Identifier: Apache-2.0
"""Label maps: those of the package against the lists of their consumers, their table, and the errors of wrong files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from commands import SmallHost, masks_of, run, scores_of, without_times, write_images
from hypothesis import given
from hypothesis import strategies as st
from rosbags.rosbag2 import Reader

from netwarp_ros.classes import ClassEntry, ClassSet, LabelMap, load_classes, load_label_map
from netwarp_ros.models import ModelSpec, NetWarpSpec, build, read_spec, save_model, shipped_models
from netwarp_ros.models.hosts import HOSTS
from netwarp_ros.models.weights import find_weights
from netwarp_ros.recordings.messages import LABEL_INFO, typestore
from netwarp_ros.resources import resource, sha256
from netwarp_ros.segmenter import Segmenter

CAMVID, CITYSCAPES = load_classes("camvid"), load_classes("cityscapes")
FLOOR = ClassSet("floor", 255, tuple(ClassEntry(name, (k, k, k)) for k, name in enumerate(("lawn", "tile", "wall"))))
GOOD = "name: two\nclasses: [{name: free}, {name: taken}]\nmap:\n  free: [lawn, tile]\n  taken: [wall]\nvoid: []\n"

NAV2 = ["traversable", "obstacle", "dynamic"]
"""Costmap layers read these names from LabelInfo. The one of github.com/kiwicampus/semantic_segmentation_layer skips
pixels with other ids."""

AUTOWARE = [
    "UNKNOWN", "BUILDING", "WALL", "OBSTACLE", "TRAFFIC_LIGHT", "TRAFFIC_SIGN", "PERSON", "VEHICLE", "BIKE", "ROAD",
    "SIDEWALK", "ROAD_PAINT", "CURBSTONE", "CROSSWALK", "VEGETATION", "SKY",
]  # fmt: skip
"""autoware_universe, perception/autoware_image_projection_based_fusion, segmentation_pointcloud_fusion/node.hpp: ids
are indices of filter_semantic_label_target_list_."""

HYDRA = [
    "unlabeled", "ego_vehicle", "rectification", "out", "static", "dynamic", "ground", "road", "sidewalk", "parking",
    "rail", "building", "wall", "fence", "guard", "bridge", "tunnel", "pole", "pole_group", "traffic_light",
    "traffic_sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "caravan", "trailer",
    "train", "motorcycle", "bicycle", "garage", "gate", "stop", "small_pole", "lamp", "trash", "vending", "box",
    "construction", "vehicle", "object", "license",
]  # fmt: skip
"""MIT-SPARK/Hydra (commit 2e58a35b), config/label_spaces/kitti_360_label_space.yaml: label_names, from label 0 on."""

CITYSCAPES_LABEL_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
"""cityscapesScripts, labels.py: the id of each trainId, 0 to 18. Hydra's label space has these ids."""


# The label maps of the package


@pytest.mark.parametrize(
    ("name", "classes"),
    [("nav2", NAV2), ("autoware", AUTOWARE), ("hydra", HYDRA), ("cityscapes_to_camvid", [*CAMVID.names])],
)
def test_a_label_map_has_the_ids_and_names_of_its_consumer(name: str, classes: list[str]) -> None:
    label_map = load_label_map(name)
    assert label_map.name == name
    assert [*label_map.classes.names] == classes
    assert len({entry.color for entry in label_map.classes.classes}) == len(classes)


def test_every_label_map_of_the_package_is_tested_here() -> None:
    names = {file.stem for file in resource("label_maps").glob("*.yaml")}
    assert names == {"nav2", "autoware", "hydra", "cityscapes_to_camvid"}


@pytest.mark.parametrize("name", ["nav2", "autoware", "hydra"])
def test_a_label_map_serves_every_shipped_model_and_these_class_sets(name: str) -> None:
    label_map = load_label_map(name)
    sources = [read_spec(find_weights(model)).classes for model in shipped_models()]
    sources += [CAMVID, CITYSCAPES, load_classes("mapillary_vistas")]
    assert sources[0].name == "camvid"
    for source in sources:
        table = label_map.table(source)
        assert ((table[: len(source)] < len(label_map.classes)) | (table[: len(source)] == 255)).all()
    named = {name for names in (label_map.void, *label_map.map.values()) for name in names}
    assert named == {name for source in sources for name in source.names}, "a name that no model has is a typo"


def targets(name: str, source: ClassSet) -> dict[str, str]:
    """Return what each class becomes."""
    label_map = load_label_map(name)
    names = dict(enumerate(label_map.classes.names)) | {255: "void"}
    return {old: names[int(new)] for old, new in zip(source.names, label_map.table(source), strict=False)}


def test_nav2_by_hand() -> None:
    assert targets("nav2", CAMVID) == {
        "sky": "void", "building": "obstacle", "pole": "obstacle", "road": "traversable", "pavement": "traversable",
        "tree": "obstacle", "sign": "obstacle", "fence": "obstacle", "car": "dynamic", "pedestrian": "dynamic",
        "bicyclist": "dynamic",
    }  # fmt: skip


def test_autoware_by_hand() -> None:
    assert targets("autoware", CAMVID) == {
        "sky": "SKY", "building": "BUILDING", "pole": "OBSTACLE", "road": "ROAD", "pavement": "SIDEWALK",
        "tree": "VEGETATION", "sign": "TRAFFIC_SIGN", "fence": "OBSTACLE", "car": "VEHICLE", "pedestrian": "PERSON",
        "bicyclist": "BIKE",
    }  # fmt: skip
    assert load_label_map("autoware").table(CITYSCAPES)[CITYSCAPES.names.index("traffic light")] == 4


def test_hydra_has_the_label_ids_of_cityscapes_and_no_void() -> None:
    """Hydra reports an id beyond its label space as an error."""
    table = load_label_map("hydra").table(CITYSCAPES)
    assert table[:19].tolist() == CITYSCAPES_LABEL_IDS
    assert load_label_map("hydra").void == ()


def test_cityscapes_to_camvid_by_hand() -> None:
    assert targets("cityscapes_to_camvid", CITYSCAPES) == {
        "road": "road", "sidewalk": "pavement", "building": "building", "wall": "building", "fence": "fence",
        "pole": "pole", "traffic light": "sign", "traffic sign": "sign", "vegetation": "tree", "terrain": "tree",
        "sky": "sky", "person": "pedestrian", "rider": "bicyclist", "car": "car", "truck": "car", "bus": "car",
        "train": "car", "motorcycle": "bicyclist", "bicycle": "bicyclist",
    }  # fmt: skip
    assert load_label_map("cityscapes_to_camvid").classes == CAMVID


# The table


def test_several_classes_become_one_and_one_becomes_void() -> None:
    mapped = LabelMap("two", FLOOR, {"wall": ("lawn", "wall"), "lawn": ()}, void=("tile", "elsewhere"))
    table = mapped.table(FLOOR)
    assert table.dtype == np.uint8 and table.shape == (256,)
    assert table[:3].tolist() == [2, 255, 2] and (table[3:] == 255).all()


@given(st.lists(st.integers(-1, 3), min_size=5, max_size=5), st.binary(min_size=24, max_size=24))
def test_a_mask_is_mapped_pixel_by_pixel(choices: list[int], values: bytes) -> None:
    """Against a plain loop over pixels. -1 stands for void."""
    source = ClassSet("source", 255, tuple(ClassEntry(f"s{k}", (k, 0, 0)) for k in range(5)))
    classes = ClassSet("target", 255, tuple(ClassEntry(f"t{k}", (0, k, 0)) for k in range(4)))
    members = {f"t{k}": tuple(f"s{s}" for s, choice in enumerate(choices) if choice == k) for k in range(4)}
    label_map = LabelMap("some", classes, members, tuple(f"s{s}" for s, choice in enumerate(choices) if choice < 0))
    mask = np.frombuffer(values, np.uint8).reshape(4, 6) % 8
    expected = [[choices[v] if v < 5 and choices[v] >= 0 else 255 for v in row] for row in mask.tolist()]
    assert label_map.table(source)[mask].tolist() == expected
    assert cv2.LUT(mask, label_map.table(source)).tolist() == expected


def test_every_class_of_a_model_must_be_named(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(GOOD.replace("tile", "tiles"))
    with pytest.raises(ValueError, match=rf"^label map {re.escape(str(file))} leaves out classes of floor: 'tile'"):
        load_label_map(file).table(FLOOR)
    with pytest.raises(ValueError, match=r"^label map none leaves out classes of camvid: 'sky', .*in void$"):
        LabelMap("none", CAMVID, {"sky": ()}).table(CAMVID)


# Files


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(GOOD)
    label_map = load_label_map(tmp_path / "two.yaml")
    assert label_map.classes.names == ("free", "taken") and label_map.classes.name == "two"
    assert label_map.table(FLOOR)[:4].tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  taken: [wall]", "  takn: [wall]", ": map has 'takn', which is no class of two: did you mean 'taken'\\?$"),
        ("  taken: [wall]", "  x: [wall]", ": map has 'x', which is no class of two: give free, taken$"),
        ("[wall]", "[wall, lawn]", ": 'lawn' is named under 'free' and under 'taken': name each class once$"),
        ("[wall]", "[wall, wall]", ": 'wall' is named under 'taken' and under 'taken': name each class once$"),
        ("void: []", "void: [tile]", ": 'tile' is named under 'free' and in void: name each class once$"),
        ("void: []", "void: sky", ": void is 'sky', must be a list$"),
        ("void: []", "voids: []", " has the unknown key voids: did you mean void\\?$"),
        ("void: []", "void: [3]", r": void\[0\] is 3, must be a valid string$"),
        ("[wall]", "wall", r": map\.taken is 'wall', must be a list$"),
        ("  taken: [wall]", "  free: [wall]", ".* the key 'free' occurs twice in one mapping"),
        ("[{name: free}, {name: taken}]", "camvids", ": classes is 'camvids': no class set named 'camvids': give one"),
        ("[{name: free}, {name: taken}]", "/etc/x.yaml", ": classes is '/etc/x.yaml': give the name of a class set"),
        ("[{name: free}, {name: taken}]", "[free]", r": classes\[0\] is 'free', must be a mapping with name"),
        ("{name: taken}", "{name: taken, colr: [1, 2, 3]}", r": classes\[1\] has the unknown key colr: did you mean c"),
        ("name: two", "name: ../two", r": name is '\.\./two', must match pattern"),
        (GOOD, "name: two\nclasses: camvid\n", ": map is missing$"),
        (GOOD, "name: two\nclasses: camvid\nmap: {}\n", r": map is \{\}, must have at least 1 item"),
        (GOOD, "[]", r" is \[\], must be a mapping with name, classes, map, void$"),
        (GOOD, "!!python/object/apply:os.mkdir [made]\n", " is not valid YAML"),
        ("lawn", "l" * 101, r": map\.free\[0\] is 'l+', must have at most 100 characters"),
        ("lawn, tile", ", ".join(f"x{n}" for n in range(2001)), r": map\.free is \[.*\], must have at most 2000 items"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_by_name_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    file = tmp_path / "wrong.yaml"
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(ValueError, match=rf"wrong\.yaml{message}"):
        load_label_map(file)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"'nav3': give one of autoware, cityscapes_to_camvid, hydra, nav2, or"):
        load_label_map("nav3")
    with pytest.raises(FileNotFoundError, match=r"no label map .*absent\.yaml"):
        load_label_map(tmp_path / "absent.yaml")
    with pytest.raises(FileNotFoundError, match=r"no label map named '\.\./classes/camvid'"):
        load_label_map("../classes/camvid")


# Commands


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A video CNN of Cityscapes' classes, with random weights."""
    monkeypatch.setitem(HOSTS, "small", SmallHost)
    torch.manual_seed(0)
    netwarp = NetWarpSpec(layers=("features",), flow_grid="features")
    spec = ModelSpec("small", CITYSCAPES, {"num_classes": 19}, netwarp=netwarp, input_height=48)
    network = build(spec).eval()
    torch.nn.init.constant_(network.netwarps[0].w2, 0.5)
    network.host.classifier.weight.data *= 3  # so that there are many classes
    (tmp_path / "model").mkdir()
    return save_model(tmp_path / "model" / "small.safetensors", network, spec)


def test_evaluate_on_the_labels_of_another_data_set(tmp_path: Path, model: Path, images: Path) -> None:
    """The scores are those of the mapped masks, counted by hand."""
    table = load_label_map("cityscapes_to_camvid").table(CITYSCAPES)
    masks = [table[mask] for mask in masks_of(model, images)]
    assert len(np.unique(masks)) > 4
    labels = []
    (tmp_path / "labels").mkdir()
    for index, mask in enumerate(masks):
        label = mask.copy()
        label[:12], label[12:16] = index, CAMVID.void
        labels.append(label)
        cv2.imwrite(str(tmp_path / "labels" / f"f{index}.png"), label)
    file = tmp_path / "scores.json"
    arguments = ["--images", images, "--labels", tmp_path / "labels", "--model", model, "--html", tmp_path / "r.html"]
    assert run("evaluate", *arguments, "--label-map", "cityscapes_to_camvid", "--json", file) == 0
    scores = json.loads(file.read_text())
    predicted, labelled = np.stack(masks), np.stack(labels)
    predicted, labelled = predicted[labelled != CAMVID.void], labelled[labelled != CAMVID.void]
    for k, name in enumerate(CAMVID.names):
        both, either = ((predicted == k) & (labelled == k)).sum(), ((predicted == k) | (labelled == k)).sum()
        assert scores["iou"][name] == (pytest.approx(100 * both / either) if either else None)
    assert scores["host"]["tc"] is not None and 0 < scores["disagreement"] < 100
    assert scores["settings"]["classes"] == "camvid"
    assert scores["settings"]["label_map"] == {
        "name": "cityscapes_to_camvid",
        "sha256": sha256(resource("label_maps", "cityscapes_to_camvid.yaml")),
    }


def test_without_the_label_map_the_classes_do_not_fit(
    tmp_path: Path, model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", "--images", images, "--model", model, "--classes", "camvid") == 2
    assert "model small has the classes of cityscapes, not of camvid" in capsys.readouterr().err
    file = tmp_path / "own.yaml"
    file.write_text(GOOD)
    assert run("evaluate", "--images", images, "--model", model, "--label-map", file) == 2
    assert "leaves out classes of cityscapes: 'road', 'sidewalk'" in " ".join(capsys.readouterr().err.split())
    assert run("evaluate", "--cityscapes", tmp_path, "--model", model, "--label-map", "hydra") == 2
    assert "--cityscapes has the classes of cityscapes, not of hydra" in " ".join(capsys.readouterr().err.split())


def test_what_becomes_void_is_not_scored(tmp_path: Path, model: Path, images: Path) -> None:
    masks = masks_of(model, images)
    common = int(np.bincount(np.stack(masks).ravel()).argmax())
    rest = [name for name in CITYSCAPES.names if name != CITYSCAPES.names[common]]
    file = tmp_path / "own.yaml"
    file.write_text(
        f"name: own\nclasses: [{{name: rest}}]\nmap: {{rest: {json.dumps(rest)}}}\nvoid: [{CITYSCAPES.names[common]}]\n"
    )
    (tmp_path / "labels").mkdir()
    for index in range(3):
        cv2.imwrite(str(tmp_path / "labels" / f"f{index}.png"), np.zeros((48, 64), np.uint8))
    scores = scores_of(model, "--images", images, "--labels", tmp_path / "labels", "--label-map", file, "--host")
    assert scores["miou"] == scores["tc"] == scores["host"]["miou"] == 100
    assert scores["disagreement"] == 0
    counted = [frame["confusion"][1] for frame in scores["per_frame"]]
    assert counted == [int((mask != common).sum()) for mask in masks]


def test_segment_writes_mapped_masks_and_continues_no_run_with_another_map(
    tmp_path: Path, model: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "own.yaml", tmp_path / "out"
    text = resource("label_maps", "nav2.yaml").read_text()
    file.write_text(text)
    command = ["segment", images, "-o", out, "--model", model, "--label-map", file]
    table = load_label_map("nav2").table(CITYSCAPES)

    def fail(*arguments: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("netwarp_ros.offline.write_video", fail)
        assert run(*command) == 2
    for index, mask in enumerate(masks_of(model, images)):
        written = cv2.imread(str(out / "masks" / f"f{index}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(written, table[mask])
    file.write_text(text.replace("void: [sky,", "void: [").replace("    - building", "    - building\n    - sky"))
    assert run(*command) == 2
    assert "holds an unfinished run with other settings (label_map" in " ".join(capsys.readouterr().err.split())
    file.write_text(text)
    assert run(*command) == 0 and (out / "overlay.mp4").is_file()


def test_a_bag_of_masks_names_the_classes_of_the_label_map(tmp_path: Path, model: Path, images: Path) -> None:
    out = tmp_path / "out.mcap"
    assert run("segment", images, "-o", out, "--model", model, "--label-map", "nav2") == 0
    with Reader(out) as reader:
        (connection,) = (one for one in reader.connections if one.topic.endswith("label_info"))
        ((_, _, data),) = reader.messages([connection])
        message = typestore.deserialize_cdr(data, LABEL_INFO)
    assert [(entry.class_id, entry.class_name) for entry in message.class_map] == [*enumerate(NAV2)]


def test_bags_in_slices_are_scored_with_the_label_map(tmp_path: Path, model: Path, images: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    table = load_label_map("nav2").table(CITYSCAPES)
    for index, mask in enumerate(masks_of(model, images)):
        label = table[mask]
        label[:12] = index
        cv2.imwrite(str(labels / f"f{index}.png"), label)
    bag, out = tmp_path / "a.mcap", tmp_path / "out"
    run("bag", images, labels, "-o", bag)
    options = ["--label-map", "nav2", "--label-topic", "/camera/labels"]
    whole = scores_of(model, "--images", bag, *options)
    assert 0 < whole["miou"] < 100 and set(whole["iou"]) == {*NAV2}
    assert run("evaluate", bag, *options, "--model", model, "-o", out) == 0
    assert without_times(json.loads((out / "a.json").read_text())) == without_times(whole)


def test_the_host_has_the_same_label_map(model: Path) -> None:
    segmenter = Segmenter(model, label_map="nav2")
    assert segmenter.classes.names == tuple(NAV2)
