# SPDX-License-Identifier: Apache-2.0
"""Recordings: the frames, stamps and names that come out of folders, videos and bags, and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from netwarp_ros.recordings.bag_writer import write_bag
from netwarp_ros.recordings.bags import BagFrames, BagLabels
from netwarp_ros.recordings.frames import Frame, read_ahead, stamp
from netwarp_ros.recordings.images import ImageFiles, LabelFolder
from netwarp_ros.recordings.messages import COMPRESSED_IMAGE, IMAGE
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.recordings.videos import VideoFile

HEIGHT, WIDTH = 48, 64
T0 = 1_700_000_000_000_000_000
typestore = get_typestore(Stores.ROS2_JAZZY)


def picture(value: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(value).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_images(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for value, name in enumerate(names):
        assert cv2.imwrite(str(folder / name), picture(value))
    return folder


def write_video(path: Path, count: int = 6, rate: float = 10.0) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (WIDTH, HEIGHT))
    for index in range(count):
        writer.write(np.full((HEIGHT, WIDTH, 3), 40 * index, np.uint8))
    writer.release()
    return path


def bag_frames(count: int) -> Iterator[Frame]:
    for index in range(count):
        yield Frame(index, T0 + stamp(index, 10), "", picture(index))


def header(stamp_ns: int = T0) -> Any:
    types = typestore.types
    time = types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return types["std_msgs/msg/Header"](stamp=time, frame_id="camera")


def image_message(image: np.ndarray, encoding: str, padding: int = 0, **changes: object) -> Any:
    height, width = image.shape[:2]
    rows = image.reshape(height, -1).view(np.uint8)
    data = np.pad(rows, ((0, 0), (0, padding)), constant_values=7)
    fields = {"header": header(), "height": height, "width": width, "encoding": encoding, "is_bigendian": 0}
    fields |= {"step": data.shape[1], "data": data.reshape(-1)} | changes
    return typestore.types[IMAGE](**fields)


def compressed_message(ending: str, image: np.ndarray) -> Any:
    data = cv2.imencode(ending, image)[1].reshape(-1)
    return typestore.types[COMPRESSED_IMAGE](header=header(), format=ending.strip("."), data=data)


def write_messages(path: Path, *messages: tuple[str, str, Any], storage: StoragePlugin = StoragePlugin.MCAP) -> Path:
    """Write (topic, type, message) triples, recorded 0.1 s apart."""
    with Writer(path, version=9, storage_plugin=storage) as writer:
        connections = {}
        for index, (topic, kind, message) in enumerate(messages):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=typestore)
            writer.write(connections[topic], T0 + stamp(index, 10), typestore.serialize_cdr(message, kind))
    return path


# Folders and images


def test_a_folder_is_taken_by_name_at_its_rate(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", "b.png", "a.PNG", "c.png")
    (folder / "notes.txt").write_text("not an image")
    frames = open_frames(folder, rate=10)
    assert len(frames) == 3 and frames.rate == 10
    taken = list(frames)
    assert [(frame.index, frame.name, frame.stamp_ns) for frame in taken] == [
        (0, "a", 0),
        (1, "b", 100_000_000),
        (2, "c", 200_000_000),
    ]
    np.testing.assert_array_equal(taken[1].image, picture(0))
    assert [frame.name for frame in frames] == ["a", "b", "c"]  # a second time


def test_images_have_15_frames_a_second_by_default(tmp_path: Path) -> None:
    stamps = [frame.stamp_ns for frame in open_frames(write_images(tmp_path, "a.png", "b.png", "c.png", "d.png"))]
    assert stamps == [0, 66_666_667, 133_333_333, 200_000_000]


def test_files_are_read_one_at_a_time(tmp_path: Path) -> None:
    folder = write_images(tmp_path, "a.png", "b.png")
    frames = iter(open_frames(folder))
    (folder / "b.png").write_bytes(b"broken")
    assert next(frames).name == "a"
    with pytest.raises(ValueError, match=r"b\.png cannot be read as an image"):
        next(frames)


def test_one_image(tmp_path: Path) -> None:
    (frame,) = open_frames(write_images(tmp_path, "only.png") / "only.png")
    assert (frame.name, frame.stamp_ns) == ("only", 0)


def test_a_grey_image_comes_as_bgr(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((4, 5), 9, np.uint8))
    (frame,) = open_frames(tmp_path)
    assert frame.image.shape == (4, 5, 3) and (frame.image == 9).all()


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no image"):
        open_frames(tmp_path)


def test_two_images_that_would_share_a_mask_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.bmp and .*a\.png have the same name"):
        open_frames(write_images(tmp_path, "a.png", "a.bmp"))


def test_nothing_at_the_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing at .*absent: give a folder of images"):
        open_frames(tmp_path / "absent")


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_must_be_above_zero(tmp_path: Path, rate: float) -> None:
    with pytest.raises(ValueError, match="rate is .*: give frames per second > 0"):
        open_frames(tmp_path, rate=rate)


def test_a_topic_is_for_bags(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the topic /camera is named, but .* is not a bag"):
        open_frames(write_images(tmp_path, "a.png"), topics=["/camera"])


# Videos


def test_a_video_has_the_stamps_of_its_container(tmp_path: Path) -> None:
    frames = open_frames(write_video(tmp_path / "clip.mp4", count=6, rate=10))
    assert isinstance(frames, VideoFile)
    assert len(frames) == 6 and frames.rate == pytest.approx(10)
    taken = list(frames)
    assert [frame.name for frame in taken] == [f"00000{index}" for index in range(6)]
    np.testing.assert_allclose([frame.stamp_ns for frame in taken], [stamp(index, 10) for index in range(6)], atol=1000)
    for index, frame in enumerate(taken):
        assert frame.image.shape == (HEIGHT, WIDTH, 3)
        assert abs(frame.image.mean() - 40 * index) < 6  # lossy, but which frame it is cannot be mistaken


def test_a_rate_stands_in_for_a_videos_stamps(tmp_path: Path) -> None:
    frames = open_frames(write_video(tmp_path / "clip.mp4", count=3, rate=10), rate=4)
    assert frames.rate == 4
    assert [frame.stamp_ns for frame in frames] == [0, 250_000_000, 500_000_000]


@pytest.mark.parametrize("kind", ["folder", "video", "bag"])
def test_a_part_of_a_recording_is_as_in_the_whole(tmp_path: Path, kind: str) -> None:
    if kind == "bag":
        write_bag(tmp_path / "drive", bag_frames(6), topic="/image")
        frames = open_frames(tmp_path / "drive")
    elif kind == "video":
        frames = open_frames(write_video(tmp_path / "drive.mp4"))
    else:
        for index in range(6):
            cv2.imwrite(str(tmp_path / f"{index}.png"), picture(index))
        frames = open_frames(tmp_path)
    whole = list(frames)
    for begin, end in ((0, 2), (2, 5), (5, None), (6, 9)):
        part = list(frames.read(begin, end))
        assert [(frame.index, frame.stamp_ns, frame.name) for frame in part] == [
            (frame.index, frame.stamp_ns, frame.name) for frame in whole[begin:end]
        ]
        for ours, theirs in zip(part, whole[begin:end], strict=True):
            np.testing.assert_array_equal(ours.image, theirs.image)
        assert frames.damage == []


def test_a_file_that_is_no_video_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.mp4"
    file.write_text("not a video")
    with pytest.raises(ValueError, match=r"notes\.mp4 cannot be opened as a video"):
        open_frames(file)


def test_a_video_that_ends_early_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    frames = open_frames(write_video(tmp_path / "clip.mp4", count=3))
    monkeypatch.setattr(frames, "_count", 5)
    with caplog.at_level(logging.WARNING):
        assert len(list(frames)) == 3
    assert "ended after 3 of the 5 frames" in caplog.text


# Bags


def test_what_write_bag_writes_comes_back(tmp_path: Path) -> None:
    bag = tmp_path / "drive"
    assert write_bag(bag, bag_frames(5), topic="/camera/image_raw", frame_id="front") == 5
    for path in (bag, next(bag.glob("*.mcap"))):
        frames = open_frames(path)
        assert isinstance(frames, BagFrames) and frames.cameras == ["/camera/image_raw"]
        assert len(frames) == 5 and frames.rate == pytest.approx(10)
        for _ in range(2):
            for frame, written in zip(frames, bag_frames(5), strict=True):
                assert frame.stamp_ns == written.stamp_ns and frame.name == f"{written.index:06d}"
                np.testing.assert_array_equal(frame.image, written.image)
                assert frame.image.flags.writeable


def test_write_bag_is_what_jazzy_plays(tmp_path: Path) -> None:
    write_bag(tmp_path / "drive", bag_frames(2), topic="/camera/image_raw")
    metadata = yaml.safe_load((tmp_path / "drive" / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert metadata["version"] == 9 and metadata["storage_identifier"] == "mcap"
    assert metadata["message_count"] == 2
    assert metadata["topics_with_message_count"][0]["topic_metadata"]["type"] == "sensor_msgs/msg/Image"
    assert (tmp_path / "drive" / metadata["relative_file_paths"][0]).read_bytes().startswith(b"\x89MCAP0\r\n")


def test_write_bag_takes_frames_one_at_a_time(tmp_path: Path) -> None:
    alive = 0

    def frames() -> Iterator[Frame]:
        nonlocal alive
        for frame in bag_frames(3):
            alive += 1
            assert alive == frame.index + 1
            yield frame

    assert write_bag(tmp_path / "drive", frames(), topic="/camera") == 3


def test_write_bag_writes_one_file_where_a_file_is_named(tmp_path: Path) -> None:
    write_bag(tmp_path / "drive.mcap", bag_frames(3), topic="/camera")
    assert [path.name for path in tmp_path.iterdir()] == ["drive.mcap"]
    assert [frame.stamp_ns for frame in open_frames(tmp_path / "drive.mcap")] == [T0, T0 + 10**8, T0 + 2 * 10**8]


def test_labels_lie_beside_their_images(tmp_path: Path) -> None:
    label = picture(1)[..., 0]
    write_bag(
        tmp_path / "drive.mcap",
        bag_frames(2),
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
    assert written.header == image.header and written.header.frame_id == "camera"
    np.testing.assert_array_equal(written.data.reshape(label.shape), label)


def test_a_bag_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    def frames() -> Iterator[Frame]:
        yield from bag_frames(2)
        raise ValueError("the disk is full")

    for name in ("drive", "drive.mcap"):
        with pytest.raises(ValueError, match="the disk is full"):
            write_bag(tmp_path / name, frames(), topic="/camera")
        assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "drive.mcap.part" / "drive").mkdir(parents=True)
    (tmp_path / "drive.mcap.part" / "drive" / "drive.mcap").write_bytes(b"half")
    assert write_bag(tmp_path / "drive.mcap", bag_frames(1), topic="/camera") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["drive.mcap"]


def test_write_bag_overwrites_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="exists already"):
        write_bag(tmp_path, bag_frames(1), topic="/camera")


def test_a_bags_rate_can_be_given(tmp_path: Path) -> None:
    write_bag(tmp_path / "drive", bag_frames(3), topic="/camera")
    assert [frame.stamp_ns for frame in open_frames(tmp_path / "drive", rate=2)] == [0, 500_000_000, 1_000_000_000]


def test_sqlite_and_compressed_images(tmp_path: Path) -> None:
    message = compressed_message(".png", picture(3))
    bag = write_messages(tmp_path / "bag", ("/c", COMPRESSED_IMAGE, message), storage=StoragePlugin.SQLITE3)
    (frame,) = open_frames(next(bag.glob("*.db3")))
    np.testing.assert_array_equal(frame.image, picture(3))


def test_a_header_without_stamp_has_the_time_of_recording(tmp_path: Path) -> None:
    message = image_message(picture(), "bgr8", header=header(0))
    (frame,) = open_frames(write_messages(tmp_path / "bag", ("/c", IMAGE, message)))
    assert frame.stamp_ns == T0


def test_a_bag_with_several_image_topics_wants_one_named(tmp_path: Path) -> None:
    bag = write_messages(
        tmp_path / "bag",
        ("/left", IMAGE, image_message(picture(1), "bgr8")),
        ("/right", COMPRESSED_IMAGE, compressed_message(".png", picture(2))),
    )
    with pytest.raises(ValueError, match="2 image topics, /left, /right: name the topic"):
        open_frames(bag)
    with pytest.raises(ValueError, match="no image topic '/rear': choose one of /left, /right"):
        open_frames(bag, topics=["/rear"])
    (frame,) = open_frames(bag, topics=["/right"])
    np.testing.assert_array_equal(frame.image, picture(2))
    (frame,) = open_frames(bag, leave_out=["/right"])
    assert frame.camera == "/left"


def test_cameras_come_in_the_order_of_their_recording(tmp_path: Path) -> None:
    left, right = image_message(picture(1), "rgb8", header=header(T0)), compressed_message(".png", picture(2))
    bag = write_messages(
        tmp_path / "bag",
        ("/left", IMAGE, left),
        ("/other", IMAGE, left),
        ("/right", COMPRESSED_IMAGE, right),
        ("/left", IMAGE, left),
    )
    frames = open_frames(bag, topics=["/left", "/right"])
    assert len(frames) == 3 and frames.cameras == ["/left", "/right"]
    assert [(frame.index, frame.name, frame.camera, frame.encoding) for frame in frames] == [
        (0, "000000", "/left", "rgb8"),
        (1, "000001", "/right", "png"),
        (2, "000002", "/left", "rgb8"),
    ]
    assert [(frame.frame_id, frame.recorded_ns) for frame in frames] == [
        ("camera", T0),
        ("camera", T0 + 2 * 10**8),
        ("camera", T0 + 3 * 10**8),
    ]
    again = open_frames(bag, topics=["/left", "/right"], rate=10)
    assert [frame.stamp_ns for frame in again] == [0, 0, 10**8]  # each camera has the rate


def test_a_topic_of_another_type_is_named(tmp_path: Path) -> None:
    text = typestore.types["std_msgs/msg/String"](data="hello")
    bag = write_messages(
        tmp_path / "bag", ("/chatter", "std_msgs/msg/String", text), ("/c", IMAGE, image_message(picture(), "bgr8"))
    )
    with pytest.raises(ValueError, match="/chatter has the type std_msgs/msg/String, not .*: choose one of /c"):
        open_frames(bag, topics=["/chatter"])


def test_a_bag_without_images_says_what_it_has(tmp_path: Path) -> None:
    text = typestore.types["std_msgs/msg/String"](data="hello")
    with pytest.raises(ValueError, match=r"no topic of sensor_msgs/Image.*it has /chatter \(std_msgs/msg/String\)"):
        open_frames(write_messages(tmp_path / "bag", ("/chatter", "std_msgs/msg/String", text)))


def test_an_image_topic_without_messages_is_refused(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag", bag_frames(0), topic="/camera")
    with pytest.raises(ValueError, match="no message on its image topic /camera"):
        open_frames(tmp_path / "bag")


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", ["bgr8", "rgb8"])
def test_images_of_a_bag_can_be_written_to(tmp_path: Path, encoding: str, padding: int) -> None:
    pixels = picture(1) if encoding == "bgr8" else picture(1)[..., ::-1].copy()
    (frame,) = open_frames(write_messages(tmp_path / "bag", ("/c", IMAGE, image_message(pixels, encoding, padding))))
    np.testing.assert_array_equal(frame.image, picture(1))
    assert frame.image.flags.writeable and frame.image.flags.c_contiguous


# Label maps


def label_bag(path: Path, *labels: Any) -> Path:
    """Two images, 100 ms apart, and label maps recorded behind them."""
    images = (image_message(picture(index), "bgr8", header=header(T0 + stamp(index, 10))) for index in range(2))
    messages = [("/c", IMAGE, image) for image in images] + [("/labels", IMAGE, label) for label in labels]
    return write_messages(path, *messages)


def test_labels_of_a_bag_are_found_by_stamp(tmp_path: Path) -> None:
    label = picture(5)[..., 0]
    stray = image_message(label, "mono8", header=header(T0 + 7))
    bag = label_bag(tmp_path / "bag", image_message(label, "mono8", padding=3, header=header(T0 + 10**8)), stray)
    frames, labels = open_frames(bag, leave_out=["/labels"]), BagLabels(bag, {"/c": "/labels"})
    found = [labels(frame) for frame in frames]
    assert found[0] is None
    np.testing.assert_array_equal(found[1], label)
    assert labels.unmatched() == [f"{bag}: 1 of the 2 label maps of /labels have the stamp of no image"]
    assert labels.damage == []


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (
            image_message(np.zeros((5, 7), np.uint8), "mono8"),
            "label map of image 000000, on /labels, cannot be read: it is 7x5, but its image is 64x48",
        ),
        (image_message(picture(), "bgr8"), "a label map must be mono8, not bgr8"),
    ],
)
def test_a_label_of_a_bag_that_does_not_fit_is_named(tmp_path: Path, label: Any, message: str) -> None:
    bag = label_bag(tmp_path / "bag", label)
    frame = next(iter(open_frames(bag, topics=["/c"])))
    with pytest.raises(ValueError, match=message):
        BagLabels(bag, {"/c": "/labels"})(frame)


def test_label_topics_are_raw_images(tmp_path: Path) -> None:
    bag = write_messages(tmp_path / "bag", ("/labels", COMPRESSED_IMAGE, compressed_message(".png", picture())))
    with pytest.raises(ValueError, match="/labels is compressed; label maps must be sensor_msgs/Image with mono8"):
        BagLabels(bag, {"/c": "/labels"})
    with pytest.raises(ValueError, match="no image topic '/masks': choose one of /labels"):
        BagLabels(bag, {"/c": "/masks"})


def labelled(tmp_path: Path, label: np.ndarray) -> tuple[LabelFolder, Frame]:
    (tmp_path / "labels").mkdir()
    cv2.imwrite(str(tmp_path / "labels" / "a.png"), label)
    return LabelFolder(tmp_path / "labels"), Frame(0, 0, "a", picture())


def test_labels_are_found_by_name(tmp_path: Path) -> None:
    label = picture()[..., 0] % 12
    labels, frame = labelled(tmp_path, label)
    np.testing.assert_array_equal(labels(frame), label)
    assert labels(Frame(1, 0, "b", picture())) is None


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (picture(), r"a\.png is \(48, 64, 3\) uint8: a label map holds class ids"),
        (np.zeros((HEIGHT, WIDTH), np.uint16), "uint16: a label map holds class ids"),
        (np.zeros((HEIGHT, WIDTH + 1), np.uint8), r"a\.png is 65x48, but its image is 64x48"),
    ],
)
def test_a_label_that_does_not_fit_is_named(tmp_path: Path, label: np.ndarray, message: str) -> None:
    labels, frame = labelled(tmp_path, label)
    with pytest.raises(ValueError, match=message):
        labels(frame)


def test_a_label_folder_must_hold_labels(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no label map"):
        LabelFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        LabelFolder(tmp_path / "absent")


def test_image_files_keep_the_order_they_are_given_in(tmp_path: Path) -> None:
    folder = write_images(tmp_path, "a.png", "b.png")
    assert [frame.name for frame in ImageFiles([folder / "b.png", folder / "a.png"])] == ["b", "a"]


# Reading ahead


def test_items_are_taken_ahead_and_come_in_their_order() -> None:
    taken: list[int] = []
    asked = Event()

    def source() -> Iterator[int]:
        for index in range(9):
            taken.append(index)
            if index == 3:
                asked.set()
            yield index

    items = read_ahead(source(), 3)
    assert next(items) == 0
    assert asked.wait(10)  # while the first is in work, three more are taken
    assert list(items) == [1, 2, 3, 4, 5, 6, 7, 8] and taken == list(range(9))
    assert list(read_ahead([])) == []


def test_an_error_comes_in_its_turn() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("the disk is gone")

    items = read_ahead(source())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="the disk is gone"):
        next(items)


def test_nothing_more_is_taken_once_nobody_asks() -> None:
    taken: list[int] = []
    items = read_ahead((taken.append(index) or index for index in range(1000)), 2)  # type: ignore[func-returns-value]
    next(items)
    items.close()
    count = len(taken)
    assert count <= 4
    assert len(taken) == count
