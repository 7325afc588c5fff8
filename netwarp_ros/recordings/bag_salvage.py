# SPDX-License-Identifier: Apache-2.0
"""The messages that are still readable in a damaged file of a rosbag2.

An MCAP file is read record by record from its start, without the index at its end, and an SQLite database row by row. A
recording whose recorder was killed therefore gives every message that was written. Other damage costs more:

* a damaged chunk of an MCAP file: the messages of this chunk;
* a wrong length in an MCAP file: all messages after it;
* a damaged page of an SQLite database: all messages after it.

The record format is that of https://mcap.dev/spec.
"""

from __future__ import annotations

import sqlite3
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote
from zlib import crc32

from lz4.frame import LZ4FrameDecompressor  # type: ignore[import-untyped]

from netwarp_ros.recordings.messages import RecordedMessage

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_MCAP_MAGIC, _ZSTD_MAGIC = b"\x89MCAP0\r\n", b"\x28\xb5\x2f\xfd"
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _DATA_END = 3, 4, 5, 6, 15
_RECORD_HEADER = struct.Struct("<BQ")
"""Opcode and length of the content."""


def salvage(file: Path, on_damage: Callable[[str], None]) -> Iterator[RecordedMessage]:
    """Read the readable messages of a file, whatever its damage.

    Args:
        file: A ``.mcap`` or ``.db3`` file.
        on_damage: Called with one sentence for each damage.

    Yields:
        Messages in the order of the file; those of one MCAP chunk in the order of their recording.
    """
    for message in (_salvage_mcap if file.suffix == ".mcap" else _salvage_sqlite)(file, on_damage):
        if not message.data.startswith(_ZSTD_MAGIC):
            yield message
            continue
        # Only the metadata says that each message is compressed by itself, and it may be lost.
        try:
            yield message._replace(data=zstd.decompress(message.data))
        except zstd.ZstdError as error:
            on_damage(f"{file}: a message of {message.topic} is damaged and left out: {error}")


def _salvage_mcap(path: Path, on_damage: Callable[[str], None]) -> Iterator[RecordedMessage]:
    schemas: dict[int, str] = {}
    channels: dict[int, tuple[str, str]] = {}
    with path.open("rb") as file:
        if file.read(len(_MCAP_MAGIC)) != _MCAP_MAGIC:
            on_damage(f"{path} does not begin as an MCAP file: it is left out")
            return
        is_cut = False
        for record in _records(file, path.stat().st_size):
            if record.opcode == _DATA_END:
                return
            is_cut = not record.is_whole
            if is_cut:
                on_damage(
                    f"{path}: the record at byte {record.start} claims {record.length} bytes, but only "
                    f"{len(record.content)} are there: what follows is lost"
                )
            messages = []
            try:
                for inner in _unpack(record):
                    if inner.opcode == _SCHEMA:
                        (schema,) = struct.unpack_from("<H", inner.content)
                        schemas[schema] = _string(inner.content, 2)[0]
                    elif inner.opcode == _CHANNEL:
                        channel, schema = struct.unpack_from("<HH", inner.content)
                        channels[channel] = _string(inner.content, 4)[0], schemas[schema]
                    elif inner.opcode == _MESSAGE:
                        channel, _, recorded_ns, _ = struct.unpack_from("<HIQQ", inner.content)
                        messages.append(RecordedMessage(*channels[channel], recorded_ns, inner.content[22:]))
            except Exception as error:  # parsing and decompression raise many kinds
                reason = str(error) or type(error).__name__
                on_damage(f"{path}: the record at byte {record.start} is damaged and left out: {reason}")
            yield from sorted(messages, key=lambda message: message.recorded_ns)
        if not is_cut:
            on_damage(f"{path} has no end: it was not closed, as when its recorder was killed")


class _Record(NamedTuple):
    """A record of an MCAP file; the last one of a cut file may be incomplete.

    Attributes:
        opcode: Kind of record.
        start: Offset of its header in bytes.
        length: Length that the header claims for the content, in bytes.
        content: The content, as far as it is there.
    """

    opcode: int
    start: int
    length: int
    content: bytes

    @property
    def is_whole(self) -> bool:
        return len(self.content) == self.length


def _records(file: BinaryIO, size: int) -> Iterator[_Record]:
    """Read records from the current position of a file or chunk of ``size`` bytes, up to the first incomplete one."""
    while header := file.read(_RECORD_HEADER.size):
        opcode, length = _RECORD_HEADER.unpack(header.ljust(_RECORD_HEADER.size, b"\xff"))
        start = file.tell() - len(header)
        yield (record := _Record(opcode, start, length, file.read(min(length, size))))
        if not record.is_whole:
            return


def _unpack(record: _Record) -> Iterator[_Record]:
    """Return the whole records inside a chunk, or else the record itself if it is whole.

    Raises:
        Exception: Of many kinds, if the chunk is damaged. If it is only cut short, its beginning is read.
    """
    if record.opcode != _CHUNK:
        return iter([record] if record.is_whole else [])
    _, _, size, checksum = struct.unpack_from("<QQQI", record.content)
    compression, end = _string(record.content, 28)
    data = record.content[end + 8 :]
    if compression:  # both decompressors can decode the beginning of cut data
        data = (zstd.ZstdDecompressor() if compression == "zstd" else LZ4FrameDecompressor()).decompress(data)
    if record.is_whole and (len(data) != size or (checksum and crc32(data) != checksum)):
        raise ValueError("size or checksum of the content is not the one it claims")
    return (inner for inner in _records(BytesIO(data), len(data)) if inner.is_whole)


def _string(content: bytes, offset: int) -> tuple[str, int]:
    """Read a string with its length before it; return it and the offset of its end."""
    (length,) = struct.unpack_from("<I", content, offset)
    end = offset + 4 + length
    return content[offset + 4 : end].decode(), end


def _salvage_sqlite(path: Path, on_damage: Callable[[str], None]) -> Iterator[RecordedMessage]:
    with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1", uri=True)) as database:
        try:
            # Otherwise SQLite refuses a file that is shorter than its first page says.
            database.execute("PRAGMA writable_schema = ON")
            topics = {key: (name, kind) for key, name, kind in database.execute("SELECT id, name, type FROM topics")}
            for key, recorded_ns, data in database.execute("SELECT topic_id, timestamp, data FROM messages"):
                if key in topics and isinstance(recorded_ns, int) and isinstance(data, bytes):
                    yield RecordedMessage(*topics[key], recorded_ns, data)
        except sqlite3.DatabaseError as error:
            on_damage(f"{path} is damaged, and what follows is lost: {error}")
