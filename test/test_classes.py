# SPDX-License-Identifier: Apache-2.0
"""The class sets of the package, and the errors of class files that are not valid."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from netwarp_ros.classes import ClassEntry, load_classes

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


@pytest.mark.parametrize("name", ["camvid", "cityscapes"])
def test_no_two_classes_have_the_same_color(name: str) -> None:
    palette = load_classes(name).palette
    assert len(np.unique(palette, axis=0)) == len(palette)


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
        (GOOD, "- a list", r" is \['a list'\], must be a mapping with name, void, classes$"),
        (GOOD, "name: [unclosed", r" is not valid YAML: while parsing a flow sequence .*$"),
        ("void: 255\n", "", ": void is missing$"),
        ("void: 255\n", "void: 255\nvoidd: 3\n", " has the unknown key voidd: did you mean void\\?$"),
        ("void: 255", "void: 1", ": void is 1: give an id from 2, the number of classes, to 255$"),
        ("void: 255", "void: 256", ": void is 256, must be less than or equal to 255$"),
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
        (", color: [4, 5, 6]", "", r": classes\[1\]\.color is missing$"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    file = tmp_path / "wrong.yaml"
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(ValueError, match=rf"wrong\.yaml{message}"):
        load_classes(file)


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


def test_overlay_refuses_a_mask_of_another_size_and_a_wrong_alpha() -> None:
    image, mask = np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3), np.uint8)
    with pytest.raises(ValueError, match=r"image is \(2, 3, 3\), mask is \(3, 2\)"):
        load_classes("camvid").overlay(image, mask.T)
    with pytest.raises(ValueError, match="alpha is 1.5: give 0 to 1"):
        load_classes("camvid").overlay(image, mask, alpha=1.5)
