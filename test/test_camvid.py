# SPDX-License-Identifier: Apache-2.0
"""The CamVid reader."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from netwarp_ros.datasets.camvid import CamVid


def write(root: Path, name: str, image: np.ndarray, label: np.ndarray | None) -> None:
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(root / "images" / f"{name}.png"), image)
    if label is not None:
        assert cv2.imwrite(str(root / "labels" / f"{name}.png"), label)


def image_of(height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_pairs_files_by_stem_in_the_order_of_their_names(tmp_path: Path) -> None:
    for value, name in enumerate(["b", "a", "c"]):
        write(tmp_path, name, image_of(), np.full((6, 8), value, np.uint8))
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    camvid = CamVid(tmp_path)
    assert [(sample.name, int(sample.label[0, 0])) for sample in camvid] == [("a", 1), ("b", 0), ("c", 2)]
    assert [sample.name for sample in camvid[1:]] == ["b", "c"]
    np.testing.assert_array_equal(camvid[0].image, image_of())
    with pytest.raises(IndexError):
        camvid[3]


def test_missing_label_is_named(tmp_path: Path) -> None:
    write(tmp_path, "0001TP_000001", image_of(), None)
    with pytest.raises(FileNotFoundError, match=r"labels/0001TP_000001\.png is missing"):
        CamVid(tmp_path)


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
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
        (np.zeros((6, 8), np.uint16), r"a\.png is \(6, 8\) uint16: a label map holds class ids"),
    ],
)
def test_wrong_label_is_named(tmp_path: Path, label: np.ndarray, message: str) -> None:
    write(tmp_path, "a", image_of(), label)
    with pytest.raises(ValueError, match=message):
        CamVid(tmp_path)[0]


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_unreadable_file_is_named(tmp_path: Path, folder: str) -> None:
    write(tmp_path, "a", image_of(), np.zeros((6, 8), np.uint8))
    (tmp_path / folder / "a.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=rf"{folder}/a\.png cannot be read"):
        CamVid(tmp_path)[0]
