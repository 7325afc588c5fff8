# SPDX-License-Identifier: Apache-2.0
"""Class sets: the names and colors of class ids, and masks drawn in these colors (`ClassSet.overlay`).

The class sets of this package are in ``config/classes/``.
"""

from __future__ import annotations

from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from netwarp_ros.resources import Checked, cut, quote, read_yaml, resource

Byte = Annotated[int, Field(strict=True, ge=0, le=255)]


@dataclass(frozen=True)
class ClassEntry(Checked):
    """A class: its name, and its RGB color. Colors make no difference between two entries."""

    name: Annotated[str, Field(max_length=100)]
    color: tuple[Byte, Byte, Byte] = field(compare=False)

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.name.isprintable():
            raise ValueError(f"name is {quote(self.name)}: give a text without control characters")


@dataclass(frozen=True)
class ClassSet(Checked):
    """The classes a network tells apart; class k has id k. Colors make no difference between two sets.

    Attributes:
        name: For instance ``camvid``.
        void: Id of unlabelled pixels, which no score counts; not the id of a class.
        classes: The K classes, by id.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=100)]
    void: Byte
    classes: Annotated[tuple[ClassEntry, ...], Field(min_length=1, max_length=255)]

    def __post_init__(self) -> None:
        if repeated := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise ValueError(f"{quote(repeated[0])} occurs more than once: name each class once")
        if self.void < len(self):
            raise ValueError(f"void is {self.void}: give an id from {len(self)}, the number of classes, to 255")

    def __len__(self) -> int:
        return len(self.classes)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Name of each class."""
        return tuple(entry.name for entry in self.classes)

    @cached_property
    def palette(self) -> np.ndarray:
        """``(K, 3)`` uint8, RGB: the color of each class."""
        return np.array([entry.color for entry in self.classes], np.uint8)

    def colorize(self, mask: np.ndarray) -> np.ndarray:
        """Paint a mask in the colors of its classes; every id that is not a class is black.

        Args:
            mask: ``(H, W)`` uint8 class ids.

        Returns:
            ``(H, W, 3)`` uint8, RGB.
        """
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise ValueError(f"mask is {mask.shape} {mask.dtype}: give (H, W) uint8 class ids")
        return self._colors[mask]

    def overlay(self, image: np.ndarray, mask: np.ndarray, alpha: float = 0.5) -> np.ndarray:
        """Blend the colors of a mask's classes over an image.

        Args:
            image: ``(H, W, 3)`` uint8, BGR.
            mask: ``(H, W)`` uint8 class ids.
            alpha: Weight of the colors, from 0 (image only) to 1 (colors only).

        Returns:
            ``(H, W, 3)`` uint8, BGR.

        Raises:
            ValueError: Image and mask differ in size, or alpha is out of its range.
        """
        if image.shape != (*mask.shape, 3):
            raise ValueError(f"image is {image.shape}, mask is {mask.shape}: give (H, W, 3) and (H, W)")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}: give 0 to 1")
        colors = np.ascontiguousarray(self.colorize(mask)[..., ::-1])
        return cv2.addWeighted(image, 1 - alpha, colors, alpha, 0)

    def check(self, label: np.ndarray, name: str) -> None:
        """Check that a label map holds only the ids of classes and void.

        Args:
            label: ``(H, W)`` uint8.
            name: Name of the label map, for the error.

        Raises:
            ValueError: It holds another id.
        """
        foreign = label[(label >= len(self)) & (label != self.void)]
        if foreign.size:
            raise ValueError(
                f"{name} holds class id {foreign[0]}; the ids of {self.name} are 0 to {len(self) - 1}, and {self.void} "
                "for void"
            )

    def check_names(self, other: ClassSet, name: str) -> None:
        """Check that another class set has the same names in the same order.

        Args:
            other: The class set.
            name: Name of the model or data set that it belongs to, for the error.

        Raises:
            ValueError: The names differ.
        """
        if other.names != self.names:
            raise ValueError(
                f"{name} has the classes of {other.name}, not of {self.name}: {cut(', '.join(other.names))} instead of "
                f"{cut(', '.join(self.names))}"
            )

    @cached_property
    def _colors(self) -> np.ndarray:
        """``(256, 3)`` uint8: the color of every value that a mask can hold."""
        colors = np.zeros((256, 3), np.uint8)
        colors[: len(self)] = self.palette
        return colors


def load_classes(name_or_path: str | Path) -> ClassSet:
    """Load a class set of this package (``camvid``, ``cityscapes``) by its name, or any other from a ``.yaml`` file.

    Raises:
        FileNotFoundError: There is no such class set or file.
        ValueError: The file is not valid.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        folder = resource("classes")
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        if str(name_or_path) not in known:
            raise FileNotFoundError(
                f"no class set named {quote(str(name_or_path))}: give one of {', '.join(known)}, or the path of a "
                ".yaml file"
            )
        path = folder / f"{name_or_path}.yaml"
    elif not path.exists():
        raise FileNotFoundError(f"no class file {path}")
    return read_yaml(ClassSet, path)
