# SPDX-License-Identifier: Apache-2.0
"""Image messages from arrays.

`netwarp_ros.recordings.image_messages` decodes messages. `netwarp_ros.segmenter` decides the size of the mask.
`netwarp_ros.classes` draws the overlay.
"""

from __future__ import annotations

import sys
from array import array

import cv2
import numpy as np
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from netwarp_ros.classes import VOID

MASK_ENCODINGS = ("mono8", "16SC1", "mono8_rle")
"""What `mask_message` makes."""

_RUN = np.dtype([("value", "u1"), ("length", "<i4")])


def mask_message(mask: np.ndarray, header: Header, encoding: str = "mono8") -> Image:
    """Return an image of class ids.

    Args:
        mask: ``(H, W)`` uint8; 255 is void.
        header: The image's header.
        encoding: ``mono8``; ``16SC1``, in which void is -1, as Hydra has it; or ``mono8_rle``: a ``mono8`` image whose
            data are not rows but runs of equal ids, each the id (1 byte) and the length (4 bytes, little-endian), as
            Autoware's `autoware_image_projection_based_fusion` reads them.
    """
    if encoding == "16SC1":
        return _message(cv2.LUT(mask, _SIGNED), header, encoding)
    if encoding == "mono8_rle":
        message = _message(_runs(mask).view(np.uint8)[None], header, "mono8")
        message.height, message.width = mask.shape
        message.step = mask.shape[1]
        return message
    return _message(mask, header, encoding)


_SIGNED = np.where(np.arange(256) == VOID, -1, np.arange(256)).astype(np.int16)


def _runs(mask: np.ndarray) -> np.ndarray:
    """Return the runs of equal ids, row after row; they go on from one row to the next."""
    ids = mask.reshape(-1)
    ends = np.append(np.flatnonzero(ids[1:] != ids[:-1]) + 1, ids.size)
    runs = np.empty(ends.size, _RUN)
    runs["value"], runs["length"] = ids[ends - 1], np.diff(ends, prepend=0)
    return runs


def rgb_message(image: np.ndarray, header: Header) -> Image:
    """Return an ``rgb8`` image of ``(H, W, 3)`` RGB uint8."""
    return _message(image, header, "rgb8")


def bgr_message(image: np.ndarray, header: Header) -> Image:
    """Return a ``bgr8`` image of ``(H, W, 3)`` BGR uint8."""
    return _message(image, header, "bgr8")


def _message(image: np.ndarray, header: Header, encoding: str) -> Image:
    height, step = image.shape[0], image[0].nbytes
    message = Image(header=header, height=height, width=image.shape[1], encoding=encoding, step=step)
    message.is_bigendian = int(image.dtype.itemsize > 1 and sys.byteorder == "big")
    # rclpy checks every element of the data on assignment, unless it is an array.array.
    data = array("B")
    data.frombytes(np.ascontiguousarray(image).view(np.uint8).data)
    message.data = data
    return message
