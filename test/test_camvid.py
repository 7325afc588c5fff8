# SPDX-License-Identifier: Apache-2.0
"""CamVid: its folder layouts, splits, colors and clips."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from labelled import CAMVID, HEIGHT, WIDTH, label, picture, write
from PIL import Image

from netwarp_ros.datasets.camvid import ORIGINAL_COLORS, VOID, CamVid, from_colors, usual_split
from netwarp_ros.datasets.samples import clips


def write_pair(root: Path, name: str, image: np.ndarray, label: np.ndarray | None) -> None:
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(root / "images" / f"{name}.png"), image)
    if label is not None:
        assert cv2.imwrite(str(root / "labels" / f"{name}.png"), label)


def image_of(height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_images_and_label_maps_are_paired_by_stem_and_sorted(tmp_path: Path) -> None:
    for value, name in enumerate(["b", "a", "c"]):
        write_pair(tmp_path, name, image_of(), np.full((6, 8), value, np.uint8))
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    camvid = CamVid(tmp_path)
    assert [(sample.name, int(sample.label[0, 0])) for sample in camvid] == [("a", 1), ("b", 0), ("c", 2)]
    assert [sample.name for sample in camvid[1:]] == ["b", "c"]
    np.testing.assert_array_equal(camvid[0].image, image_of())
    with pytest.raises(IndexError):
        camvid[3]


def test_a_missing_label_map_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "0001TP_000001", image_of(), None)
    with pytest.raises(FileNotFoundError, match=r"labels/0001TP_000001\.png is missing"):
        CamVid(tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not CamVid: it must hold images/ and labels/, 701_Stills"):
        CamVid(tmp_path / "nowhere")
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    with pytest.raises(FileNotFoundError, match=r"images holds no \.jpg or \.png image"):
        CamVid(tmp_path)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.zeros((6, 7), np.uint8), r"a\.png is 7x6, but its image is 8x6"),
        (np.full((6, 8), 12, np.uint8), r"a\.png holds class id 12"),
        (np.ones((6, 8, 3), np.uint8), r"a\.png holds the RGB color \(1, 1, 1\), which is not one of"),
        (np.full((6, 8), 300, np.uint16), r"a\.png holds class id 300"),
        (np.zeros((6, 8, 3), np.uint16), r"a\.png has colors of 16 bits"),
    ],
)
def test_a_wrong_label_map_is_refused(tmp_path: Path, label: np.ndarray, message: str) -> None:
    write_pair(tmp_path, "a", image_of(), label)
    with pytest.raises(ValueError, match=message):
        CamVid(tmp_path)[0]


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_an_unreadable_file_is_refused(tmp_path: Path, folder: str) -> None:
    write_pair(tmp_path, "a", image_of(), np.zeros((6, 8), np.uint8))
    (tmp_path / folder / "a.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=rf"{folder}/a\.png cannot be read"):
        CamVid(tmp_path)[0]


def test_the_layout_of_segnet(tmp_path: Path) -> None:
    for split, value in (("train", 1), ("val", 2)):
        write(tmp_path / split / "0001TP_006690.png", picture(value))
        write(tmp_path / f"{split}annot" / "0001TP_006690.png", label(value))
    assert [int(CamVid(tmp_path, split)[0].label[0, 0]) for split in ("train", "val")] == [1, 2]
    with pytest.raises(
        FileNotFoundError, match="with a split test: it must hold test/images/ and test/labels/, test/ "
    ):
        CamVid(tmp_path, "test")
    with pytest.raises(ValueError, match="split is 'dev': choose one of train, val, test"):
        CamVid(tmp_path, "dev")


def test_the_layout_with_images_and_labels_in_each_split(tmp_path: Path) -> None:
    write(tmp_path / "train" / "images" / "a.png", picture(1))
    write(tmp_path / "train" / "labels" / "a.png", label(3))
    for camvid in (CamVid(tmp_path, "train"), CamVid(tmp_path / "train")):
        assert [sample.name for sample in camvid] == ["a"] and camvid[0].label[0, 0] == 3


def test_the_original_layout(tmp_path: Path) -> None:
    names = {"0001TP_006690": "train", "0001TP_008550": "test", "0016E5_07959": "val", "Seq05VD_f00000": "test"}
    colors = list(ORIGINAL_COLORS)
    for value, name in enumerate(names):
        write(tmp_path / "701_StillsRaw_full" / f"{name}.png", picture(value))
        colored = np.broadcast_to(np.uint8(colors[value][::-1]), (HEIGHT, WIDTH, 3))
        write(tmp_path / "LabeledApproved_full" / f"{name}_L.png", colored)
    assert [sample.name for sample in CamVid(tmp_path)] == sorted(names)
    for split in ("train", "val", "test"):
        assert [sample.name for sample in CamVid(tmp_path, split)] == [name for name in names if names[name] == split]
    assert CamVid(tmp_path, "train")[0].label.tolist() == label(ORIGINAL_COLORS[colors[0]][1]).tolist()


def test_the_usual_split_has_the_usual_sizes() -> None:
    """By the numbers of CamVid's 701 labelled frames."""
    at_1_hz = [*range(390, 871, 30), 901, *range(930, 2401, 30), *range(4350, 7921, 30), *range(8190, 8641, 30)]
    stems = [f"0016E5_{number:05d}" for number in [*at_1_hz, *range(7959, 8160, 2)]]
    stems += [f"0001TP_{number:06d}" for number in range(6690, 10381, 30)]
    stems += [f"0006R0_f{number:05d}" for number in range(930, 3931, 30)]
    stems += [f"Seq05VD_f{number:05d}" for number in range(0, 5101, 30)]
    assert len(stems) == 701
    splits = [usual_split(stem) for stem in stems]
    assert {split: splits.count(split) for split in set(splits)} == {"train": 367, "val": 101, "test": 233}


def test_the_32_colors_become_11_classes() -> None:
    assert len(ORIGINAL_COLORS) == 32
    names: dict[int, set[str]] = {}
    for name, value in ORIGINAL_COLORS.values():
        names.setdefault(value, set()).add(name)
    assert names == {
        0: {"Sky"},
        1: {"Building", "Archway", "Bridge", "Tunnel", "Wall"},
        2: {"Column_Pole", "TrafficCone"},
        3: {"Road", "LaneMkgsDriv", "LaneMkgsNonDriv"},
        4: {"Sidewalk", "ParkingBlock", "RoadShoulder"},
        5: {"Tree", "VegetationMisc"},
        6: {"SignSymbol", "Misc_Text", "TrafficLight"},
        7: {"Fence"},
        8: {"Car", "OtherMoving", "SUVPickupTruck", "Train", "Truck_Bus"},
        9: {"Pedestrian", "Animal", "CartLuggagePram", "Child"},
        10: {"Bicyclist", "MotorcycleScooter"},
        11: {"Void"},
    }
    picture_of_all = np.uint8([list(ORIGINAL_COLORS)])[..., ::-1]
    assert from_colors(picture_of_all, "").tolist() == [[value for _, value in ORIGINAL_COLORS.values()]]
    for value, color in enumerate(CAMVID.palette.tolist()):  # the class set has CamVid's own colors
        assert ORIGINAL_COLORS[tuple(color)][1] == value


def test_indices_of_an_indexed_label_map_are_ids_unless_its_palette_has_camvids_colors(tmp_path: Path) -> None:
    ids = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) % 12
    colors = np.uint8([*list(ORIGINAL_COLORS)[:12]])
    other = np.uint8([[0, 0, 0], [128, 0, 0], *[[value, 7, 9] for value in range(10)]])  # begins with Void, Building
    expected = {"ids": ids, "colors": np.uint8([ORIGINAL_COLORS[tuple(color)][1] for color in colors.tolist()])[ids]}
    for name, palette in (("ids", other), ("colors", colors)):
        write_pair(tmp_path, name, image_of(), None)
        image = Image.fromarray(ids)
        image.putpalette(palette.tobytes())
        image.save(tmp_path / "labels" / f"{name}.png")
    assert {sample.name: sample.label.tolist() for sample in CamVid(tmp_path)} == {
        name: label.tolist() for name, label in expected.items()
    }


def test_few_pixels_of_unknown_color_become_void_and_many_are_refused() -> None:
    colored = np.broadcast_to(np.uint8([128, 128, 128]), (10, 20, 3)).copy()
    colored[0, 0] = 26, 26, 26
    expected = np.zeros((10, 20), int)
    expected[0, 0] = VOID
    np.testing.assert_array_equal(from_colors(colored, ""), expected)
    colored[0, :3] = 77, 26, 1
    with pytest.raises(ValueError, match=r"a\.png holds the RGB color \(1, 26, 77\), which is not one of"):
        from_colors(colored, "a.png")


def test_images_are_sorted_by_the_numbers_in_their_names(tmp_path: Path) -> None:
    for number in (10, 8, 9):
        write_pair(tmp_path, f"a_{number}", image_of(), label(0))
    camvid = CamVid(tmp_path)
    assert [(camvid.name(index), camvid.frames_before(index)) for index in range(3)] == [
        ("a_8", 0), ("a_9", 1), ("a_10", 2),
    ]  # fmt: skip


def test_numbers_in_names_tell_which_frames_are_consecutive(tmp_path: Path) -> None:
    names = ["0001TP_006690", "0001TP_006720", "0016E5_07959", "0016E5_07961", "0016E5_07963", "0016E5_07969"]
    for value, name in enumerate([*names, "Seq05VD_f00000", "a", "b"]):
        write(tmp_path / "images" / f"{name}.png", picture(value))
        write(tmp_path / "labels" / f"{name}.png", label(value))
    camvid = CamVid(tmp_path)
    assert [camvid.frames_before(index) for index in range(len(camvid))] == [0, 0, 0, 1, 2, 0, 0, 0, 0]
    (clip,) = clips(camvid, 3)
    assert clip.images[:, 0, 0, 0].tolist() == clip.labels[:, 0, 0].tolist() == [2, 3, 4]
