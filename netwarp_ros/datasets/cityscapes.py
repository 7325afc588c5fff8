# SPDX-License-Identifier: Apache-2.0
"""Cityscapes: finely labelled frames, and the unlabelled frames before each.

Cordts et al., "The Cityscapes dataset for semantic urban scene understanding", CVPR 2016. Each labelled frame is the
20th of a snippet of 30 frames at 17 Hz.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np

from netwarp_ros.classes import load_classes
from netwarp_ros.datasets.samples import Sample, Samples
from netwarp_ros.recordings.image_files import read_image, read_label, read_samples

TRAIN_IDS = {
    7: 0,  # road
    8: 1,  # sidewalk
    11: 2,  # building
    12: 3,  # wall
    13: 4,  # fence
    17: 5,  # pole
    19: 6,  # traffic light
    20: 7,  # traffic sign
    21: 8,  # vegetation
    22: 9,  # terrain
    23: 10,  # sky
    24: 11,  # person
    25: 12,  # rider
    26: 13,  # car
    27: 14,  # truck
    28: 15,  # bus
    31: 16,  # train
    32: 17,  # motorcycle
    33: 18,  # bicycle
}
"""The class (Cityscapes' ``trainId``) of each id in its label maps; ids that are not listed are void."""

INSTANCE_SIZES = {
    11: 3462.4756337644,
    12: 3930.4788056518,
    13: 12794.0202738185,
    14: 27855.1264367816,
    15: 35732.1511111111,
    16: 67583.7075812274,
    17: 6298.7200839748,
    18: 4672.3249222261,
}
"""Average size in pixels of the instances of each class that has instances, from Cityscapes' evaluation of iIoU."""

_SITE = "www.cityscapes-dataset.com"
_NAME = re.compile(r"(?P<city>.+)_(?P<sequence>\d{6})_(?P<frame>\d{6})_gtFine_labelIds\.png")
_CLASSES = load_classes("cityscapes")
_LABELS = dataclasses.replace(
    _CLASSES,
    classes=tuple(dataclasses.replace(_CLASSES.classes[TRAIN_IDS[number]], ids=(number,)) for number in TRAIN_IDS),
    void_ids=tuple(sorted(set(range(256)) - TRAIN_IDS.keys())),
)
"""The classes, as ``*_gtFine_labelIds.png`` hold them."""


class Cityscapes(Samples):
    """The finely labelled frames of a split, in nineteen classes, sorted by name.

    Args:
        root: Folder with ``gtFine/SPLIT/CITY/*_gtFine_labelIds.png`` and
            ``leftImg8bit_sequence/SPLIT/CITY/*_leftImg8bit.png``, or instead of the latter ``leftImg8bit/``, which has
            labelled frames only. Each may be inside a folder named like its archive (``gtFine_trainvaltest/gtFine``).
        split: ``train`` or ``val``; the labels of ``test`` are not public.

    Raises:
        FileNotFoundError: If a folder is missing, has no labelled frame of the split, or lacks the image of a labelled
            frame. The message says what to download.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.classes = _CLASSES
        self.root = Path(root)
        labels = _find(self.root, ["gtFine"], split, "gtFine_trainvaltest.zip")
        self._images = _find(
            self.root, ["leftImg8bit_sequence", "leftImg8bit"], split, "leftImg8bit_sequence_trainvaltest.zip"
        )
        self._labels = sorted(path for path in labels.glob("*/*.png") if _NAME.fullmatch(path.name))
        if not self._labels:
            raise FileNotFoundError(
                f"{labels} holds no CITY/*_gtFine_labelIds.png: unpack gtFine_trainvaltest.zip there, from {_SITE}"
            )
        for index in range(len(self)):
            if not self._image(index).is_file():
                raise FileNotFoundError(f"{self._image(index)} is missing, the image of {self._labels[index]}")

    def __str__(self) -> str:
        return str(self._images)

    def __len__(self) -> int:
        return len(self._labels)

    def frames_before(self, index: int) -> int:
        count = 0
        while self._image(index, count + 1).is_file():
            count += 1
        return count

    def name(self, index: int, before: int = 0) -> str:
        return self._image(index, before).stem.removesuffix("_leftImg8bit")

    def read(self, index: int, before: int = 0) -> Sample:
        image, name = read_image(self._image(index, before)), self.name(index, before)
        if before:
            return self.without_label(name, image)
        label = read_label(self._labels[index], image.shape[:2])
        return Sample(name, image, _LABELS.read(label, str(self._labels[index])))

    def instances(self, index: int) -> np.ndarray:
        path = self._labels[index].with_name(self._labels[index].name.replace("labelIds", "instanceIds"))
        ids = read_samples(path)
        if ids.ndim != 2 or ids.dtype != np.uint16:
            raise ValueError(f"{path} is {ids.shape} {ids.dtype}: instance ids are one channel of 16 bits")
        return np.where(ids < 1000, np.uint16(0), ids)

    def _image(self, index: int, before: int = 0) -> Path:
        """Return the path of an image: of a labelled frame, or ``before`` frames earlier."""
        label = self._labels[index]
        city, sequence, frame = _NAME.fullmatch(label.name).groups()  # type: ignore[union-attr]
        return self._images / label.parent.name / f"{city}_{sequence}_{int(frame) - before:06d}_leftImg8bit.png"


def _find(root: Path, names: list[str], split: str, archive: str) -> Path:
    """Return the folder of a split, in the root or in a folder named like the archive."""
    folders = [root / parent / name / split for name in names for parent in ("", f"{name}_trainvaltest")]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"no folder {folders[0]}: unpack {archive} from {_SITE} into {root}, and give the split train or val"
    )
