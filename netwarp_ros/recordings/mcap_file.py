# SPDX-License-Identifier: Apache-2.0
"""MCAP files of any profile, sound or damaged. The format is that of https://mcap.dev/spec.

A file is read in blocks. A block is a chunk, or successive messages that are in no chunk. The summary of a sound file
lists its chunks, and how many messages of each channel they hold. If there is no such summary, as when a recorder was
killed, the file is read once from its start to find the blocks. Damage costs

* the messages of a damaged chunk, from the first damaged one on, or all if the chunk is compressed or has a checksum;
* after a wrong length, all messages, if the file has no summary.
"""

from __future__ import annotations

import heapq
import os
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from netwarp_ros.recordings.bag_file import BagFile, RecordedMessage, full_type
from netwarp_ros.recordings.decompression import MEMORY_LIMIT, decompress

_MAGIC = b"\x89MCAP0\r\n"
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _CHUNK_INDEX, _STATISTICS, _DATA_END = 2, 3, 4, 5, 6, 8, 11, 15
_RECORD_HEADER = struct.Struct("<BQ")
"""Opcode, and length of the content."""

_MESSAGE_HEADER = struct.Struct("<HIQQ")
"""Channel, sequence number, time of recording, time of publishing."""

_FOOTER_AND_MAGIC = struct.Struct("<BQQQI8s")
"""Opcode, length, start of the summary, start of its offsets, checksum, magic."""

_RECORDS, _RECORDS_PER_BYTE = 20_000, 2
"""A chunk may have this many records, or so many for each of its compressed bytes if that is more.

A few hundred bytes of zstd may become millions of empty records. The messages of a recorder differ at least in their
times, which take a byte or more each; they do not while simulated time is paused, but a chunk of rosbag2's usual size
has fewer than 20,000.
"""

_PENDING_LIMIT, _SMALL_PART = MEMORY_LIMIT // 2, 4
"""Most bytes of messages that wait for the blocks that overlap theirs. A view keeps its whole chunk in memory, so a
message of less than a quarter of its chunk is copied."""

_RUN_LENGTH = 2**20
"""Most bytes of successive messages that make one block, unless a message is longer."""

_ERRORS = (ValueError, struct.error)

_HeaderAt = Callable[[int], tuple[int, int]]
"""Returns opcode and length of the record at an offset."""


class _Channel(NamedTuple):
    topic: str
    encoding: str
    schema: int


class _Block(NamedTuple):
    """A chunk, or successive messages that are in no chunk.

    Attributes:
        begin_ns: When the first message was recorded.
        end_ns: When the last message was recorded.
        start: Offset in the file, in bytes.
        length: Length in the file, in bytes.
        counts: Number of messages of each channel.
    """

    begin_ns: int
    end_ns: int
    start: int
    length: int
    counts: dict[int, int]

    @classmethod
    def of(cls, messages: Sequence[tuple[int, int]], start: int, length: int) -> _Block:
        """Make the block of these messages: channel and time of each."""
        times = [recorded_ns for _, recorded_ns in messages] or [0]
        return cls(min(times), max(times), start, length, Counter(key for key, _ in messages))


class McapFile(BagFile):
    """An MCAP file open for reading."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._schemas: dict[int, str] = {}
        self._channels: dict[int, _Channel] = {}
        self._file = path.open("rb")
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            if self._read(0, len(_MAGIC)) != _MAGIC:
                raise ValueError("it does not begin as an MCAP file")
            blocks = self._summarized_blocks()
            self._is_scanned = blocks is None
            self._blocks = sorted(self._scanned_blocks() if blocks is None else blocks, key=lambda block: block[:3])
        except BaseException:
            self._file.close()
            raise
        self._names = {key: self._channel_names(channel) for key, channel in self._channels.items()}
        counts = _sum(self._blocks)
        for key, names in self._names.items():
            self._add_topic(*names, counts[key])

    def close(self) -> None:
        self._file.close()

    def messages(self, topics: Collection[str], skip: int = 0) -> Iterator[tuple[int, RecordedMessage]]:
        channels = {key for key, channel in self._channels.items() if channel.topic in topics}
        blocks = [block for block in self._blocks if not channels.isdisjoint(block.counts)]
        numbers = Counter[str]()
        first = 0
        while first + 1 < len(blocks) and blocks[first].end_ns <= blocks[first + 1].begin_ns:  # no overlap
            counts = {key: count for key, count in blocks[first].counts.items() if key in channels}
            if sum(counts.values()) > skip:
                break
            skip -= sum(counts.values())
            for key, count in counts.items():
                numbers[self._channels[key].topic] += count
            first += 1
        for position, message in enumerate(self._in_order(blocks[first:], channels)):
            if position >= skip:
                yield numbers[message.topic], message
            numbers[message.topic] += 1

    def _in_order(self, blocks: Sequence[_Block], channels: Collection[int]) -> Iterator[RecordedMessage]:
        """Read the messages of blocks that are sorted by their begin, in the order of recording."""
        pending: list[tuple[int, int, int, RecordedMessage]] = []  # a heap, because blocks may overlap in time
        pending_size = 0
        for position, block in enumerate(blocks):
            while pending and (pending[0][0] < block.begin_ns or pending_size > _PENDING_LIMIT):
                message = heapq.heappop(pending)[-1]
                pending_size -= len(message.data or b"")
                yield message
            for number, message in enumerate(self._block_messages(block, channels)):
                heapq.heappush(pending, (message.recorded_ns, position, number, message))
                pending_size += len(message.data or b"")
        while pending:
            yield heapq.heappop(pending)[-1]

    def _block_messages(self, block: _Block, channels: Collection[int]) -> Iterator[RecordedMessage]:
        """Read the messages of some channels in a block, and after them those that are lost."""
        missing = Counter({key: count for key, count in block.counts.items() if key in channels})
        try:
            content = self._content(block.start, block.length)
            for key, recorded_ns, begin, end in self._messages_in(content):
                if missing[key] > 0:
                    missing[key] -= 1
                    data = content[begin:end]
                    is_small = len(data) * _SMALL_PART < len(content)
                    yield RecordedMessage(*self._names[key], recorded_ns, bytes(data) if is_small else data)
        except _ERRORS as error:
            if not self._is_scanned:  # the scan has reported it
                self._report(block.start, error)
        for key in missing.elements():
            yield RecordedMessage(*self._names[key], block.end_ns, None)

    # Records

    def _content(self, start: int, length: int) -> memoryview:
        """Return the records of a block: a chunk's are decompressed, and a cut chunk's as far as they are there.

        Raises:
            ValueError: If the chunk is damaged, or larger than the limits.
        """
        data = self._read(start, length)
        opcode, record_length = _RECORD_HEADER.unpack_from(data)
        if opcode != _CHUNK:
            return data
        record = data[_RECORD_HEADER.size :]
        _, _, claim, checksum = struct.unpack_from("<QQQI", record)
        compression, end = _string(record, 28)
        (compressed_length,) = struct.unpack_from("<Q", record, end)
        is_cut = len(record) < record_length
        compressed = record[end + 8 :][:compressed_length]
        content = memoryview(decompress(compressed, compression, None if is_cut else claim))
        if not is_cut and (len(content) != claim or (checksum and crc32(content) != checksum)):
            raise ValueError("size or checksum of the content is not the one it claims")
        limit = max(_RECORDS, _RECORDS_PER_BYTE * len(compressed))
        if len(content) > limit * _RECORD_HEADER.size:
            records = _records(_headers(content), 0, len(content))
            if sum(1 for _ in islice(records, limit + 1)) > limit:
                raise ValueError(f"its {len(compressed)} bytes of {compression} become more than {limit} records")
        return content

    def _messages_in(self, content: memoryview) -> Iterator[tuple[int, int, int, int]]:
        """Yield channel, time, and begin and end of the data of each message in records."""
        for opcode, begin, end in _records(_headers(content), 0, len(content)):
            if end <= len(content) and (message := self._learn(opcode, content[begin:end], end - begin)):
                yield *message, begin + _MESSAGE_HEADER.size, end

    def _learn(self, opcode: int, record: memoryview, length: int) -> tuple[int, int] | None:
        """Keep the schema or the channel that a record describes, or return the channel and the time of a message.

        Args:
            opcode: Of the record.
            record: Its content; of a message at least the header.
            length: Of the content.

        Raises:
            ValueError: If the record is damaged.
        """
        if opcode == _MESSAGE:
            if length < _MESSAGE_HEADER.size:
                raise ValueError(f"a message has {length} bytes, and its header alone has {_MESSAGE_HEADER.size}")
            key, _, recorded_ns, _ = _MESSAGE_HEADER.unpack_from(record)
            if key not in self._channels:
                raise ValueError(f"a message has the channel {key}, which nothing describes")
            return key, recorded_ns
        if opcode == _SCHEMA:
            (key,) = struct.unpack_from("<H", record)
            self._schemas.setdefault(key, _string(record, 2)[0])
        elif opcode == _CHANNEL:
            key, schema = struct.unpack_from("<HH", record)
            topic, position = _string(record, 4)
            encoding, _ = _string(record, position)
            self._channels.setdefault(key, _Channel(topic, encoding, schema))
        return None

    def _channel_names(self, channel: _Channel) -> tuple[str, str, str]:
        """Return topic, message type and encoding."""
        message_type = full_type(self._schemas.get(channel.schema, ""), channel.encoding)
        return channel.topic, message_type, channel.encoding

    def _read(self, start: int, length: int) -> memoryview:
        """Read a part of the file.

        Raises:
            ValueError: If it is longer than the limit.
        """
        if length > MEMORY_LIMIT + 4096:  # a chunk has a header, too
            raise ValueError(f"it has {length} bytes, and at most {MEMORY_LIMIT} are read")
        if self._file.closed:
            self._file = self.path.open("rb")
        self._file.seek(start)
        return memoryview(self._file.read(length))

    def _header(self, start: int) -> tuple[int, int]:
        opcode, length = _RECORD_HEADER.unpack(self._read(start, _RECORD_HEADER.size))
        return opcode, length

    def _report(self, start: int, error: Exception) -> None:
        self.damage.append(f"the record at byte {start} is damaged and left out: {error}")

    # With a summary

    def _summarized_blocks(self) -> list[_Block] | None:
        """Return the chunks that the summary lists; None if there is no summary, or it does not list all messages."""
        footer_start = self._size - _FOOTER_AND_MAGIC.size
        if footer_start < len(_MAGIC):
            return None
        footer = self._read(footer_start, _FOOTER_AND_MAGIC.size)
        opcode, length, start, _, checksum, magic = _FOOTER_AND_MAGIC.unpack(footer)
        if (opcode, length, magic) != (_FOOTER, 20, _MAGIC) or not start:
            return None
        try:
            if not len(_MAGIC) <= start <= footer_start:
                raise ValueError(f"its start is byte {start} of {self._size}")
            summary = self._read(start, footer_start - start)
            if checksum and crc32(footer[:25], crc32(summary)) != checksum:
                raise ValueError("its checksum is not the one it claims")
            return self._listed_chunks(summary, start)
        except _ERRORS as error:
            self.damage.append(f"its summary is damaged and not used: {error}")
            return None

    def _listed_chunks(self, summary: memoryview, data_end: int) -> list[_Block] | None:
        """Return the chunks that a summary lists; None if it does not list all messages of the file.

        Raises:
            ValueError: If the summary is damaged, or contradicts itself.
        """
        blocks: list[_Block] = []
        ends: list[int] = []
        message_count = None
        for opcode, begin, end in _records(_headers(summary), 0, len(summary)):
            record = summary[begin:end]
            self._learn(opcode, record, end - begin)
            if opcode == _STATISTICS:
                (message_count,) = struct.unpack_from("<Q", record)
            elif opcode == _CHUNK_INDEX:
                block, block_end = _listed_chunk(record)
                blocks.append(block)
                ends.append(block_end)
        counts = _sum(blocks)
        if message_count is None and all(block.counts for block in blocks):
            message_count = counts.total()
        if not blocks or message_count != counts.total():
            return None  # messages are in no chunk, or chunks have no message index
        schemas = {channel.schema for channel in self._channels.values()}
        if not (counts.keys() <= self._channels.keys() and schemas <= {0, *self._schemas}):
            return None
        position = len(_MAGIC)
        for start, end in [*sorted(zip((block.start for block in blocks), ends, strict=True)), (data_end, data_end)]:
            if start < position:
                raise ValueError(f"the chunk at byte {start} begins before the end of the one before it")
            if self._has_messages(position, start):
                return None
            position = end
        return blocks

    def _has_messages(self, begin: int, end: int) -> bool:
        """Return whether a part of the file that the summary does not list has messages."""
        try:
            return any(opcode in (_MESSAGE, _CHUNK) for opcode, _, _ in _records(self._header, begin, end))
        except ValueError:
            return False  # it is damaged, and the summary is not

    # Without a summary

    def _scanned_blocks(self) -> Iterator[_Block]:
        """Find the blocks by reading the file from its start, except for the data of messages that are in no chunk."""
        run: list[tuple[int, int]] = []
        run_start = run_end = 0
        for opcode, start, begin, end in self._top_level_records():
            messages = self._scanned_messages(opcode, start, begin, end)
            if opcode == _CHUNK:
                yield _Block.of(messages, start, end - start)
            elif messages:
                if run and (start != run_end or end - run_start > _RUN_LENGTH):
                    yield _Block.of(run, run_start, run_end - run_start)
                    run = []
                run_start, run_end = (run_start if run else start), end
                run += messages
        if run:
            yield _Block.of(run, run_start, run_end - run_start)

    def _scanned_messages(self, opcode: int, start: int, begin: int, end: int) -> list[tuple[int, int]]:
        """Return channel and time of the messages of a record, up to the first damage."""
        messages = []
        try:
            if opcode == _CHUNK:
                for key, recorded_ns, _, _ in self._messages_in(self._content(start, end - start)):
                    messages.append((key, recorded_ns))
            elif opcode in (_SCHEMA, _CHANNEL, _MESSAGE):
                length = end - begin
                record = self._read(begin, _MESSAGE_HEADER.size if opcode == _MESSAGE else length)
                messages += filter(None, [self._learn(opcode, record, length)])
        except _ERRORS as error:
            self._report(start, error)
        return messages

    def _top_level_records(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield opcode, start, and begin and end of the content of each record up to the end of the data.

        A record that is cut ends at the end of the file, and is left out if it is not a chunk.
        """
        try:
            for opcode, begin, end in _records(self._header, len(_MAGIC), self._size):
                start = begin - _RECORD_HEADER.size
                if opcode in (_FOOTER, _DATA_END):
                    return
                if end <= self._size or opcode == _CHUNK:
                    yield opcode, start, begin, min(end, self._size)
                if end > self._size:
                    self.damage.append(
                        f"the record at byte {start} claims {end - begin} bytes, but only "
                        f"{self._size - begin} are there: what follows is lost"
                    )
                    return
        except ValueError as error:
            self.damage.append(f"{error}: what follows is lost")
            return
        self.damage.append("it has no end: it was not closed, as when its recorder was killed")


def _listed_chunk(record: memoryview) -> tuple[_Block, int]:
    """Return the chunk of a chunk index, and the end of the message indexes that follow it in the file."""
    begin_ns, end_ns, start, length, map_length = struct.unpack_from("<QQQQI", record)
    offsets = sorted((offset, key) for key, offset in struct.iter_unpack("<HQ", record[36:][:map_length]))
    (indexes_length,) = struct.unpack_from("<Q", record, 36 + map_length)
    end = start + length + indexes_length
    # A message index, one for each channel, has 15 bytes, and 16 more for each message.
    ends = [*(offset for offset, _ in offsets[1:]), end]
    counts = {key: (after - offset - 15) // 16 for (offset, key), after in zip(offsets, ends, strict=False)}
    if min(counts.values(), default=0) < 0 or (offsets and offsets[0][0] < start + length):
        raise ValueError(f"the index of the chunk at byte {start} contradicts itself")
    return _Block(begin_ns, end_ns, start, length, counts), end


def _sum(blocks: Sequence[_Block]) -> Counter[int]:
    """Return the number of messages of each channel."""
    counts = Counter[int]()
    for block in blocks:
        counts.update(block.counts)
    return counts


def _headers(content: memoryview) -> _HeaderAt:
    return partial(_RECORD_HEADER.unpack_from, content)


def _records(header_at: _HeaderAt, position: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield opcode, and begin and end of the content of successive records; the last one may end after ``size``.

    Raises:
        ValueError: If there is no record at a position.
    """
    while position + _RECORD_HEADER.size <= size:
        opcode, length = header_at(position)
        if not opcode:
            raise ValueError(f"there is no record at byte {position}")
        begin = position + _RECORD_HEADER.size
        position = begin + length
        yield opcode, begin, position


def _string(content: memoryview, offset: int) -> tuple[str, int]:
    """Read a string with its length before it; return it and the offset of its end."""
    (length,) = struct.unpack_from("<I", content, offset)
    end = offset + 4 + length
    return bytes(content[offset + 4 : end]).decode(), end
