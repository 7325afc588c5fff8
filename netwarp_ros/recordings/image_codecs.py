# SPDX-License-Identifier: Apache-2.0
"""Compressed images decoded to samples, and samples converted to BGR: the same for messages and for files.

Whatever is damaged is refused. The orientation that a camera writes into EXIF data is ignored: pixels are as the sensor
saw them, as in raw images, and as the calibration of a camera expects them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg


class ImageError(ValueError):
    """An image contradicts itself or cannot be decoded."""


class Color(NamedTuple):
    """What the samples of a pixel mean.

    Attributes:
        channels: Samples per pixel.
        code: OpenCV's conversion to BGR; None if the samples are BGR already.
    """

    channels: int
    code: int | None


COLORS = {
    "mono": Color(1, cv2.COLOR_GRAY2BGR),
    "bgr": Color(3, None),
    "rgb": Color(3, cv2.COLOR_RGB2BGR),
    "bgra": Color(4, cv2.COLOR_BGRA2BGR),
    "rgba": Color(4, cv2.COLOR_RGBA2BGR),
    # ROS names a Bayer pattern by its first four pixels, OpenCV by the second and third pixel of the second row.
    "bayer_rggb": Color(1, cv2.COLOR_BayerBG2BGR),
    "bayer_bggr": Color(1, cv2.COLOR_BayerRG2BGR),
    "bayer_gbrg": Color(1, cv2.COLOR_BayerGR2BGR),
    "bayer_grbg": Color(1, cv2.COLOR_BayerGB2BGR),
}
"""By the name that ROS's encodings begin with, without the number of bits."""

STORED_COLORS = {1: "mono", 3: "bgr", 4: "bgra"}
"""What `decode` returns, by its number of channels."""

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
"""The first bytes of these files."""

_MOST_PIXELS = 8192**2

_HUFFMAN_TABLES, _PROGRESSIVE, _SCAN, _FILL, _END = 0xC4, 0xC2, 0xDA, 0xFF, b"\xff\xd9"
_WITHOUT_CONTENT = (_FILL, 0x01, *range(0xD0, 0xD8))
"""Markers of a JPEG (ITU-T T.81, Table B.1)."""

_END_OF_BLOCK = 0
"""Symbol of a Huffman table of AC coefficients."""

_MOST_ZEROS = 32
"""The usual tables read so many zeros as 85 coefficients of -1."""


def decode(data: np.ndarray) -> np.ndarray:
    """Decode a compressed image to the samples that it stores.

    JPEGs are decoded by libjpeg-turbo, and its warnings of corrupt data are errors. OpenCV ignores them: it returns an
    image whose lower part is grey or displaced.

    Args:
        data: ``(N,)`` uint8, a JPEG, a PNG, or another file that OpenCV reads.

    Returns:
        ``(H, W)``, or ``(H, W, 3)`` BGR, or ``(H, W, 4)`` BGRA; uint8 or uint16. A palette is replaced by its colors.

    Raises:
        ImageError: If the data are damaged or no such file, or claim too many pixels (``OPENCV_IO_MAX_IMAGE_PIXELS``).
    """
    signature = data[: len(PNG)].tobytes()
    if signature.startswith(JPEG):
        return _decode_jpeg(data)
    if signature == PNG:
        _check_png(data)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except cv2.error as error:
        raise ImageError(f"OpenCV wants {error.err}") from error
    if image is None:
        raise ImageError("OpenCV finds no whole image in the data")
    if image.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"its samples are {image.dtype}: expected 8 or 16 bits")
    return image


def samples_to_bgr(samples: np.ndarray, color: str) -> np.ndarray:
    """Convert samples to BGR. Samples of 16 bits are scaled to 8 bits: times 255/65535, rounded.

    Args:
        samples: ``(H, W)`` or ``(H, W, C)`` uint8 or uint16.
        color: What the samples mean, a key of `COLORS`.

    Returns:
        ``(H, W, 3)`` uint8, BGR: the samples themselves if they are that already.
    """
    code = COLORS[color].code
    return to_8_bits(samples if code is None else cv2.cvtColor(samples, code))


def to_8_bits(image: np.ndarray) -> np.ndarray:
    """Scale 16 bits to 8 bits: times 255/65535, rounded. An image of 8 bits is returned itself."""
    return image if image.dtype == np.uint8 else cv2.convertScaleAbs(image, alpha=255 / 65535)


def _decode_jpeg(data: np.ndarray) -> np.ndarray:
    height, width, color, _ = _libjpeg(simplejpeg.decode_jpeg_header, data)
    check_size(width, height)
    samples = _libjpeg(simplejpeg.decode_jpeg, data, "Gray" if color == "Gray" else "BGR")
    _check_zeros(data.tobytes())
    return samples[..., 0] if color == "Gray" else samples


def _libjpeg(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of simplejpeg. It raises KeyError if it has no name for the image's chroma subsampling."""
    try:
        return function(*arguments)
    except (ValueError, KeyError) as error:
        reason = str(error).rpartition("(): ")[2]  # without the name of a function in C
        raise ImageError(f"libjpeg-turbo finds: {reason}") from error


def _check_zeros(jpeg: bytes) -> None:
    """Refuse a baseline JPEG whose image data have zeros in place of what a network, a disk or a power cut lost.

    libjpeg-turbo decodes the zeros, and warns only if too many or too few blocks follow. Zeros are the first code of a
    Huffman table, over and over. Flat areas repeat the code for the end of a block. No picture repeats another one so
    often, such as the first code of the usual tables, which stands for a coefficient.
    """
    first_codes = {0: 1, 1: 0}  # by AC table, in the usual tables: decoders use them if there are none
    for marker, begin, content in _segments(jpeg):
        if marker == _PROGRESSIVE:
            return
        if marker == _HUFFMAN_TABLES:
            first_codes |= _first_codes(content)
        if marker == _SCAN and first_codes.get(content[2] & 15) != _END_OF_BLOCK:
            zeros = jpeg.find(bytes(_MOST_ZEROS), begin)
            if zeros >= 0 and jpeg.find(_END, begin, zeros) < 0:  # zeros after the image do no harm
                raise ImageError(f"its image data have {_MOST_ZEROS} zeros or more from byte {zeros} on")


def _segments(jpeg: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield the marker, the place and the content of each segment up to the header of the first scan."""
    place, marker = 2, 0
    while place + 4 <= len(jpeg) and marker != _SCAN:
        marker, length = struct.unpack_from(">xBH", jpeg, place)
        if marker in _WITHOUT_CONTENT:
            place += 1 if marker == _FILL else 2
        else:
            yield marker, place, jpeg[place + 4 : place + 2 + length]
            place += 2 + length


def _first_codes(tables: bytes) -> dict[int, int]:
    """Return the symbol with the first code, all zeros, of each Huffman table of AC coefficients."""
    symbols = {}
    while len(tables) > 17:
        is_ac, number = divmod(tables[0], 16)
        if is_ac:
            symbols[number] = tables[17]
        tables = tables[17 + sum(tables[1:17]) :]
    return symbols


def _check_png(data: np.ndarray) -> None:
    """Refuse too many pixels, or a chunk that is longer than the data: OpenCV would first allocate its length."""
    if len(data) >= 24:
        check_size(*struct.unpack_from(">II", data.data, 16))
    offset, chunk_type = len(PNG), b""
    while offset + 12 <= len(data) and chunk_type != b"IEND":
        length, chunk_type = struct.unpack_from(">I4s", data.data, offset)
        offset += 12 + length
    if offset > len(data):
        raise ImageError(f"{chunk_type!r} claims {length} bytes")


def most_pixels() -> int:
    """Return the number of pixels above which no image is decoded (``OPENCV_IO_MAX_IMAGE_PIXELS``)."""
    return int(os.environ.get("OPENCV_IO_MAX_IMAGE_PIXELS", _MOST_PIXELS))


def check_size(width: int, height: int) -> None:
    """Refuse an image whose header claims more pixels than a camera has."""
    most = most_pixels()
    if width * height > most:
        raise ImageError(f"it claims {width}x{height} pixels: at most {most} are decoded (OPENCV_IO_MAX_IMAGE_PIXELS)")
