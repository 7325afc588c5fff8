# SPDX-License-Identifier: Apache-2.0
"""Decompression with a limit: a few kilobytes of a recording may claim, or become, any number of gigabytes."""

from __future__ import annotations

import sys
from bz2 import BZ2Decompressor
from pathlib import Path

from lz4.frame import LZ4FrameDecompressor  # type: ignore[import-untyped]

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

MEMORY_LIMIT = 256 * 2**20
"""Most bytes of a chunk, record or message: 256 MiB. No recorder makes chunks as large, unless one message is."""

_FILE_RATIO = 1000
"""Most that a file may grow beyond `MEMORY_LIMIT`. Images of one color grow by more; recordings do by 2 to 50."""

_DECOMPRESSORS = {"bz2": BZ2Decompressor, "lz4": LZ4FrameDecompressor, "zstd": zstd.ZstdDecompressor}


def decompress(data: bytes | memoryview, compression: str, claim: int = MEMORY_LIMIT) -> bytes | memoryview:
    """Decompress data, or the beginning of data that were cut.

    Args:
        data: The data.
        compression: ``bz2``, ``lz4`` (the frame format), ``zstd``; empty for none.
        claim: Most bytes that the content may have: its size, if the recording states it.

    Raises:
        ValueError: If the claim is above `MEMORY_LIMIT`, the content is longer than the claim, the data are damaged, or
            the compression is unknown.
    """
    if claim > MEMORY_LIMIT:
        raise ValueError(f"it claims {claim} bytes, and at most {MEMORY_LIMIT} are read")
    if not compression:
        return data
    if compression not in _DECOMPRESSORS:
        raise ValueError(f"it is compressed by {compression[:40]!r}, not by one of {', '.join(_DECOMPRESSORS)}")
    try:
        content: bytes = _DECOMPRESSORS[compression]().decompress(data, max_length=claim + 1)
    except (OSError, RuntimeError, zstd.ZstdError) as error:  # one kind for each decompressor
        raise ValueError(f"it is no {compression}: {error}") from error
    if len(content) > claim:
        raise ValueError(f"it has more than the {claim} bytes that it may have")
    return content


def decompress_file(source: Path, target: Path) -> None:
    """Decompress a file that zstd has compressed as a whole.

    Raises:
        ValueError: If the content is longer than `MEMORY_LIMIT` and than 1000 times the file, or the data are damaged.
    """
    limit = max(MEMORY_LIMIT, _FILE_RATIO * source.stat().st_size)
    try:
        with zstd.open(source, "rb") as content, target.open("wb") as file:
            while block := content.read(2**20):
                if file.tell() + len(block) > limit:
                    raise ValueError(f"{source} has more than {limit} bytes when decompressed")
                file.write(block)
    except (EOFError, zstd.ZstdError) as error:
        raise ValueError(f"{source} cannot be decompressed: {error}") from error
