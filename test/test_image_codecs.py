# SPDX-License-Identifier: Apache-2.0
"""Compressed images: the pixels are OpenCV's, and what is damaged is refused."""

from __future__ import annotations

import io
import struct

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image
from recorded import noise

from netwarp_ros.recordings.image_codecs import ImageError, decode, samples_to_bgr

END = b"\xff\xd9"


def picture() -> np.ndarray:
    """Return a smooth picture, ``(48, 64, 3)``."""
    return cv2.GaussianBlur(noise(), (0, 0), 2)


def array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def encoded(ending: str, image: np.ndarray, options: list[int] | None = None) -> bytes:
    return cv2.imencode(ending, image, options or [])[1].tobytes()


def jpegs(image: np.ndarray) -> dict[str, bytes]:
    """Return an image as JPEGs of several kinds."""
    return {
        **{name: simplejpeg.encode_jpeg(image, 90, "BGR", name) for name in ("444", "422", "420", "440", "411")},
        "progressive": encoded(".jpg", image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
        "restart markers": encoded(".jpg", image, [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]),
    }


def oriented(jpeg: bytes, orientation: int) -> bytes:
    """Return a JPEG with the orientation in EXIF data."""
    exif = b"Exif\0\0" + struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def without_huffman_tables(jpeg: bytes) -> bytes:
    """Return a JPEG as webcams send it: decoders know the tables that it was made with."""
    kept, offset = jpeg[:2], 2
    while jpeg[offset + 1] != 0xDA:
        length = int.from_bytes(jpeg[offset + 2 : offset + 4], "big") + 2
        if jpeg[offset + 1] != 0xC4:
            kept += jpeg[offset : offset + length]
        offset += length
    return kept + jpeg[offset:]


def problem(data: np.ndarray) -> str:
    """Return why an image is refused."""
    try:
        decode(data)
    except ImageError as error:
        return str(error)
    return ""


# Pixels


@pytest.mark.parametrize("kind", jpegs(picture()))
def test_a_jpeg_has_the_pixels_that_opencv_decodes(kind: str) -> None:
    data = array(jpegs(picture())[kind])
    np.testing.assert_array_equal(decode(data), cv2.imdecode(data, cv2.IMREAD_COLOR))


def test_a_grey_jpeg_has_one_channel() -> None:
    data = array(encoded(".jpg", picture()[..., 0]))
    assert decode(data).shape == (48, 64)
    np.testing.assert_array_equal(decode(data), cv2.imdecode(data, cv2.IMREAD_GRAYSCALE))


@pytest.mark.parametrize(
    ("ending", "image"),
    [
        (".png", noise()),
        (".png", noise()[..., 0]),
        (".png", np.dstack([noise(), noise(1)[..., 0]])),
        (".png", noise().astype(np.uint16) * 257),
        (".tiff", noise()),
        (".bmp", noise()),
        (".ppm", noise()),
    ],
)
def test_a_lossless_file_gives_its_samples(ending: str, image: np.ndarray) -> None:
    np.testing.assert_array_equal(decode(array(encoded(ending, image))), image)


def test_samples_become_bgr() -> None:
    red = np.full((2, 2, 3), (0, 0, 255), np.uint8)
    np.testing.assert_array_equal(samples_to_bgr(red[..., ::-1], "rgb"), red)
    np.testing.assert_array_equal(samples_to_bgr(np.dstack([red, red[..., :1]]), "bgra"), red)
    np.testing.assert_array_equal(samples_to_bgr(np.full((2, 2), 386, np.uint16), "mono"), np.full((2, 2, 3), 2))  # 1.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_ignored(orientation: int) -> None:
    jpeg = encoded(".jpg", picture())
    data = array(oriented(jpeg, orientation))
    assert cv2.imdecode(data, cv2.IMREAD_COLOR).shape == ((48, 64, 3) if orientation < 5 else (64, 48, 3))
    np.testing.assert_array_equal(decode(data), decode(array(jpeg)))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_exif_orientation_of_other_files_is_ignored(kind: str) -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(noise()[..., ::-1]).save(file, kind, exif=exif, lossless=True)
    np.testing.assert_array_equal(decode(array(file.getvalue())), noise())


# Damage


@pytest.mark.parametrize(
    "data",
    [
        encoded(".jpg", picture()) + bytes(4000),  # a page of memory behind it
        encoded(".jpg", picture()) + encoded(".jpg", picture())[200:900],
        without_huffman_tables(encoded(".jpg", picture())),
    ],
    ids=["zeros behind", "data behind", "no Huffman tables"],
)
def test_what_cameras_write_is_decoded(data: bytes) -> None:
    np.testing.assert_array_equal(decode(array(data)), decode(array(encoded(".jpg", picture()))))


@pytest.mark.parametrize("kind", jpegs(picture()))
@pytest.mark.parametrize("end", [b"", END], ids=["open", "closed"])
def test_a_cut_jpeg_is_refused(kind: str, end: bytes) -> None:
    jpeg = jpegs(picture())[kind]
    begin = jpeg.index(b"\xff\xda") + 20
    for length in range(begin, len(jpeg) - 20, 97):
        with pytest.raises(ImageError, match=r"libjpeg-turbo finds: (Premature end of JPEG file|Corrupt JPEG data)"):
            decode(array(jpeg[:length] + end))


@pytest.mark.parametrize("restart_interval", [0, 2])
def test_a_jpeg_with_a_part_lost_is_refused(restart_interval: int) -> None:
    jpeg = encoded(".jpg", noise(), [cv2.IMWRITE_JPEG_RST_INTERVAL, restart_interval])
    middle = len(jpeg) // 2
    lost = array(jpeg[:middle] + jpeg[middle + 400 :])
    assert cv2.imdecode(lost, cv2.IMREAD_COLOR).shape == (48, 64, 3)
    with pytest.raises(ImageError, match="libjpeg-turbo finds: Corrupt JPEG data"):
        decode(lost)


@pytest.mark.parametrize("kind", sorted({*jpegs(picture()), "grey", "no Huffman tables"} - {"progressive"}))
def test_a_jpeg_with_zeros_in_place_of_a_part_is_refused(kind: str) -> None:
    """libjpeg-turbo reads zeros as coefficients, and does not always notice."""
    image = cv2.GaussianBlur(noise(), (0, 0), 1.5)
    jpeg = {
        **jpegs(image),
        "grey": encoded(".jpg", image[..., 0]),
        "no Huffman tables": without_huffman_tables(encoded(".jpg", image)),
    }[kind]
    begin = jpeg.index(b"\xff\xda") + 20
    decode(array(jpeg))
    unnoticed = 0
    for place in range(begin, len(jpeg) - 70, 41):
        spoilt = array(jpeg[:place] + bytes(64) + jpeg[place + 64 :])
        with pytest.raises(ImageError, match=r"libjpeg-turbo finds: |its image data have 32 zeros or more from byte"):
            decode(spoilt)
        unnoticed += "zeros" in problem(spoilt)
    assert unnoticed


@pytest.mark.parametrize("flat", [0, 90, 255])
@pytest.mark.parametrize("options", [[cv2.IMWRITE_JPEG_OPTIMIZE, 1], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]])
def test_a_flat_image_may_consist_of_zeros(flat: int, options: list[int]) -> None:
    image = np.full((480, 640, 3), flat, np.uint8)
    jpeg = encoded(".jpg", image, options)
    assert bytes(32) in jpeg[jpeg.index(b"\xff\xda") :]
    np.testing.assert_array_equal(decode(array(jpeg)), image)


@pytest.mark.parametrize("ending", [".png", ".tiff", ".bmp", ".ppm", ".webp"])
def test_other_cut_files_are_refused(ending: str) -> None:
    data = encoded(ending, picture())
    for length in (len(data) // 5, len(data) // 2, len(data) - 20):
        with pytest.raises(ImageError):
            decode(array(data[:length]))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "OpenCV finds no whole image in the data"),
        (b"no image", "OpenCV finds no whole image in the data"),
        (b"\xff\xd8\xff nothing", "libjpeg-turbo finds: Could not determine"),
        (encoded(".tiff", np.ones((4, 4), np.float32)), "its samples are float32: expected 8 or 16 bits"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(ImageError, match=problem):
        decode(array(data))


def claiming(ending: str, width: int, height: int) -> bytes:
    """Return a small image whose header claims another size."""
    data = bytearray(encoded(ending, np.zeros((16, 16, 3), np.uint8)))
    if ending == ".png":
        struct.pack_into(">II", data, 16, width, height)
    else:
        struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    return bytes(data)


@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_a_header_that_claims_too_many_pixels_is_refused(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENCV_IO_MAX_IMAGE_PIXELS", raising=False)
    with pytest.raises(ImageError, match="it claims 8192x8193 pixels: at most 67108864 are decoded"):
        decode(array(claiming(ending, 8192, 8193)))
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "255")
    with pytest.raises(ImageError, match="it claims 16x16 pixels: at most 255 are decoded"):
        decode(array(claiming(ending, 16, 16)))
