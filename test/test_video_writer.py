# SPDX-License-Identifier: Apache-2.0
"""Videos written picture by picture, by ffmpeg and by OpenCV."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import netwarp_ros.recordings.video_writer
from netwarp_ros.recordings.video_writer import VideoWriter


@pytest.fixture(params=["imageio-ffmpeg", "opencv"])
def encoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either way of writing a video."""
    if request.param == "imageio-ffmpeg":
        pytest.importorskip("imageio_ffmpeg", reason="no imageio_ffmpeg: pip install imageio-ffmpeg")
    else:
        monkeypatch.setattr(netwarp_ros.recordings.video_writer, "imageio_ffmpeg", None)
    return request.param


def read(path: Path) -> tuple[list[np.ndarray], float]:
    capture = cv2.VideoCapture(str(path))
    pictures = []
    while True:
        there, picture = capture.read()
        if not there:
            return pictures, capture.get(cv2.CAP_PROP_FPS)
        pictures.append(picture)


def test_a_video_holds_every_picture(tmp_path: Path, encoder: str) -> None:
    with VideoWriter(tmp_path / "film.mp4", 12.5) as film:
        for index in range(7):
            film.write(np.full((48, 64, 3), (10, 20 * index, 200), np.uint8))
    pictures, rate = read(tmp_path / "film.mp4")
    assert len(pictures) == 7 and rate == pytest.approx(12.5)
    for index, picture in enumerate(pictures):
        assert picture.shape == (48, 64, 3)
        np.testing.assert_allclose(picture.mean(axis=(0, 1)), (10, 20 * index, 200), atol=6)


def test_a_video_is_what_browsers_play(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="no imageio_ffmpeg: pip install imageio-ffmpeg")
    with VideoWriter(tmp_path / "film.mp4", 10) as film:
        film.write(np.zeros((48, 64, 3), np.uint8))
    data = (tmp_path / "film.mp4").read_bytes()
    assert b"avc1" in data  # H.264
    assert data.index(b"moov") < data.index(b"mdat")  # plays before it is all there


def test_sizes_are_made_even_and_equal(tmp_path: Path, encoder: str) -> None:
    with VideoWriter(tmp_path / "film.mp4", 10) as film:
        film.write(np.zeros((47, 63, 3), np.uint8))
        film.write(np.full((94, 126, 3), 200, np.uint8))
    pictures, _ = read(tmp_path / "film.mp4")
    assert [picture.shape for picture in pictures] == [(48, 64, 3)] * 2
    assert pictures[1].mean() > 150


def test_no_picture_no_file(tmp_path: Path, encoder: str) -> None:
    with VideoWriter(tmp_path / "film.mp4", 10):
        pass
    assert not (tmp_path / "film.mp4").exists()


def test_a_video_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not end in \.mp4"):
        VideoWriter(tmp_path / "film.avi", 10)
    with pytest.raises(ValueError, match="rate is 0: give frames per second > 0"):
        VideoWriter(tmp_path / "film.mp4", 0)
    with pytest.raises(FileNotFoundError, match="no folder .*absent"):
        VideoWriter(tmp_path / "absent" / "film.mp4", 10)
    with VideoWriter(tmp_path / "film.mp4", 10) as film, pytest.raises(ValueError, match=r"image is \(4, 4\) uint8"):
        film.write(np.zeros((4, 4), np.uint8))


def test_an_encoder_that_fails_is_told(tmp_path: Path, encoder: str) -> None:
    (tmp_path / "film.mp4").mkdir()
    with pytest.raises(OSError, match="film.mp4"), VideoWriter(tmp_path / "film.mp4", 10) as film:
        film.write(np.zeros((48, 64, 3), np.uint8))
