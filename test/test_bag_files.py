# SPDX-License-Identifier: Apache-2.0
"""What the files of a bag hold is read, in every format, whatever the metadata and the indexes say of it."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mcap_records as mcap
import numpy as np
import pytest
from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
from google.protobuf.timestamp_pb2 import Timestamp
from recorded import T0, compressed_message, image_message, noise, typestore, write_messages
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import CompressionMode, StoragePlugin
from rosbags.typesys import Stores, get_typestore

from netwarp_ros.recordings.bag_reader import BagReader
from netwarp_ros.recordings.bags import BagLabels
from netwarp_ros.recordings.frames import stamp
from netwarp_ros.recordings.messages import COMPRESSED_IMAGE, IMAGE
from netwarp_ros.recordings.open import open_frames

COUNT = 4
HEAD = mcap.schema(1, IMAGE) + mcap.channel(1, 1, "/c")
ros1_types = get_typestore(Stores.ROS1_NOETIC)


def numbered(index: int) -> Any:
    return image_message(noise(index), "bgr8", T0 + stamp(index, 10))


def serialized(index: int) -> mcap.Message:
    """Return the image of a number as a message of channel 1."""
    return mcap.Message(1, T0 + stamp(index, 10), bytes(typestore.serialize_cdr(numbered(index), IMAGE)))


def chunk(messages: list[mcap.Message], compression: str = "") -> bytes:
    times = [message.recorded_ns for message in messages]
    return mcap.chunk(b"".join(map(mcap.message, messages)), (min(times), max(times)), compression)


def check_frames(path: Path, count: int = COUNT, **options: Any) -> list[str]:
    """Check that a recording gives its images in order, and return the damage."""
    frames = open_frames(path, **options)
    read = list(frames)
    assert [frame.stamp_ns for frame in read] == [T0 + stamp(index, 10) for index in range(count)]
    assert len(frames) == count
    for index, frame in enumerate(read):
        np.testing.assert_array_equal(frame.image, noise(index))
    return frames.damage


# Intact recordings


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3], ids=lambda storage: storage.name)
@pytest.mark.parametrize(
    ("text", "edited"),
    [
        (
            "offered_qos_profiles: []",
            "offered_qos_profiles: [{history: keep_last, depth: 5, reliability: best_effort, durability: volatile, "
            "deadline: {sec: 0, nsec: 0}, lifespan: {sec: 0, nsec: 0}, liveliness: automatic, "
            "liveliness_lease_duration: {sec: 0, nsec: 0}, avoid_ros_namespace_conventions: false}]",
        ),
        ("RIHS01_d31d", "RIHS01_0000"),
        (f"type: {IMAGE}", "type: other_msgs/msg/Image"),
    ],
    ids=["qos", "hash", "type"],
)
def test_metadata_that_differ_from_the_file_lose_nothing(
    tmp_path: Path, storage: StoragePlugin, text: str, edited: str
) -> None:
    bag = write_messages(tmp_path / "bag", [("/c", numbered(index)) for index in range(COUNT)], storage=storage)
    metadata = bag / "metadata.yaml"
    assert text in metadata.read_text()
    metadata.write_text(metadata.read_text().replace(text, edited))
    assert check_frames(bag) == []


@pytest.mark.parametrize("compression", ["", "lz4", "zstd"])
@pytest.mark.parametrize("has_index", [True, False])
def test_an_mcap_file_needs_no_message_index(tmp_path: Path, has_index: bool, compression: str) -> None:
    messages = [serialized(index) for index in range(COUNT)]
    chunks = [(chunk(part, compression), part) for part in (messages[:3], messages[3:])]
    (tmp_path / "bag.mcap").write_bytes(mcap.file(HEAD, chunks, has_index=has_index))
    assert check_frames(tmp_path / "bag.mcap") == []


def test_an_mcap_file_needs_neither_chunks_nor_a_summary(tmp_path: Path) -> None:
    records = b"".join(mcap.message(serialized(index)) for index in range(COUNT))
    attachment = mcap.record(9, bytes(1000))
    private = mcap.record(200, b"")
    end = mcap.record(15, bytes(4)) + mcap.record(2, bytes(20)) + mcap.MAGIC
    (tmp_path / "bag.mcap").write_bytes(mcap.MAGIC + mcap.header() + attachment + HEAD + records + private + end)
    assert check_frames(tmp_path / "bag.mcap") == []


def test_messages_beside_the_chunks_are_read(tmp_path: Path) -> None:
    """The summary lists the chunk alone, and counts its messages."""
    in_chunk, beside = [serialized(index) for index in range(3)], serialized(3)
    content = mcap.file(HEAD, [(chunk(in_chunk), in_chunk)], before=mcap.message(beside))
    (tmp_path / "bag.mcap").write_bytes(content)
    assert check_frames(tmp_path / "bag.mcap") == []


def test_a_summary_without_the_schemas_is_not_used(tmp_path: Path) -> None:
    messages = [serialized(index) for index in range(COUNT)]
    content = mcap.file(HEAD, [(chunk(messages), messages)], summary_head=mcap.channel(1, 1, "/c"))
    (tmp_path / "bag.mcap").write_bytes(content)
    assert check_frames(tmp_path / "bag.mcap") == []


def test_a_chunk_may_have_more_fields_than_are_known(tmp_path: Path) -> None:
    messages = [serialized(index) for index in range(COUNT)]
    plain = chunk(messages, "zstd")
    longer = mcap.record(6, plain[9:] + b"a new field")
    (tmp_path / "bag.mcap").write_bytes(mcap.file(HEAD, [(longer, messages)]))
    assert check_frames(tmp_path / "bag.mcap") == []


def test_chunks_that_overlap_in_time_are_read_in_the_order_of_recording(tmp_path: Path) -> None:
    messages = [serialized(index) for index in range(6)]
    parts = [messages[3::2], messages[0:3:2], messages[1:2], messages[4:5]]
    (tmp_path / "bag.mcap").write_bytes(mcap.file(HEAD, [(chunk(part), part) for part in parts]))
    assert check_frames(tmp_path / "bag.mcap", 6) == []


def test_overlapping_chunks_that_do_not_fit_into_memory_are_read_in_another_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [mcap.Message(1, index, bytes([index])) for index in range(6)]
    parts = [messages[0::2], messages[1::2]]
    (tmp_path / "bag.mcap").write_bytes(mcap.file(HEAD, [(chunk(part), part) for part in parts]))
    monkeypatch.setattr("netwarp_ros.recordings.mcap_file._PENDING_LIMIT", 2)
    with BagReader(tmp_path / "bag.mcap", pytest.fail) as bag:
        assert [message.recorded_ns for _, message in bag.messages(["/c"])] == [0, 1, 2, 3, 4, 5]
    monkeypatch.setattr("netwarp_ros.recordings.mcap_file._PENDING_LIMIT", 1)
    with BagReader(tmp_path / "bag.mcap", pytest.fail) as bag:
        assert [message.recorded_ns for _, message in bag.messages(["/c"])] == [0, 2, 1, 3, 4, 5]


# A recorder that was killed


@pytest.mark.parametrize("in_log", [COUNT, 2 * COUNT], ids=["half", "all"])
def test_messages_in_a_write_ahead_log_are_read_and_nothing_is_written(tmp_path: Path, in_log: int) -> None:
    """While the recorder runs, its files are copied; so they are as a kill leaves them."""
    count = 2 * COUNT
    recorder = sqlite3.connect(tmp_path / "drive_0.db3")
    recorder.executescript(
        "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0;"
        "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT, type TEXT, serialization_format TEXT);"
        "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, data BLOB);"
        f"INSERT INTO topics VALUES (1, '/c', '{IMAGE}', 'cdr');"
    )
    for index in range(count):
        recorder.execute("INSERT INTO messages(topic_id, timestamp, data) VALUES (?, ?, ?)", serialized(index))
        recorder.commit()
        if index + 1 == count - in_log:
            recorder.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    bag = tmp_path / "killed bag?"  # a name that has to be quoted in a URI
    bag.mkdir()
    for file in tmp_path.glob("drive_0.db3*"):
        shutil.copy(file, bag)
    recorder.close()
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in bag.iterdir()}
    bag.chmod(0o555)

    damage = check_frames(bag, count)
    assert damage == [f"{bag} is damaged: there is no metadata.yaml, which is written when a recording ends"]
    assert check_frames(bag / "drive_0.db3", count) == []
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in bag.iterdir()} == before


# Any part of a recording


def write_mcap(path: Path, *, has_index: bool) -> Path:
    """Write messages of two topics in chunks that overlap in time."""
    messages = [mcap.Message(1 + index % 3 // 2, 100 + index, bytes([index])) for index in range(17)]
    messages[5], messages[14] = messages[5]._replace(recorded_ns=102), messages[14]._replace(recorded_ns=115)
    parts = [messages[start : start + 5] for start in range(0, 17, 5)]
    chunks = [(chunk(part, "zstd"), part) for part in parts]
    path.write_bytes(mcap.file(HEAD + mcap.channel(2, 1, "/d"), chunks, has_index=has_index))
    return path


def write_sqlite(path: Path) -> Path:
    topics = "/c", "/c", "/d"
    messages = ((topics[index % 3], image_message(noise(index, 2, 2), "bgr8")) for index in range(17))
    return next(write_messages(path, messages, storage=StoragePlugin.SQLITE3).glob("*.db3"))


def write_ros1(path: Path, compression: Ros1Writer.CompressionFormat | None = None) -> Path:
    """Write raw images on /c and compressed ones on /d."""
    writer = Ros1Writer(path)
    if compression:
        writer.set_compression(compression)
    with writer:
        connections = {
            topic: writer.add_connection(topic, message_type, typestore=ros1_types)
            for topic, message_type in (("/c", IMAGE), ("/d", COMPRESSED_IMAGE))
        }
        for index in range(COUNT):
            recorded_ns = T0 + stamp(index, 10)
            for topic, message in (
                ("/c", numbered(index)),
                ("/d", compressed_message(noise(index), ".png", recorded_ns)),
            ):
                writer.write(connections[topic], recorded_ns, serialized_ros1(message))
    return path


def serialized_ros1(message: Any) -> bytes:
    """Serialize a message as in ROS 1, where headers have a sequence number, too."""
    fields = {name: value for name, value in vars(message).items() if name != "__msgtype__"}
    header = message.header
    fields["header"] = ros1_types.types["std_msgs/msg/Header"](seq=7, stamp=header.stamp, frame_id=header.frame_id)
    name = message.__msgtype__
    return bytes(ros1_types.serialize_ros1(ros1_types.types[name](**fields), name))


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_mcap(folder / "bag.mcap", has_index=True),
        lambda folder: write_mcap(folder / "bag.mcap", has_index=False),
        lambda folder: write_sqlite(folder / "bag"),
        lambda folder: write_ros1(folder / "bag.bag"),
    ],
    ids=["mcap", "scanned mcap", "sqlite", "ros1"],
)
def test_skipped_messages_are_counted(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    with BagReader(write(tmp_path), pytest.fail) as bag:
        for topics in (["/c", "/d"], ["/d"]):
            everything = list(bag.messages(topics))
            times = [message.recorded_ns for _, message in everything]
            assert times == sorted(times) and len(times) == sum(bag.topics[topic].count for topic in topics) > 0
            for topic in topics:
                numbers = [number for number, message in everything if message.topic == topic]
                assert numbers == list(range(bag.topics[topic].count))
            for skip in range(len(everything) + 2):
                assert list(bag.messages(topics, skip)) == everything[skip:]


def test_skipped_files_are_counted(tmp_path: Path) -> None:
    bag = tmp_path / "bag"
    bag.mkdir()
    for part in range(3):
        messages = [serialized(3 * part + index) for index in range(3)]
        (bag / f"bag_{part}.mcap").write_bytes(mcap.file(HEAD, [(chunk(messages), messages)]))
    frames = open_frames(bag)
    for begin in range(10):
        assert [(frame.index, frame.stamp_ns) for frame in frames.read(begin)] == [
            (index, T0 + stamp(index, 10)) for index in range(begin, 9)
        ]
    assert [frame.stamp_ns for frame in open_frames(bag, rate=10).read(4, 6)] == [stamp(4, 10), stamp(5, 10)]


# Other formats


@pytest.mark.parametrize("compression", [None, *Ros1Writer.CompressionFormat])
def test_bags_of_ros_1_are_read(tmp_path: Path, compression: Ros1Writer.CompressionFormat | None) -> None:
    bag = write_ros1(tmp_path / "drive.bag", compression)
    for topic in ("/c", "/d"):
        assert check_frames(bag, topics=[topic]) == []
    assert [frame.frame_id for frame in open_frames(bag, topics=["/c"])] == ["camera"] * COUNT


@pytest.mark.parametrize("name", ["drive.bag", "drive.bag.active"])
def test_a_bag_of_ros_1_without_an_index_is_refused(tmp_path: Path, name: str) -> None:
    path = write_ros1(tmp_path / name)
    content = bytearray(path.read_bytes())
    position = content.index(b"index_pos=") + len(b"index_pos=")
    content[position : position + 8] = bytes(8)  # as long as its recorder runs
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match="it cannot be read as a bag of ROS 1: Bag is not indexed, reindex before reading"
    ):
        open_frames(path)
    path.write_bytes(write_ros1(tmp_path / "whole.bag").read_bytes()[:-50])
    with pytest.raises(ValueError, match="it cannot be read as a bag of ROS 1: Bag index looks damaged"):
        open_frames(path)


def test_a_damaged_chunk_of_ros_1_loses_its_own_messages(tmp_path: Path) -> None:
    path = tmp_path / "drive.bag"
    writer = Ros1Writer(path)
    writer.chunk_threshold = 1  # a chunk for each message
    writer.set_compression(Ros1Writer.CompressionFormat.BZ2)
    with writer:
        connection = writer.add_connection("/c", IMAGE, typestore=ros1_types)
        for index in range(COUNT):
            writer.write(connection, T0 + stamp(index, 10), serialized_ros1(numbered(index)))
    content = bytearray(path.read_bytes())
    second = content.index(b"BZh", content.index(b"BZh") + 1)
    content[second + 100 : second + 110] = bytes(10)
    path.write_bytes(content)
    frames = open_frames(path)
    assert [frame.index for frame in frames] == [0, 2, 3]
    assert "the chunk at byte" in frames.damage[0] and "is damaged: it is not bz2: " in frames.damage[0]
    assert frames.damage[1:] == [f"{path}: 1 of the 4 messages of /c are lost"]


def test_images_of_ros_1_in_an_mcap_file_are_read(tmp_path: Path) -> None:
    messages = [serialized(index)._replace(data=serialized_ros1(numbered(index))) for index in range(COUNT)]
    head = mcap.schema(1, "sensor_msgs/Image", "ros1msg") + mcap.channel(1, 1, "/c", "ros1")
    (tmp_path / "bag.mcap").write_bytes(mcap.file(head, [(chunk(messages), messages)]))
    assert check_frames(tmp_path / "bag.mcap") == []


def foxglove(index: int, *, is_compressed: bool) -> mcap.Message:
    recorded_ns, image = T0 + stamp(index, 10), noise(index)
    common = {"timestamp": Timestamp(seconds=recorded_ns // 10**9, nanos=recorded_ns % 10**9), "frame_id": "front"}
    height, width = image.shape[:2]
    message = (
        CompressedImage(format="png", data=compressed_message(image, ".png").data.tobytes(), **common)
        if is_compressed
        else RawImage(width=width, height=height, encoding="bgr8", step=3 * width, data=image.tobytes(), **common)
    )
    return mcap.Message(1, recorded_ns, message.SerializeToString())


@pytest.mark.parametrize("is_compressed", [False, True])
def test_images_of_foxglove_are_read(tmp_path: Path, is_compressed: bool) -> None:
    messages = [foxglove(index, is_compressed=is_compressed) for index in range(COUNT)]
    name = "foxglove.CompressedImage" if is_compressed else "foxglove.RawImage"
    head = mcap.schema(1, name, "protobuf") + mcap.channel(1, 1, "/c", "protobuf")
    (tmp_path / "bag.mcap").write_bytes(mcap.file(head, [(chunk(messages), messages)], profile=""))
    assert check_frames(tmp_path / "bag.mcap") == []
    (frame, *_) = open_frames(tmp_path / "bag.mcap")
    assert (frame.frame_id, frame.encoding) == ("front", "png" if is_compressed else "bgr8")

    cut = [message._replace(data=message.data[:-5]) for message in messages]
    (tmp_path / "cut.mcap").write_bytes(mcap.file(head, [(chunk(cut), cut)]))
    with pytest.raises(ValueError, match=f"image 0 of /c cannot be read: [0-9]+ bytes are not a {name}: "):
        list(open_frames(tmp_path / "cut.mcap"))


def test_images_of_foxglove_without_its_package_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [foxglove(0, is_compressed=False)]
    head = mcap.schema(1, "foxglove.RawImage", "protobuf") + mcap.channel(1, 1, "/c", "protobuf")
    (tmp_path / "bag.mcap").write_bytes(mcap.file(head, [(chunk(messages), messages)]))
    monkeypatch.setitem(sys.modules, "foxglove_schemas_protobuf.RawImage_pb2", None)
    with pytest.raises(
        ValueError, match=r"foxglove.RawImage needs more packages: pip install 'netwarp_ros\[foxglove\]'"
    ):
        list(open_frames(tmp_path / "bag.mcap"))


def test_label_maps_of_foxglove(tmp_path: Path) -> None:
    label = noise(5)[..., 0]
    message = RawImage(width=64, height=48, encoding="mono8", step=64, data=label.tobytes())
    messages = [mcap.Message(1, T0, message.SerializeToString())]  # no stamp: the time of recording counts
    head = mcap.schema(1, "foxglove.RawImage", "protobuf") + mcap.channel(1, 1, "/labels", "protobuf")
    (tmp_path / "labels.mcap").write_bytes(mcap.file(head, [(chunk(messages), messages)]))
    (tmp_path / "bag.mcap").write_bytes(mcap.file(HEAD, [(chunk([serialized(0)]), [serialized(0)])]))
    labels = BagLabels(tmp_path / "labels.mcap", {"/c": "/labels"})
    (frame,) = open_frames(tmp_path / "bag.mcap")
    np.testing.assert_array_equal(labels(frame), label)


@pytest.mark.parametrize(
    ("schema", "encoding", "kind"),
    [
        ("foxglove.RawImage", "json", "foxglove.RawImage in json"),
        ("foxglove.PointCloud", "protobuf", "foxglove.PointCloud in protobuf"),
        (IMAGE, "wrong_format", f"{IMAGE} in wrong_format"),
        ("", "text", "no type in text"),
    ],
)
def test_a_topic_that_cannot_be_read_is_refused_with_its_type(
    tmp_path: Path, schema: str, encoding: str, kind: str
) -> None:
    head = (mcap.schema(1, schema) if schema else b"") + mcap.channel(1, int(bool(schema)), "/c", encoding)
    messages = [mcap.Message(1, T0, b"{}")]
    path = tmp_path / "bag.mcap"
    path.write_bytes(mcap.file(head, [(chunk(messages), messages)]))
    with pytest.raises(
        ValueError, match=f"^{path} has no topic of sensor_msgs/Image .* to take; it has /c \\({kind}\\)$"
    ):
        open_frames(path)
    with pytest.raises(ValueError, match=f"^{path}: /c has the type {kind}, not sensor_msgs/Image"):
        open_frames(path, topics=["/c"])


@pytest.mark.parametrize("name", ["drive.bag", "drive.db3", "drive.MCAP", "drive.mcap.zstd"])
def test_a_file_of_another_format_is_refused_by_one_sentence(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"neither of these")
    with pytest.raises(ValueError, match=f"^{path} is not a readable recording: it .*$") as error:
        open_frames(path)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3], ids=lambda storage: storage.name)
def test_a_recording_of_many_files_has_one_open_at_a_time(tmp_path: Path, storage: StoragePlugin) -> None:
    (tmp_path / "bag").mkdir()
    for number in range(20):
        write_messages(tmp_path / f"{number}", [("/c", numbered(number))], storage=storage)
        (file,) = (file for file in (tmp_path / f"{number}").iterdir() if file.name != "metadata.yaml")
        file.rename(tmp_path / "bag" / f"bag_{number}{file.suffix}")
    open_files = Path("/proc/self/fd")
    before = len(list(open_files.iterdir()))
    counts = [len(list(open_files.iterdir())) for _ in open_frames(tmp_path / "bag")]
    assert len(counts) == 20 and max(counts) <= before + 2
    assert len(list(open_files.iterdir())) == before


# Compression of whole files and of messages


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3], ids=lambda storage: storage.name)
@pytest.mark.parametrize("compression", [CompressionMode.FILE, CompressionMode.MESSAGE], ids=lambda mode: mode.name)
def test_compressed_bags_are_read_with_and_without_metadata(
    tmp_path: Path, storage: StoragePlugin, compression: CompressionMode
) -> None:
    messages = [("/c", numbered(index)) for index in range(COUNT)]
    bag = write_messages(tmp_path / "bag", messages, storage=storage, compression=compression)
    assert check_frames(bag) == []
    (file,) = (file for file in bag.iterdir() if file.name != "metadata.yaml")
    assert check_frames(file) == []
