# SPDX-License-Identifier: Apache-2.0
"""Image messages from arrays.

`netwarp_ros.recordings.image_messages` decodes messages. `netwarp_ros.segmenter` decides the size of the mask.
`netwarp_ros.classes` draws the overlay.
"""

from __future__ import annotations

from array import array

import numpy as np
from sensor_msgs.msg import Image
from std_msgs.msg import Header


def mask_message(mask: np.ndarray, header: Header) -> Image:
    """Return a ``mono8`` image of class ids ``(H, W)`` uint8."""
    return _message(mask, header, "mono8")


def rgb_message(image: np.ndarray, header: Header) -> Image:
    """Return an ``rgb8`` image of ``(H, W, 3)`` RGB uint8."""
    return _message(image, header, "rgb8")


def bgr_message(image: np.ndarray, header: Header) -> Image:
    """Return a ``bgr8`` image of ``(H, W, 3)`` BGR uint8."""
    return _message(image, header, "bgr8")


def _message(image: np.ndarray, header: Header, encoding: str) -> Image:
    height, step = image.shape[0], image[0].nbytes
    message = Image(header=header, height=height, width=image.shape[1], encoding=encoding, step=step)
    # rclpy checks every element of the data on assignment, unless it is an array.array.
    data = array("B")
    data.frombytes(np.ascontiguousarray(image).data)
    message.data = data
    return message
