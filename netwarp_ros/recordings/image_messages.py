# SPDX-License-Identifier: Apache-2.0
"""Image messages decoded to arrays: one decoder for the node and for bags.

Messages may be of any Python class with the fields of ``sensor_msgs/Image`` or ``CompressedImage``. No ROS is imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np

from netwarp_ros.recordings.image_codecs import (
    COLORS,
    JPEG,
    PNG,
    STORED_COLORS,
    ImageError,
    decode,
    samples_to_bgr,
    to_8_bits,
)
from netwarp_ros.resources import cut, quote


class _Layout(NamedTuple):
    """How an encoding stores pixels.

    Attributes:
        dtype: numpy's name of the sample type, without the byte order.
        channels: Samples per pixel in a row; in a row of the Y plane if there are two planes.
        code: OpenCV's conversion to BGR; None if the samples are BGR already, or OpenCV has no conversion.
        chroma: Pixels that share one chroma pair, horizontally and vertically.
        planes: 2 if a plane of chroma pairs follows the Y plane.
    """

    dtype: str
    channels: int
    code: int | None
    chroma: tuple[int, int] = (1, 1)
    planes: int = 1

    def data_length(self, height: int, step: int) -> int:
        """Return the number of bytes in an image's data."""
        across, down = self.chroma
        return height * step + (height // down * (2 * step // across) if self.planes == 2 else 0)


_DEPTHS = {"8": "u1", "16": "u2"}
_UYVY = _Layout("u1", 2, cv2.COLOR_YUV2BGR_UYVY, chroma=(2, 1))
_YUYV = _Layout("u1", 2, cv2.COLOR_YUV2BGR_YUYV, chroma=(2, 1))

ENCODINGS = {
    **{f"{name}{bits}": _Layout(dtype, *code) for bits, dtype in _DEPTHS.items() for name, code in COLORS.items()},
    **{f"8UC{channels}": _Layout("u1", *COLORS[name]) for channels, name in STORED_COLORS.items()},
    "uyvy": _UYVY,
    "yuv422": _UYVY,
    "yuyv": _YUYV,
    "yuv422_yuy2": _YUYV,
    "nv12": _Layout("u1", 1, cv2.COLOR_YUV2BGR_NV12, chroma=(2, 2), planes=2),
    "nv21": _Layout("u1", 1, cv2.COLOR_YUV2BGR_NV21, chroma=(2, 2), planes=2),
    "nv24": _Layout("u1", 1, None, planes=2),
}
"""The supported encodings of ``sensor_msgs/Image``. 8UC1, 8UC3 and 8UC4 are taken as mono8, bgr8 and bgra8."""

LABEL_ENCODINGS = {
    **{name: ENCODINGS[name] for name in ("mono8", "8UC1", "mono16", "rgb8", "bgr8", "8UC3")},
    "16UC1": ENCODINGS["mono16"],
    "16SC1": _Layout("i2", 1, None),
}
"""The encodings of label maps: class ids of 8 or 16 bits, or the colors of the classes. 8UC3 is taken as bgr8."""

_FORMAT = re.compile(r"(?P<raw>\w+); ?\w+ compressed ?(?P<stored>\w*)")
"""A format of `compressed_image_transport`: encoding of the raw image, codec, encoding of what was compressed."""


def to_bgr(message: Any) -> np.ndarray:
    """Decode an image message to BGR.

    Samples of 16 bits are scaled to 8 bits: times 255/65535, rounded. YUV is BT.601 in video range. The orientation in
    EXIF data is ignored: the image is as the sensor saw it.

    Args:
        message: An ``Image`` with an encoding in `ENCODINGS`, or a ``CompressedImage`` with a JPEG or PNG.

    Returns:
        ``(H, W, 3)`` uint8, BGR. If the data are BGR already, a view of them, with the same row padding.

    Raises:
        ImageError: If width, height, encoding, step and data do not fit together, or the data cannot be decoded.
    """
    return _decompress(message) if hasattr(message, "format") else to_8_bits(_convert(message))


def to_writable_bgr(message: Any) -> np.ndarray:
    """Decode an image message like `to_bgr`, to an array that is contiguous and writable: a copy if necessary."""
    return np.require(to_bgr(message), requirements=["C", "W"])


def to_label(message: Any, size: tuple[int, ...]) -> np.ndarray:
    """Decode an image message that is a label map. `netwarp_ros.classes.ClassSet.read` makes class ids of it.

    Args:
        message: An ``Image`` with an encoding in `LABEL_ENCODINGS`.
        size: Height and width of the labelled image.

    Returns:
        The label map as it is stored, a copy: ``(H, W)`` uint8 or uint16, or ``(H, W, 3)`` uint8 colors, BGR.

    Raises:
        ImageError: If encoding or size is different, an id is < 0, or height, step and data do not fit together.
    """
    encoding = getattr(message, "encoding", "compressed")
    if encoding not in LABEL_ENCODINGS:
        raise ImageError(
            f"a label map must be mono8, mono16, bgr8 or rgb8, not {cut(encoding, 80)}: give class ids, or the colors "
            "of the classes, without compression"
        )
    label = to_array(message, LABEL_ENCODINGS)
    if label.shape[:2] != size:
        raise ImageError(f"it is {label.shape[1]}x{label.shape[0]}, but its image is {size[1]}x{size[0]}")
    if label.dtype == np.int16:
        if (lowest := label.min()) < 0:
            raise ImageError(
                f"it holds class id {lowest}: ids are 0 to 65535; record it as 16UC1, and unlabelled as 255"
            )
        label = label.view(np.uint16)
    if label.shape[2] == 1:
        return label[..., 0].copy()
    return label[..., ::-1].copy() if encoding == "rgb8" else label.copy()


def to_array(message: Any, encodings: Mapping[str, _Layout] = ENCODINGS) -> np.ndarray:
    """Return the samples of a raw image message, without conversion.

    Args:
        message: An ``Image`` with one of these encodings.
        encodings: How each encoding stores pixels.

    Returns:
        ``(H, W, C)`` uint8, uint16 or int16; only the Y plane if there are two planes. A view of the data, or a copy if
        16-bit samples have the other byte order or odd addresses.

    Raises:
        ImageError: If width, height, encoding, step and data do not fit together.
    """
    width, height, step, encoding = message.width, message.height, message.step, message.encoding
    if encoding not in encodings:
        raise ImageError(f"encoding is {quote(encoding, 80)}: expected one of {', '.join(encodings)}")
    layout = encodings[encoding]
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
    if len(message.data) != (expected := layout.data_length(height, step)):
        raise ImageError(
            f"data has {len(message.data)} bytes: expected {expected}, height {height} * step {step}"
            + (f" and the chroma of {encoding}" if layout.planes == 2 else "")
        )
    strides = (step, pixel, dtype.itemsize)
    image: np.ndarray = np.ndarray((height, width, layout.channels), dtype, message.data, strides=strides)
    return np.require(image, layout.dtype, "A")


def _convert(message: Any) -> np.ndarray:
    image, layout = to_array(message), ENCODINGS[message.encoding]
    if layout.planes == 2:
        return _convert_planes(image, message, layout)
    return image if layout.code is None else cv2.cvtColor(image, layout.code)


def _convert_planes(luma: np.ndarray, message: Any, layout: _Layout) -> np.ndarray:
    """Convert a Y plane and the plane of chroma pairs after it."""
    (height, width, _), (across, down), step = luma.shape, layout.chroma, message.step
    shape, strides = (height // down, width // across, 2), (2 * step // across, 2, 1)
    pairs: np.ndarray = np.ndarray(shape, np.uint8, message.data, offset=height * step, strides=strides)
    if layout.code is not None:
        return cv2.cvtColorTwoPlane(luma, pairs, layout.code)
    # OpenCV cannot convert 4:4:4 in two planes. It converts UYVY, so repeat every pixel and drop every second result.
    packed = np.empty((height, width, 4), np.uint8)
    cv2.mixChannels([pairs, luma], [packed], [0, 0, 2, 1, 1, 2, 2, 3])
    twice = cv2.cvtColor(packed.reshape(height, 2 * width, 2), cv2.COLOR_YUV2BGR_UYVY)
    return cv2.resize(twice, (width, height), interpolation=cv2.INTER_NEAREST)


def _decompress(message: Any) -> np.ndarray:
    data = np.frombuffer(message.data, np.uint8)
    subject = f"{len(data)} bytes of format {quote(message.format, 80)}"
    if not data[:8].tobytes().startswith((JPEG, PNG)):
        raise ImageError(f"{subject} begin neither as a JPEG nor as a PNG image")
    try:
        samples = decode(data)
    except ImageError as error:
        raise ImageError(f"{subject} cannot be decoded: {error}") from error
    return samples_to_bgr(samples, _stored_color(message.format, STORED_COLORS[samples[0, 0].size]))


def _stored_color(form: str, decoded: str) -> str:
    """Return what the samples of a compressed image mean, a key of `COLORS`.

    `compressed_image_transport` compresses the raw image as if it were grey or BGR. The format says what it really was:
    ``bgr8; jpeg compressed bgr8``, ``rgb8; jpeg compressed`` (RGB: CompressedImage.msg, and its subscriber),
    ``bayer_rggb8; png compressed``. Behind ``mono8``, a mosaic has become grey values, whose colors are lost.

    Args:
        form: The message's format. Other formats than those say nothing.
        decoded: The color as which the codec stores it: mono, bgr or bgra.
    """
    if not (match := _FORMAT.match(form)):
        return decoded
    raw, stored = match["raw"], match["stored"]
    if decoded == "mono":
        pattern = raw.removesuffix("16").removesuffix("8")
        return pattern if pattern.startswith("bayer_") and pattern in COLORS and stored in ("", raw) else decoded
    if raw.startswith(("rgb", "bgr")) and not stored.startswith("bgr"):
        return decoded.replace("bgr", "rgb")
    return decoded
