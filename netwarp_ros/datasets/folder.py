# SPDX-License-Identifier: Apache-2.0
"""A folder of images and a folder of label maps: single images, or the frames of a video."""

from __future__ import annotations

from pathlib import Path

from netwarp_ros.classes import ClassSet
from netwarp_ros.datasets.samples import Sample, Samples
from netwarp_ros.recordings.image_files import ImageFiles, LabelFolder, read_image, read_label


class ImageFolder(Samples):
    """The images of a folder that have a label map ``labels/STEM.png``, sorted by name.

    Images without a label map appear only in clips, before a labelled image. Clips require that all images are the
    consecutive frames of one video.

    Args:
        images: Folder of images.
        labels: Folder of label maps: PNGs with class ids of 8 or 16 bits, or with the colors of the classes.
        classes: What the label maps hold.

    Raises:
        FileNotFoundError: If a folder is missing or empty, or a label map has no image.
        ValueError: If two images have the same stem.
    """

    def __init__(self, images: str | Path, labels: str | Path, classes: ClassSet) -> None:
        self.classes = classes
        self._images = ImageFiles.in_folder(Path(images)).paths
        self._labels = LabelFolder(labels).folder
        stems = {path.stem for path in self._images}
        for label in sorted(self._labels.glob("*.png")):
            if label.stem not in stems:
                raise FileNotFoundError(f"{label} is the label map of no image in {images}: their stems must be equal")
        self._labelled = [index for index, path in enumerate(self._images) if self._label_of(path).is_file()]

    def __str__(self) -> str:
        return str(self._images[0].parent)

    def __len__(self) -> int:
        return len(self._labelled)

    def frames_before(self, index: int) -> int:
        return self._labelled[index]

    def name(self, index: int, before: int = 0) -> str:
        return self._images[self._labelled[index] - before].stem

    def read(self, index: int, before: int = 0) -> Sample:
        path = self._images[self._labelled[index] - before]
        image = read_image(path)
        if not self._label_of(path).is_file():
            return self.without_label(path.stem, image)
        label = read_label(self._label_of(path), image.shape[:2])
        label = self.classes.read(label, str(self._label_of(path)))
        return Sample(path.stem, image, label)

    def _label_of(self, image: Path) -> Path:
        return self._labels / f"{image.stem}.png"
