# SPDX-License-Identifier: Apache-2.0
"""Small files that claim or become gigabytes are refused by one sentence, in little memory."""

from __future__ import annotations

import json
import re
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mcap_records as mcap
import pytest
from recorded import T0
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.typesys import Stores, get_typestore

from netwarp_ros.recordings.decompression import zstd
from netwarp_ros.recordings.messages import IMAGE

MIB = 2**20
HEAD = mcap.schema(1, IMAGE) + mcap.channel(1, 1, "/c")
EMPTY_RECORD = b"\x80" + bytes(8)
EMPTY_MESSAGE = mcap.message(mcap.Message(1, T0, b""))

OPENER = """
import json, os, resource, sys
from collections.abc import Callable, Iterator
from pathlib import Path
from netwarp_ros.recordings.open import open_frames

for line in sys.stdin:
    if os.fork():
        os.wait()
        continue
    sentence = None
    try:
        list(open_frames(Path(line.strip())))
    except ValueError as error:
        sentence = str(error)
    print(json.dumps([sentence, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]), flush=True)
    os._exit(0)
"""
"""Opens each recording in a process of its own, and prints the error, and the peak of the memory in kB."""


@pytest.fixture(scope="module")
def opener() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", OPENER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield process
        assert process.stdin
        process.stdin.close()


@pytest.fixture
def refusal(opener: subprocess.Popen[str]) -> Callable[[Path], str]:
    """Open a recording; return its error after checking that and the memory."""

    def read(path: Path) -> str:
        assert opener.stdin and opener.stdout
        opener.stdin.write(f"{path}\n")
        opener.stdin.flush()
        sentence, peak_kb = json.loads(opener.stdout.readline())
        assert sentence is not None, "it has to be refused"
        assert len(sentence) < 600 and "\n" not in sentence
        assert peak_kb < 10**6, "less than 1 GB"
        return str(sentence)

    return read


def repeated(unit: bytes, size: int) -> bytes:
    """Compress a unit that is repeated to about a size."""
    block = unit * (MIB // len(unit))
    compressor = zstd.ZstdCompressor()
    return b"".join([*(compressor.compress(block) for _ in range(size // MIB)), compressor.flush()])


def chunk(compressed: bytes, claim: int, compression: str = "zstd") -> bytes:
    head = struct.pack("<QQQI", T0, T0, claim, 0) + mcap.string(compression)
    return mcap.record(6, head + struct.pack("<Q", len(compressed)) + compressed)


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        (2**30, r"it claims 1073741824 bytes, but [0-9]+ bytes of zstd may become at most 33554432"),
        (200 * MIB, r"it claims 209715200 bytes, but [0-9]+ bytes of zstd may become at most 33554432"),
        (1000, r"its [0-9]+ bytes of zstd become more than the 1000 that they may"),
    ],
)
@pytest.mark.parametrize("unit", [bytes(8), EMPTY_RECORD], ids=["zeros", "empty records"])
def test_a_chunk_that_becomes_too_large_is_refused(
    tmp_path: Path, refusal: Callable[[Path], str], unit: bytes, claim: int, reason: str
) -> None:
    content = chunk(repeated(unit, 256 * MIB), claim)
    path = tmp_path / "bag.mcap"
    path.write_bytes(mcap.file(HEAD, [(content, [mcap.Message(1, T0, b"")])]))
    assert path.stat().st_size < 50_000
    assert re.search(reason, refusal(path))
    path.write_bytes(mcap.MAGIC + mcap.header() + HEAD + content)
    assert re.search(reason, refusal(path))
    path.write_bytes(mcap.MAGIC + mcap.header() + HEAD + content[:-10])
    assert re.search("its [0-9]+ bytes of zstd become more than the 33554432 that they may", refusal(path))


@pytest.mark.parametrize(
    ("unit", "reason"),
    [
        (bytes(8), "there is no record at byte 0"),
        (EMPTY_RECORD, r"its [0-9]+ bytes of zstd become more than [0-9]+ records"),
        (EMPTY_MESSAGE, r"its [0-9]+ bytes of zstd become more than [0-9]+ records"),
    ],
    ids=["zeros", "empty records", "empty messages"],
)
def test_a_chunk_of_nothing_below_the_limit_is_refused(
    tmp_path: Path, refusal: Callable[[Path], str], unit: bytes, reason: str
) -> None:
    size = len(unit) * (MIB // len(unit)) * 31
    path = tmp_path / "bag.mcap"
    path.write_bytes(mcap.MAGIC + mcap.header() + HEAD + chunk(repeated(unit, 31 * MIB), size))
    assert re.search(reason, refusal(path))


def test_many_small_chunks_of_nothing_are_refused(tmp_path: Path, refusal: Callable[[Path], str]) -> None:
    bomb = chunk(mcap.compress(EMPTY_MESSAGE * 30_000, "zstd"), len(EMPTY_MESSAGE) * 30_000)
    (tmp_path / "bag.mcap").write_bytes(mcap.MAGIC + mcap.header() + HEAD + bomb * 1000)
    began = time.monotonic()
    assert "bytes of zstd become more than" in refusal(tmp_path / "bag.mcap")
    assert time.monotonic() - began < 20, "it was several minutes"


def test_small_messages_do_not_keep_their_chunks_in_memory(tmp_path: Path, refusal: Callable[[Path], str]) -> None:
    records = mcap.message(mcap.Message(1, T0, bytes(40))) + mcap.record(0x80, bytes(31 * MIB))
    overlapping = [(mcap.chunk(records, (T0, T0), "zstd"), [mcap.Message(1, T0, b"")])] * 40
    (tmp_path / "bag.mcap").write_bytes(mcap.file(HEAD, overlapping))
    assert "none of the 40 images in" in refusal(tmp_path / "bag.mcap")


def test_chunk_indexes_that_claim_messages_outside_of_their_indexes_are_not_used(
    tmp_path: Path, refusal: Callable[[Path], str]
) -> None:
    content = mcap.MAGIC + mcap.header() + HEAD + mcap.record(0x80, bytes(MIB))
    empty, indexes = mcap.chunk(b""), b""
    for _ in range(3000):
        offsets = struct.pack("<HQ", 1, 100)
        index = struct.pack("<QQQQI", T0, T0, len(content), len(empty), len(offsets)) + offsets
        indexes += mcap.record(8, index + bytes(8) + mcap.string("") + bytes(16))
        content += empty
    footer = struct.pack("<BQQQI", 2, 20, len(content), 0, 0)
    (tmp_path / "bag.mcap").write_bytes(content + HEAD + indexes + footer + mcap.MAGIC)
    assert "holds no message on its image topic" in refusal(tmp_path / "bag.mcap")  # it claims 200 million


def test_chunks_of_lz4_have_the_limit_too(tmp_path: Path, refusal: Callable[[Path], str]) -> None:
    content = chunk(mcap.compress(bytes(65 * MIB), "lz4"), 1000, "lz4")
    (tmp_path / "bag.mcap").write_bytes(mcap.MAGIC + mcap.header() + HEAD + content)
    assert "bytes of lz4 become more than the 1000 that they may" in refusal(tmp_path / "bag.mcap")


def test_a_file_of_zeros_is_refused(tmp_path: Path, refusal: Callable[[Path], str]) -> None:
    path = tmp_path / "bag.mcap"
    with path.open("wb") as file:
        file.write(mcap.MAGIC)
        file.truncate(20 * 2**30)  # with holes: it has no blocks on the disk
    assert "there is no record at byte 8" in refusal(path)


@pytest.mark.parametrize("name", ["bag.mcap", "bag.db3"])
def test_a_message_that_becomes_too_large_is_lost(tmp_path: Path, refusal: Callable[[Path], str], name: str) -> None:
    message = mcap.Message(1, T0, repeated(bytes(8), 256 * MIB))
    path = tmp_path / name
    if name == "bag.mcap":
        path.write_bytes(mcap.file(HEAD, [(mcap.chunk(mcap.message(message), (T0, T0)), [message])]))
    else:
        write_database(path, "data BLOB")
        with sqlite3.connect(path) as database:
            database.execute("INSERT INTO messages VALUES (1, ?, ?, ?)", message)
    assert "a message of /c is damaged and left out: " in (reason := refusal(path))
    assert "bytes of zstd become more than the" in reason


def write_database(path: Path, data: str) -> None:
    with sqlite3.connect(path) as database:
        database.executescript(
            "CREATE TABLE topics(id INTEGER PRIMARY KEY, name, type, serialization_format);"
            f"CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id, timestamp, {data});"
            f"INSERT INTO topics VALUES (1, '/c', '{IMAGE}', 'cdr');"
        )


def test_data_that_a_database_makes_up_are_limited(tmp_path: Path, refusal: Callable[[Path], str]) -> None:
    path = tmp_path / "bag.db3"
    write_database(path, "data GENERATED ALWAYS AS (zeroblob(900000000))")
    with sqlite3.connect(path) as database:
        database.execute(f"INSERT INTO messages(topic_id, timestamp) VALUES (1, {T0})")
    assert "a message of /c is damaged, and left out like all such: string or blob too big" in refusal(path)


def test_endless_rows_that_a_database_makes_up_are_refused(tmp_path: Path, refusal: Callable[[Path], str]) -> None:
    path = tmp_path / "bag.db3"
    write_database(path, "data BLOB")
    with sqlite3.connect(path) as database:
        database.executescript(
            "DROP TABLE messages; CREATE VIEW messages AS"
            " WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
            " SELECT i id, 1 topic_id, i timestamp, x'00' data FROM n;"
        )
    assert "lacks the tables of rosbag2, topics and messages" in refusal(path)


@pytest.mark.parametrize("name", ["bag.mcap.zstd", "bag.db3.zstd"])
def test_a_file_that_becomes_too_large_is_refused(tmp_path: Path, refusal: Callable[[Path], str], name: str) -> None:
    (tmp_path / name).write_bytes(repeated(bytes(8), 256 * MIB))
    assert "it becomes more than the 33554432 bytes that it may when decompressed" in refusal(tmp_path / name)


def test_a_chunk_of_ros_1_that_becomes_too_large_is_refused(tmp_path: Path, refusal: Callable[[Path], str]) -> None:
    path, types = tmp_path / "drive.bag", get_typestore(Stores.ROS1_NOETIC)
    writer = Ros1Writer(path)
    writer.set_compression(Ros1Writer.CompressionFormat.BZ2)
    with writer:
        writer.write(writer.add_connection("/c", IMAGE, typestore=types), T0, bytes(100 * MIB))
    assert "bytes of bz2 become more than the 33554432 that they may" in refusal(path)


COUNTED = """
rosbag2_bagfile_information:
  relative_file_paths: [bag.mcap]
  topics_with_message_count: [{{topic_metadata: {{name: /c}}, message_count: {}}}]
"""
ALIASES = "a: &a0 [x, x]\n" + "".join(f"b{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


@pytest.mark.parametrize(
    "text",
    [
        "rosbag2_bagfile_information: " + "[" * 100_000,
        ALIASES + "rosbag2_bagfile_information: {relative_file_paths: *a39, topics_with_message_count: *a39}",
        "rosbag2_bagfile_information: 1\n" + "# \n" * 200_000,
        COUNTED.format(".inf"),
        COUNTED.format(10**18),
        COUNTED.format(-1),
    ],
    ids=["nested", "aliases", "long", "infinite", "many", "negative"],
)
def test_hostile_metadata_are_not_used(tmp_path: Path, refusal: Callable[[Path], str], text: str) -> None:
    bag = tmp_path / "bag"
    bag.mkdir()
    (bag / "metadata.yaml").write_text(text)
    (bag / "bag.mcap").write_bytes(mcap.MAGIC + mcap.header())
    assert f"{bag} is not a readable recording: {bag} is damaged: its metadata.yaml " in refusal(bag)
