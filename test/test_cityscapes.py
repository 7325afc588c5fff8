# SPDX-License-Identifier: Apache-2.0
"""Cityscapes: its folders, class ids, instances and clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import name2label
from labelled import HEIGHT, WIDTH, write_cityscapes

from netwarp_ros.classes import load_classes
from netwarp_ros.datasets.cityscapes import INSTANCE_SIZES, TRAIN_IDS, Cityscapes
from netwarp_ros.datasets.samples import clips

CITYSCAPES = load_classes("cityscapes")


def test_labelled_frames_have_19_classes(tmp_path: Path) -> None:
    source = Cityscapes(write_cityscapes(tmp_path), "train")
    assert [sample.name for sample in source] == ["aachen_000003_000019", "ulm_000003_000019"]
    assert source[1].image[0, 0, 0] == 19 and source.classes.name == "cityscapes"
    expected = np.resize(np.uint8([0, 13, 11, 255, 255, 18]), (HEIGHT, WIDTH))
    np.testing.assert_array_equal(source[0].label, expected)
    np.testing.assert_array_equal(source.instances(0), np.where(expected == 13, 26001, 0))


def test_clips_end_with_the_labelled_frame(tmp_path: Path) -> None:
    source = Cityscapes(write_cityscapes(tmp_path), "train")
    assert source.frames_before(0) == 2
    several = clips(source, 3)
    assert len(several) == 2
    assert several[1].images[:, 0, 0, 0].tolist() == [17, 18, 19]
    assert (several[1].labels[:2] == 255).all()
    np.testing.assert_array_equal(several[1].labels[2], source[1].label)


def test_without_the_sequences_there_are_no_clips(tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path, sequence="leftImg8bit_trainvaltest/leftImg8bit", frames=range(19, 20))
    source = Cityscapes(root, "train")
    assert source[0].image[0, 0, 0] == 19 and source.frames_before(0) == 0
    with pytest.raises(ValueError, match="leftImg8bit/train has no clip of 2 frames; the longest clip has 1"):
        clips(source, 2)


def test_the_error_for_a_missing_folder_names_its_download(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*gtFine/train: unpack gtFine_trainvaltest\.zip from www"):
        Cityscapes(tmp_path, "train")
    write_cityscapes(tmp_path)
    with pytest.raises(FileNotFoundError, match="gtFine/val: unpack .* give the split train or val"):
        Cityscapes(tmp_path, "val")
    (tmp_path / "leftImg8bit_sequence" / "train" / "ulm" / "ulm_000003_000019_leftImg8bit.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"ulm_000003_000019_leftImg8bit\.png is missing, the image of .*label"):
        Cityscapes(tmp_path, "train")
    (tmp_path / "leftImg8bit_sequence").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"unpack leftImg8bit_sequence_trainvaltest\.zip"):
        Cityscapes(tmp_path, "train")
    (tmp_path / "elsewhere").rename(tmp_path / "leftImg8bit_sequence")
    for file in (tmp_path / "gtFine" / "train").glob("*/*_labelIds.png"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no CITY/\*_gtFine_labelIds\.png"):
        Cityscapes(tmp_path, "train")


def test_ids_are_those_of_the_official_scripts() -> None:
    assert {entry.id: entry.trainId for entry in name2label.values() if entry.trainId not in (255, -1)} == TRAIN_IDS
    for entry in name2label.values():
        if entry.trainId in TRAIN_IDS.values():
            assert CITYSCAPES.names[entry.trainId] == entry.name
            assert tuple(CITYSCAPES.palette[entry.trainId]) == entry.color
            assert (entry.trainId in INSTANCE_SIZES) == entry.hasInstances
