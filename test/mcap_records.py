# SPDX-License-Identifier: Apache-2.0
"""MCAP files for tests, written record by record, so that any of them can be left out, cut or wrong."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

import lz4.frame

from netwarp_ros.recordings.decompression import zstd

MAGIC = b"\x89MCAP0\r\n"


class Message(NamedTuple):
    channel: int
    recorded_ns: int
    data: bytes


def record(opcode: int, content: bytes) -> bytes:
    return struct.pack("<BQ", opcode, len(content)) + content


def string(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()


def header(profile: str = "ros2") -> bytes:
    return record(1, string(profile) + string("test"))


def schema(key: int, name: str, encoding: str = "ros2msg") -> bytes:
    return record(3, struct.pack("<H", key) + string(name) + string(encoding) + string(""))


def channel(key: int, schema_key: int, topic: str, encoding: str = "cdr") -> bytes:
    return record(4, struct.pack("<HH", key, schema_key) + string(topic) + string(encoding) + string(""))


def message(content: Message) -> bytes:
    return record(5, struct.pack("<HIQQ", content.channel, 0, content.recorded_ns, 0) + content.data)


def chunk(
    records: bytes, span_ns: tuple[int, int] = (0, 0), compression: str = "", *, claim: int | None = None
) -> bytes:
    """Return a chunk of records, which claims their size or another one. zstd may be given as already compressed."""
    data = compress(records, compression)
    size = len(records) if claim is None else claim
    return record(
        6, struct.pack("<QQQI", *span_ns, size, 0) + string(compression) + struct.pack("<Q", len(data)) + data
    )


def compress(data: bytes, compression: str) -> bytes:
    match compression:
        case "zstd":
            return zstd.compress(data)
        case "lz4":
            return lz4.frame.compress(data)
    return data


def file(
    head: bytes,
    chunks: Sequence[tuple[bytes, Sequence[Message]]],
    *,
    profile: str = "ros2",
    has_index: bool = True,
    before: bytes = b"",
    summary_head: bytes | None = None,
) -> bytes:
    """Return a file with a summary: statistics and chunk indexes.

    Args:
        head: Schemas and channels.
        chunks: Chunks and their messages.
        profile: Of the header.
        has_index: Whether message indexes follow the chunks.
        before: Records before the chunks.
        summary_head: Schemas and channels in the summary; those of the head if it is None.
    """
    content = MAGIC + header(profile) + head + before
    indexes = b""
    for data, messages in chunks:
        start, offsets, message_indexes = len(content), b"", b""
        for key in {entry.channel for entry in messages} if has_index else ():
            offsets += struct.pack("<HQ", key, start + len(data) + len(message_indexes))
            entries = b"".join(struct.pack("<QQ", entry.recorded_ns, 0) for entry in messages if entry.channel == key)
            message_indexes += record(7, struct.pack("<HI", key, len(entries)) + entries)
        times = [entry.recorded_ns for entry in messages] or [0]
        index = struct.pack("<QQQQI", min(times), max(times), start, len(data), len(offsets)) + offsets
        index += struct.pack("<Q", len(message_indexes)) + string("") + struct.pack("<QQ", 0, 0)
        indexes += record(8, index)
        content += data + message_indexes
    content += record(15, bytes(4))
    everything = [entry for _, messages in chunks for entry in messages]
    times = [entry.recorded_ns for entry in everything] or [0]
    statistics = struct.pack("<QHIIIIQQI", len(everything), 0, 0, 0, 0, len(chunks), min(times), max(times), 0)
    summary = (head if summary_head is None else summary_head) + indexes + record(11, statistics)
    footer = struct.pack("<BQQQ", 2, 20, len(content), 0)
    return content + summary + footer + struct.pack("<I", crc32(summary + footer)) + MAGIC
