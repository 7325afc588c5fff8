# SPDX-License-Identifier: Apache-2.0
"""The class sets of the package, and the errors of class files that are not valid."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from netwarp_ros.classes import ClassEntry, ClassSet, classes_from_labels, generated_color, load_classes
from netwarp_ros.resources import resource

CAMVID = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
GOOD = "name: two\nvoid: 255\nclasses:\n- {name: floor, color: [1, 2, 3]}\n- {name: wall, color: [4, 5, 6]}\n"


def test_camvid() -> None:
    camvid = load_classes("camvid")
    assert camvid.name == "camvid"
    assert list(camvid.names) == CAMVID
    assert len(camvid) == 11 and camvid.void == 11
    assert camvid.palette.shape == (11, 3) and camvid.palette.dtype == np.uint8
    assert camvid.palette[CAMVID.index("bicyclist")].tolist() == [0, 128, 192]


def test_cityscapes() -> None:
    cityscapes = load_classes("cityscapes")
    assert len(cityscapes) == 19 and cityscapes.void == 255
    assert cityscapes.names[:2] == ("road", "sidewalk") and cityscapes.names[18] == "bicycle"
    assert cityscapes.palette[18].tolist() == [119, 11, 32]


@pytest.mark.parametrize(
    ("name", "count", "void", "some"),
    [
        ("ade20k", 150, 255, {0: "wall", 6: "road", 89: "television receiver", 149: "flag"}),
        ("camvid", 11, 11, {10: "bicyclist"}),
        ("cityscapes", 19, 255, {18: "bicycle"}),
        ("coco_stuff", 171, 255, {0: "person", 79: "toothbrush", 80: "banner", 170: "wood"}),
        ("mapillary_vistas", 65, 65, {0: "Bird", 13: "Road", 64: "Ego Vehicle"}),
    ],
)
def test_a_class_set_of_the_package(name: str, count: int, void: int, some: dict[int, str]) -> None:
    classes = load_classes(name)
    assert (classes.name, len(classes), classes.void) == (name, count, void)
    assert {position: classes.names[position] for position in some} == some
    assert len(set(classes.names)) == len(np.unique(classes.palette, axis=0)) == count
    np.testing.assert_array_equal(classes.read(classes.palette[None, :, ::-1], name), [range(count)])


def test_class_sets_have_the_ids_of_their_data_sets() -> None:
    ade = load_classes("ade20k")
    assert ade.read(np.uint8([[0, 1, 150, 255]]), "").tolist() == [[255, 0, 149, 255]]
    coco = load_classes("coco_stuff")  # 11 and 182 are ids of no label map
    assert coco.read(np.uint8([[0, 10, 12, 89, 91, 181, 255]]), "").tolist() == [[0, 10, 11, 79, 80, 170, 255]]
    mapillary = load_classes("mapillary_vistas")
    assert mapillary.read(np.uint8([[0, 64, 65, 255]]), "").tolist() == [[0, 64, 65, 65]]


def test_every_class_set_of_the_package_is_tested_here() -> None:
    names = {file.stem for file in resource("classes").glob("*.yaml")}
    assert names == {"ade20k", "camvid", "cityscapes", "coco_stuff", "mapillary_vistas"}


def test_colorize_paints_classes_in_rgb_and_the_rest_black() -> None:
    mask = np.array([[0, 10], [11, 255]], np.uint8)
    expected = [[[128, 128, 128], [0, 128, 192]], [[0, 0, 0], [0, 0, 0]]]
    assert load_classes("camvid").colorize(mask).tolist() == expected


@pytest.mark.parametrize("mask", [np.zeros((2, 2), np.int64), np.zeros((2, 2, 3), np.uint8)])
def test_colorize_refuses_arrays_that_are_not_masks(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match="give \\(H, W\\) uint8 class ids"):
        load_classes("camvid").colorize(mask)


def test_a_class_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(GOOD)
    two = load_classes(tmp_path / "two.yaml")
    assert two.names == ("floor", "wall") and two.void == 255
    assert two.palette.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(FileNotFoundError, match=r"'../camvid'.*camvid, cityscapes.*\.yaml"):
        load_classes("../camvid")


def test_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no class file .*absent\.yaml"):
        load_classes(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (GOOD, "- a list", r" is \['a list'\], must be a mapping with name, void, classes, void_ids, void_colors$"),
        (GOOD, "name: [unclosed", r" is not valid YAML: while parsing a flow sequence .*$"),
        (GOOD, "name: two\nvoid: 255\n", ": classes is missing$"),
        (GOOD, "name: two\nclasses: all\n", ": classes is 'all', must be a list$"),
        (GOOD, "name: two\nclasses: [floor]\n", r": classes\[0\] is 'floor', must be a mapping with name, color, ids$"),
        ("void: 255\n", "void: 255\nvoidd: 3\n", " has the unknown key voidd: did you mean void\\?$"),
        ("void: 255", "void: 1", ": 1 is void and an id of 'wall' in label maps: give the class other ids, or leave 1"),
        ("void: 255", "void: [255, 0]", ": 0 is void and an id of 'floor' in label maps: give the class other ids"),
        ("void: 255", "void: 65536", ": void is 65536: give ids of label maps, whole numbers from 0 to 65535$"),
        ("void: 255", "void: [9, -1]", ": void is -1: give ids of label maps, whole numbers from 0 to 65535$"),
        ("void: 255", "void: [9, yes]", ": void is True: give ids of label maps"),
        ("void: 255", "void: [9, [8]]", r": void is \[8\]: give ids of label maps"),
        ("void: 255", "void: yes", ": void is True, must be a valid integer$"),
        ("name: two", "name: ../two", r": name is '\.\./two', must match pattern '\^\[a-z0-9\]"),
        ("name: wall", "name: floor", ": 'floor' occurs more than once: name each class once$"),
        ("name: wall", "name: ''", r": classes\[1\]: name is ''"),
        ("name: wall", 'name: "wall\\e[2J"', r": classes\[1\]: name is 'wall\\x1b\[2J': give a text without control"),
        ("name: wall", 'name: "\\u202Ellaw"', r": classes\[1\]: name is '\\u202ellaw': give a text without control"),
        ("name: wall", f"name: {'w' * 101}", r": classes\[1\]\.name is 'w+', must have at most 100 characters"),
        ("[4, 5, 6]", "[4, 5]", r": classes\[1\]\.color\[2\] is missing$"),
        ("[4, 5, 6]", "[4, 5, 6, 7]", r": classes\[1\]\.color is \[4, 5, 6, 7\], must have at most 3 items, not 4$"),
        ("[4, 5, 6]", "[4, 5, 256]", r": classes\[1\]\.color\[2\] is 256, must be less than or equal to 255$"),
        ("color: [4, 5, 6]", "colour: [4, 5, 6]", r": classes\[1\] has the unknown key colour: did you mean color\?$"),
        (
            "color: [4, 5, 6]",
            "id: 0",
            ": 'floor' and 'wall' both have the id 0 in label maps: give each class ids",
        ),
        ("color: [4, 5, 6]", "ids: [7, -1]", r": classes\[1\]\.ids\[1\] is -1, must be greater than or equal to 0$"),
        (
            "color: [4, 5, 6]",
            "ids: 70000",
            ": ids of 'wall' is 70000: give ids of label maps, whole numbers from 0",
        ),
        ("color: [4, 5, 6]", "id: seven", ": id of 'wall' is 'seven': give ids of label maps, whole numbers"),
        ("color: [4, 5, 6]", "id: 7, ids: [7]", ": 'wall' has both id and ids: give one of them$"),
        ("void: 255", "void_ids: 3", ": void_ids is 3, must be a list$"),
        ("void: 255", "void: [9]\nvoid_ids: 3", ": void_ids is 3, must be a list$"),
        ("void: 255", "void: [9]\nvoid_ids: [-1]", ": void_ids is -1: give ids of label maps"),
        ("color: [4, 5, 6]", "color:", r": classes\[1\]\.color is None, must be a list$"),
        ("void: 255", "void_colors: [0, 0, 0]", r": void_colors\[0\] is 0, must be a list$"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    file = tmp_path / "wrong.yaml"
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(ValueError, match=rf"wrong\.yaml{message}"):
        load_classes(file)


def write(tmp_path: Path, text: str) -> ClassSet:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    return load_classes(file)


def test_void_may_be_left_out_or_be_any_ids(tmp_path: Path) -> None:
    for void, own, ids in (
        ("", 255, [255]),
        ("void: 255\n", 255, [255]),
        ("void: 2\n", 2, [2, 255]),
        ("void: [2, 9]\n", 255, [2, 9, 255]),
        ("void: 65535\n", 255, [65535, 255]),
        ("void: []\n", 255, [255]),
    ):
        classes = write(tmp_path, GOOD.replace("void: 255\n", void))
        assert classes.void == own
        assert (classes.read(np.uint16([ids]), "") == own).all()
        with pytest.raises(ValueError, match="holds class id 3"):
            classes.read(np.uint16([[3]]), "")


def test_label_maps_may_use_other_ids(tmp_path: Path) -> None:
    text = "name: own\nvoid: 0\nclasses:\n- {name: a, id: 7}\n- {name: b, ids: [1, 40000]}\n- {name: c, ids: 5}\n"
    own = write(tmp_path, text)
    assert own.read(np.uint8([[7, 1, 5, 0, 255]]), "").tolist() == [[0, 1, 2, 255, 255]]
    wide = own.read(np.uint16([[7, 1, 40000], [5, 0, 255]]), "")
    assert wide.tolist() == [[0, 1, 1], [2, 255, 255]] and wide.dtype == np.uint8
    for label in (np.uint8([[7, 1], [5, 2]]), np.uint16([[7, 1], [5, 2]])):
        with pytest.raises(
            ValueError,
            match=r"^a\.png holds class id 2 at x 1, y 1; the ids of own are 1, 5, 7, 40000, and 0, 255 for void: give "
            "the id to a class or to void in a class file$",
        ):
            own.read(label, "a.png")


def test_255_may_be_an_id_of_a_class(tmp_path: Path) -> None:
    """Masks of two classes are often black and white."""
    own = write(tmp_path, "name: own\nclasses:\n- {name: rest, id: 0}\n- {name: road, ids: [255, 1]}\n")
    assert own.void == 255 and own.read(np.uint8([[0, 255, 1]]), "").tolist() == [[0, 1, 1]]
    with pytest.raises(ValueError, match="the ids of own are 0 to 1, 255, and none for void"):
        own.read(np.uint8([[2]]), "")


def test_a_class_set_of_255_classes_uses_all_ids() -> None:
    full = classes_from_labels("full", [f"class {index}" for index in range(255)])
    label = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(full.read(label, ""), label)
    np.testing.assert_array_equal(full.read(full.colorize(label[:15])[..., ::-1], ""), label[:15])


def test_label_maps_of_colors(tmp_path: Path) -> None:
    own = write(tmp_path, GOOD + "void_colors: [[0, 0, 0], [9, 9, 9]]\n")
    bgr = np.uint8([[[3, 2, 1], [6, 5, 4]], [[0, 0, 0], [9, 9, 9]]])
    assert own.read(bgr, "").tolist() == [[0, 1], [255, 255]]
    bgr[1, 0] = 1, 2, 3
    with pytest.raises(
        ValueError,
        match=r"^a\.png holds the RGB color \(3, 2, 1\) at x 0, y 1, which no class of two has: give it",
    ):
        own.read(bgr, "a.png")
    with pytest.raises(ValueError, match=r"holds the RGB color \(0, 0, 0\)"):
        load_classes("cityscapes").read(np.zeros((1, 1, 3), np.uint8), "")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (GOOD.replace("4, 5, 6", "1, 2, 3"), "'floor' and 'wall'"),
        (GOOD + "void_colors: [[4, 5, 6]]\n", "'void' and 'wall'"),
    ],
)
def test_only_label_maps_of_colors_need_colors_that_differ(tmp_path: Path, text: str, names: str) -> None:
    own = write(tmp_path, text)
    assert own.read(np.uint8([[0, 1]]), "").tolist() == [[0, 1]]
    with pytest.raises(ValueError, match=rf"^{names} of two have the same color .* give each class a color of its own"):
        own.read(np.zeros((1, 1, 3), np.uint8), "a.png")


@pytest.mark.parametrize(
    "label", [np.zeros((2, 2), np.int64), np.zeros((2, 2, 3), np.uint16), np.zeros((2, 2, 4), np.uint8), np.uint8(3)]
)
def test_other_arrays_are_no_label_maps(label: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^a is \(.*\) u?int\d+: a label map holds class ids, one channel of 8 or 16"):
        load_classes("camvid").read(label, "a")


# Colors that are not given, and sets made of names


def test_generated_colors_are_those_of_the_color_map_of_pascal_voc() -> None:
    assert [generated_color(position) for position in (0, 1, 2, 7, 19, 254)] == [
        (128, 0, 0), (0, 128, 0), (128, 128, 0), (64, 0, 0), (0, 64, 128), (224, 224, 192),
    ]  # fmt: skip
    assert len({generated_color(position) for position in range(70_000)} | {(0, 0, 0)}) == 70_001


def test_a_color_that_is_not_given_is_generated_by_position(tmp_path: Path) -> None:
    names = "".join(f"- {{name: c{index}}}\n" for index in range(255))
    palette = write(tmp_path, f"name: own\nclasses:\n{names}").palette
    assert palette.tolist() == [list(generated_color(position)) for position in range(255)]
    assert len(np.unique(palette, axis=0)) == 255
    # The third color of the map is given to another class, so the third class has one from behind the map's end.
    own = write(tmp_path, "name: own\nclasses: [{name: a, color: [128, 128, 0]}, {name: b}, {name: c}, {name: d}]\n")
    assert own.palette.tolist() == [[128, 128, 0], [0, 128, 0], list(generated_color(2 + 256)), [0, 0, 128]]


def test_a_set_is_made_of_names() -> None:
    own = classes_from_labels("Me/My Model v1.5!", ["wall", "door", "wall", "Wall", "", "wall", "a\nb" + 200 * "c"])
    assert own.name == "me-my-model-v1-5" and own.void == 255
    assert own.names[:6] == ("wall", "door", "wall (2)", "Wall", "class 4", "wall (3)")
    assert own.names[6].startswith("a bccc") and len(own.names[6]) <= 100
    assert own.palette.tolist() == [list(generated_color(position)) for position in range(7)]
    assert classes_from_labels("!", ["a"]).name == "classes"


@pytest.mark.parametrize("name", ["ade20k", "cityscapes", "mapillary_vistas"])
def test_names_of_a_set_of_the_package_give_that_set(name: str) -> None:
    shipped = load_classes(name)
    given = classes_from_labels("other", [f"{known.upper()} " for known in shipped.names])
    assert given == shipped
    np.testing.assert_array_equal(given.palette, shipped.palette)
    assert classes_from_labels("other", shipped.names[:-1]).name == "other"


@pytest.mark.parametrize("count", [0, 256])
def test_a_set_has_1_to_255_classes(count: int) -> None:
    with pytest.raises(ValueError, match=f"^many has {count} classes: at least 1 and at most 255 are possible$"):
        classes_from_labels("many", [str(index) for index in range(count)])


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    file = tmp_path / "evil.yaml"
    file.write_text("!!python/object/apply:os.mkdir [made]\n")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_classes(file)


def test_two_sets_are_compared_by_their_names() -> None:
    camvid = load_classes("camvid")
    white = tuple(ClassEntry(name, (255, 255, 255)) for name in camvid.names)
    assert dataclasses.replace(camvid, classes=white) == camvid, "whatever their colors"
    camvid.check_names(dataclasses.replace(camvid, name="other", classes=white, void=255), "model a")
    with pytest.raises(
        ValueError, match="^model a has the classes of cityscapes, not of camvid: road, .* instead of sky"
    ):
        camvid.check_names(load_classes("cityscapes"), "model a")


def test_overlay_blends_as_worked_out_by_hand() -> None:
    image = np.full((1, 2, 3), 100, np.uint8)
    mask = np.array([[10, 8]], np.uint8)  # bicyclist (0, 128, 192) and car (64, 0, 128) in RGB
    assert load_classes("camvid").overlay(image, mask).tolist() == [[[146, 114, 50], [114, 50, 82]]]
    assert load_classes("camvid").overlay(image, mask, alpha=1).tolist() == [[[192, 128, 0], [128, 0, 64]]]
    np.testing.assert_array_equal(load_classes("camvid").overlay(image, mask, alpha=0), image)


@pytest.mark.parametrize("shape", [(48, 64), (130, 7), (1, 1), (0, 5)])
def test_pictures_are_those_of_plain_numpy(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (*shape, 3), np.uint8), rng.integers(0, 256, shape, np.uint8)
    camvid = load_classes("camvid")
    table = np.zeros((256, 3), np.uint8)
    table[:11] = camvid.palette
    for given in (mask, mask[::-1, ::-1], np.asfortranarray(mask)):
        np.testing.assert_array_equal(camvid.colorize(given), table[given])
        for alpha in (0.0, 0.3, 0.5, 1.0):
            blended = camvid.overlay(image, given, alpha)
            expected = (1 - alpha) * image + alpha * table[given][..., ::-1].astype(float)
            assert np.abs(blended - expected).max(initial=0) <= 0.5 + 1e-4
            np.testing.assert_array_equal(camvid.overlay(image, given, alpha, rgb=True), blended[..., ::-1])


def test_overlay_refuses_a_mask_of_another_size_and_a_wrong_alpha() -> None:
    image, mask = np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3), np.uint8)
    with pytest.raises(ValueError, match=r"image is \(2, 3, 3\), mask is \(3, 2\)"):
        load_classes("camvid").overlay(image, mask.T)
    with pytest.raises(ValueError, match="alpha is 1.5: give 0 to 1"):
        load_classes("camvid").overlay(image, mask, alpha=1.5)
