# SPDX-License-Identifier: Apache-2.0
"""CamVid in its usual eleven-class form: a folder of images and a folder of label maps.

Brostow, Fauqueur, Cipolla, "Semantic object classes in video", 2009; eleven classes as in SegNet (2015): 0 sky,
1 building, 2 pole, 3 road, 4 pavement, 5 tree, 6 sign, 7 fence, 8 car, 9 pedestrian, 10 bicyclist, and 11 void.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import cv2
import numpy as np

NUM_CLASSES = 11
VOID = 11

_IMAGE_SUFFIXES = {".jpg", ".png"}


@dataclass(frozen=True)
class Sample:
    """One labelled still.

    Attributes:
        name: The file's stem, for instance ``0016E5_07959``.
        image: (H, W, 3) uint8, BGR.
        label: (H, W) uint8 class ids, 11 is void.
    """

    name: str
    image: np.ndarray
    label: np.ndarray


class CamVid(Sequence[Sample]):
    """The labelled stills of ``root/images/*.jpg|png`` and ``root/labels/*.png``, paired by stem, sorted by name.

    Files are read when asked for; every error names the file it is about.

    Args:
        root: Folder that holds ``images`` and ``labels``.

    Raises:
        FileNotFoundError: No ``images`` folder, no image in it, or an image without its label.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        images = self.root / "images"
        if not images.is_dir():
            raise FileNotFoundError(f"{images} is not a folder; a CamVid root holds images/*.jpg|png and labels/*.png")
        self._images = sorted(path for path in images.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES)
        if not self._images:
            raise FileNotFoundError(f"{images} holds no .jpg or .png image")
        for image in self._images:
            if not self._label_of(image).is_file():
                raise FileNotFoundError(f"{self._label_of(image)} is missing, the label of {image}")

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        """Read one sample, or a list of them.

        Raises:
            ValueError: A file that is not an image, a label map with more than one channel, of another size than its
                image, or with an id above 11.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        path = self._images[index]
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f"{path} cannot be read as an image")
        return Sample(path.stem, image, _read_label(self._label_of(path), image.shape[:2]))

    def _label_of(self, image: Path) -> Path:
        return self.root / "labels" / f"{image.stem}.png"


def _read_label(path: Path, size: tuple[int, ...]) -> np.ndarray:
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if label is None:
        raise ValueError(f"{path} cannot be read as an image")
    if label.ndim != 2 or label.dtype != np.uint8:
        raise ValueError(
            f"{path} has shape {label.shape} and type {label.dtype}; a label map is (H, W) uint8 class ids"
        )
    if label.shape != size:
        raise ValueError(f"{path} is {label.shape[1]}x{label.shape[0]}, its image is {size[1]}x{size[0]}")
    if label.max() > VOID:
        raise ValueError(f"{path} holds class id {label.max()}; CamVid's ids are 0 to 10, and {VOID} for void")
    return label
