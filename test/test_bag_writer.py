# SPDX-License-Identifier: Apache-2.0
"""Bags that this package writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import run, write_images
from recorded import HEIGHT, T0, WIDTH, noise, noise_frames, typestore
from rosbags.rosbag2 import Reader

from netwarp_ros.recordings.bag_writer import write_bag
from netwarp_ros.recordings.bags import BagFrames, BagLabels
from netwarp_ros.recordings.frames import Frame
from netwarp_ros.recordings.messages import IMAGE
from netwarp_ros.recordings.open import open_frames


def test_frames_read_from_a_bag_are_those_written_to_it(tmp_path: Path) -> None:
    bag = tmp_path / "drive"
    assert write_bag(bag, noise_frames(5), topic="/camera/image_raw", frame_id="front") == 5
    for path in (bag, next(bag.glob("*.mcap"))):
        recording = open_frames(path)
        assert isinstance(recording, BagFrames) and recording.cameras == ["/camera/image_raw"]
        assert len(recording) == 5 and recording.rate == pytest.approx(10)
        for _ in range(2):
            for frame, written in zip(recording, noise_frames(5), strict=True):
                assert frame.stamp_ns == written.stamp_ns and frame.name == f"{written.index:06d}"
                np.testing.assert_array_equal(frame.image, written.image)
                assert frame.image.flags.writeable


def test_a_bag_has_the_format_that_jazzy_plays(tmp_path: Path) -> None:
    write_bag(tmp_path / "drive", noise_frames(2), topic="/camera/image_raw")
    metadata = yaml.safe_load((tmp_path / "drive" / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert metadata["version"] == 9 and metadata["storage_identifier"] == "mcap"
    assert metadata["message_count"] == 2
    assert metadata["topics_with_message_count"][0]["topic_metadata"]["type"] == "sensor_msgs/msg/Image"
    assert (tmp_path / "drive" / metadata["relative_file_paths"][0]).read_bytes().startswith(b"\x89MCAP0\r\n")


def test_frames_are_taken_one_at_a_time(tmp_path: Path) -> None:
    taken = 0

    def frames() -> Iterator[Frame]:
        nonlocal taken
        for frame in noise_frames(3):
            taken += 1
            assert taken == frame.index + 1
            yield frame

    assert write_bag(tmp_path / "drive", frames(), topic="/camera") == 3


def test_a_path_ending_in_mcap_gives_a_single_file(tmp_path: Path) -> None:
    write_bag(tmp_path / "drive.mcap", noise_frames(3), topic="/camera")
    assert [path.name for path in tmp_path.iterdir()] == ["drive.mcap"]
    assert [frame.stamp_ns for frame in open_frames(tmp_path / "drive.mcap")] == [T0, T0 + 10**8, T0 + 2 * 10**8]


def test_label_maps_are_recorded_with_the_headers_of_their_images(tmp_path: Path) -> None:
    label = noise(1)[..., 0]
    write_bag(
        tmp_path / "drive.mcap",
        noise_frames(2),
        topic="/camera",
        labels=lambda frame: label if frame.index else None,
        label_topic="/labels",
    )
    with Reader(tmp_path / "drive.mcap") as reader:
        messages = [(connection.topic, recorded_ns, data) for connection, recorded_ns, data in reader.messages()]
    assert [(topic, recorded_ns - T0) for topic, recorded_ns, _ in messages] == [
        ("/camera", 0),
        ("/camera", 10**8),
        ("/labels", 10**8),
    ]
    image, written = (typestore.deserialize_cdr(data, IMAGE) for _, _, data in messages[1:])
    assert (written.encoding, written.height, written.width, written.step) == ("mono8", HEIGHT, WIDTH, WIDTH)
    assert written.header == image.header and written.header.frame_id == "camera_optical_frame"
    np.testing.assert_array_equal(written.data.reshape(label.shape), label)


@pytest.mark.parametrize("label", [np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH), noise(1)])
def test_label_maps_are_recorded_as_they_are_stored(tmp_path: Path, label: np.ndarray) -> None:
    labels = {"labels": lambda frame: label, "label_topic": "/labels"}
    write_bag(tmp_path / "drive.mcap", noise_frames(1), topic="/camera", **labels)
    (frame,) = open_frames(tmp_path / "drive.mcap", topics=["/camera"])
    read = BagLabels(tmp_path / "drive.mcap", {"/camera": "/labels"})(frame)
    np.testing.assert_array_equal(read, label)
    assert read.dtype == label.dtype


def test_an_error_while_writing_leaves_no_file(tmp_path: Path) -> None:
    def frames() -> Iterator[Frame]:
        yield from noise_frames(2)
        raise ValueError("the disk is full")

    for name in ("drive", "drive.mcap"):
        with pytest.raises(ValueError, match="the disk is full"):
            write_bag(tmp_path / name, frames(), topic="/camera")
        assert list(tmp_path.iterdir()) == []


def test_nothing_is_removed_or_overwritten(tmp_path: Path) -> None:
    """``drive.mcap.part`` may be a download of somebody's."""
    (tmp_path / "drive.mcap.part").mkdir()
    (tmp_path / "drive.mcap.part" / "thesis.txt").write_text("years of work")
    assert write_bag(tmp_path / "drive.mcap", noise_frames(1), topic="/camera") == 1
    assert (tmp_path / "drive.mcap.part" / "thesis.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drive.mcap", "drive.mcap.part"]

    def frames() -> Iterator[Frame]:
        yield from noise_frames(1)
        (tmp_path / "late.mcap").write_text("made in the meantime")

    with pytest.raises(FileExistsError, match="late.mcap exists already"):
        write_bag(tmp_path / "late.mcap", frames(), topic="/camera")
    assert (tmp_path / "late.mcap").read_text() == "made in the meantime"
    assert len(list(tmp_path.iterdir())) == 3


def test_the_images_of_netwarp_bag_are_in_the_cameras_optical_frame(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    assert run("bag", images, "-o", tmp_path / "a.mcap", "--camera", "front") == 0
    assert run("bag", images, "-o", tmp_path / "b.mcap", "--frame-id", "lens") == 0
    assert {frame.frame_id for frame in open_frames(tmp_path / "a.mcap")} == {"front_optical_frame"}
    assert {frame.frame_id for frame in open_frames(tmp_path / "b.mcap")} == {"lens"}


def test_an_existing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="exists already"):
        write_bag(tmp_path, noise_frames(1), topic="/camera")
