# SPDX-License-Identifier: Apache-2.0
"""Bags as recordings: their topics, frames, stamps and label maps."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded import T0, compressed_message, image_message, noise, noise_frames, typestore, write_messages
from rosbags.rosbag2 import StoragePlugin

from netwarp_ros.classes import ClassEntry, ClassSet
from netwarp_ros.recordings.bag_writer import write_bag
from netwarp_ros.recordings.bags import BagLabels
from netwarp_ros.recordings.frames import stamp
from netwarp_ros.recordings.open import open_frames

# Frames


def test_a_given_rate_replaces_the_stamps_of_a_bag(tmp_path: Path) -> None:
    write_bag(tmp_path / "drive", noise_frames(3), topic="/camera")
    assert [frame.stamp_ns for frame in open_frames(tmp_path / "drive", rate=2)] == [0, 500_000_000, 1_000_000_000]


def test_compressed_images_in_sqlite(tmp_path: Path) -> None:
    messages = [("/c", compressed_message(noise(3), ".png"))]
    bag = write_messages(tmp_path / "bag", messages, storage=StoragePlugin.SQLITE3)
    (frame,) = open_frames(next(bag.glob("*.db3")))
    np.testing.assert_array_equal(frame.image, noise(3))


def test_a_header_without_stamp_gives_the_time_of_recording(tmp_path: Path) -> None:
    (frame,) = open_frames(write_messages(tmp_path / "bag", [("/c", image_message(noise(), "bgr8", 0))]))
    assert frame.stamp_ns == T0


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_the_rate_is_that_of_the_images_and_not_of_all_topics(tmp_path: Path, storage: StoragePlugin) -> None:
    text = typestore.types["std_msgs/msg/String"](data="hello")
    messages = [("/chatter", text)] * 30 + [("/c", image_message(noise(), "bgr8"))] * 4 + [("/chatter", text)] * 50
    bag = write_messages(tmp_path / "bag", messages, storage=storage)  # 0.1 s apart
    recording = open_frames(bag)
    assert recording.rate == pytest.approx(10) and recording.damage == []


def test_a_bag_with_several_image_topics_requires_a_choice(tmp_path: Path) -> None:
    bag = write_messages(
        tmp_path / "bag",
        [("/left", image_message(noise(1), "bgr8")), ("/right", compressed_message(noise(2), ".png"))],
    )
    with pytest.raises(ValueError, match="2 image topics, /left, /right: name the topic"):
        open_frames(bag)
    with pytest.raises(ValueError, match="no image topic '/rear': choose one of /left, /right"):
        open_frames(bag, topics=["/rear"])
    (frame,) = open_frames(bag, topics=["/right"])
    np.testing.assert_array_equal(frame.image, noise(2))
    (frame,) = open_frames(bag, leave_out=["/right"])
    assert frame.camera == "/left"


def test_frames_of_several_cameras_come_in_the_order_of_recording(tmp_path: Path) -> None:
    left, right = image_message(noise(1), "rgb8"), compressed_message(noise(2), ".png")
    bag = write_messages(tmp_path / "bag", [("/left", left), ("/other", left), ("/right", right), ("/left", left)])
    recording = open_frames(bag, topics=["/left", "/right"])
    assert len(recording) == 3 and recording.cameras == ["/left", "/right"]
    assert [(frame.index, frame.name, frame.camera, frame.encoding) for frame in recording] == [
        (0, "000000", "/left", "rgb8"),
        (1, "000001", "/right", "png"),
        (2, "000002", "/left", "rgb8"),
    ]
    assert [(frame.frame_id, frame.recorded_ns) for frame in recording] == [
        ("camera", T0),
        ("camera", T0 + 2 * 10**8),
        ("camera", T0 + 3 * 10**8),
    ]
    at_10_hz = open_frames(bag, topics=["/left", "/right"], rate=10)
    assert [frame.stamp_ns for frame in at_10_hz] == [0, 0, 10**8]  # each camera has the rate


def test_a_topic_of_another_type_is_refused(tmp_path: Path) -> None:
    text = typestore.types["std_msgs/msg/String"](data="hello")
    bag = write_messages(tmp_path / "bag", [("/chatter", text), ("/c", image_message(noise(), "bgr8"))])
    with pytest.raises(ValueError, match="/chatter has the type std_msgs/msg/String, not .*: choose one of /c"):
        open_frames(bag, topics=["/chatter"])


def test_a_bag_without_images_is_refused_with_its_topics(tmp_path: Path) -> None:
    text = typestore.types["std_msgs/msg/String"](data="hello")
    with pytest.raises(ValueError, match=r"no topic of sensor_msgs/Image.*it has /chatter \(std_msgs/msg/String\)"):
        open_frames(write_messages(tmp_path / "bag", [("/chatter", text)]))


def test_an_image_topic_without_messages_is_refused(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag", noise_frames(0), topic="/camera")
    with pytest.raises(ValueError, match="no message on its image topic /camera"):
        open_frames(tmp_path / "bag")


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", ["bgr8", "rgb8"])
def test_images_of_a_bag_are_writable(tmp_path: Path, encoding: str, padding: int) -> None:
    pixels = noise(1) if encoding == "bgr8" else noise(1)[..., ::-1]
    message = image_message(pixels, encoding, padding=padding)
    (frame,) = open_frames(write_messages(tmp_path / "bag", [("/c", message)]))
    np.testing.assert_array_equal(frame.image, noise(1))
    assert frame.image.flags.writeable and frame.image.flags.c_contiguous


# Label maps


def write_labelled(path: Path, *labels: Any) -> Path:
    """Write two images, stamped 0.1 s apart, and label maps recorded after them."""
    images = [("/c", image_message(noise(index), "bgr8", T0 + stamp(index, 10))) for index in range(2)]
    return write_messages(path, [*images, *(("/labels", label) for label in labels)])


def test_label_maps_of_a_bag_are_found_by_stamp(tmp_path: Path) -> None:
    label = noise(5)[..., 0]
    stray = image_message(label, "mono8", T0 + 7)
    bag = write_labelled(tmp_path / "bag", image_message(label, "mono8", T0 + 10**8, padding=3), stray)
    labels = BagLabels(bag, {"/c": "/labels"})
    first, second = [labels(frame) for frame in open_frames(bag, leave_out=["/labels"])]
    assert first is None
    np.testing.assert_array_equal(second, label)
    assert labels.unmatched() == [f"{bag}: 1 of the 2 label maps of /labels match no image by stamp"]
    assert labels.damage == []


def test_label_maps_of_two_cameras_in_any_order(tmp_path: Path) -> None:
    """The label maps are recorded after the images, those of one camera in reverse, and one of the other twice."""
    stamps = [T0 + stamp(index, 10) for index in range(40)]
    messages: list[tuple[str, Any]] = []
    for time in stamps:
        messages += [(camera, image_message(noise(0, 2, 3), "bgr8", time)) for camera in ("/a", "/b")]
    maps = [np.full((2, 3), index, np.uint8) for index in range(40)]
    messages += [("/b/labels", image_message(maps[i], "mono8", stamps[i])) for i in reversed(range(40))]
    messages += [("/a/labels", image_message(maps[i], "mono8", stamps[i])) for i in (3, *range(40))]
    bag = write_messages(tmp_path / "bag", messages)
    labels = BagLabels(bag, {"/a": "/a/labels", "/b": "/b/labels"})
    for reader in (labels, pickle.loads(pickle.dumps(labels))):
        found = [reader(frame) for frame in open_frames(bag, topics=["/a", "/b"])]
        assert [label[0, 0] for label in found if label is not None] == [i for i in range(40) for _ in ("/a", "/b")]
        assert reader.unmatched() == []


def test_a_bag_that_changed_after_it_was_indexed_is_refused(tmp_path: Path) -> None:
    label = np.zeros((48, 64), np.uint8)
    bag = write_labelled(tmp_path / "bag", *(image_message(label, "mono8", T0 + index * 10**8) for index in range(2)))
    first, second = open_frames(bag, topics=["/c"])
    labels = BagLabels(bag, {"/c": "/labels"})
    labels.index()
    shutil.rmtree(bag)
    write_labelled(bag, image_message(label, "mono8", T0 + 7))
    with pytest.raises(ValueError, match="label map of image 000000, .* the bag has changed since it was opened"):
        labels(first)
    with pytest.raises(ValueError, match="label map of image 000001, .* message 1 is no longer there"):
        labels(second)


def test_label_maps_of_a_bag_are_read_by_their_classes(tmp_path: Path) -> None:
    label = np.full((48, 64), 500, np.uint16)
    label[:, 7] = 3
    bag = write_labelled(tmp_path / "bag", image_message(label, "mono16"))
    frame = next(iter(open_frames(bag, topics=["/c"])))
    near, far = ClassEntry("near", (1, 2, 3), ids=(500,)), ClassEntry("far", (4, 5, 6), ids=(3, 4))
    labels = BagLabels(bag, {"/c": "/labels"}, ClassSet("two", 255, (near, far)))
    np.testing.assert_array_equal(labels(frame), np.where(label == 3, 1, 0))
    np.testing.assert_array_equal(BagLabels(bag, {"/c": "/labels"})(frame), label)
    with pytest.raises(
        ValueError, match="label map of image 000000, on /labels, holds class id 500 at x 0, y 0; .* two"
    ):
        BagLabels(bag, {"/c": "/labels"}, ClassSet("two", 255, (dataclasses.replace(near, ids=()), far)))(frame)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (
            image_message(np.zeros((5, 7), np.uint8), "mono8"),
            "label map of image 000000, on /labels, cannot be read: it is 7x5, but its image is 64x48",
        ),
        (image_message(noise()[..., :2], "yuyv"), "a label map must be mono8, mono16, bgr8 or rgb8, not yuyv"),
    ],
)
def test_a_wrong_label_map_of_a_bag_is_refused(tmp_path: Path, label: Any, message: str) -> None:
    bag = write_labelled(tmp_path / "bag", label)
    frame = next(iter(open_frames(bag, topics=["/c"])))
    with pytest.raises(ValueError, match=message):
        BagLabels(bag, {"/c": "/labels"})(frame)


def test_topics_of_label_maps_must_be_raw_images(tmp_path: Path) -> None:
    bag = write_messages(tmp_path / "bag", [("/labels", compressed_message(noise(), ".png"))])
    with pytest.raises(ValueError, match="/labels is compressed; label maps must be sensor_msgs/Image, such as mono8"):
        BagLabels(bag, {"/c": "/labels"})
    with pytest.raises(ValueError, match="no image topic '/masks': choose one of /labels"):
        BagLabels(bag, {"/c": "/masks"})
