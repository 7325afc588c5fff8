# SPDX-License-Identifier: Apache-2.0
"""Labelled stills set in motion."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from netwarp_ros.classes import load_classes
from netwarp_ros.datasets.motion import Motion
from netwarp_ros.datasets.moving_stills import MovingStills
from netwarp_ros.datasets.samples import Sample, SampleFrames, Samples

STILL_CAMERA = Motion(approach=(0.0, 0.0), turn=0.0, shift=(0.0, 0.0))


class Pictures(Samples):
    """Two pictures of 64x48."""

    def __init__(self) -> None:
        self.classes = load_classes("camvid")

    def __len__(self) -> int:
        return 2

    def name(self, index: int, before: int = 0) -> str:
        return f"picture{index}"

    def read(self, index: int, before: int = 0) -> Sample:
        assert before == 0
        y, x = np.mgrid[:48, :64]
        image = np.stack([40 + 2 * x, 60 + 3 * y, 100 + 50 * np.sin(0.2 * x + index)], axis=-1).astype(np.uint8)
        return Sample(self.name(index), image, np.full((48, 64), index, np.uint8))


def test_the_still_is_the_last_frame_and_the_only_one_with_a_label() -> None:
    clip = MovingStills(Pictures(), 3, exposure=0.0, noise=0.0)
    assert len(clip) == 2 and clip.frames_before(1) == 2
    last, first = clip.read(1), clip.read(1, 2)
    assert np.array_equal(last.image, Pictures().read(1).image) and (last.label == 1).all()
    assert (first.label == clip.classes.void).all() and first.image.shape == last.image.shape
    assert (last.name, first.name) == ("picture1", "picture1-2")


def test_frames_move_by_the_motion_of_the_camera() -> None:
    clip = MovingStills(Pictures(), 3, motion=Motion((0.0, 0.0), 0.0, (0.1, 0.0)), exposure=0.0, noise=0.0)
    columns = [clip.read(0, before).image[24, 20:40, 0].astype(float) for before in (0, 1, 2)]  # 2 levels per pixel
    steps = [float(np.mean(b - a)) for a, b in pairwise(columns)]
    assert abs(steps[0]) > 2 and steps[1] == pytest.approx(steps[0], abs=0.5)
    assert not np.array_equal(clip.read(0, 1).image, clip.read(1, 1).image)


def test_each_frame_has_noise_and_exposure_of_its_own_and_reading_repeats() -> None:
    clip = MovingStills(Pictures(), 2, motion=STILL_CAMERA, exposure=0.05, noise=3.0)
    still, present, previous = Pictures().read(0).image, clip.read(0).image, clip.read(0, 1).image
    assert np.array_equal(previous, clip.read(0, 1).image)
    noise = [frame.astype(float) - still for frame in (present, previous)]
    assert 2 < np.std(noise[0] - noise[0].mean()) < 8
    assert abs(np.corrcoef(*(n.ravel() - still.ravel() * n.mean() / still.mean() for n in noise))[0, 1]) < 0.2


def test_each_clip_is_a_stream_of_its_own() -> None:
    frames = SampleFrames(MovingStills(Pictures(), 3), 3)
    read = [(frame.name, frames.label(frame) is not None, frame.stamp_ns) for frame in frames.read()]
    assert [name for name, _, _ in read] == [f"picture{i}{end}" for i in (0, 1) for end in ("-2", "-1", "")]
    assert [labelled for _, labelled, _ in read] == [False, False, True] * 2
    assert read[3][2] - read[2][2] > 10**9


def test_a_clip_of_one_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="length is 1: give at least 2 frames"):
        MovingStills(Pictures(), 1)
