# SPDX-License-Identifier: Apache-2.0
"""What all data sets share (clips, selections, recordings of them), and folders of images and label maps."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from labelled import CAMVID, HEIGHT, WIDTH, label, write, write_cityscapes, write_labelled_video

from netwarp_ros.datasets import folder
from netwarp_ros.datasets.camvid import VOID, CamVid
from netwarp_ros.datasets.cityscapes import Cityscapes
from netwarp_ros.datasets.folder import ImageFolder
from netwarp_ros.datasets.samples import SampleFrames, clips


def test_a_folder_gives_the_images_that_have_label_maps(tmp_path: Path) -> None:
    folder = write_labelled_video(tmp_path, 5, {1, 4})
    assert [(sample.name, sample.image[0, 0, 0], sample.label[0, 0]) for sample in folder] == [
        ("001", 1, 1),
        ("004", 4, 4),
    ]
    assert len(folder) == 2 and folder.classes is CAMVID
    assert folder[-1].name == "004" and [sample.name for sample in folder[:1]] == ["001"]
    with pytest.raises(IndexError):
        folder[2]


def test_clips_end_with_a_labelled_frame_and_are_void_before_it(tmp_path: Path) -> None:
    folder = write_labelled_video(tmp_path, 6, {1, 3, 4})
    three = clips(folder, 3)
    assert len(three) == 2  # frame 1 has too few frames before it
    assert three[0].images.shape == (3, HEIGHT, WIDTH, 3) and three[0].labels.shape == (3, HEIGHT, WIDTH)
    assert three[0].images[:, 0, 0, 0].tolist() == [1, 2, 3] and three[0].labels[:, 0, 0].tolist() == [1, VOID, 3]
    assert three[-1].images[:, 0, 0, 0].tolist() == [2, 3, 4] and three[-1].labels[:, 0, 0].tolist() == [VOID, 3, 4]
    assert [clip.images[-1, 0, 0, 0] for clip in three[:]] == [3, 4]
    assert [clip.images.shape[0] for clip in clips(folder, 1)] == [1, 1, 1]
    with pytest.raises(IndexError):
        three[2]


def test_clips_longer_than_every_video_are_refused(tmp_path: Path) -> None:
    folder = write_labelled_video(tmp_path, 3, {1})
    with pytest.raises(ValueError, match="images has no clip of 3 frames; the longest clip has 2"):
        clips(folder, 3)
    with pytest.raises(ValueError, match="length is 0: give at least 1"):
        clips(folder, 0)


def test_a_clip_with_frames_of_two_sizes_is_refused(tmp_path: Path) -> None:
    folder = write_labelled_video(tmp_path, 3, {2})
    write(tmp_path / "images" / "001.png", np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(ValueError, match="001 is 5x4, but 002, the last frame of its clip, is 8x6"):
        clips(folder, 3)[0]


def test_clips_can_be_pickled_for_loader_processes(tmp_path: Path) -> None:
    several = clips(write_labelled_video(tmp_path, 3, {1, 2}), 2)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(several))[1].images, several[1].images)


def test_labels_of_a_folder_are_checked(tmp_path: Path) -> None:
    folder = write_labelled_video(tmp_path, 2, {0, 1})
    write(tmp_path / "labels" / "001.png", label(13))
    with pytest.raises(
        ValueError, match=r"001\.png holds class id 13 at x 0, y 0; the ids of camvid are 0 to 10, and 11, 255 f"
    ):
        folder[1]
    write(tmp_path / "labels" / "007.png", label(0))
    with pytest.raises(FileNotFoundError, match=r"007\.png is the label map of no image"):
        ImageFolder(tmp_path / "images", tmp_path / "labels", CAMVID)
    with pytest.raises(FileNotFoundError, match="no folder .*absent"):
        ImageFolder(tmp_path / "images", tmp_path / "absent", CAMVID)


def test_names_are_known_without_reading(tmp_path: Path) -> None:
    write_labelled_video(tmp_path / "camvid", 2, {0, 1})
    for samples in (
        write_labelled_video(tmp_path / "folder", 3, {0, 2}),
        Cityscapes(write_cityscapes(tmp_path), "train"),
        CamVid(tmp_path / "camvid"),
    ):
        for index in range(len(samples)):
            for before in range(samples.frames_before(index) + 1):
                assert samples.name(index, before) == samples.read(index, before).name


# Data sets as recordings


def test_labelled_frames_become_a_recording_with_pauses(tmp_path: Path) -> None:
    frames = SampleFrames(Cityscapes(write_cityscapes(tmp_path), "train"), 2, rate=10)
    assert len(frames) == 4 and frames.rate == 10
    seen = []
    for frame in frames:
        labelled = frames.label(frame), frames.instances(frame)
        assert [part is None for part in labelled] == [not frame.name.endswith("19")] * 2
        seen.append((frame.index, frame.stamp_ns, frame.name, int(frame.image[0, 0, 0])))
    minute = 60 * 10**9
    assert seen == [
        (0, 0, "aachen_000003_000018", 18),
        (1, 10**8, "aachen_000003_000019", 19),
        (2, 2 * 10**8 + minute, "ulm_000003_000018", 18),
        (3, 3 * 10**8 + minute, "ulm_000003_000019", 19),
    ]
    np.testing.assert_array_equal(frames.label(frame), frames.samples[1].label)
    np.testing.assert_array_equal(frames.instances(frame), frames.samples.instances(1))
    with pytest.raises(ValueError, match="length is 0"):
        SampleFrames(frames.samples, 0)


def test_a_range_of_frames_reads_its_own_samples_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = SampleFrames(write_labelled_video(tmp_path, 4, {0, 2, 3}), 3)
    whole = [(frame.index, frame.stamp_ns, frame.name) for frame in frames]
    read: list[int] = []
    read_image = folder.read_image
    monkeypatch.setattr(folder, "read_image", lambda path: read.append(path) or read_image(path))
    part = [(frame.index, frame.stamp_ns, frame.name) for frame in frames.read(4, 6)]
    assert part == whole[4:6] and len(read) == 2


def test_a_recording_of_a_video_has_a_clip_for_each_labelled_frame(tmp_path: Path) -> None:
    frames = SampleFrames(write_labelled_video(tmp_path, 4, {0, 2, 3}), 3)
    labelled = [(frame.name, frames.label(frame) is not None) for frame in frames]
    assert labelled == [
        ("000", True),
        *[("000", False), ("001", False), ("002", True)],
        *[("001", False), ("002", False), ("003", True)],
    ]
    assert all(frames.instances(frame) is None for frame in frames)
