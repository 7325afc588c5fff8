# SPDX-License-Identifier: Apache-2.0
"""Image messages to arrays and back.

Decoding goes through ``rosbags-image`` wherever the package runs, so that a mask from the node equals the one that
``netwarp segment`` makes of the same recording. ``cv_bridge`` is not used: it is absent from PyPI's ROS 2, and the
distributions' is built against another NumPy than pip's OpenCV.
"""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from rosbags.image import ImageError as ConversionError
from rosbags.image import image_to_cvimage
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

_BAYER = tuple(f"bayer_{pattern}" for pattern in ("rggb", "bggr", "gbrg", "grbg"))

BYTES_PER_PIXEL = {
    **dict.fromkeys(("mono8", *(f"{name}8" for name in _BAYER)), 1),
    **dict.fromkeys(("mono16", *(f"{name}16" for name in _BAYER), "uyvy", "yuv422", "yuyv", "yuv422_yuy2"), 2),
    **dict.fromkeys(("bgr8", "rgb8", "8UC3"), 3),
    **dict.fromkeys(("bgra8", "rgba8"), 4),
    **dict.fromkeys(("bgr16", "rgb16"), 6),
    **dict.fromkeys(("bgra16", "rgba16"), 8),
}
"""The encodings that are understood; 8UC3 is taken for bgr8."""


class ImageError(ValueError):
    """An image message contradicts itself or cannot be decoded."""


def to_bgr(message: Image | CompressedImage) -> np.ndarray:
    """Decode an image message.

    Args:
        message: An `Image` of an encoding in `BYTES_PER_PIXEL`, or a `CompressedImage` that OpenCV reads (JPEG, PNG).

    Returns:
        ``(H, W, 3)`` BGR uint8; a view of the message's data where its encoding allows.

    Raises:
        ImageError: If width, height, encoding, step and data do not fit, or the data cannot be decoded.
    """
    return _decode(message) if isinstance(message, CompressedImage) else _convert(message)


def mask_message(mask: np.ndarray, header: Header) -> Image:
    """Return a ``mono8`` image of the class ids ``(H, W)`` uint8."""
    return _message(mask, header, "mono8")


def rgb_message(image: np.ndarray, header: Header) -> Image:
    """Return an ``rgb8`` image of ``(H, W, 3)`` RGB uint8."""
    return _message(image, header, "rgb8")


def bgr_message(image: np.ndarray, header: Header) -> Image:
    """Return a ``bgr8`` image of ``(H, W, 3)`` BGR uint8."""
    return _message(image, header, "bgr8")


def _decode(message: CompressedImage) -> np.ndarray:
    if not message.data:
        raise ImageError(f"the compressed image (format {message.format!r}) has no data")
    # Not through rosbags-image, which leaves a grey JPEG with one channel.
    image = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ImageError(f"{len(message.data)} bytes of format {message.format!r} are no image that OpenCV can decode")
    return image


def _convert(message: Image) -> np.ndarray:
    width, height, step, encoding = message.width, message.height, message.step, message.encoding
    if encoding not in BYTES_PER_PIXEL:
        raise ImageError(f"encoding is {encoding!r}: expected one of {', '.join(BYTES_PER_PIXEL)}")
    if not width or not height:
        raise ImageError(f"size is {width}x{height}: expected at least one pixel")
    row = width * BYTES_PER_PIXEL[encoding]
    if step < row:
        raise ImageError(f"step is {step}: expected at least {row}, the bytes of a row of {width} pixels of {encoding}")
    if len(message.data) != height * step:
        raise ImageError(f"data has {len(message.data)} bytes: expected {height * step}, height {height} * step {step}")
    pixels = np.frombuffer(message.data, np.uint8)
    if step > row:  # rosbags-image takes rows to be without padding
        pixels = np.ascontiguousarray(pixels.reshape(height, step)[:, :row])
    packed: Any = SimpleNamespace(
        width=width, height=height, encoding=encoding, is_bigendian=bool(message.is_bigendian), data=pixels
    )
    try:
        return np.ascontiguousarray(image_to_cvimage(packed, "bgr8"))
    except (ConversionError, cv2.error) as error:
        raise ImageError(f"a {width}x{height} image of {encoding} cannot be converted to bgr8: {error}") from error


def _message(image: np.ndarray, header: Header, encoding: str) -> Image:
    height, step = image.shape[0], image[0].nbytes
    message = Image(header=header, height=height, width=image.shape[1], encoding=encoding, step=step)
    # Anything but an array.array is checked element by element on assignment.
    data = array("B")
    data.frombytes(np.ascontiguousarray(image).data)
    message.data = data
    return message
