# SPDX-License-Identifier: Apache-2.0
"""Image messages to BGR arrays: one decoder for what the node hears and what a bag holds.

It reads the fields of ``sensor_msgs/Image`` and ``CompressedImage``, of whichever Python class, and imports no ROS.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import cv2
import numpy as np


class ImageError(ValueError):
    """An image message contradicts itself or cannot be decoded."""


class _Layout(NamedTuple):
    """How an encoding lays out pixels.

    Attributes:
        dtype: Of a sample, as numpy names it without the byte order.
        channels: Samples per pixel of a row; of the Y plane, where chroma has a plane of its own.
        code: OpenCV's conversion to BGR; None where the samples are BGR, or OpenCV has none.
        chroma: Pixels that share their chroma, across and down.
        planes: 2 where a plane of chroma pairs follows the Y plane.
    """

    dtype: str
    channels: int
    code: int | None
    chroma: tuple[int, int] = (1, 1)
    planes: int = 1

    def bytes(self, height: int, step: int) -> int:
        """Return the length of the data of an image."""
        across, down = self.chroma
        return height * step + (height // down * (2 * step // across) if self.planes == 2 else 0)


_DEPTHS = {"8": "u1", "16": "u2"}
_CODES = {
    "mono": (1, cv2.COLOR_GRAY2BGR),
    "bgr": (3, None),
    "rgb": (3, cv2.COLOR_RGB2BGR),
    "bgra": (4, cv2.COLOR_BGRA2BGR),
    "rgba": (4, cv2.COLOR_RGBA2BGR),
    # ROS names a pattern by its first four pixels; OpenCV, by the second and third pixel of the second row.
    "bayer_rggb": (1, cv2.COLOR_BayerBG2BGR),
    "bayer_bggr": (1, cv2.COLOR_BayerRG2BGR),
    "bayer_gbrg": (1, cv2.COLOR_BayerGR2BGR),
    "bayer_grbg": (1, cv2.COLOR_BayerGB2BGR),
}
_UYVY = _Layout("u1", 2, cv2.COLOR_YUV2BGR_UYVY, chroma=(2, 1))
_YUYV = _Layout("u1", 2, cv2.COLOR_YUV2BGR_YUYV, chroma=(2, 1))

ENCODINGS = {
    **{f"{name}{bits}": _Layout(dtype, *code) for bits, dtype in _DEPTHS.items() for name, code in _CODES.items()},
    **{f"8UC{channels}": _Layout("u1", *_CODES[name]) for channels, name in ((1, "mono"), (3, "bgr"), (4, "bgra"))},
    "uyvy": _UYVY,
    "yuv422": _UYVY,
    "yuyv": _YUYV,
    "yuv422_yuy2": _YUYV,
    "nv12": _Layout("u1", 1, cv2.COLOR_YUV2BGR_NV12, chroma=(2, 2), planes=2),
    "nv21": _Layout("u1", 1, cv2.COLOR_YUV2BGR_NV21, chroma=(2, 2), planes=2),
    "nv24": _Layout("u1", 1, None, planes=2),
}
"""The encodings of ``sensor_msgs/Image`` that are understood; 8UC1, 8UC3 and 8UC4 are mono8, bgr8 and bgra8."""

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


def to_bgr(message: Any) -> np.ndarray:
    """Decode an image message.

    Samples of 16 bits are scaled to 8: times 255/65535, rounded. YUV is BT.601 in video range. A JPEG's note of how the
    camera was held is not followed: the image is as the sensor saw it.

    Args:
        message: An ``Image`` of an encoding in `ENCODINGS`, or a ``CompressedImage`` that is JPEG or PNG.

    Returns:
        ``(H, W, 3)`` BGR uint8; where the data are that already, a view of them, with rows padded as they are.

    Raises:
        ImageError: If width, height, encoding, step and data do not fit, or the data cannot be decoded.
    """
    image = _decompress(message) if hasattr(message, "format") else _convert(message)
    return image if image.dtype == np.uint8 else cv2.convertScaleAbs(image, alpha=255 / 65535)


def samples(message: Any) -> np.ndarray:
    """Return what a raw image message holds, unconverted.

    Args:
        message: An ``Image`` of an encoding in `ENCODINGS`.

    Returns:
        ``(H, W, C)`` uint8 or uint16, the Y plane of an encoding that has two; a view of the data, unless words of 16
        bits are in another byte order or at odd addresses.

    Raises:
        ImageError: If width, height, encoding, step and data do not fit.
    """
    width, height, step, encoding = message.width, message.height, message.step, message.encoding
    if encoding not in ENCODINGS:
        raise ImageError(f"encoding is {encoding!r}: expected one of {', '.join(ENCODINGS)}")
    layout = ENCODINGS[encoding]
    across, down = layout.chroma
    if not width or not height:
        raise ImageError(f"size is {width}x{height}: expected at least one pixel")
    if width % across or height % down:
        raise ImageError(f"size is {width}x{height}: expected multiples of {across}x{down}, the chroma of {encoding}")
    dtype = np.dtype((">" if message.is_bigendian else "<") + layout.dtype)
    pixel = layout.channels * dtype.itemsize
    if step < width * pixel:
        raise ImageError(
            f"step is {step}: expected at least {width * pixel}, the bytes of a row of {width} pixels of {encoding}"
        )
    if len(message.data) != (expected := layout.bytes(height, step)):
        raise ImageError(
            f"data has {len(message.data)} bytes: expected {expected}, height {height} * step {step}"
            + (f" and the chroma of {encoding}" if layout.planes == 2 else "")
        )
    strides = (step, pixel, dtype.itemsize)
    image: np.ndarray = np.ndarray((height, width, layout.channels), dtype, message.data, strides=strides)
    return np.require(image, layout.dtype, "A")


def _convert(message: Any) -> np.ndarray:
    image, layout = samples(message), ENCODINGS[message.encoding]
    if layout.planes == 2:
        return _convert_planes(image, message, layout)
    return image if layout.code is None else cv2.cvtColor(image, layout.code)


def _convert_planes(luma: np.ndarray, message: Any, layout: _Layout) -> np.ndarray:
    """Convert a Y plane and the chroma pairs that follow it."""
    (height, width, _), (across, down), step = luma.shape, layout.chroma, message.step
    shape, strides = (height // down, width // across, 2), (2 * step // across, 2, 1)
    pairs: np.ndarray = np.ndarray(shape, np.uint8, message.data, offset=height * step, strides=strides)
    if layout.code is not None:
        return cv2.cvtColorTwoPlane(luma, pairs, layout.code)
    # OpenCV knows no 4:4:4 in two planes: here it is UYVY, in which every pixel comes twice.
    packed = np.empty((height, width, 4), np.uint8)
    cv2.mixChannels([pairs, luma], [packed], [0, 0, 2, 1, 1, 2, 2, 3])
    twice = cv2.cvtColor(packed.reshape(height, 2 * width, 2), cv2.COLOR_YUV2BGR_UYVY)
    return cv2.resize(twice, (width, height), interpolation=cv2.INTER_NEAREST)


def _decompress(message: Any) -> np.ndarray:
    data = np.frombuffer(message.data, np.uint8)
    what = f"{len(data)} bytes of format {message.format!r}"
    signature = data[:8].tobytes()
    if signature == _PNG:
        _check_chunks(data, what)
    elif not signature.startswith(_JPEG):
        raise ImageError(f"{what} begin neither as a JPEG nor as a PNG image")
    # An RGB array that was compressed as if it were BGR; CompressedImage.msg tells such by the format.
    order = cv2.IMREAD_COLOR_RGB if "compressed rgb" in message.format else cv2.IMREAD_COLOR_BGR
    try:
        image = cv2.imdecode(data, order | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ImageError(f"{what} cannot be decoded: OpenCV wants {error.err}") from error
    if image is None:
        raise ImageError(f"{what} cannot be decoded")
    return image


def _check_chunks(data: np.ndarray, what: str) -> None:
    """Refuse a PNG with a chunk longer than what is left: OpenCV would reserve what it claims, up to 4 GB, first."""
    place, kind = len(_PNG), b""
    while place + 12 <= len(data) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data.data, place)
        place += 12 + length
    if place > len(data):
        raise ImageError(f"{what} cannot be decoded: {kind!r} claims {length} bytes")
