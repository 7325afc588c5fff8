# SPDX-License-Identifier: Apache-2.0
"""Videos written by PyAV."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from netwarp_ros.recordings.video_writer import VideoWriter


def read(path: Path) -> tuple[list[np.ndarray], float]:
    capture = cv2.VideoCapture(str(path))
    images = []
    while True:
        is_read, image = capture.read()
        if not is_read:
            return images, capture.get(cv2.CAP_PROP_FPS)
        images.append(image)


@pytest.mark.parametrize("rate", [12.5, 59 / 3.937, 0.01, 1000.0])
def test_a_video_holds_every_image_at_its_rate(tmp_path: Path, rate: float) -> None:
    with VideoWriter(tmp_path / "video.mp4", rate) as video:
        for index in range(7):
            video.write(np.full((48, 64, 3), (10, 20 * index, 200), np.uint8))
    images, read_rate = read(tmp_path / "video.mp4")
    assert len(images) == 7 and read_rate == pytest.approx(rate)
    for index, image in enumerate(images):
        assert image.shape == (48, 64, 3)
        np.testing.assert_allclose(image.mean(axis=(0, 1)), (10, 20 * index, 200), atol=6)


def test_a_video_has_the_format_that_browsers_play(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "video.mp4", 10) as video:
        video.write(np.zeros((48, 64, 3), np.uint8))
    data = (tmp_path / "video.mp4").read_bytes()
    assert b"avc1" in data  # H.264
    assert data.index(b"moov") < data.index(b"mdat")  # it can play before it is fully downloaded


def test_images_are_brought_to_one_even_size(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "video.mp4", 10) as video:
        video.write(np.zeros((47, 63, 3), np.uint8))
        video.write(np.full((94, 126, 3), 200, np.uint8))
    images, _ = read(tmp_path / "video.mp4")
    assert [image.shape for image in images] == [(48, 64, 3)] * 2
    assert images[1].mean() > 150


def test_without_images_there_is_no_file(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "video.mp4", 10):
        pass
    assert not (tmp_path / "video.mp4").exists()


def test_a_video_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not end in \.mp4"):
        VideoWriter(tmp_path / "video.avi", 10)
    with pytest.raises(ValueError, match="rate is 0: give frames per second > 0"):
        VideoWriter(tmp_path / "video.mp4", 0)
    with pytest.raises(FileNotFoundError, match="no folder .*absent"):
        VideoWriter(tmp_path / "absent" / "video.mp4", 10)
    with VideoWriter(tmp_path / "video.mp4", 10) as video, pytest.raises(ValueError, match=r"image is \(4, 4\) uint8"):
        video.write(np.zeros((4, 4), np.uint8))


def test_a_failing_encoder_raises(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").mkdir()
    with pytest.raises(OSError, match="video.mp4"), VideoWriter(tmp_path / "video.mp4", 10) as video:
        video.write(np.zeros((48, 64, 3), np.uint8))
