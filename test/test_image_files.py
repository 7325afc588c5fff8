# SPDX-License-Identifier: Apache-2.0
"""Images in folders as recordings, and the label maps beside them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image
from recorded import HEIGHT, WIDTH, noise, write_images

from netwarp_ros.classes import load_classes
from netwarp_ros.recordings.frames import Frame
from netwarp_ros.recordings.image_files import ImageFiles, LabelFolder
from netwarp_ros.recordings.image_messages import to_bgr
from netwarp_ros.recordings.open import open_frames

# Images


def test_a_folder_gives_its_images_sorted_by_name_at_the_given_rate(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", "b.png", "a.PNG", "c.png")
    (folder / "notes.txt").write_text("not an image")
    recording = open_frames(folder, rate=10)
    assert len(recording) == 3 and recording.rate == 10
    frames = list(recording)
    assert [(frame.index, frame.name, frame.stamp_ns) for frame in frames] == [
        (0, "a", 0),
        (1, "b", 100_000_000),
        (2, "c", 200_000_000),
    ]
    np.testing.assert_array_equal(frames[1].image, noise(0))
    assert [frame.name for frame in recording] == ["a", "b", "c"]  # a second time


def test_numbers_in_names_are_sorted_as_numbers(tmp_path: Path) -> None:
    names = [f"frame_{index}" for index in range(12)]
    recording = open_frames(write_images(tmp_path, *(f"{name}.png" for name in reversed(names))))
    assert [frame.name for frame in recording] == names
    assert recording.damage == []


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["a_2.png", "a_02.png", "a_1.png"], "a_02.png is read before a_2.png"),
        (["1.25.png", "1.5.png"], "1.5.png is read before 1.25.png"),  # 1.5 s may be later than 1.25 s
    ],
)
def test_names_that_leave_the_order_open_are_noted(tmp_path: Path, names: list[str], order: str) -> None:
    recording = open_frames(write_images(tmp_path, *names))
    assert recording.damage == [
        f"{tmp_path}: {order}, but their names leave the order open: write all numbers with the same number of digits"
    ]


@pytest.mark.parametrize(
    "names", [["1.500000", "1.250000", "2.000000"], ["2026-01-02_3", "2026-01-02_10"], ["left_1", "right_1"]]
)
def test_names_with_a_clear_order_are_not_noted(tmp_path: Path, names: list[str]) -> None:
    assert open_frames(write_images(tmp_path, *(f"{name}.png" for name in names))).damage == []


def test_images_have_15_frames_per_second_by_default(tmp_path: Path) -> None:
    stamps = [frame.stamp_ns for frame in open_frames(write_images(tmp_path, "a.png", "b.png", "c.png", "d.png"))]
    assert stamps == [0, 66_666_667, 133_333_333, 200_000_000]


def test_files_are_read_one_at_a_time(tmp_path: Path) -> None:
    folder = write_images(tmp_path, "a.png", "b.png")
    frames = iter(open_frames(folder))
    (folder / "b.png").write_bytes(b"broken")
    assert next(frames).name == "a"
    with pytest.raises(ValueError, match=r"b\.png cannot be read as an image"):
        next(frames)


def test_a_single_image_is_a_recording_of_one_frame(tmp_path: Path) -> None:
    (frame,) = open_frames(write_images(tmp_path, "only.png") / "only.png")
    assert (frame.name, frame.stamp_ns) == ("only", 0)


def test_a_grey_image_is_converted_to_bgr(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((4, 5), 9, np.uint8))
    (frame,) = open_frames(tmp_path)
    assert frame.image.shape == (4, 5, 3) and (frame.image == 9).all()


def test_a_damaged_jpeg_is_refused(tmp_path: Path) -> None:
    jpeg = cv2.imencode(".jpg", noise())[1].tobytes()
    for name, data in (("cut", jpeg[:-400]), ("closed", jpeg[:-400] + jpeg[-2:])):
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(data)
        assert cv2.imread(str(path)).shape == (HEIGHT, WIDTH, 3)
        with pytest.raises(
            ValueError, match=rf"{name}\.jpg cannot be read as an image \(libjpeg-turbo finds: .*repair"
        ):
            next(iter(open_frames(path)))


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_an_image_is_the_same_in_a_file_and_in_a_message(tmp_path: Path, ending: str) -> None:
    """The pixels, 16 bits as 8, and the orientation in EXIF data."""
    image = noise().astype(np.uint16) * 257 + 100 if ending == "png" else noise()
    data = cv2.imencode(f".{ending}", image)[1].tobytes()
    if ending == "jpg":
        exif = b"Exif\0\0" + struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, 6, 0, 0)  # orientation 6
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    (tmp_path / f"image.{ending}").write_bytes(data)
    (frame,) = open_frames(tmp_path)
    np.testing.assert_array_equal(frame.image, to_bgr(SimpleNamespace(format=ending, data=data)))
    assert frame.image.shape == (HEIGHT, WIDTH, 3)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no image"):
        open_frames(tmp_path)


def test_two_images_with_the_same_stem_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.bmp and .*a\.png differ only in their ending"):
        open_frames(write_images(tmp_path, "a.png", "a.bmp"))


def test_image_files_keep_the_given_order(tmp_path: Path) -> None:
    folder = write_images(tmp_path, "a.png", "b.png")
    assert [frame.name for frame in ImageFiles([folder / "b.png", folder / "a.png"])] == ["b", "a"]


# Label maps


def write_label(tmp_path: Path, label: np.ndarray) -> tuple[LabelFolder, Frame]:
    """Return a folder with this label map, and the frame that the label map belongs to."""
    (tmp_path / "labels").mkdir()
    cv2.imwrite(str(tmp_path / "labels" / "a.png"), label)
    return LabelFolder(tmp_path / "labels"), Frame(0, 0, "a", noise())


def test_label_maps_are_found_by_the_names_of_frames(tmp_path: Path) -> None:
    label = noise()[..., 0] % 12
    labels, frame = write_label(tmp_path, label)
    np.testing.assert_array_equal(labels(frame), label)
    assert labels(Frame(1, 0, "b", noise())) is None


def write_indexed(path: Path, indices: np.ndarray, palette: np.ndarray) -> None:
    """Write an indexed PNG; the palette is (N, 3), RGB."""
    path.parent.mkdir(exist_ok=True)
    image = Image.fromarray(indices)
    image.putpalette(palette.astype(np.uint8).tobytes())
    image.save(path)


def test_an_indexed_label_map_holds_class_ids(tmp_path: Path) -> None:
    label = noise()[..., 0] % 12
    labels, frame = write_label(tmp_path, label)
    # Two indices have the same color: the ids cannot be told from the colors.
    write_indexed(tmp_path / "labels" / "a.png", label, np.repeat([[5, 6, 7], [80, 70, 60]], 6, axis=0))
    np.testing.assert_array_equal(labels(frame), label)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("color_type", [0, 3], ids=["grey", "indexed"])
def test_a_label_map_may_have_less_than_8_bits(tmp_path: Path, bits: int, color_type: int) -> None:
    label = np.arange(16, dtype=np.uint8).reshape(2, 8) % 2**bits
    digits = (label[..., None] >> np.arange(bits)[::-1]) & 1  # each id in binary
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in digits.reshape(2, -1))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 8, 2, bits, color_type, 0, 0, 0)),
        (b"PLTE", bytes(3 * 2**bits)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    png = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        if kind != b"PLTE" or color_type == 3:
            png += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    (tmp_path / "a.png").write_bytes(png)
    np.testing.assert_array_equal(LabelFolder(tmp_path)(Frame(0, 0, "a", noise(0, 2, 8))), label)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (noise().astype(np.uint16), r"a\.png has colors of 16 bits: save the colors of the classes with 8 bits"),
        (np.zeros((HEIGHT, WIDTH, 4), np.uint8), r"a\.png has transparent pixels, .*: save it without transparency"),
        (np.zeros((HEIGHT, WIDTH + 1), np.uint8), r"a\.png is 65x48, but its image is 64x48"),
    ],
)
def test_a_wrong_label_map_is_refused(tmp_path: Path, label: np.ndarray, message: str) -> None:
    labels, frame = write_label(tmp_path, label)
    with pytest.raises(ValueError, match=message):
        labels(frame)


def test_label_maps_are_read_by_their_classes(tmp_path: Path) -> None:
    """Ids of 8 and 16 bits, ids of an indexed PNG, and colors, with an opaque alpha channel or without."""
    classes = load_classes("camvid")
    expected = noise()[..., 0] % 12
    colors = np.concatenate([classes.palette, np.zeros((1, 3), np.uint8)])
    bgr = classes.colorize(expected)[..., ::-1]
    labels, frame = write_label(tmp_path, expected)
    labels = LabelFolder(labels.folder, classes)
    opaque = np.dstack([bgr, np.full((HEIGHT, WIDTH), 255, np.uint8)])
    for stored in (expected, np.where(expected == 11, 255, expected), expected.astype(np.uint16), bgr, opaque):
        assert cv2.imwrite(str(labels.folder / "a.png"), stored)
        np.testing.assert_array_equal(labels(frame), expected)
    write_indexed(labels.folder / "a.png", expected, colors[::-1])  # the colors of an indexed PNG do not count
    np.testing.assert_array_equal(labels(frame), expected)
    bgr[3, 5] = 1, 2, 3
    assert cv2.imwrite(str(labels.folder / "a.png"), bgr)
    with pytest.raises(
        ValueError, match=r"a\.png holds the RGB color \(3, 2, 1\) at x 5, y 3, which no class of camvid"
    ):
        labels(frame)


def test_a_label_map_without_classes_is_returned_as_it_is_stored(tmp_path: Path) -> None:
    for folder, stored in (("ids", noise().astype(np.uint16)[..., 0] * 257), ("colors", noise())):
        (tmp_path / folder).mkdir()
        labels, frame = write_label(tmp_path / folder, stored)
        np.testing.assert_array_equal(labels(frame), stored)


def test_a_label_folder_must_hold_label_maps(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no label map"):
        LabelFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        LabelFolder(tmp_path / "absent")
