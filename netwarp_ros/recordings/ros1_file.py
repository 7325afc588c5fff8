# SPDX-License-Identifier: Apache-2.0
"""Bags of ROS 1. `rosbags` reads the index; the chunks are read here, with a limit on their size, and past damage."""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from rosbags.rosbag1 import Reader
from rosbags.rosbag1.reader import decompressors

from netwarp_ros.recordings.bag_file import BagFile, RecordedMessage
from netwarp_ros.recordings.decompression import MEMORY_LIMIT, decompress

_CONNECTION = b"\x04\x00\x00\x00op=\x07"
"""The field in the header of a record that describes a connection."""


class _Entry(NamedTuple):
    """A message in the index.

    Attributes:
        chunk: Key of its chunk in the reader.
        offset: Of its record in the chunk, in bytes.
    """

    recorded_ns: int
    topic: str
    message_type: str
    chunk: int
    offset: int


class Ros1File(BagFile):
    """A ``.bag`` file open for reading. It must have an index."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        reader = Reader(path)
        try:
            reader.open()
        except Exception as error:  # rosbags raises many kinds on damaged files
            reason = str(error) or type(error).__name__
            raise ValueError(f"it cannot be read as a bag of ROS 1: {reason}") from error
        with closing(reader):
            entries = [
                _Entry(entry.time, connection.topic, connection.msgtype, entry.chunk_pos, entry.offset)
                for connection in reader.connections
                for entry in reader.indexes[connection.id]
            ]
            for connection in reader.connections:
                self._add_topic(connection.topic, connection.msgtype, "ros1", connection.msgcount)
            self._chunks = dict(reader.chunks)
        self._entries = sorted(entries, key=attrgetter("recorded_ns"))

    def close(self) -> None:
        """Do nothing: the file is open only while a chunk is read."""

    def messages(self, topics: Collection[str], skip: int = 0) -> Iterator[tuple[int, RecordedMessage]]:
        entries = [entry for entry in self._entries if entry.topic in topics]
        numbers = Counter(entry.topic for entry in entries[:skip])
        for message in self._read(entries[skip:]):
            yield numbers[message.topic], message
            numbers[message.topic] += 1

    def _read(self, entries: Collection[_Entry]) -> Iterator[RecordedMessage]:
        chunk, content, is_reported = -1, None, False
        for entry in entries:
            data = None
            try:
                if entry.chunk != chunk:
                    chunk, content, is_reported = entry.chunk, None, False
                    content = self._content(chunk)
                if content is not None:
                    data = _data(content, entry.offset)
            except (ValueError, struct.error) as error:
                if not is_reported:
                    self.damage.append(f"the chunk at byte {chunk} is damaged: {error}")
                is_reported = True
            yield RecordedMessage(entry.topic, entry.message_type, "ros1", entry.recorded_ns, data)

    def _content(self, position: int) -> memoryview:
        """Return the records of a chunk.

        Raises:
            ValueError: If it is damaged, or longer than the limit.
        """
        chunk = self._chunks[position]
        if chunk.datasize > MEMORY_LIMIT:
            raise ValueError(f"it has {chunk.datasize} bytes, and at most {MEMORY_LIMIT} are read")
        (name,) = (name for name, function in decompressors.items() if function is chunk.decompressor)
        with self.path.open("rb") as file:
            data = os.pread(file.fileno(), chunk.datasize, chunk.datapos)
        return memoryview(decompress(data, "" if name == "none" else name))


def _data(content: memoryview, offset: int) -> bytes:
    """Return the data of the message whose record is at an offset; its connection may be described before it."""
    header: memoryview | bytes = _CONNECTION
    while _CONNECTION in bytes(header):
        header, offset = _field(content, offset)
        data, offset = _field(content, offset)
    return bytes(data)


def _field(content: memoryview, offset: int) -> tuple[memoryview, int]:
    """Read bytes with their length before them; return them and the offset of their end."""
    (length,) = struct.unpack_from("<I", content, offset)
    end = offset + 4 + length
    if end > len(content):
        raise ValueError(f"a record has {length} bytes, but ends after the chunk")
    return content[offset + 4 : end], end
