# SPDX-License-Identifier: Apache-2.0
"""Labelled images of a bag as a data set."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled import CAMVID, HEIGHT, WIDTH, label, picture
from recorded import compressed_message, image_message, write_messages
from rosbags.rosbag2 import StoragePlugin

from netwarp_ros.datasets.bag import BagDataset
from netwarp_ros.datasets.camvid import VOID
from netwarp_ros.datasets.samples import clips
from netwarp_ros.recordings.bag_reader import BagReader


def message(image: np.ndarray, encoding: str, stamp_ms: int) -> Any:
    """Return an image message; raw images have padded rows, as cameras send them."""
    stamp_ns = 10**9 + stamp_ms * 10**6
    if encoding == "png":
        return compressed_message(image, ".png", stamp_ns)
    return image_message(image, encoding, stamp_ns, padding=3)


def write_drive(path: Path, storage: StoragePlugin = StoragePlugin.MCAP, encoding: str = "bgr8") -> BagDataset:
    """Write five images 100 ms apart, the last after a pause. The label maps of 1, 2 and 4 are recorded late."""
    stamps = [0, 100, 200, 300, 900]
    images = [("/image", message(picture(index), encoding, stamp)) for index, stamp in enumerate(stamps)]
    labels = [("/mask", message(label(index), "mono8", stamps[index])) for index in (1, 2, 4)]
    stray = ("/mask", message(label(9), "mono8", 50))
    order = [*images[:3], labels[0], stray, *images[3:], *labels[1:]]
    return BagDataset(write_messages(path, order, storage=storage), "/image", "/mask", CAMVID)


@pytest.mark.parametrize("storage", list(StoragePlugin), ids=lambda storage: storage.name)
@pytest.mark.parametrize("encoding", ["bgr8", "png"])
def test_a_bag_gives_the_images_that_have_a_label_map_with_their_stamp(
    tmp_path: Path, storage: StoragePlugin, encoding: str
) -> None:
    bag = write_drive(tmp_path / "bag", storage, encoding)
    assert [(sample.name, sample.image[0, 0, 0], sample.label[0, 0]) for sample in bag] == [
        ("000001", 1, 1),
        ("000002", 2, 2),
        ("000004", 4, 4),
    ]
    assert bag[0].image.shape == (HEIGHT, WIDTH, 3) and bag[0].label.shape == (HEIGHT, WIDTH)
    assert bag[0].label.flags.writeable


def test_clips_of_a_bag_do_not_span_a_pause(tmp_path: Path) -> None:
    bag = write_drive(tmp_path / "bag")
    assert [bag.frames_before(index) for index in range(len(bag))] == [1, 2, 0]
    (clip,) = clips(bag, 3)
    assert clip.images[:, 0, 0, 0].tolist() == [0, 1, 2] and clip.labels[:, 0, 0].tolist() == [VOID, 1, 2]
    patient = BagDataset(bag.path, "/image", "/mask", CAMVID, max_gap=0.6)
    assert patient.frames_before(2) == 4
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(clips(patient, 5)))[0].images[:, 0, 0, 0], range(5))


@pytest.mark.parametrize(
    ("labelled", "error"),
    [
        (
            message(picture(0)[..., :2], "yuyv", 0),
            "label map of image 0, on /mask, cannot be read: a label map must be mono8, mono16, bgr8 or rgb8, not yuyv",
        ),
        (message(label(0), "png", 0), "a label map must be mono8, mono16, bgr8 or rgb8, not compressed"),
        (message(picture(1), "bgr8", 0), r"on /mask, holds the RGB color \(1, 1, 1\) at x 0, y 0"),
        (message(np.zeros((HEIGHT, 5), np.uint8), "mono8", 0), "cannot be read: it is 5x6, but its image is 8x6"),
        (message(label(12), "mono8", 0), "on /mask, holds class id 12"),
    ],
)
def test_a_wrong_label_map_of_a_bag_is_refused(tmp_path: Path, labelled: Any, error: str) -> None:
    path = write_messages(tmp_path / "bag", [("/image", message(picture(0), "bgr8", 0)), ("/mask", labelled)])
    with pytest.raises(ValueError, match=error):
        BagDataset(path, "/image", "/mask", CAMVID)[0]


@pytest.mark.parametrize(
    ("stored", "encoding"),
    [
        (np.uint8([[0, 10, 11, 255]]), "mono8"),
        (np.uint16([[0, 10, 11, 255]]), "mono16"),
        (np.uint16([[0, 10, 11, 255]]), "16UC1"),
        (np.int16([[0, 10, 11, 255]]), "16SC1"),
        (np.uint8([[[128, 128, 128], [0, 128, 192], [0, 0, 0], [0, 0, 0]]]), "rgb8"),
        (np.uint8([[[128, 128, 128], [192, 128, 0], [0, 0, 0], [0, 0, 0]]]), "bgr8"),
    ],
)
def test_label_maps_of_a_bag_hold_ids_or_colors(tmp_path: Path, stored: np.ndarray, encoding: str) -> None:
    messages = [("/image", message(np.zeros((1, 4, 3), np.uint8), "bgr8", 0)), ("/mask", message(stored, encoding, 0))]
    sample = BagDataset(write_messages(tmp_path / "bag", messages), "/image", "/mask", CAMVID)[0]
    assert sample.label.tolist() == [[0, 10, VOID, VOID]] and sample.label.dtype == np.uint8


def test_topics_that_do_not_match_are_refused(tmp_path: Path) -> None:
    messages = [("/image", message(picture(0), "bgr8", 0)), ("/mask", message(label(0), "mono8", 7))]
    path = write_messages(tmp_path / "bag", messages)
    with pytest.raises(ValueError, match="none of the 1 label maps of /mask has the stamp of one of the 1 images"):
        BagDataset(path, "/image", "/mask", CAMVID)
    with pytest.raises(ValueError, match="no image topic '/labels': choose one of /image, /mask"):
        BagDataset(path, "/image", "/labels", CAMVID)


def test_names_are_known_without_reading(tmp_path: Path) -> None:
    bag = write_drive(tmp_path / "bag")
    for index in range(len(bag)):
        for before in range(bag.frames_before(index) + 1):
            assert bag.name(index, before) == bag.read(index, before).name


def test_a_bag_stays_open_for_its_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    open_files = BagReader._open_files
    monkeypatch.setattr(BagReader, "_open_files", lambda bag: opened.append(bag.path) or open_files(bag))
    bag = write_drive(tmp_path / "bag")
    assert len(opened) == 2  # for the stamps of images and of label maps
    for _ in range(3):
        assert [bag[index].label[0, 0] for index in (2, 0, 1)] == [4, 1, 2]
    assert len(opened) == 3
    # Forked processes would move each other's position in the file, so each opens it again.
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert bag[1].label[0, 0] == 2
    assert len(opened) == 4
