# SPDX-License-Identifier: Apache-2.0
"""Opening a recording of any kind, and its label maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from recorded import image_message, noise, noise_frames, write_images, write_messages, write_video

from netwarp_ros.recordings.bag_writer import write_bag
from netwarp_ros.recordings.bags import BagFrames, BagLabels
from netwarp_ros.recordings.image_files import ImageFiles, LabelFolder
from netwarp_ros.recordings.open import is_bag, open_frames, open_labels
from netwarp_ros.recordings.videos import VideoFile


@pytest.mark.parametrize(("kind", "expected"), [("folder", ImageFiles), ("video", VideoFile), ("bag", BagFrames)])
def test_a_range_of_frames_equals_that_range_of_the_whole(tmp_path: Path, kind: str, expected: type) -> None:
    if kind == "bag":
        write_bag(tmp_path / "drive", noise_frames(6), topic="/image")
        recording = open_frames(tmp_path / "drive")
    elif kind == "video":
        recording = open_frames(write_video(tmp_path / "drive.mp4"))
    else:
        recording = open_frames(write_images(tmp_path, *(f"{index}.png" for index in range(6))))
    assert isinstance(recording, expected)
    whole = list(recording)
    for begin, end in ((0, 2), (2, 5), (5, None), (6, 9)):
        part = list(recording.read(begin, end))
        assert [(frame.index, frame.stamp_ns, frame.name) for frame in part] == [
            (frame.index, frame.stamp_ns, frame.name) for frame in whole[begin:end]
        ]
        for frame, expected_frame in zip(part, whole[begin:end], strict=True):
            np.testing.assert_array_equal(frame.image, expected_frame.image)
        assert recording.damage == []


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing at .*absent: give a folder of images"):
        open_frames(tmp_path / "absent")


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_must_be_above_zero(tmp_path: Path, rate: float) -> None:
    with pytest.raises(ValueError, match="rate is .*: give frames per second > 0"):
        open_frames(tmp_path, rate=rate)


def test_a_topic_requires_a_bag(tmp_path: Path) -> None:
    images = write_images(tmp_path, "a.png")
    with pytest.raises(ValueError, match="the topic /camera is named, but .* is not a bag"):
        open_frames(images, topics=["/camera"])
    with pytest.raises(ValueError, match="the topic /labels of label maps is named, but .* is not a bag"):
        open_labels(open_frames(images), images, None, ["/labels"])


def test_a_bag_is_told_by_its_metadata_or_its_files(tmp_path: Path) -> None:
    write_bag(tmp_path / "drive", noise_frames(1), topic="/image")
    assert is_bag(tmp_path / "drive") and is_bag(tmp_path / "drive" / "drive.mcap")
    (tmp_path / "drive" / "metadata.yaml").unlink()
    assert is_bag(tmp_path / "drive")
    write_images(tmp_path / "drive", "a.png")  # a folder of images, in which a bag happens to lie
    assert not is_bag(tmp_path / "drive") and not is_bag(tmp_path) and not is_bag(tmp_path / "drive.mp4")


@pytest.mark.parametrize("with_images", [True, False])
def test_a_metadata_file_of_somebody_else_makes_no_bag(tmp_path: Path, with_images: bool) -> None:
    (tmp_path / "metadata.yaml").write_text("name: street\nlicense: cc-by\n")
    if not with_images:
        with pytest.raises(FileNotFoundError, match="holds no image"):
            open_frames(tmp_path)
        return
    assert [frame.name for frame in open_frames(write_images(tmp_path, "000.png", "001.png"))] == ["000", "001"]


def test_a_bag_beside_images_is_a_bag_by_its_metadata(tmp_path: Path) -> None:
    write_bag(tmp_path / "drive", noise_frames(1), topic="/image")
    write_images(tmp_path / "drive", "preview.png")
    assert is_bag(tmp_path / "drive")


def test_label_maps_come_from_a_folder_or_a_bag(tmp_path: Path) -> None:
    label = noise()[..., 0]
    bag = write_messages(
        tmp_path / "bag", [("/c", image_message(noise(), "bgr8")), ("/labels", image_message(label, "mono8"))]
    )
    recording = open_frames(bag, leave_out=["/labels"])
    (frame,) = recording
    assert open_labels(recording, bag, None, []) is None
    for labels in (open_labels(recording, bag, None, ["/labels"]), open_labels(recording, tmp_path, bag, ["/labels"])):
        assert isinstance(labels, BagLabels)
        np.testing.assert_array_equal(labels(frame), label)
    folder = write_images(tmp_path / "labels", "000000.png")
    assert isinstance(open_labels(recording, bag, folder, []), LabelFolder)
    with pytest.raises(ValueError, match="is a bag: name the topic of its label maps"):
        open_labels(recording, bag, bag, [])
    with pytest.raises(ValueError, match=r"2 topics of label maps are named \(/labels, /more\) for 1 cameras \(/c\)"):
        open_labels(recording, bag, None, ["/labels", "/more"])
