# SPDX-License-Identifier: Apache-2.0
"""Class sets: the names and colours behind the class ids of masks and label maps."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from netwarp_ros.resources import resource

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True)
class ClassSet:
    """The classes a network tells apart; class k has id k. Colours make no difference between two sets.

    Attributes:
        name: For instance ``camvid``.
        names: Name of each class.
        palette: ``(K, 3)`` uint8, RGB, the colour of each class.
        void: Id of unlabelled pixels, which no score counts; not the id of a class.
    """

    name: str
    names: tuple[str, ...]
    palette: np.ndarray = field(repr=False, compare=False)
    void: int

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_file(cls, path: str | Path) -> ClassSet:
        """Read a class set from YAML: ``name``, ``void``, and ``classes``, a list of ``{name, color: [r, g, b]}``.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is no such YAML; the message names the file and the key.
        """
        path = Path(path)
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(f"no class file {path}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid YAML: {error}") from error
        try:
            return cls.from_data(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_data(cls, data: Any) -> ClassSet:
        """Return the class set of what a file holds.

        Raises:
            ValueError: If it is none; the message names the key.
        """
        _check_keys(data, {"name", "void", "classes"}, "the file")
        if not isinstance(data["name"], str) or not _NAME.fullmatch(data["name"]):
            raise ValueError(f"name is {data['name']!r}: give lower-case letters, digits, - and _")
        classes = data["classes"]
        if not isinstance(classes, list) or not 1 <= len(classes) <= 255:
            raise ValueError("classes: give a list of 1 to 255 entries {name, color}")
        for index, entry in enumerate(classes):
            _check_class(entry, f"classes[{index}]")
        names = tuple(entry["name"] for entry in classes)
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"classes: {', '.join(map(repr, twice))} occurs more than once: name each class once")
        void = data["void"]
        if not _is_byte(void) or void < len(names):
            raise ValueError(f"void is {void!r}: give an id from {len(names)}, the number of classes, to 255")
        return cls(data["name"], names, np.array([entry["color"] for entry in classes], np.uint8), void)

    def to_data(self) -> dict[str, Any]:
        """Return what a file would hold."""
        entries = zip(self.names, self.palette.tolist(), strict=True)
        classes = [{"name": name, "color": color} for name, color in entries]
        return {"name": self.name, "void": self.void, "classes": classes}

    def colorize(self, mask: np.ndarray) -> np.ndarray:
        """Paint a mask in the colours of its classes; every id that is no class is black.

        Args:
            mask: ``(H, W)`` uint8 class ids.

        Returns:
            ``(H, W, 3)`` uint8, RGB.
        """
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise ValueError(f"mask is {mask.shape} {mask.dtype}: give (H, W) uint8 class ids")
        return self._colors[mask]

    def overlay(self, image: np.ndarray, mask: np.ndarray, alpha: float = 0.5) -> np.ndarray:
        """Blend the colours of a mask's classes over the image it was made from.

        Args:
            image: ``(H, W, 3)`` uint8, BGR.
            mask: ``(H, W)`` uint8 class ids.
            alpha: Weight of the colours, from 0 (image only) to 1 (colours only).

        Returns:
            ``(H, W, 3)`` uint8, BGR.

        Raises:
            ValueError: If image and mask differ in size, or alpha is out of its range.
        """
        if image.shape != (*mask.shape, 3):
            raise ValueError(f"image is {image.shape}, mask is {mask.shape}: give (H, W, 3) and (H, W)")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}: give 0 to 1")
        colors = np.ascontiguousarray(self.colorize(mask)[..., ::-1])
        return cv2.addWeighted(image, 1 - alpha, colors, alpha, 0)

    def check(self, label: np.ndarray, name: str) -> None:
        """Check that a label map holds the ids of classes and void alone.

        Args:
            label: ``(H, W)`` uint8.
            name: Of the label map, for the error.

        Raises:
            ValueError: If it holds another.
        """
        foreign = label[(label >= len(self)) & (label != self.void)]
        if foreign.size:
            raise ValueError(
                f"{name} holds class id {foreign[0]}; the ids of {self.name} are 0 to {len(self) - 1}, and {self.void} "
                "for void"
            )

    def check_names(self, other: ClassSet, name: str) -> None:
        """Check that the ids of another class set mean what they do here.

        Args:
            other: The class set.
            name: Of what has it, for the error.

        Raises:
            ValueError: If they do not.
        """
        if other.names != self.names:
            raise ValueError(
                f"{name} has the classes of {other.name}, not of {self.name}: {', '.join(other.names)} instead of "
                f"{', '.join(self.names)}"
            )

    @cached_property
    def _colors(self) -> np.ndarray:
        """``(256, 3)`` uint8: the colour of every value a mask can hold."""
        colors = np.zeros((256, 3), np.uint8)
        colors[: len(self)] = self.palette
        return colors


def load_classes(name_or_path: str | Path) -> ClassSet:
    """Load a class set of this package (``camvid``, ``cityscapes``) by its name, or any other from a ``.yaml`` file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file is not valid.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        return ClassSet.from_file(path)
    folder = resource("classes")
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    if str(name_or_path) not in known:
        raise FileNotFoundError(
            f"no class set named {str(name_or_path)!r}: give one of {', '.join(known)}, or the path of a .yaml file"
        )
    return ClassSet.from_file(folder / f"{name_or_path}.yaml")


def _check_class(entry: Any, where: str) -> None:
    _check_keys(entry, {"name", "color"}, where)
    name, color = entry["name"], entry["color"]
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where}.name is {name!r}: give a text")
    if not isinstance(color, list) or len(color) != 3 or not all(map(_is_byte, color)):
        raise ValueError(f"{where}.color is {color!r}: give [red, green, blue], each from 0 to 255")


def _check_keys(data: Any, keys: set[str], where: str) -> None:
    wanted = ", ".join(sorted(keys))
    if not isinstance(data, dict):
        raise ValueError(f"{where} holds {type(data).__name__}: give the keys {wanted}")
    if missing := sorted(keys - data.keys()):
        raise ValueError(f"{where} lacks the key {', '.join(missing)}: give {wanted}")
    if foreign := sorted(map(str, data.keys() - keys)):
        raise ValueError(f"{where} has the unknown key {', '.join(foreign)}: give {wanted}")


def _is_byte(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255
