# SPDX-License-Identifier: Apache-2.0
"""The messages of rosbag2 recordings, of damaged ones too: what can be read is read, and what is lost is told.

Sound bags are read by ``rosbags``. Where that gives up, on opening a bag or in its middle, the files are gone through
from their beginning: an MCAP file record by record, without the index at its end, and an SQLite database row by row. So
a recording whose recorder was killed gives all that was written. Of an MCAP file, a damaged chunk is lost, and a wrong
length loses what lies behind it; so does any damage to an SQLite database.
"""

from __future__ import annotations

import re
import sqlite3
import struct
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote
from zlib import crc32

import yaml
from lz4.frame import LZ4FrameDecompressor  # type: ignore[import-untyped]
from rosbags.rosbag2 import Reader

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BAG_SUFFIXES = (".mcap", ".db3")

_MAGIC, _ZSTD_MAGIC = b"\x89MCAP0\r\n", b"\x28\xb5\x2f\xfd"
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _DATA_END = 3, 4, 5, 6, 15
_HEAD = struct.Struct("<BQ")  # of a record: what it is, and its length


class Message(NamedTuple):
    """A message as it was recorded.

    Attributes:
        topic: Where it was published.
        kind: Name of its type, such as ``sensor_msgs/msg/Image``.
        recorded_ns: When it was recorded.
        data: Its CDR serialisation.
    """

    topic: str
    kind: str
    recorded_ns: int
    data: bytes


@dataclass(frozen=True)
class Topic:
    """What a bag has of a topic.

    Attributes:
        kind: Name of the type of its messages.
        count: How many there are; of a damaged bag, how many there were, where that is known.
    """

    kind: str
    count: int


class BagReader:
    """A bag that is open for reading, to be used in a ``with`` statement.

    Args:
        path: The bag's folder, or a ``.mcap`` or ``.db3`` file.
        report: Is told of damage, one sentence for each.

    Attributes:
        topics: What there is, by the name of the topic.
        duration_ns: From the first message to the last.

    Raises:
        ValueError: If nothing in it can be read.
    """

    def __init__(self, path: Path, report: Callable[[str], None]) -> None:
        self.path, self._report = path, report
        self._reader: Reader | None = None
        self.topics: dict[str, Topic] = {}
        try:
            if path.is_dir() and not (path / "metadata.yaml").is_file():
                raise FileNotFoundError("there is no metadata.yaml, which is written when a recording ends")
            self._reader = Reader(path)
            self._reader.open()
            self.duration_ns = self._reader.duration
            for connection in self._reader.connections:
                count = self.topics[connection.topic].count if connection.topic in self.topics else 0
                self.topics[connection.topic] = Topic(connection.msgtype, count + connection.msgcount)
        except Exception as error:  # whatever parsing runs into
            self._reader, self.topics = None, {}
            report(f"{path} is damaged: {_reason(error)}")
            self._survey(error)

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *error: object) -> None:
        if self._reader:
            self._reader.close()

    def messages(self, topics: Collection[str]) -> Iterator[Message]:
        """Read the messages of some topics in the order of their recording."""
        read = Counter[str]()
        for message in self._sound_then_salvaged(topics):
            read[message.topic] += 1
            yield message
        for topic in topics:
            if (lost := self.topics[topic].count - read[topic]) > 0:
                self._report(f"{self.path}: {lost} of the {self.topics[topic].count} messages of {topic} are lost")

    def _sound_then_salvaged(self, topics: Collection[str]) -> Iterator[Message]:
        last_ns = -1
        if self._reader:
            try:
                for message in self._read(self._reader, topics):
                    last_ns = message.recorded_ns
                    yield message
                return
            except Exception as error:  # whatever parsing runs into
                self._report(f"{self.path} is damaged: {_reason(error)}")
        for message in self._salvage(self._report if self._reader else _ignore):
            if message.topic in topics and message.recorded_ns > last_ns:
                yield message

    def messages_at(self, topic: str, recorded_ns: int) -> Iterator[Message]:
        """Read the messages of a topic that were recorded at one time; not of a damaged bag."""
        assert self._reader is not None
        return self._read(self._reader, [topic], recorded_ns, recorded_ns + 1)

    def _read(self, reader: Reader, topics: Collection[str], *span: int) -> Iterator[Message]:
        connections = [connection for connection in reader.connections if connection.topic in topics]
        for connection, recorded_ns, data in reader.messages(connections, *span):
            yield Message(connection.topic, connection.msgtype, recorded_ns, data)

    def _survey(self, error: Exception) -> None:
        """Find out what can be salvaged."""
        first_ns, last_ns = sys.maxsize, 0
        for topic, kind, recorded_ns, _ in self._salvage(self._report):
            self.topics[topic] = Topic(kind, self.topics[topic].count + 1 if topic in self.topics else 1)
            first_ns, last_ns = min(first_ns, recorded_ns), max(last_ns, recorded_ns)
        self.duration_ns = max(0, last_ns - first_ns)
        if not self.topics:
            raise ValueError(f"{self.path} is not a readable rosbag2: {_reason(error)}") from error
        for topic, count in _counts(self.path).items():
            if topic in self.topics:
                self.topics[topic] = replace(self.topics[topic], count=max(count, self.topics[topic].count))

    def _salvage(self, report: Callable[[str], None]) -> Iterator[Message]:
        """Go through the files from their beginning."""
        for file in [self.path] if self.path.is_file() else _files(self.path):
            salvage = _salvage_mcap if file.suffix == ".mcap" else _salvage_sqlite
            for message in salvage(file, report):
                if not message.data.startswith(_ZSTD_MAGIC):
                    yield message
                    continue
                # A bag whose messages are compressed one by one, which only its metadata would tell.
                try:
                    yield message._replace(data=zstd.decompress(message.data))
                except zstd.ZstdError as error:
                    report(f"{file}: a message of {message.topic} is damaged and left out: {error}")


def _files(bag: Path) -> list[Path]:
    """Return the files of a bag's folder, number 10 behind number 9."""
    files = [path for path in bag.iterdir() if path.suffix in BAG_SUFFIXES]
    return sorted(files, key=lambda path: [part.zfill(20) for part in re.split(r"(\d+)", path.name)])


def _counts(bag: Path) -> dict[str, int]:
    """Return how many messages of each topic the bag's metadata claim; nothing where they cannot be read."""
    try:
        metadata = yaml.safe_load((bag / "metadata.yaml").read_text(encoding="utf-8"))
        topics = metadata["rosbag2_bagfile_information"]["topics_with_message_count"]
        return {topic["topic_metadata"]["name"]: int(topic["message_count"]) for topic in topics}
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return {}


def _salvage_mcap(path: Path, report: Callable[[str], None]) -> Iterator[Message]:
    kinds: dict[int, str] = {}
    channels: dict[int, tuple[str, str]] = {}
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            report(f"{path} does not begin as an MCAP file: it is left out")
            return
        ended = False
        for record in _records(file, path.stat().st_size):
            if record.op == _DATA_END:
                return
            ended = not record.is_whole
            if ended:
                report(
                    f"{path}: the record at byte {record.start} claims {record.size} bytes, of which "
                    f"{len(record.body)} are there: what lies behind is lost"
                )
            messages = []
            try:
                for inner in _unpack(record):
                    if inner.op == _SCHEMA:
                        (number,) = struct.unpack_from("<H", inner.body)
                        kinds[number] = _text(inner.body, 2)[0]
                    elif inner.op == _CHANNEL:
                        number, kind = struct.unpack_from("<HH", inner.body)
                        channels[number] = _text(inner.body, 4)[0], kinds[kind]
                    elif inner.op == _MESSAGE:
                        number, _, recorded_ns, _ = struct.unpack_from("<HIQQ", inner.body)
                        messages.append(Message(*channels[number], recorded_ns, inner.body[22:]))
            except Exception as error:  # whatever parsing and decompression run into
                report(f"{path}: the record at byte {record.start} is damaged and left out: {_reason(error)}")
            yield from sorted(messages, key=lambda message: message.recorded_ns)
        if not ended:
            report(f"{path} has no end: it was not closed, as where its recorder was killed")


class _Record(NamedTuple):
    """A record of an MCAP file: what it is, where it starts, the size it claims, and what there is of it."""

    op: int
    start: int
    size: int
    body: bytes

    @property
    def is_whole(self) -> bool:
        return len(self.body) == self.size


def _records(file: BinaryIO, length: int) -> Iterator[_Record]:
    """Read the records of an MCAP file, or of a chunk, from where it stands; the last may be a part of one."""
    while head := file.read(_HEAD.size):
        op, size = _HEAD.unpack(head.ljust(_HEAD.size, b"\xff"))
        start = file.tell() - len(head)
        yield (record := _Record(op, start, size, file.read(min(size, length))))
        if not record.is_whole:
            return


def _unpack(record: _Record) -> Iterator[_Record]:
    """Return the whole records in a chunk, as far as there is one; any other record is itself.

    Raises:
        Exception: Of many kinds, if it is damaged.
    """
    if record.op != _CHUNK:
        return iter([record] if record.is_whole else [])
    _, _, size, checksum = struct.unpack_from("<QQQI", record.body)
    compression, place = _text(record.body, 28)
    data = record.body[place + 8 :]
    if compression:  # both take a part of what was compressed, and give a part
        data = (zstd.ZstdDecompressor() if compression == "zstd" else LZ4FrameDecompressor()).decompress(data)
    if record.is_whole and (len(data) != size or (checksum and crc32(data) != checksum)):
        raise ValueError("it does not have the size and the checksum that it claims")
    return (inner for inner in _records(BytesIO(data), len(data)) if inner.is_whole)


def _text(body: bytes, place: int) -> tuple[str, int]:
    """Read a text with its length in front; return it and where it ends."""
    (length,) = struct.unpack_from("<I", body, place)
    end = place + 4 + length
    return body[place + 4 : end].decode(), end


def _salvage_sqlite(path: Path, report: Callable[[str], None]) -> Iterator[Message]:
    with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1", uri=True)) as database:
        try:
            # Else SQLite refuses a file that is shorter than its first page says.
            database.execute("PRAGMA writable_schema = ON")
            topics = {key: (name, kind) for key, name, kind in database.execute("SELECT id, name, type FROM topics")}
            for key, recorded_ns, data in database.execute("SELECT topic_id, timestamp, data FROM messages"):
                if key in topics and isinstance(recorded_ns, int) and isinstance(data, bytes):
                    yield Message(*topics[key], recorded_ns, data)
        except sqlite3.DatabaseError as error:
            report(f"{path} is damaged, and what lies behind is lost: {error}")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _ignore(text: str) -> None:
    """Take no notice of what was told already."""
