# SPDX-License-Identifier: Apache-2.0
"""CamVid in its usual eleven-class form, from any of the layouts that it comes in.

Brostow, Fauqueur, Cipolla, "Semantic object classes in video", 2009; eleven classes as in SegNet (2015): 0 sky,
1 building, 2 pole, 3 road, 4 pavement, 5 tree, 6 sign, 7 fence, 8 car, 9 pedestrian, 10 bicyclist, and 11 void.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np

from netwarp_ros.classes import load_classes
from netwarp_ros.datasets.samples import Sample, Samples
from netwarp_ros.recordings.images import read_image, read_label

VOID = 11

SPLITS = ("train", "val", "test")

COLORS: dict[tuple[int, int, int], tuple[str, int]] = {
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
"""RGB colours of CamVid's 32 classes, each with its name and the one of the eleven, or void, that it is part of."""

_IMAGE_SUFFIXES = {".jpg", ".png"}
_ORIGINAL = ("701_StillsRaw_full", "LabeledApproved_full")
_MISCOLORED = 0.01
_NUMBERED = re.compile(r"(.+_f?)(\d+)")


class CamVid(Samples):
    """CamVid's labelled images, paired with their label maps by stem, sorted by name.

    The root holds one of (S is the split):

    * ``images/`` and ``labels/``, or both in ``S/``;
    * ``S/`` and ``Sannot/``, as SegNet's copy of CamVid has it;
    * ``701_StillsRaw_full/`` and ``LabeledApproved_full/``, the original. It knows no splits; the usual ones, which are
      SegNet's, are told from the names.

    A label map ``STEM.png`` or ``STEM_L.png`` has ids, or the colours of the 32 classes (`COLORS`).

    CamVid was filmed at 30 Hz and is labelled at 1 Hz, but for the validation images, which are a video at 15 Hz. So
    images whose names are no more than two frames apart (``0016E5_07959``, ``0016E5_07961``) follow one another.

    Args:
        root: Folder of the data set.
        split: ``train``, ``val`` or ``test``; None takes all that is in a root without splits.

    Raises:
        FileNotFoundError: No such layout, no image in it, or an image without its label.
        ValueError: If the split is none of these.
    """

    def __init__(self, root: str | Path, split: str | None = None) -> None:
        if split is not None and split not in SPLITS:
            raise ValueError(f"split is {split!r}: choose one of {', '.join(SPLITS)}")
        self.classes = load_classes("camvid")
        self.root = Path(root)
        images, labels = _folders(self.root, split)
        self._images = sorted(path for path in images.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES)
        if images.name == _ORIGINAL[0] and split is not None:
            self._images = [path for path in self._images if usual_split(path.stem) == split]
        if not self._images:
            raise FileNotFoundError(f"{images} holds no .jpg or .png image" + (f" of {split}" if split else ""))
        self._labels = [_label_of(image, labels) for image in self._images]
        self._frames_before = [0]
        for before, image in pairwise(self._images):
            self._frames_before.append(self._frames_before[-1] + 1 if _adjacent(before.stem, image.stem) else 0)

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
        self.classes.check(label, str(label_path))
        return Sample(path.stem, image, label)


def from_colors(label: np.ndarray, name: str) -> np.ndarray:
    """Turn a label map in the colours of CamVid's 32 classes into one of ids from 0 to 11.

    Args:
        label: ``(H, W, 3)`` uint8, BGR.
        name: Of the label map, for the error.

    Returns:
        ``(H, W)`` uint8. Colours of no class are void, as they are at a few edges of CamVid's own label maps.

    Raises:
        ValueError: If more than a hundredth of the pixels have a colour of no class.
    """
    packed = _pack(label[..., ::-1])
    place = np.searchsorted(_PACKED, packed).clip(max=len(_PACKED) - 1)
    known = _PACKED[place] == packed
    if known.mean() < 1 - _MISCOLORED:
        color = tuple(label[~known][0, ::-1].tolist())
        raise ValueError(f"{name} holds the RGB colour {color}, which is of none of CamVid's 32 classes")
    return np.where(known, _IDS[place], np.uint8(VOID))


def usual_split(stem: str) -> str:
    """Return which split an image of CamVid is in, by its name: 367 are in ``train``, 101 in ``val``, 233 in ``test``.

    The validation images are the sequence that is labelled at 15 Hz; those for testing are one whole drive and the
    second half of another.
    """
    if "0016E5_07959" <= stem <= "0016E5_08159":
        return "val"
    return "test" if stem.startswith("Seq05VD") or "0001TP_008550" <= stem <= "0001TP_010380" else "train"


def _pack(rgb: np.ndarray) -> np.ndarray:
    """``(..., 3)`` uint8 to ``(...)`` int32."""
    red, green, blue = (rgb[..., channel].astype(np.int32) for channel in range(3))
    return (red << 16) | (green << 8) | blue


_PACKED = _pack(np.array(sorted(COLORS), np.uint8))
_IDS = np.array([COLORS[color][1] for color in sorted(COLORS)], np.uint8)


def _folders(root: Path, split: str | None) -> tuple[Path, Path]:
    """Find the folders of images and of label maps."""
    part = root / split if split else root
    layouts = [(part / "images", part / "labels"), (root / _ORIGINAL[0], root / _ORIGINAL[1])]
    if split:
        layouts.insert(1, (part, root / f"{split}annot"))
    for images, labels in layouts:
        if images.is_dir() and labels.is_dir():
            return images, labels
    choices = ", ".join(f"{images.relative_to(root)}/ and {labels.relative_to(root)}/" for images, labels in layouts)
    raise FileNotFoundError(f"{root} is no CamVid{f' with a split {split}' if split else ''}: it must hold {choices}")


def _adjacent(before: str, stem: str) -> bool:
    """Tell from the names whether an image is of the frame after another's, or the one after that."""
    first, second = _NUMBERED.fullmatch(before), _NUMBERED.fullmatch(stem)
    return bool(first and second and first[1] == second[1] and 0 < int(second[2]) - int(first[2]) <= 2)


def _label_of(image: Path, labels: Path) -> Path:
    """Find the label map of an image."""
    candidates = [labels / f"{image.stem}{ending}.png" for ending in ("", "_L")]
    for label in candidates:
        if label.is_file():
            return label
    raise FileNotFoundError(f"{candidates[0]} is missing, the label map of {image}")
