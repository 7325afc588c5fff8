# SPDX-License-Identifier: Apache-2.0
"""The CamVid reader and the augmentation of its stills."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from netwarp_ros.data.augment import Augmentation
from netwarp_ros.data.camvid import VOID, CamVid


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
    with pytest.raises(FileNotFoundError, match="nowhere is no CamVid: it must hold images/ and labels/, 701_Stills"):
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
        (np.ones((6, 8, 3), np.uint8), r"a\.png holds the RGB colour \(1, 1, 1\), which is of none"),
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


def coloured_label(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Blobs of three classes, and an image whose blue channel says which class is where."""
    noise = np.random.default_rng(1).random((height, width)).astype(np.float32)
    label = np.digitize(cv2.GaussianBlur(noise, (0, 0), 9), [0.49, 0.51]).astype(np.uint8)
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = 100 * label
    return image, label


@pytest.mark.parametrize("seed", range(6))
def test_image_and_label_move_together(seed: int) -> None:
    image, label = coloured_label(80, 100)
    still = Augmentation(60, 90, min_scale=0.5, colour=0, blur=0)
    moved_image, moved_label = still(image, label, np.random.default_rng(seed), void=VOID)
    assert moved_image.shape == (60, 90, 3)
    assert moved_label.shape == (60, 90)
    seen = moved_label != VOID
    read_back = (moved_image[..., 0].astype(np.float32) / 100).round()
    assert (read_back == moved_label)[seen].mean() > 0.93


def test_zoom_out_is_filled_with_void() -> None:
    image, label = coloured_label(80, 100)
    small = Augmentation(80, 100, min_scale=0.5, max_scale=0.5001)
    _, moved = small(image, label, np.random.default_rng(0), void=VOID)
    assert (moved == VOID).mean() == pytest.approx(0.75, abs=0.03)


def test_augmentation_follows_its_generator() -> None:
    image, label = coloured_label(80, 100)
    augment = Augmentation(60, 90)
    first, again, other = (augment(image, label, np.random.default_rng(seed), void=VOID) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_without_colour_changes_grey_stays_what_it_was() -> None:
    image, label = np.full((40, 40, 3), 77, np.uint8), np.zeros((40, 40), np.uint8)
    same, _ = Augmentation(40, 40, min_scale=1, max_scale=1.5, colour=0, blur=0)(
        image, label, np.random.default_rng(0), void=VOID
    )
    assert np.count_nonzero(np.all(same == 77, axis=-1)) > 0.8 * same[..., 0].size
    changed, _ = Augmentation(40, 40, min_scale=1, max_scale=1.5, blur=0)(
        image, label, np.random.default_rng(0), void=VOID
    )
    assert not np.any(np.all(changed == 77, axis=-1))
