# SPDX-License-Identifier: Apache-2.0
"""Damaged and truncated bags: what is readable is read, and the rest is reported."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import mcap_records as mcap
import numpy as np
import pytest
from recorded import T0, header, image_message, noise, typestore, write_messages
from rosbags.rosbag2 import CompressionMode, StoragePlugin, Writer

from netwarp_ros.classes import load_classes
from netwarp_ros.datasets.bag import BagDataset
from netwarp_ros.recordings.bag_reader import BagReader
from netwarp_ros.recordings.bags import BagLabels
from netwarp_ros.recordings.frames import stamp
from netwarp_ros.recordings.messages import COMPRESSED_IMAGE, IMAGE
from netwarp_ros.recordings.open import open_frames

COUNT = 24
HEIGHT, WIDTH = 240, 320
"""A chunk of an MCAP file is closed after 1 MiB: it holds at most five images of this size."""

MCAP, SQLITE = StoragePlugin.MCAP, StoragePlugin.SQLITE3
STORAGES = [
    (MCAP, CompressionMode.NONE),
    (MCAP, CompressionMode.STORAGE),
    (MCAP, CompressionMode.MESSAGE),
    (SQLITE, CompressionMode.NONE),
    (SQLITE, CompressionMode.MESSAGE),
]


def picture(index: int) -> np.ndarray:
    """Return an image of one grey level, with noise in its lower half, which zstd cannot compress."""
    image = np.full((HEIGHT, WIDTH, 3), index, np.uint8)
    image[HEIGHT // 2 :] = noise(index, HEIGHT // 2, WIDTH)
    return image


def numbered(index: int, **changes: Any) -> Any:
    """Return the image message of a number, which its pixels and its stamp show."""
    return image_message(picture(index), "bgr8", T0 + stamp(index, 10), **changes)


def write(
    path: Path,
    messages: Iterable[tuple[str, Any]],
    storage: StoragePlugin = MCAP,
    compression: CompressionMode = CompressionMode.NONE,
) -> Path:
    """Write (topic, message) pairs to a bag and return its storage file."""
    write_messages(path, messages, storage=storage, compression=compression)
    return next(file for file in path.iterdir() if file.name != "metadata.yaml")


def read(path: Path, **options: Any) -> tuple[list[int], str]:
    """Return the numbers of the frames read, after checking their pixels, and the damage reported."""
    frames = open_frames(path, **options)
    numbers = []
    for frame in frames:
        numbers.append(round((frame.stamp_ns - T0) / 10**8))
        np.testing.assert_array_equal(frame.image, picture(numbers[-1]))
    return numbers, "\n".join(frames.damage)


@pytest.mark.parametrize(("storage", "compression"), STORAGES, ids=lambda option: option.name)
def test_a_truncated_recording_gives_what_was_written(
    tmp_path: Path, storage: StoragePlugin, compression: CompressionMode
) -> None:
    file = write(tmp_path / "bag", (("/c", numbered(index)) for index in range(COUNT)), storage, compression)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])

    numbers, damage = read(file.parent)
    assert numbers == list(range(len(numbers))) and COUNT // 4 < len(numbers) <= COUNT // 2
    assert f"{file}: " in damage and "what follows is lost" in damage
    assert f"{file.parent}: {COUNT - len(numbers)} of the {COUNT} messages of /c are lost" in damage
    assert open_frames(file.parent).rate == pytest.approx(10, rel=0.01), "that of the images that are there"

    (file.parent / "metadata.yaml").unlink()  # a recorder that is killed does not write it
    for path in (file, file.parent):
        assert read(path)[0] == numbers
    assert "there is no metadata.yaml" in read(file.parent)[1]


@pytest.mark.parametrize("compression", [CompressionMode.NONE, CompressionMode.STORAGE], ids=lambda mode: mode.name)
def test_the_beginning_of_a_truncated_mcap_chunk_is_read(tmp_path: Path, compression: CompressionMode) -> None:
    file = write(tmp_path / "bag", (("/c", numbered(index)) for index in range(5)), MCAP, compression)
    content = file.read_bytes()
    file.write_bytes(content[: content.rindex(numbered(3).data[-99:].tobytes())])  # in the middle of image 3
    numbers, damage = read(file)
    assert numbers == [0, 1, 2]
    assert f"{file}: the record at byte" in damage and "what follows is lost" in damage


def test_other_topics_messages_at_the_time_of_the_break_are_read(tmp_path: Path) -> None:
    head = mcap.schema(1, IMAGE) + mcap.channel(1, 1, "/a") + mcap.channel(2, 1, "/b")
    parts = [
        [mcap.Message(1, 1, b"a1"), mcap.Message(1, 2, b"a2")],
        [mcap.Message(1, 2, b"a2 again"), mcap.Message(1, 3, b"a3")],
        [mcap.Message(2, 2, b"b2"), mcap.Message(1, 4, b"a4")],
    ]
    chunks = [mcap.chunk(b"".join(map(mcap.message, part)), (part[0][1], part[-1][1]), "zstd") for part in parts]
    chunks[1] = chunks[1][:-20] + bytes(20)
    for has_index in (True, False):
        file = tmp_path / f"{has_index}.mcap"
        file.write_bytes(mcap.file(head, list(zip(chunks, parts, strict=True)), has_index=has_index))
        damage: list[str] = []
        with BagReader(file, damage.append) as bag:
            messages = [message for _, message in bag.messages(["/a", "/b"])]
        assert [(message.topic, message.data) for message in messages if message.data is not None] == [
            ("/a", b"a1"),
            ("/a", b"a2"),
            ("/b", b"b2"),
            ("/a", b"a4"),
        ]
        assert f"{file}: the record at byte" in damage[0] and "is damaged and left out" in damage[0]
        if has_index:
            assert damage[1:] == [f"{file}: 2 of the 5 messages of /a are lost"]


def test_an_mcap_file_with_a_damaged_summary_is_read_without_it(tmp_path: Path) -> None:
    file = write(tmp_path / "bag", (("/c", numbered(index)) for index in range(COUNT)))
    content = bytearray(file.read_bytes())
    footer = len(content) - 37
    (summary_start,) = struct.unpack_from("<Q", content, footer + 9)
    struct.pack_into("<I", content, footer + 25, 1)  # the checksum
    file.write_bytes(content)
    assert read(file) == (
        list(range(COUNT)),
        f"{file}: its summary is damaged and not used: its checksum is not the one it claims",
    )
    struct.pack_into("<I", content, footer + 25, 0)
    content[summary_start : summary_start + 9] = bytes(9)
    file.write_bytes(content)
    assert read(file) == (
        list(range(COUNT)),
        f"{file}: its summary is damaged and not used: there is no record at byte 0",
    )


def test_messages_after_a_wrong_length_are_read_if_there_is_a_summary(tmp_path: Path) -> None:
    file = write(tmp_path / "bag", (("/c", numbered(index)) for index in range(COUNT)))
    content = bytearray(file.read_bytes())
    second_chunk = content.index(b"\x06", content.index(numbered(4).data[-99:].tobytes()))
    assert struct.unpack_from("<Q", content, second_chunk + 1)[0] in range(2**20, 2**21)
    struct.pack_into("<Q", content, second_chunk + 1, 2**40)
    file.write_bytes(content)
    assert read(file)[0] == list(range(COUNT))
    file.write_bytes(content[:-37])  # without the footer, the summary cannot be found
    numbers, damage = read(file)
    assert numbers == list(range(10)), "the chunk is taken for one that is cut"
    assert f"claims {2**40} bytes" in damage


@pytest.mark.parametrize(
    ("storage", "compression"),
    [(MCAP, CompressionMode.STORAGE), (SQLITE, CompressionMode.NONE)],
    ids=lambda option: option.name,
)
def test_a_part_of_a_damaged_bag_is_that_part_of_the_whole(
    tmp_path: Path, storage: StoragePlugin, compression: CompressionMode
) -> None:
    file = write(tmp_path / "bag", (("/c", numbered(index)) for index in range(COUNT)), storage, compression)
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40_000] = bytes(40_000)
    file.write_bytes(content)
    recording = open_frames(file.parent)
    whole = [(frame.index, frame.stamp_ns) for frame in recording]
    assert 0 < len(whole) < COUNT and len(recording) == COUNT
    assert all(stamp_ns == T0 + stamp(index, 10) for index, stamp_ns in whole), "lost images are counted, too"
    for begin in range(COUNT):
        part = [(frame.index, frame.stamp_ns) for frame in recording.read(begin, begin + 5)]
        assert part == [frame for frame in whole if begin <= frame[0] < begin + 5]


@pytest.mark.parametrize("compression", ["", "zstd"])
def test_the_messages_of_a_chunk_that_was_never_closed_are_read(tmp_path: Path, compression: str) -> None:
    """The Rust library states the sizes of a chunk when it closes it."""
    head = mcap.schema(1, IMAGE) + mcap.channel(1, 1, "/c")
    images = [bytes(typestore.serialize_cdr(numbered(index), IMAGE)) for index in range(3)]
    records = b"".join(mcap.message(mcap.Message(1, T0, image)) for image in images)
    unknown = b"\xff" * 8
    start = b"\x06" + unknown + bytes(16) + unknown + b"\xff" * 4 + mcap.string(compression) + unknown
    file = tmp_path / "bag.mcap"
    file.write_bytes(mcap.MAGIC + mcap.header() + start + mcap.compress(head + records, compression)[:-1000])
    numbers, damage = read(file)
    assert numbers == [0, 1]
    assert "what follows is lost" in damage


def test_messages_after_a_damaged_mcap_chunk_are_read(tmp_path: Path) -> None:
    file = write(tmp_path / "bag", (("/c", numbered(index)) for index in range(COUNT)), MCAP, CompressionMode.STORAGE)
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40_000] = bytes(40_000)
    file.write_bytes(content)
    numbers, damage = read(file.parent)
    missing = sorted(set(range(COUNT)) - set(numbers))
    assert 0 < len(missing) <= 10, "the messages of one or two chunks"
    assert missing == list(range(missing[0], missing[-1] + 1))
    assert numbers[0] == 0 and numbers[-1] == COUNT - 1
    assert "is damaged and left out" in damage
    assert f"{len(missing)} of the {COUNT} messages of /c are lost" in damage


def test_only_the_messages_in_damaged_database_pages_are_lost(tmp_path: Path) -> None:
    file = write(tmp_path / "bag", (("/c", numbered(index)) for index in range(COUNT)), SQLITE)
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096 * 4] = bytes(4096 * 4)
    file.write_bytes(content)
    numbers, damage = read(file.parent)
    missing = sorted(set(range(COUNT)) - set(numbers))
    assert len(missing) <= 2 and numbers == sorted(numbers)
    assert f"{file}: a message of /c is damaged, and left out like all such: " in damage
    assert f"{len(missing)} of the {COUNT} messages of /c are lost" in damage


def test_files_of_a_bag_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for part in range(12):
        file = write(tmp_path / f"part{part}", [("/c", numbered(part))])
        file.rename(tmp_path / f"bag_{part}.mcap")
    bag = tmp_path / "bag"
    bag.mkdir()
    for file in tmp_path.glob("*.mcap"):
        file.rename(bag / file.name)
    assert read(bag)[0] == list(range(12))
    (bag / "bag_3.mcap").write_bytes(b"nothing of the kind")
    numbers, damage = read(bag)
    assert numbers == [0, 1, 2, *range(4, 12)]
    assert f"{bag / 'bag_3.mcap'} is left out: it does not begin as an MCAP file" in damage


@pytest.mark.parametrize("storage", [MCAP, SQLITE], ids=lambda storage: storage.name)
def test_a_bag_without_a_readable_message_is_refused(tmp_path: Path, storage: StoragePlugin) -> None:
    file = write(tmp_path / "bag", (("/c", numbered(index)) for index in range(2)), storage)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{file} is not a readable recording: "):
        open_frames(file)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{file.parent} is not a readable recording: "):
        open_frames(file.parent)


def test_random_damage_is_reported_or_raises_a_value_error(tmp_path: Path) -> None:
    """Bytes are replaced and cut off anywhere in small bags, in which most bytes are not pixels."""
    rng = np.random.default_rng(0)
    for number, (storage, compression) in enumerate(STORAGES):
        small = (image_message(np.full((4, 4, 3), index, np.uint8), "bgr8") for index in range(9))
        file = write(tmp_path / f"bag{number}", (("/c", message) for message in small), storage, compression)
        content = np.frombuffer(file.read_bytes(), np.uint8)
        for _ in range(40):
            damaged = content[: rng.integers(20, len(content) + 1)].copy()
            damaged[rng.integers(0, len(damaged), 3)] = rng.integers(0, 256, 3)
            file.write_bytes(damaged.tobytes())
            damage: list[str] = []
            with contextlib.suppress(ValueError), BagReader(file.parent, damage.append) as bag:
                messages = list(bag.messages(list(bag.topics)))
                assert damage or len(messages) == sum(topic.count for topic in bag.topics.values())
                assert list(bag.messages(list(bag.topics), 4)) == messages[4:]


# Messages


def test_unreadable_images_are_reported_and_counted_by_the_index(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jpeg = cv2.imencode(".jpg", picture(4))[1].reshape(-1)[:50]
    messages = [numbered(0), numbered(1, encoding="cmyk8"), numbered(2), numbered(3, height=7)]
    bag = write(tmp_path / "bag", (("/c", message) for message in messages)).parent
    frames = open_frames(bag)
    assert [(frame.index, frame.name) for frame in frames] == [(0, "000000"), (2, "000002")]
    assert len(frames.damage) == 2 and caplog.text.count("cannot be read") == 2
    assert frames.damage[0].startswith(f"{bag}: image 1 of /c cannot be read: encoding is 'cmyk8': expected one of")
    assert f"{bag}: image 3 of /c cannot be read: data has" in frames.damage[1]

    cut = typestore.types[COMPRESSED_IMAGE](header=header(T0), format="jpeg", data=jpeg)
    only = write(tmp_path / "only", [("/c", cut)]).parent
    with pytest.raises(ValueError, match="none of the 1 images in .* can be read. .*: image 0 of /c cannot be read: "):
        list(open_frames(only))


def test_truncated_messages_are_reported(tmp_path: Path) -> None:
    with Writer(tmp_path / "bag", version=9, storage_plugin=MCAP) as writer:
        connection = writer.add_connection("/c", IMAGE, typestore=typestore)
        data = bytes(typestore.serialize_cdr(numbered(0), IMAGE))
        for index, part in enumerate((data[:30], data, data[:-100])):
            writer.write(connection, T0 + stamp(index, 10), part)
    numbers, damage = read(tmp_path / "bag")
    assert numbers == [0]
    assert "image 0 of /c cannot be read" in damage and "image 2 of /c cannot be read" in damage


def test_stamps_out_of_order_are_kept_and_reported(tmp_path: Path) -> None:
    order = [0, 2, 1, 3, 3]
    bag = write(tmp_path / "bag", (("/c", numbered(index)) for index in order)).parent
    numbers, damage = read(bag)
    assert numbers == order
    assert damage == f"{bag}: 2 of the 5 images of /c have a stamp that is not later than the one before"
    frames = open_frames(bag, rate=10)
    assert [frame.stamp_ns for frame in frames] == [stamp(index, 10) for index in range(5)] and not frames.damage


def test_label_maps_of_a_damaged_bag(tmp_path: Path) -> None:
    label = image_message(np.zeros((HEIGHT, WIDTH), np.uint8), "mono8")
    file = write(
        tmp_path / "bag", (pair for index in range(8) for pair in (("/c", numbered(index)), ("/labels", label)))
    )
    file.write_bytes(file.read_bytes()[:-3000])
    labels = BagLabels(file, {"/c": "/labels"})
    assert labels(next(iter(open_frames(file, topics=["/c"])))) is not None
    assert any(f"{file}: the record at byte" in damage for damage in labels.damage)
    with pytest.raises(ValueError, match="what follows is lost; training needs an intact bag"):
        BagDataset(file, "/c", "/labels", load_classes("camvid"))
