# SPDX-License-Identifier: Apache-2.0
"""Bags that are cut off, damaged or contradict themselves: what can be read comes out, and the rest is told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from netwarp_ros.classes import load_classes
from netwarp_ros.datasets.bag import BagDataset
from netwarp_ros.recordings.bag_reader import BagReader
from netwarp_ros.recordings.bags import BagLabels
from netwarp_ros.recordings.frames import stamp
from netwarp_ros.recordings.messages import COMPRESSED_IMAGE, IMAGE, header, image_message, typestore
from netwarp_ros.recordings.open import open_frames

T0 = 1_700_000_000_000_000_000
COUNT = 24
HEIGHT, WIDTH = 240, 320
"""So large that a chunk of an MCAP file, which is closed after 1 MiB, holds no more than five."""

MCAP, SQLITE = StoragePlugin.MCAP, StoragePlugin.SQLITE3
KINDS = [
    (MCAP, CompressionMode.NONE),
    (MCAP, CompressionMode.STORAGE),
    (MCAP, CompressionMode.MESSAGE),
    (SQLITE, CompressionMode.NONE),
    (SQLITE, CompressionMode.MESSAGE),
]


def picture(index: int) -> np.ndarray:
    """Noise in the lower half, which zstd cannot make smaller."""
    image = np.full((HEIGHT, WIDTH, 3), index, np.uint8)
    image[HEIGHT // 2 :] = np.random.default_rng(index).integers(0, 256, (HEIGHT // 2, WIDTH, 3), np.uint8)
    return image


def raw(index: int, **changes: Any) -> Any:
    message = image_message(picture(index), "bgr8", header(T0 + stamp(index, 10), "camera"))
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def write(
    path: Path,
    messages: Iterator[tuple[str, Any]],
    storage: StoragePlugin = MCAP,
    compression: CompressionMode = CompressionMode.NONE,
) -> Path:
    """Write (topic, message) pairs, recorded 0.1 s apart, and return the file."""
    writer = Writer(path, version=9, storage_plugin=storage)
    writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for index, (topic, message) in enumerate(messages):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, message.__msgtype__, typestore=typestore)
            data = typestore.serialize_cdr(message, message.__msgtype__)
            writer.write(connections[topic], T0 + stamp(index, 10), data)
    return next(file for file in path.iterdir() if file.name != "metadata.yaml")


def read(path: Path, **options: Any) -> tuple[list[int], str]:
    """Return the numbers of the frames that come out, after a look at their pixels, and what is told."""
    frames = open_frames(path, **options)
    numbers = []
    for frame in frames:
        numbers.append(round((frame.stamp_ns - T0) / 10**8))
        np.testing.assert_array_equal(frame.image, picture(numbers[-1]))
    return numbers, "\n".join(frames.damage)


@pytest.mark.parametrize(("storage", "compression"), KINDS, ids=lambda kind: kind.name)
def test_a_recording_that_was_cut_off_gives_what_was_written(
    tmp_path: Path, storage: StoragePlugin, compression: CompressionMode
) -> None:
    file = write(tmp_path / "bag", (("/c", raw(index)) for index in range(COUNT)), storage, compression)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])

    numbers, told = read(file.parent)
    assert numbers == list(range(len(numbers))) and COUNT // 4 < len(numbers) <= COUNT // 2
    assert f"{file.parent} is damaged: " in told
    assert f"{file.parent}: {COUNT - len(numbers)} of the {COUNT} messages of /c are lost" in told

    (file.parent / "metadata.yaml").unlink()  # which a recorder that is killed never writes
    for path in (file, file.parent):
        assert read(path)[0] == numbers
    assert "there is no metadata.yaml" in read(file.parent)[1]


@pytest.mark.parametrize("compression", [CompressionMode.NONE, CompressionMode.STORAGE], ids=lambda mode: mode.name)
def test_of_an_mcap_file_even_a_part_of_a_chunk_is_read(tmp_path: Path, compression: CompressionMode) -> None:
    file = write(tmp_path / "bag", (("/c", raw(index)) for index in range(5)), MCAP, compression)
    content = file.read_bytes()
    file.write_bytes(content[: content.rindex(raw(3).data[-99:].tobytes())])  # in the middle of number 3
    numbers, told = read(file)
    assert numbers == [0, 1, 2]
    assert f"{file}: the record at byte" in told and "what follows is lost" in told


def test_a_damaged_chunk_costs_no_more_than_itself(tmp_path: Path) -> None:
    file = write(tmp_path / "bag", (("/c", raw(index)) for index in range(COUNT)), MCAP, CompressionMode.STORAGE)
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40_000] = bytes(40_000)
    file.write_bytes(content)
    numbers, told = read(file.parent)
    missing = sorted(set(range(COUNT)) - set(numbers))
    assert 0 < len(missing) <= 10 and missing == list(range(missing[0], missing[-1] + 1))  # of one chunk, or two
    assert numbers[0] == 0 and numbers[-1] == COUNT - 1
    assert "is damaged and left out" in told
    assert f"{len(missing)} of the {COUNT} messages of /c are lost" in told


def test_a_damaged_page_ends_a_database(tmp_path: Path) -> None:
    file = write(tmp_path / "bag", (("/c", raw(index)) for index in range(COUNT)), SQLITE)
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096 * 4] = bytes(4096 * 4)
    file.write_bytes(content)
    numbers, told = read(file.parent)
    assert numbers == list(range(len(numbers))) and 0 < len(numbers) < COUNT
    assert f"{file} is damaged, and what follows is lost: " in told
    assert f"{COUNT - len(numbers)} of the {COUNT} messages of /c are lost" in told


def test_the_files_of_a_bag_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for part in range(12):
        file = write(tmp_path / f"part{part}", (("/c", raw(part)) for _ in range(1)))
        file.rename(tmp_path / f"bag_{part}.mcap")
    bag = tmp_path / "bag"
    bag.mkdir()
    for file in tmp_path.glob("*.mcap"):
        file.rename(bag / file.name)
    assert read(bag)[0] == list(range(12))
    (bag / "bag_3.mcap").write_bytes(b"nothing of the kind")
    numbers, told = read(bag)
    assert numbers == [0, 1, 2, *range(4, 12)]
    assert f"{bag / 'bag_3.mcap'} does not begin as an MCAP file: it is left out" in told


@pytest.mark.parametrize("storage", [MCAP, SQLITE], ids=lambda storage: storage.name)
def test_a_bag_of_which_nothing_is_left_is_refused(tmp_path: Path, storage: StoragePlugin) -> None:
    file = write(tmp_path / "bag", (("/c", raw(index)) for index in range(2)), storage)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{file} is not a readable rosbag2: "):
        open_frames(file)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{file.parent} is not a readable rosbag2: "):
        open_frames(file.parent)


def test_whatever_is_damaged_is_told_and_never_more_than_a_value_error(tmp_path: Path) -> None:
    """Bytes replaced and cut off anywhere, in small bags, where most of the bytes are not pixels."""
    rng = np.random.default_rng(0)
    for number, (storage, compression) in enumerate(KINDS):
        small = (image_message(np.full((4, 4, 3), index, np.uint8), "bgr8", header(T0, "")) for index in range(9))
        file = write(tmp_path / f"bag{number}", (("/c", message) for message in small), storage, compression)
        content = np.frombuffer(file.read_bytes(), np.uint8)
        for _ in range(40):
            damaged = content[: rng.integers(20, len(content) + 1)].copy()
            damaged[rng.integers(0, len(damaged), 3)] = rng.integers(0, 256, 3)
            file.write_bytes(damaged.tobytes())
            told: list[str] = []
            with contextlib.suppress(ValueError), BagReader(file.parent, told.append) as bag:
                count = sum(1 for _ in bag.messages(list(bag.topics)))
                assert told or count == sum(topic.count for topic in bag.topics.values())


# Messages


def test_images_that_cannot_be_read_are_told_and_keep_their_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jpeg = cv2.imencode(".jpg", picture(4))[1].reshape(-1)[:50]
    messages = [raw(0), raw(1, encoding="cmyk8"), raw(2), raw(3, height=7)]
    bag = write(tmp_path / "bag", (("/c", message) for message in messages)).parent
    frames = open_frames(bag)
    assert [(frame.index, frame.name) for frame in frames] == [(0, "000000"), (2, "000002")]
    assert len(frames.damage) == 2 and caplog.text.count("cannot be read") == 2
    assert frames.damage[0].startswith(f"{bag}: image 1 of /c cannot be read: encoding is 'cmyk8': expected one of")
    assert f"{bag}: image 3 of /c cannot be read: data has" in frames.damage[1]

    cut = typestore.types[COMPRESSED_IMAGE](header=header(T0, "camera"), format="jpeg", data=jpeg)
    only = write(tmp_path / "only", (("/c", message) for message in [cut])).parent
    with pytest.raises(ValueError, match="none of the 1 images in .* can be read. .*: image 0 of /c cannot be read: "):
        list(open_frames(only))


def test_a_message_that_is_cut_off_is_told(tmp_path: Path) -> None:
    with Writer(tmp_path / "bag", version=9, storage_plugin=MCAP) as writer:
        connection = writer.add_connection("/c", IMAGE, typestore=typestore)
        data = bytes(typestore.serialize_cdr(raw(0), IMAGE))
        for index, part in enumerate((data[:30], data, data[:-100])):
            writer.write(connection, T0 + stamp(index, 10), part)
    numbers, told = read(tmp_path / "bag")
    assert numbers == [0]
    assert "image 0 of /c cannot be read" in told and "image 2 of /c cannot be read" in told


def test_stamps_out_of_order_are_kept_and_told(tmp_path: Path) -> None:
    order = [0, 2, 1, 3, 3]
    bag = write(tmp_path / "bag", (("/c", raw(index)) for index in order)).parent
    numbers, told = read(bag)
    assert numbers == order
    assert told == f"{bag}: 2 of the 5 images of /c have a stamp that is not later than the one before"
    frames = open_frames(bag, rate=10)
    assert [frame.stamp_ns for frame in frames] == [stamp(index, 10) for index in range(5)] and not frames.damage


def test_labels_of_a_damaged_bag(tmp_path: Path) -> None:
    label = image_message(np.zeros((HEIGHT, WIDTH), np.uint8), "mono8", header(T0, "camera"))
    file = write(tmp_path / "bag", (pair for index in range(8) for pair in (("/c", raw(index)), ("/labels", label))))
    file.write_bytes(file.read_bytes()[:-3000])
    labels = BagLabels(file, {"/c": "/labels"})
    assert labels(next(iter(open_frames(file, topics=["/c"])))) is not None
    assert any(f"{file} is damaged" in told for told in labels.damage)
    with pytest.raises(ValueError, match="is damaged: .*; training needs a sound bag"):
        BagDataset(file, "/c", "/labels", load_classes("camvid"))
