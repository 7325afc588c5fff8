# SPDX-License-Identifier: Apache-2.0
"""Image messages from arrays, and back."""

from __future__ import annotations

from array import array

import cv2
import numpy as np
import pytest
from graph import header
from sensor_msgs.msg import CompressedImage, Image

from netwarp_ros.node.images import bgr_message, mask_message, rgb_message
from netwarp_ros.recordings.image_messages import to_bgr

pytestmark = pytest.mark.ros


def test_messages_made_of_arrays() -> None:
    mask = np.arange(6, dtype=np.uint8).reshape(2, 3)
    message = mask_message(mask, header(7))
    assert (message.header, message.encoding, message.width, message.height, message.step) == (
        header(7),
        "mono8",
        3,
        2,
        3,
    )
    assert message.data == array("B", range(6))

    colors = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    for make, encoding in ((rgb_message, "rgb8"), (bgr_message, "bgr8")):
        message = make(colors, header(7))
        assert (message.encoding, message.width, message.height, message.step) == (encoding, 3, 2, 9)
        assert message.data == array("B", range(18))
        flipped = make(colors[..., ::-1], header(7))  # not contiguous
        assert flipped.data[:3] == array("B", (2, 1, 0))
    np.testing.assert_array_equal(to_bgr(bgr_message(colors, header(7))), colors)


def test_ros_messages_are_decoded() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    words = array("B", (image[..., 0].astype(">u2") * 257).tobytes())
    raw = Image(encoding="mono16", width=6, height=4, step=12, is_bigendian=1, data=words)
    np.testing.assert_array_equal(to_bgr(raw), np.dstack([image[..., 0]] * 3))
    png = CompressedImage(format="png", data=cv2.imencode(".png", image)[1].tobytes())
    np.testing.assert_array_equal(to_bgr(png), image)
