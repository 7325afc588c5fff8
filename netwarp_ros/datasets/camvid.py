# SPDX-License-Identifier: Apache-2.0
"""CamVid with its usual eleven classes, in each of its usual folder layouts.

Brostow, Fauqueur, Cipolla, "Semantic object classes in video", 2009; eleven classes as in SegNet (2015): 0 sky,
1 building, 2 pole, 3 road, 4 pavement, 5 tree, 6 sign, 7 fence, 8 car, 9 pedestrian, 10 bicyclist, and 11 void.
Their names and colors are in ``config/classes/camvid.yaml``.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np

from netwarp_ros.classes import load_classes
from netwarp_ros.datasets.samples import Sample, Samples
from netwarp_ros.recordings.file_order import in_natural_order
from netwarp_ros.recordings.image_files import read_image, read_label

VOID = 11

SPLITS = ("train", "val", "test")

ORIGINAL_COLORS: dict[tuple[int, int, int], tuple[str, int]] = {
    (128, 128, 128): ("Sky", 0),
    (192, 0, 128): ("Archway", 1),
    (0, 128, 64): ("Bridge", 1),
    (128, 0, 0): ("Building", 1),
    (64, 0, 64): ("Tunnel", 1),
    (64, 192, 0): ("Wall", 1),
    (192, 192, 128): ("Column_Pole", 2),
    (0, 0, 64): ("TrafficCone", 2),
    (128, 0, 192): ("LaneMkgsDriv", 3),
    (192, 0, 64): ("LaneMkgsNonDriv", 3),
    (128, 64, 128): ("Road", 3),
    (64, 192, 128): ("ParkingBlock", 4),
    (128, 128, 192): ("RoadShoulder", 4),
    (0, 0, 192): ("Sidewalk", 4),
    (128, 128, 0): ("Tree", 5),
    (192, 192, 0): ("VegetationMisc", 5),
    (128, 128, 64): ("Misc_Text", 6),
    (192, 128, 128): ("SignSymbol", 6),
    (0, 64, 64): ("TrafficLight", 6),
    (64, 64, 128): ("Fence", 7),
    (64, 0, 128): ("Car", 8),
    (128, 64, 64): ("OtherMoving", 8),
    (64, 128, 192): ("SUVPickupTruck", 8),
    (192, 64, 128): ("Train", 8),
    (192, 128, 192): ("Truck_Bus", 8),
    (64, 128, 64): ("Animal", 9),
    (64, 0, 192): ("CartLuggagePram", 9),
    (192, 128, 64): ("Child", 9),
    (64, 64, 0): ("Pedestrian", 9),
    (0, 128, 192): ("Bicyclist", 10),
    (192, 0, 192): ("MotorcycleScooter", 10),
    (0, 0, 0): ("Void", VOID),
}
"""CamVid's 32 classes by RGB color: the name of each, and its id among the eleven classes (or void)."""

_IMAGE_SUFFIXES = {".jpg", ".png"}
_ORIGINAL = ("701_StillsRaw_full", "LabeledApproved_full")
_MAX_UNKNOWN = 0.01
"""Largest part of a label map's pixels that may have an unknown color."""
_NUMBERED = re.compile(r"(.+_f?)(\d+)")


class CamVid(Samples):
    """CamVid's images and their label maps, sorted by name.

    The root has one of these layouts (S is the split):

    * ``images/`` and ``labels/``, or both in ``S/``;
    * ``S/`` and ``Sannot/``, SegNet's copy of CamVid;
    * ``701_StillsRaw_full/`` and ``LabeledApproved_full/``, the original. It has no splits; SegNet's are used, by the
      names of the images (`usual_split`).

    An image ``STEM.jpg`` or ``STEM.png`` has the label map ``STEM.png`` or ``STEM_L.png``. It holds class ids, or the
    colors of the 32 classes (`ORIGINAL_COLORS`). The indices of an indexed PNG are class ids, unless all colors of its
    palette are among the 32.

    CamVid was recorded at 30 Hz and labelled at 1 Hz, except for the validation images, which are a video at 15 Hz.
    Images whose numbers are at most two apart (``0016E5_07959``, ``0016E5_07961``) are therefore consecutive frames.

    Args:
        root: Folder of the data set.
        split: ``train``, ``val`` or ``test``; None takes all images of a root without splits.

    Raises:
        FileNotFoundError: If the root has none of these layouts, there is no image, or an image has no label map.
        ValueError: If the split is unknown.
    """

    def __init__(self, root: str | Path, split: str | None = None) -> None:
        if split is not None and split not in SPLITS:
            raise ValueError(f"split is {split!r}: choose one of {', '.join(SPLITS)}")
        self.classes = load_classes("camvid")
        self.root = Path(root)
        images, labels = _folders(self.root, split)
        self._images = in_natural_order(path for path in images.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES)
        if images.name == _ORIGINAL[0] and split is not None:
            self._images = [path for path in self._images if usual_split(path.stem) == split]
        if not self._images:
            raise FileNotFoundError(f"{images} holds no .jpg or .png image" + (f" of {split}" if split else ""))
        self._labels = [_label_of(image, labels) for image in self._images]
        self._frames_before = [0]
        for previous, image in pairwise(self._images):
            follows = _are_consecutive(previous.stem, image.stem)
            self._frames_before.append(self._frames_before[-1] + 1 if follows else 0)

    def __str__(self) -> str:
        return str(self.root)

    def __len__(self) -> int:
        return len(self._images)

    def frames_before(self, index: int) -> int:
        return self._frames_before[index]

    def name(self, index: int, before: int = 0) -> str:
        return self._images[index - before].stem

    def read(self, index: int, before: int = 0) -> Sample:
        path, label_path = self._images[index - before], self._labels[index - before]
        image = read_image(path)
        label = read_label(label_path, image.shape[:2], from_colors)
        label = self.classes.read(label, str(label_path))
        return Sample(path.stem, image, label)


def from_colors(label: np.ndarray, name: str) -> np.ndarray:
    """Convert a label map from the colors of CamVid's 32 classes to class ids.

    Args:
        label: ``(..., 3)`` uint8, BGR.
        name: Names the label map in the error.

    Returns:
        ``(...)`` uint8, ids from 0 to 11. Unknown colors become void: CamVid's own label maps have some at edges.

    Raises:
        ValueError: If more than 1 % of the pixels have an unknown color.
    """
    packed = _pack(label[..., ::-1])
    index = np.searchsorted(_PACKED, packed).clip(max=len(_PACKED) - 1)
    known = _PACKED[index] == packed
    if known.mean() < 1 - _MAX_UNKNOWN:
        color = tuple(label[~known][0, ::-1].tolist())
        raise ValueError(f"{name} holds the RGB color {color}, which is not one of CamVid's 32 classes")
    return np.where(known, _IDS[index], np.uint8(VOID))


def usual_split(stem: str) -> str:
    """Return the split of an image by its name: 367 images are in ``train``, 101 in ``val``, 233 in ``test``.

    These are SegNet's splits. The validation images are the sequence labelled at 15 Hz; the test images are one whole
    sequence and the second half of another.
    """
    if "0016E5_07959" <= stem <= "0016E5_08159":
        return "val"
    return "test" if stem.startswith("Seq05VD") or "0001TP_008550" <= stem <= "0001TP_010380" else "train"


def _pack(rgb: np.ndarray) -> np.ndarray:
    """Convert ``(..., 3)`` uint8 colors to ``(...)`` int32 numbers."""
    red, green, blue = (rgb[..., channel].astype(np.int32) for channel in range(3))
    return (red << 16) | (green << 8) | blue


_PACKED = _pack(np.array(sorted(ORIGINAL_COLORS), np.uint8))
_IDS = np.array([ORIGINAL_COLORS[color][1] for color in sorted(ORIGINAL_COLORS)], np.uint8)


def _folders(root: Path, split: str | None) -> tuple[Path, Path]:
    """Return the folders of images and of label maps."""
    part = root / split if split else root
    layouts = [(part / "images", part / "labels"), (root / _ORIGINAL[0], root / _ORIGINAL[1])]
    if split:
        layouts.insert(1, (part, root / f"{split}annot"))
    for images, labels in layouts:
        if images.is_dir() and labels.is_dir():
            return images, labels
    choices = ", ".join(f"{images.relative_to(root)}/ and {labels.relative_to(root)}/" for images, labels in layouts)
    raise FileNotFoundError(f"{root} is not CamVid{f' with a split {split}' if split else ''}: it must hold {choices}")


def _are_consecutive(previous: str, stem: str) -> bool:
    """Return whether the number of an image is one or two above that of the previous image."""
    first, second = _NUMBERED.fullmatch(previous), _NUMBERED.fullmatch(stem)
    return bool(first and second and first[1] == second[1] and 0 < int(second[2]) - int(first[2]) <= 2)


def _label_of(image: Path, labels: Path) -> Path:
    """Return the path of an image's label map."""
    candidates = [labels / f"{image.stem}{ending}.png" for ending in ("", "_L")]
    for label in candidates:
        if label.is_file():
            return label
    raise FileNotFoundError(f"{candidates[0]} is missing, the label map of {image}")
