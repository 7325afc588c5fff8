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
"""Most bytes of a chunk, message or record, which is in memory as a whole."""

_SMALL, _RATIO = 32 * 2**20, 1000
"""Data may become this many bytes, or so many times their own size if that is more.

Recordings shrink by 2 to 50 times. Images of one color shrink by more, but few images have 32 MiB.
"""

_DECOMPRESSORS = {"bz2": BZ2Decompressor, "lz4": LZ4FrameDecompressor, "zstd": zstd.ZstdDecompressor}


def decompress(data: bytes | memoryview, compression: str, claim: int | None = None) -> bytes | memoryview:
    """Decompress data, or the beginning of data that were cut.

    Args:
        data: The data.
        compression: ``bz2``, ``lz4`` (its frame format) or ``zstd``; empty for none.
        claim: Size of the content in bytes that the recording states; None if it states none, or the data are cut.

    Raises:
        ValueError: If the content has or claims too many bytes, the data are damaged, or the compression is unknown.
    """
    if not compression:
        return data
    if compression not in _DECOMPRESSORS:
        raise ValueError(f"it is compressed by {compression[:40]!r}, not by one of {', '.join(_DECOMPRESSORS)}")
    limit = min(MEMORY_LIMIT, _limit(len(data)))
    if claim is not None and claim > limit:
        raise ValueError(f"it claims {claim} bytes, but {len(data)} bytes of {compression} may become at most {limit}")
    limit = limit if claim is None else claim
    try:
        content: bytes = _DECOMPRESSORS[compression]().decompress(data, max_length=limit + 1)
    except (OSError, RuntimeError, zstd.ZstdError) as error:  # one for each decompressor
        raise ValueError(f"it is not {compression}: {error}") from error
    if len(content) > limit:
        raise ValueError(f"its {len(data)} bytes of {compression} become more than the {limit} that they may")
    return content


def decompress_file(source: Path, target: Path) -> None:
    """Decompress a file that zstd has compressed as a whole.

    Raises:
        ValueError: If the content has too many bytes, or the data are damaged.
    """
    limit = _limit(source.stat().st_size)
    try:
        with zstd.open(source, "rb") as content, target.open("wb") as file:
            while block := content.read(2**20):
                if file.tell() + len(block) > limit:
                    raise ValueError(f"it becomes more than the {limit} bytes that it may when decompressed")
                file.write(block)
    except (EOFError, zstd.ZstdError) as error:
        raise ValueError(f"it cannot be decompressed: {error}") from error


def _limit(compressed_size: int) -> int:
    """Return the most bytes that so many bytes may become."""
    return max(_SMALL, _RATIO * compressed_size)
