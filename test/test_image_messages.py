# SPDX-License-Identifier: Apache-2.0
"""The decoder of image messages: pixels computed by hand and by other decoders, and errors for invalid messages."""

from __future__ import annotations

import re
import tracemalloc
import zlib
from array import array
from collections import Counter
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from fuzz_images import FUZZERS, outcome
from rosbags.image import image_to_cvimage

from netwarp_ros.recordings.image_messages import (
    ENCODINGS,
    LABEL_ENCODINGS,
    ImageError,
    to_array,
    to_bgr,
    to_label,
    to_writable_bgr,
)

WIDTH, HEIGHT = 32, 20
RED, GREEN, BLUE, GREY, BLACK = (0, 0, 255), (0, 255, 0), (255, 0, 0), (128, 128, 128), (0, 0, 0)
BLACK_IMAGE = np.zeros((4, 4, 3), np.uint8)
JPEG = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))[1].tobytes()
END = b"\xff\xd9"


def image(encoding: str, width: int, height: int, data: bytes, step: int = 0, **changes: Any) -> Any:
    layout = {**ENCODINGS, **LABEL_ENCODINGS}[encoding]
    step = step or width * layout.channels * np.dtype(layout.dtype).itemsize
    fields = {"encoding": encoding, "width": width, "height": height, "step": step, "is_bigendian": 0}
    return SimpleNamespace(**{**fields, "data": array("B", data), **changes})


def noise(encoding: str, padding: int = 0, width: int = WIDTH, height: int = HEIGHT) -> Any:
    """Return an image of random samples."""
    step = image(encoding, width, height, b"").step + padding
    length = ENCODINGS[encoding].data_length(height, step)
    return image(encoding, width, height, np.random.default_rng(0).bytes(length), step)


def compressed(data: bytes | np.ndarray, form: str = "jpeg") -> Any:
    return SimpleNamespace(format=form, data=array("B", bytes(data)))


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def words(*values: int) -> bytes:
    return np.array(values, "<u2").tobytes()


# Raw images


@pytest.mark.parametrize(
    ("encoding", "data", "colors"),
    [
        ("bgr8", bytes((0, 0, 255, 255, 0, 0)), (RED, BLUE)),
        ("8UC3", bytes((0, 0, 255, 255, 0, 0)), (RED, BLUE)),
        ("rgb8", bytes((255, 0, 0, 0, 255, 0)), (RED, GREEN)),
        ("bgra8", bytes((0, 0, 255, 9, 255, 0, 0, 9)), (RED, BLUE)),
        ("8UC4", bytes((0, 0, 255, 9, 255, 0, 0, 9)), (RED, BLUE)),
        ("rgba8", bytes((255, 0, 0, 9, 0, 0, 255, 9)), (RED, BLUE)),
        ("mono8", bytes((128, 0)), (GREY, BLACK)),
        ("8UC1", bytes((128, 0)), (GREY, BLACK)),
        ("mono16", words(65535, 385), ((255, 255, 255), (1, 1, 1))),  # 385 / 257 = 1.498
        ("mono16", words(386, 128), ((2, 2, 2), BLACK)),  # 1.502 and 0.498
        ("bgr16", words(0, 0, 65535, 65535, 0, 0), (RED, BLUE)),
        ("rgb16", words(65535, 0, 0, 0, 0, 65535), (RED, BLUE)),
        ("bgra16", words(0, 0, 65535, 9, 65535, 0, 0, 9), (RED, BLUE)),
        ("rgba16", words(65535, 0, 0, 9, 0, 0, 65535, 9), (RED, BLUE)),
        # BT.601 in video range: 1.164 (Y - 16) + 1.596 (V - 128) of red, and so on.
        ("yuv422", bytes((128, 128, 128, 16)), ((130, 130, 130), BLACK)),  # U Y V Y
        ("uyvy", bytes((90, 81, 240, 81)), ((0, 0, 254), (0, 0, 254))),
        ("yuyv", bytes((81, 90, 81, 240)), ((0, 0, 254), (0, 0, 254))),  # Y U Y V
        ("yuv422_yuy2", bytes((128, 128, 16, 128)), ((130, 130, 130), BLACK)),
    ],
)
def test_encodings(encoding: str, data: bytes, colors: tuple[tuple[int, int, int], ...]) -> None:
    decoded = to_bgr(image(encoding, 2, 1, data))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, [colors])


@pytest.mark.parametrize(
    ("encoding", "chroma"), [("nv12", (90, 240)), ("nv21", (240, 90)), ("nv24", (90, 240, 90, 240, 90, 240, 90, 240))]
)
def test_encodings_with_a_plane_of_chroma(encoding: str, chroma: tuple[int, ...]) -> None:
    decoded = to_bgr(image(encoding, 2, 2, bytes((81, 81, 81, 16, *chroma))))
    np.testing.assert_array_equal(decoded, [[(0, 0, 254), (0, 0, 254)], [(0, 0, 254), (0, 0, 179)]])


def test_each_pixel_of_nv24_has_its_own_chroma() -> None:
    twice = noise("nv12")
    luma, pairs = np.split(np.frombuffer(twice.data, np.uint8), [WIDTH * HEIGHT])
    pairs = pairs.reshape(HEIGHT // 2, WIDTH // 2, 2).repeat(2, axis=0).repeat(2, axis=1)
    message = image("nv24", WIDTH, HEIGHT, luma.tobytes() + pairs.tobytes())
    np.testing.assert_array_equal(to_bgr(message), to_bgr(twice))
    changed = pairs.copy()
    changed[3, 5] = 0
    different = to_bgr(image("nv24", WIDTH, HEIGHT, luma.tobytes() + changed.tobytes())) != to_bgr(message)
    assert {tuple(place) for place in np.argwhere(different)[:, :2]} == {(3, 5)}


@pytest.mark.parametrize(
    ("pattern", "red_at"), [("rggb", (0, 0)), ("bggr", (1, 1)), ("gbrg", (1, 0)), ("grbg", (0, 1))]
)
@pytest.mark.parametrize("bits", [8, 16])
def test_bayer_patterns(pattern: str, red_at: tuple[int, int], bits: int) -> None:
    mosaic = np.zeros((8, 8), f"<u{bits // 8}")
    mosaic[red_at[0] :: 2, red_at[1] :: 2] = 2**bits - 1
    decoded = to_bgr(image(f"bayer_{pattern}{bits}", 8, 8, mosaic.tobytes()))
    np.testing.assert_array_equal(decoded[3:5, 3:5], np.full((2, 2, 3), RED, np.uint8))


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_both_byte_orders_give_the_same_image(encoding: str) -> None:
    message, swapped = noise(encoding), noise(encoding)
    swapped.is_bigendian = 1
    if ENCODINGS[encoding].dtype == "u2":
        swapped.data = array("B", np.frombuffer(swapped.data, np.uint16).byteswap().tobytes())
    np.testing.assert_array_equal(to_bgr(swapped), to_bgr(message))


def without_padding(message: Any) -> Any:
    """Return an image message without its row padding, in each plane."""
    layout, tight = ENCODINGS[message.encoding], noise(message.encoding)
    times = 2 // layout.chroma[0]  # bytes in a row of the chroma plane per byte in a row of the Y plane
    luma, chroma = np.split(np.frombuffer(message.data, np.uint8), [HEIGHT * message.step])
    tight.data = array("B", luma.reshape(HEIGHT, -1)[:, : tight.step].tobytes())
    if layout.planes == 2:
        tight.data.frombytes(chroma.reshape(-1, times * message.step)[:, : times * tight.step].tobytes())
    return tight


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
@pytest.mark.parametrize("padding", [6, 7])
def test_row_padding_does_not_change_the_image(encoding: str, padding: int) -> None:
    message = noise(encoding, padding)
    np.testing.assert_array_equal(to_bgr(message), to_bgr(without_padding(message)))


def rosbags_image(message: Any) -> np.ndarray:
    """Decode by rosbags-image. For NV12 and NV21, it expects the rows of both planes in ``height``."""
    rows = ENCODINGS[message.encoding].data_length(message.height, message.step) // message.step
    return image_to_cvimage(SimpleNamespace(**{**vars(message), "height": rows, "is_bigendian": False}), "bgr8")


@pytest.mark.parametrize("encoding", sorted(set(ENCODINGS) - {"8UC1", "8UC3", "8UC4", "nv24"}))
def test_pixels_are_those_of_rosbags_image(encoding: str) -> None:
    message = noise(encoding)
    decoded, expected = to_bgr(message), rosbags_image(message)
    # It truncates 16-bit samples to 8 bits; this package rounds them.
    tolerance = 1 if ENCODINGS[encoding].dtype == "u2" else 0
    assert decoded.shape == expected.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(decoded.astype(int) - expected).max() <= tolerance


# CRC-32 of the images that cv_bridge 1.16.2 with OpenCV 4.6 decodes from the same samples. The tests cannot run it:
# PyPI does not have it, and distributions build it against another NumPy.
CV_BRIDGE = {
    "bayer_bggr16": 0x7590C834,
    "bayer_bggr8": 0x3CBA5675,
    "bayer_gbrg16": 0x0A62987E,
    "bayer_gbrg8": 0x92E4DE61,
    "bayer_grbg16": 0x2BA50E61,
    "bayer_grbg8": 0xB3843995,
    "bayer_rggb16": 0xBC5E896D,
    "bayer_rggb8": 0x38E02516,
    "bgr16": 0x4B395F08,
    "bgr8": 0x9C78D9B2,
    "bgra16": 0xDF91CB1E,
    "bgra8": 0xC0297E53,
    "mono16": 0x7F25D68F,
    "mono8": 0xC2BA258E,
    "rgb16": 0x64424707,
    "rgb8": 0x80C180A6,
    "rgba16": 0x8A9B9D70,
    "rgba8": 0xA80D14C3,
    "yuv422": 0x28ED6267,
}


@pytest.mark.parametrize("encoding", CV_BRIDGE)
def test_pixels_are_those_of_cv_bridge(encoding: str) -> None:
    message = noise(encoding)
    index = np.arange(len(message.data))
    message.data = array("B", ((index * index // 7 + 31 * index) % 251).astype(np.uint8).tobytes())
    assert zlib.crc32(to_bgr(message).tobytes()) == CV_BRIDGE[encoding]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"encoding": "yuv9"}, "encoding is 'yuv9': expected one of mono8, "),
        ({"encoding": ""}, "encoding is '': expected one of"),
        ({"encoding": "32FC1"}, "encoding is '32FC1': expected one of"),
        ({"width": 0}, "size is 0x2: expected at least one pixel"),
        ({"height": 0}, "size is 4x0: expected at least one pixel"),
        ({"encoding": "yuv422", "width": 3}, "size is 3x2: expected multiples of 2x1, the chroma of yuv422"),
        ({"encoding": "nv12", "height": 1}, "size is 4x1: expected multiples of 2x2, the chroma of nv12"),
        ({"step": 11}, "step is 11: expected at least 12, the bytes of a row of 4 pixels of bgr8"),
        ({"step": 0}, "step is 0: expected at least 12"),
        ({"width": 2**32 - 1}, "step is 12: expected at least 12884901885"),
        ({"height": 3}, "data has 24 bytes: expected 36, height 3 * step 12"),
        ({"height": 1}, "data has 24 bytes: expected 12, height 1 * step 12"),
        ({"height": 2**32 - 1}, "data has 24 bytes: expected 51539607540"),
        ({"data": array("B")}, "data has 0 bytes: expected 24"),
        ({"encoding": "nv21", "step": 4}, "data has 24 bytes: expected 12, height 2 * step 4 and the chroma of nv21"),
    ],
)
def test_an_invalid_message_is_refused_with_the_wrong_value(changes: dict[str, Any], problem: str) -> None:
    message = image("bgr8", 4, 2, bytes(24))
    vars(message).update(changes)
    with pytest.raises(ImageError, match=re.escape(problem)):
        to_bgr(message)


# Memory


@pytest.mark.parametrize("padding", [0, 5])
def test_bgr_data_are_not_copied(padding: int) -> None:
    message = noise("bgr8", padding)
    assert np.shares_memory(to_bgr(message), np.frombuffer(message.data, np.uint8))


@pytest.mark.parametrize("encoding", sorted(name for name, layout in ENCODINGS.items() if layout.dtype == "u1"))
def test_8_bit_encodings_need_no_intermediate_image(encoding: str) -> None:
    message = noise(encoding, padding=5, width=320, height=240)
    to_bgr(message)
    tracemalloc.start()
    try:
        decoded = to_bgr(message)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    images = peak / (3 * 320 * 240)
    most = {"bgr8": 0.0, "8UC3": 0.0, "nv24": 13 / 3}.get(encoding, 1.0)
    assert decoded.shape == (240, 320, 3)
    assert most <= images < most + 0.05


# Label maps


@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_a_label_map_is_a_copy_of_the_ids(encoding: str) -> None:
    message = image(encoding, 3, 2, bytes((0, 1, 2, 99, 3, 4, 5, 99)), step=4)
    label = to_label(message, (2, 3))
    np.testing.assert_array_equal(label, np.uint8([[0, 1, 2], [3, 4, 5]]))
    assert not np.shares_memory(label, np.frombuffer(message.data, np.uint8))


@pytest.mark.parametrize("encoding", ["mono16", "16UC1", "16SC1"])
def test_a_label_map_may_have_16_bits(encoding: str) -> None:
    for order, is_bigendian in (("<", 0), (">", 1)):
        data = np.array([[0, 1, 300], [4, 5, 32767]], f"{order}u2").tobytes()
        message = image(encoding, 3, 2, data)
        message.is_bigendian = is_bigendian
        label = to_label(message, (2, 3))
        np.testing.assert_array_equal(label, np.uint16([[0, 1, 300], [4, 5, 32767]]))
        assert label.dtype == np.uint16


@pytest.mark.parametrize(("encoding", "pixel"), [("rgb8", [3, 2, 1]), ("bgr8", [1, 2, 3]), ("8UC3", [1, 2, 3])])
def test_a_label_map_of_colors_is_bgr(encoding: str, pixel: list[int]) -> None:
    assert to_label(image(encoding, 1, 1, bytes((1, 2, 3))), (1, 1)).tolist() == [[pixel]]


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (noise("uyvy"), "a label map must be mono8, mono16, bgr8 or rgb8, not uyvy"),
        (compressed(png(BLACK_IMAGE), "png"), "a label map must be mono8, mono16, bgr8 or rgb8, not compressed"),
        (image("16SC1", 33, 20, np.full((20, 33), -1, np.int16).tobytes()), "it holds class id -1: ids are 0 to 65535"),
        (noise("mono8"), "it is 32x20, but its image is 33x20"),
    ],
)
def test_a_wrong_label_map_is_refused(message: Any, problem: str) -> None:
    with pytest.raises(ImageError, match=problem):
        to_label(message, (HEIGHT, WIDTH + 1))


def test_a_writable_image_does_not_share_memory_with_its_message() -> None:
    for padding in (0, 5):
        message = noise("bgr8", padding)
        message.data = bytes(message.data)  # read-only, as a bag gives it
        decoded = to_writable_bgr(message)
        assert decoded.flags.writeable and decoded.flags.c_contiguous
        np.testing.assert_array_equal(decoded, to_bgr(message))


# Compressed images


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_compressed_images_come_out_with_three_channels(channels: int) -> None:
    pixels = np.full((4, 6, channels), 128, np.uint8)
    np.testing.assert_array_equal(to_bgr(compressed(png(pixels), "png")), np.full((4, 6, 3), 128, np.uint8))


# What compressed_image_transport writes (CompressedImage.msg), now and in older versions, and what drivers write.
@pytest.mark.parametrize(
    ("form", "color"),
    [
        ("jpeg", RED),
        ("", RED),
        ("jpeg; something else", RED),
        ("bgr8; jpeg compressed bgr8", RED),
        ("rgb8; jpeg compressed bgr8", RED),
        ("rgba8; jpeg compressed bgr8", RED),
        ("8UC3; jpeg compressed ", RED),
        # An RGB array was compressed as if it were BGR.
        ("rgb8; jpeg compressed rgb8", BLUE),
        ("bgr8; jpeg compressed rgb8", BLUE),
        ("rgb8; jpeg compressed ", BLUE),
        ("rgb8; jpeg compressed", BLUE),
        ("bgr8; jpeg compressed ", BLUE),
    ],
)
def test_the_format_tells_the_channel_order(form: str, color: tuple[int, int, int]) -> None:
    red = np.full((16, 16, 3), RED, np.uint8)
    jpeg, alpha = cv2.imencode(".jpg", red)[1], np.full((16, 16, 1), 9, np.uint8)
    np.testing.assert_allclose(to_bgr(compressed(jpeg, form)), np.full_like(red, color), atol=2)
    form = form.replace("jpeg", "png")
    for pixels in (red, red.astype(np.uint16) * 257, np.dstack([red, alpha])):
        np.testing.assert_array_equal(to_bgr(compressed(png(pixels), form)), np.full_like(red, color))


def test_a_grey_jpeg_stays_grey() -> None:
    grey = cv2.imencode(".jpg", np.full((16, 16), 77, np.uint8))[1]
    for form in ("jpeg", "mono8; jpeg compressed ", "rgb8; jpeg compressed ", "mono8; jpeg compressed mono8"):
        np.testing.assert_array_equal(to_bgr(compressed(grey, form)), np.full((16, 16, 3), 77))


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_compressed_mosaic_gives_the_colors_of_the_raw_one(pattern: str, bits: int) -> None:
    encoding = f"bayer_{pattern}{bits}"
    raw = noise(encoding)
    colors, samples = to_bgr(raw), to_array(raw)
    assert (colors[..., 0] != colors[..., 2]).any()
    for form in (
        f"{encoding}; png compressed ",
        f"{encoding}; png compressed",
        f"{encoding}; png compressed {encoding}",
    ):
        np.testing.assert_array_equal(to_bgr(compressed(png(samples), form)), colors)


def test_a_jpeg_of_a_mosaic_is_colored_and_one_of_grey_values_is_not() -> None:
    mosaic = np.zeros((32, 32), np.uint8)
    mosaic[0::2, 0::2] = 255  # red, and no green and blue
    jpeg = cv2.imencode(".jpg", mosaic, [cv2.IMWRITE_JPEG_QUALITY, 100])[1]
    for form in ("bayer_rggb8; jpeg compressed ", "bayer_rggb8; jpeg compressed bayer_rggb8"):
        np.testing.assert_allclose(to_bgr(compressed(jpeg, form)), np.full((32, 32, 3), RED), atol=5)
    # Newer transports first make grey values of the mosaic, and say so.
    grey = to_bgr(compressed(jpeg, "bayer_rggb8; jpeg compressed mono8"))
    np.testing.assert_array_equal(grey, to_bgr(compressed(jpeg)))


def test_a_color_image_named_after_a_mosaic_is_not_demosaiced() -> None:
    red = np.full((16, 16, 3), RED, np.uint8)
    np.testing.assert_array_equal(to_bgr(compressed(png(red), "bayer_rggb8; png compressed bgr8")), red)


@pytest.mark.parametrize("encoding", ["mono16", "bgr16"])
def test_a_16_bit_png_gives_the_same_pixels_as_the_raw_image(encoding: str) -> None:
    message = noise(encoding)
    form = f"{encoding}; png compressed {encoding}"
    np.testing.assert_array_equal(to_bgr(compressed(png(to_array(message)), form)), to_bgr(message))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "0 bytes of format 'jpeg' begin neither as a JPEG nor as a PNG image"),
        (cv2.imencode(".bmp", BLACK_IMAGE)[1].tobytes(), "bytes of format 'jpeg' begin neither as a JPEG"),
        (b"\xff\xd8\xff nothing", "11 bytes of format 'jpeg' cannot be decoded"),
        (JPEG[:-100], "bytes of format 'jpeg' cannot be decoded: libjpeg-turbo finds: Premature end of JPEG file"),
        (JPEG[:-100] + END, "bytes of format 'jpeg' cannot be decoded: libjpeg-turbo finds: Corrupt JPEG data"),
        (png(BLACK_IMAGE)[:40], "40 bytes of format 'jpeg' cannot be decoded"),
        (png(BLACK_IMAGE)[:-20], "bytes of format 'jpeg' cannot be decoded: b'IDAT' claims 22 bytes"),
        (png(BLACK_IMAGE).replace(b"\0\0\0\x16IDAT", b"\xff\0\0\x16IDAT"), "b'IDAT' claims 4278190102 bytes"),
    ],
)
def test_damaged_compressed_data_are_refused_with_their_size_and_format(data: bytes, problem: str) -> None:
    with pytest.raises(ImageError, match=re.escape(problem)):
        to_bgr(compressed(data))


@pytest.mark.parametrize("transport", ["raw", "compressed"])
def test_random_damage_is_decoded_or_refused_with_the_wrong_value(transport: str) -> None:
    rng, outcomes = np.random.default_rng(0), Counter()
    for _ in range(300):
        outcomes[outcome(FUZZERS[transport](rng, SimpleNamespace))] += 1
    refusals = {"raw": {"encoding", "size", "step", "data"}, "compressed": {"content"}}[transport]
    assert set(outcomes) == {"decoded", *(f"refused by {refusal}" for refusal in refusals)}
