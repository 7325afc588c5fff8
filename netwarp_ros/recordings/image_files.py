# SPDX-License-Identifier: Apache-2.0
"""Image files as a recording, and the label maps that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from netwarp_ros.classes import ClassSet
from netwarp_ros.recordings.file_order import ambiguous_names, in_natural_order
from netwarp_ros.recordings.frames import DEFAULT_RATE, Frame, FrameSource, stamp
from netwarp_ros.recordings.image_codecs import STORED_COLORS, ImageError, decode, samples_to_bgr

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")


class ImageFiles(FrameSource):
    """Image files as a stream with a constant rate; the first is stamped 0.

    Args:
        paths: Files in the order of the stream.
        rate: Frames per second.

    Raises:
        ValueError: If two files have the same stem: files made from them would overwrite each other.
    """

    def __init__(self, paths: Sequence[Path], rate: float = DEFAULT_RATE) -> None:
        super().__init__()
        self.paths, self.rate = list(paths), rate
        by_stem: dict[str, Path] = {}
        for path in self.paths:
            if path.stem in by_stem:
                raise ValueError(f"{by_stem[path.stem]} and {path} differ only in their ending: rename one")
            by_stem[path.stem] = path

    @classmethod
    def in_folder(cls, folder: Path, rate: float = DEFAULT_RATE) -> ImageFiles:
        """Return the image files in a folder, sorted by name: frame_2 before frame_10.

        If names leave the order open (see `ambiguous_names`), that is noted as damage.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If two files have the same stem.
        """
        paths = in_natural_order(
            path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
        )
        if not paths:
            raise FileNotFoundError(f"{folder} holds no image ({' '.join(IMAGE_SUFFIXES)})")
        files = cls(paths, rate)
        if names := ambiguous_names(paths):
            first, second = (path.name for path in names)
            files.note_damage(
                f"{folder}: {first} is read before {second}, but their names leave the order open: write all numbers "
                "with the same number of digits"
            )
        return files

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, begin: int = 0, end: int | None = None) -> Iterator[Frame]:
        for index, path in islice(enumerate(self.paths), begin, end):
            yield Frame(index, stamp(index, self.rate), path.stem, read_image(path))


class LabelFolder:
    """Label maps ``folder/NAME.png``, looked up by the names of frames.

    Args:
        folder: Folder of PNGs (`read_label`).
        classes: What the label maps hold. None returns them as they are stored.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no PNG.
    """

    def __init__(self, folder: str | Path, classes: ClassSet | None = None) -> None:
        self.folder, self.classes = Path(folder), classes
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no folder {self.folder}: give one with label maps NAME.png")
        if not any(self.folder.glob("*.png")):
            raise FileNotFoundError(f"{self.folder} holds no label map NAME.png, named like the images")

    def __call__(self, frame: Frame) -> np.ndarray | None:
        """Return the label map of a frame, or None if there is no such file.

        Returns:
            ``(H, W)`` uint8 class ids or void; without ``classes``, what `read_label` returns.

        Raises:
            ValueError: If the file is not a label map of the frame's size, or does not fit the classes.
        """
        path = self.folder / f"{frame.name}.png"
        if not path.is_file():
            return None
        label = read_label(path, frame.image.shape[:2])
        return label if self.classes is None else self.classes.read(label, str(path))


def read_image(path: Path) -> np.ndarray:
    """Read an image file as ``(H, W, 3)`` uint8, BGR, as `image_codecs` decodes it.

    Raises:
        ValueError: If it cannot be read, or is damaged.
    """
    samples = read_samples(path)
    return samples_to_bgr(samples, STORED_COLORS[samples[0, 0].size])


def read_samples(path: Path) -> np.ndarray:
    """Read the samples that an image file stores, as `image_codecs.decode` returns them.

    Raises:
        ValueError: If it cannot be read, or is damaged.
    """
    try:
        return decode(np.fromfile(path, np.uint8))
    except (OSError, ImageError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}): repair or remove it") from error


def read_label(
    path: Path, size: tuple[int, ...], from_colors: Callable[[np.ndarray, str], np.ndarray] | None = None
) -> np.ndarray:
    """Read a label map as it is stored. `netwarp_ros.classes.ClassSet.read` makes class ids of it.

    Args:
        path: Image with one channel of at most 16 bits; an indexed PNG, whose indices are the ids; or an image of
            colors, without transparency.
        size: Height and width of the labelled image.
        from_colors: Converts colors, ``(..., 3)`` uint8, BGR, to class ids; its second argument names the label map in
            errors. If it knows all colors of an indexed PNG's palette, the class ids are those of the colors.

    Returns:
        ``(H, W)`` uint8 or uint16 ids, or, without ``from_colors``, ``(H, W, 3)`` uint8 colors, BGR.

    Raises:
        ValueError: If the file is not such an image, or has another size.
    """
    label = read_samples(path)
    bits, is_indexed = _png_format(path)
    if is_indexed:
        label = _read_indexed(path, from_colors)
    elif label.ndim == 3:
        label = _opaque_colors(label, path)
        if from_colors:
            label = from_colors(label, str(path))
    elif bits < 8:
        label //= 255 // (2**bits - 1)  # OpenCV scales grey values to 8 bits
    if label.shape[:2] != size:
        raise ValueError(f"{path} is {label.shape[1]}x{label.shape[0]}, but its image is {size[1]}x{size[0]}")
    return label


def _opaque_colors(label: np.ndarray, path: Path) -> np.ndarray:
    """Return the colors of a label map of colors, ``(H, W, 3)`` uint8, BGR, without its transparency."""
    if label.dtype != np.uint8:
        raise ValueError(f"{path} has colors of 16 bits: save the colors of the classes with 8 bits")
    if (label[..., 3:] != 255).any():
        raise ValueError(f"{path} has transparent pixels, which have no class: save it without transparency")
    return label[..., :3]


def _png_format(path: Path) -> tuple[int, bool]:
    """Return the bits per channel of a PNG, and whether it is indexed; 8 and False for other files."""
    with path.open("rb") as file:
        header = file.read(26)
    return (header[24], header[25] == 3) if header[12:16] == b"IHDR" else (8, False)


def _read_indexed(path: Path, from_colors: Callable[[np.ndarray, str], np.ndarray] | None) -> np.ndarray:
    """Read an indexed PNG: its indices, or the class ids of its colors if ``from_colors`` knows the whole palette."""
    try:
        with Image.open(path) as image:
            indices, palette = np.array(image), np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    # Pillow raises SyntaxError for broken chunks.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: repair or remove it") from error
    if from_colors is None:
        return indices
    colors, color_of_index = np.unique(palette[:, ::-1], axis=0, return_inverse=True)
    try:
        ids = from_colors(colors[None], str(path))[0]
    except ValueError:
        return indices
    return ids[color_of_index.ravel()][indices]
