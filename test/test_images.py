# SPDX-License-Identifier: Apache-2.0
"""Image messages to arrays and back: pixels worked out by hand, and every contradiction named."""

from __future__ import annotations

from array import array
from typing import Any

import cv2
import numpy as np
import pytest
from graph import header
from sensor_msgs.msg import CompressedImage, Image

from netwarp_ros.node.images import BYTES_PER_PIXEL, ImageError, bgr_message, mask_message, rgb_message, to_bgr

pytestmark = pytest.mark.ros

RED, GREEN, BLUE, GREY = (0, 0, 255), (0, 255, 0), (255, 0, 0), (128, 128, 128)


def image(encoding: str, width: int, height: int, pixels: bytes, **changes: Any) -> Image:
    step = len(pixels) // height
    fields = {"width": width, "height": height, "step": step, "data": array("B", pixels), **changes}
    return Image(header=header(1), encoding=encoding, **fields)


@pytest.mark.parametrize(
    ("encoding", "pixels", "colors"),
    [
        ("bgr8", bytes((0, 0, 255, 255, 0, 0)), (RED, BLUE)),
        ("8UC3", bytes((0, 0, 255, 255, 0, 0)), (RED, BLUE)),
        ("rgb8", bytes((255, 0, 0, 0, 255, 0)), (RED, GREEN)),
        ("bgra8", bytes((0, 0, 255, 9, 255, 0, 0, 9)), (RED, BLUE)),
        ("rgba8", bytes((255, 0, 0, 9, 0, 0, 255, 9)), (RED, BLUE)),
        ("mono8", bytes((128, 0)), (GREY, (0, 0, 0))),
        ("mono16", np.array((65535, 0), "<u2").tobytes(), ((255, 255, 255), (0, 0, 0))),
        ("rgb16", np.array((65535, 0, 0, 0, 0, 65535), "<u2").tobytes(), (RED, BLUE)),
        ("yuv422", bytes((128, 128, 128, 128)), ((130, 130, 130), (130, 130, 130))),  # U Y V Y, video range
        ("yuv422_yuy2", bytes((128, 128, 128, 128)), ((130, 130, 130), (130, 130, 130))),
    ],
)
def test_encodings(encoding: str, pixels: bytes, colors: tuple[tuple[int, int, int], ...]) -> None:
    decoded = to_bgr(image(encoding, 2, 1, pixels))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, np.array([colors], np.uint8))


@pytest.mark.parametrize(
    ("pattern", "red_at"), [("rggb", (0, 0)), ("bggr", (1, 1)), ("gbrg", (1, 0)), ("grbg", (0, 1))]
)
@pytest.mark.parametrize("bits", [8, 16])
def test_bayer_patterns(pattern: str, red_at: tuple[int, int], bits: int) -> None:
    mosaic = np.zeros((8, 8), f"<u{bits // 8}")
    mosaic[red_at[0] :: 2, red_at[1] :: 2] = 2**bits - 1
    decoded = to_bgr(image(f"bayer_{pattern}{bits}", 8, 8, mosaic.tobytes()))
    np.testing.assert_array_equal(decoded[3:5, 3:5], np.full((2, 2, 3), RED, np.uint8))


def test_big_endian_words() -> None:
    decoded = to_bgr(image("mono16", 2, 1, np.array((65535, 257), ">u2").tobytes(), is_bigendian=1))
    np.testing.assert_array_equal(decoded, [[(255, 255, 255), (1, 1, 1)]])


@pytest.mark.parametrize("encoding", sorted(BYTES_PER_PIXEL))
def test_padded_rows_are_as_if_without_padding(encoding: str) -> None:
    row = 8 * BYTES_PER_PIXEL[encoding]
    padded = np.random.default_rng(0).integers(0, 256, (6, row + 10), np.uint8)
    packed = np.ascontiguousarray(padded[:, :row])
    np.testing.assert_array_equal(
        to_bgr(image(encoding, 8, 6, padded.tobytes())), to_bgr(image(encoding, 8, 6, packed.tobytes()))
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"encoding": "yuv9"}, "encoding is 'yuv9': expected one of mono8, "),
        ({"encoding": ""}, "encoding is '': expected one of"),
        ({"encoding": "nv12"}, "encoding is 'nv12': expected one of"),
        ({"width": 0}, "size is 0x2: expected at least one pixel"),
        ({"height": 0}, "size is 4x0: expected at least one pixel"),
        ({"step": 11}, "step is 11: expected at least 12, the bytes of a row of 4 pixels of bgr8"),
        ({"step": 0}, "step is 0: expected at least 12"),
        ({"height": 3}, "data has 24 bytes: expected 36, height 3 * step 12"),
        ({"height": 1}, "data has 24 bytes: expected 12, height 1 * step 12"),
        ({"data": array("B")}, "data has 0 bytes: expected 24"),
        ({"encoding": "yuv422", "width": 3, "step": 12}, "3x2 image of yuv422 cannot be converted to bgr8"),
    ],
)
def test_contradictions_are_named(changes: dict[str, Any], problem: str) -> None:
    message = image("bgr8", 4, 2, bytes(24))
    for name, value in changes.items():
        setattr(message, name, value)
    with pytest.raises(ImageError, match=problem.replace("*", r"\*")):
        to_bgr(message)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_compressed_images_come_out_with_three_channels(channels: int) -> None:
    pixels = np.full((4, 6, channels), 128, np.uint8)
    message = CompressedImage(format="png", data=cv2.imencode(".png", pixels)[1].tobytes())
    np.testing.assert_array_equal(to_bgr(message), np.full((4, 6, 3), 128, np.uint8))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "the compressed image \\(format 'jpeg'\\) has no data"),
        (b"\xff\xd8\xff nothing", "11 bytes of format 'jpeg' are no image that OpenCV can decode"),
    ],
)
def test_compressed_nonsense_is_named(data: bytes, problem: str) -> None:
    with pytest.raises(ImageError, match=problem):
        to_bgr(CompressedImage(format="jpeg", data=data))


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
        flipped = make(colors[..., ::-1], header(7))  # no contiguous array
        assert flipped.data[:3] == array("B", (2, 1, 0))
    np.testing.assert_array_equal(to_bgr(bgr_message(colors, header(7))), colors)
