# SPDX-License-Identifier: Apache-2.0
"""Video files as recordings."""

from __future__ import annotations

import re
import struct
import sys
from itertools import accumulate
from pathlib import Path

import av
import numpy as np
import pytest
from recorded import HEIGHT, WIDTH, write_film, write_video

from netwarp_ros.recordings.frames import stamp
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.recordings.video_writer import VideoWriter
from netwarp_ros.recordings.videos import VideoFile, _PacketIndex

BROWSER_STAMPS_MS = [0, *accumulate(np.random.default_rng(0).integers(30, 104, 59).tolist())]
"""60 frames at irregular intervals, as a browser records a camera; the last one is at 3.912 s."""


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


def test_a_film_without_a_frame_rate_has_the_average_rate_of_its_stamps(tmp_path: Path) -> None:
    video = open_frames(write_film(tmp_path / "browser.webm", BROWSER_STAMPS_MS, "libvpx", deadline="realtime"))
    assert len(video) == 60 and video.rate == pytest.approx(59 / 3.912)
    frames = list(video)
    assert [frame.stamp_ns for frame in frames] == [10**6 * stamp_ms for stamp_ms in BROWSER_STAMPS_MS]
    assert video.damage == []
    with VideoWriter(tmp_path / "copy.mp4", video.rate) as copy:
        for frame in frames:
            copy.write(frame.image)
    copied = open_frames(tmp_path / "copy.mp4")
    assert len(copied) == 60
    assert len(copied) / copied.rate == pytest.approx(3.912 + 3.912 / 59)  # 4 s, as before


def test_frames_that_an_edit_list_hides_are_not_missing(tmp_path: Path) -> None:
    """A film that was cut but not encoded again starts before 0, at a key frame, and hides what is before 0."""
    video = open_frames(write_film(tmp_path / "cut.mp4", range(-1300, 1700, 100), "libx264", bf="2", g="10"))
    frames = list(video)
    assert len(video) == len(frames) == 17 and video.damage == []
    assert [frame.stamp_ns for frame in frames] == [10**8 * index for index in range(17)]
    np.testing.assert_allclose([frame.image.mean() for frame in frames], [4 * index for index in range(13, 30)], atol=4)


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.ts", "film.avi"])
def test_a_range_of_frames_is_decoded_from_its_key_frame(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, options = ("mpeg4", {}) if name == "film.avi" else ("libx264", {"bf": "2"})
    video = open_frames(write_film(tmp_path / name, range(0, 3000, 100), codec, g="5", **options))
    assert isinstance(video, VideoFile)
    decoded: list[int] = []
    find = _PacketIndex.find
    monkeypatch.setattr(_PacketIndex, "find", lambda *frame: decoded.append(1) or find(*frame))
    whole = list(video)
    assert len(whole) == len(decoded) == 30
    for begin, end in ((22, 24), (7, 20), (29, None)):
        decoded.clear()
        part = list(video.read(begin, end))
        assert [(frame.index, frame.stamp_ns) for frame in part] == [
            (frame.index, frame.stamp_ns) for frame in whole[begin:end]
        ]
        for frame, expected in zip(part, whole[begin:end], strict=True):
            np.testing.assert_array_equal(frame.image, expected.image)
        # From the key frame before, or the one before that. A transport stream this small has no place to seek to.
        assert len(decoded) < len(part) + 15 or name == "film.ts"
        assert video.damage == []


def test_a_film_that_was_recorded_upright_is_turned(tmp_path: Path) -> None:
    path = tmp_path / "phone.mp4"
    with VideoWriter(path, 10) as writer:
        writer.write(np.repeat(np.uint8([[[0] * 3, [200] * 3]]), 32, axis=1).repeat(48, axis=0))  # dark left of bright
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)  # 90° clockwise
    path.write_bytes(content)
    (frame,) = open_frames(path)
    assert frame.image.shape == (64, 48, 3) and frame.image.flags.c_contiguous
    assert frame.image[:24].max() < 60 and frame.image[40:].min() > 140  # dark above bright


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("film.mp4", r"ended after [12]\.\d of the 6\.0 s that it declares"),
        ("film.mkv", r"ended after [12]\.\d of the 5\.9 s that it declares"),
    ],
)
def test_a_cut_film_is_reported_as_damaged(tmp_path: Path, name: str, told: str) -> None:
    path = tmp_path / name
    if name == "film.mp4":
        with VideoWriter(path, 10) as writer:  # its index comes first
            for index in range(60):
                writer.write(np.random.default_rng(index).integers(0, 256, (48, 64, 3), np.uint8))
    else:
        write_film(path, range(0, 6000, 100), "mjpeg", strict="unofficial")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    video = open_frames(path)
    assert 10 <= len(list(video)) < 30
    assert any(re.search(told, damage) for damage in video.damage), video.damage


def test_damaged_frames_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", range(0, 3000, 100), "libx264", g="5", bf="0")
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        hole, size = packets[12].pos, packets[12].size
    content = bytearray(path.read_bytes())
    content[hole + 4 : hole + size] = b"\xff" * (size - 4)
    path.write_bytes(content)
    video = open_frames(path)
    assert 12 not in [frame.index for frame in video]
    note = r".*film\.mp4: [123] of the 30 frames are damaged and left out"
    assert re.fullmatch(note, video.damage[0])
    for begin, end in ((10, 15), (12, 13), (12, None)):
        assert 12 not in [frame.index for frame in video.read(begin, end)]
        assert re.fullmatch(note, "".join(video.damage)), (begin, end)
    assert [frame.index for frame in video.read(0, 5)] == list(range(5)) and video.damage == []
    assert list(video.read(0, 0)) == video.damage == []


def test_a_playlist_does_not_read_from_elsewhere(tmp_path: Path) -> None:
    write_film(tmp_path / "secret.ts", range(0, 300, 100), "libx264")
    playlist = tmp_path / "list.mp4"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/secret.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(ValueError, match=r"list\.mp4 cannot be opened as a video"):
        open_frames(playlist)


def test_without_pyav_a_video_is_refused_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = write_video(tmp_path / "clip.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match="videos need PyAV: pip install av"):
        open_frames(video)
    with pytest.raises(ValueError, match="videos need PyAV: pip install av"):
        VideoWriter(tmp_path / "copy.mp4", 10)


@pytest.mark.parametrize("name", ["notes.mp4", "notes.txt"])  # FFmpeg would draw the text of the second one
def test_a_file_that_is_not_a_video_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text("not a video\n" * 100)
    with pytest.raises(ValueError, match=f"{name} cannot be opened as a video"):
        open_frames(file)
