# SPDX-License-Identifier: Apache-2.0
"""Video files as recordings."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from recorded import HEIGHT, WIDTH, write_video

from netwarp_ros.recordings.frames import stamp
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.recordings.videos import VideoFile


def test_a_video_has_the_stamps_of_its_container(tmp_path: Path) -> None:
    video = open_frames(write_video(tmp_path / "clip.mp4", count=6, rate=10))
    assert isinstance(video, VideoFile)
    assert len(video) == 6 and video.rate == pytest.approx(10)
    frames = list(video)
    assert [frame.name for frame in frames] == [f"00000{index}" for index in range(6)]
    np.testing.assert_allclose(
        [frame.stamp_ns for frame in frames], [stamp(index, 10) for index in range(6)], atol=1000
    )
    for index, frame in enumerate(frames):
        assert frame.image.shape == (HEIGHT, WIDTH, 3)
        assert abs(frame.image.mean() - 40 * index) < 6  # lossy compression, but frames are 40 levels apart


def test_a_given_rate_replaces_the_stamps_of_a_video(tmp_path: Path) -> None:
    video = open_frames(write_video(tmp_path / "clip.mp4", count=3, rate=10), rate=4)
    assert video.rate == 4
    assert [frame.stamp_ns for frame in video] == [0, 250_000_000, 500_000_000]


def test_a_file_that_is_not_a_video_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.mp4"
    file.write_text("not a video")
    with pytest.raises(ValueError, match=r"notes\.mp4 cannot be opened as a video"):
        open_frames(file)


def test_a_video_that_ends_early_is_reported_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    video = open_frames(write_video(tmp_path / "clip.mp4", count=3))
    monkeypatch.setattr(video, "_count", 5)
    with caplog.at_level(logging.WARNING):
        assert len(list(video)) == 3
    assert "ended after 3 of the 5 frames" in caplog.text
    assert video.damage == [f"{tmp_path / 'clip.mp4'} ended after 3 of the 5 frames that it declares"]
