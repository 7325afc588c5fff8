# SPDX-License-Identifier: Apache-2.0
"""Class sets: names and colors of classes, their ids in label maps, and masks drawn in these colors.

In masks, class k has the id k. Label maps may hold other ids, or colors: `ClassSet.read` converts them.

The class sets of this package are in ``config/classes/``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from netwarp_ros.resources import Checked, cut, find_yaml, quote, read_yaml, shipped_names

MAX_CLASSES = 255
"""Most classes of a set: masks have 8 bits, and one value is void."""

MAX_ID = 65535
"""Greatest id in a label map: label maps have at most 16 bits."""

VOID = 255
"""Void in every label map that does not use this id for a class."""

_STRIP = 64
"""Rows that `ClassSet.overlay` blends at a time: few enough to stay in the cache while their colors are reordered."""

Byte = Annotated[int, Field(strict=True, ge=0, le=255)]
LabelId = Annotated[int, Field(strict=True, ge=0, le=MAX_ID)]
Color = tuple[Byte, Byte, Byte]


@dataclass(frozen=True)
class ClassEntry(Checked):
    """A class. Colors make no difference between two entries.

    Attributes:
        name: A text without control characters.
        color: RGB.
        ids: Its ids in label maps. Empty stands for its position in the set.
    """

    name: Annotated[str, Field(max_length=100)]
    color: Color = field(compare=False)
    ids: Annotated[tuple[LabelId, ...], Field(max_length=1000)] = ()

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.name.isprintable():
            raise ValueError(f"name is {quote(self.name)}: give a text without control characters")


@dataclass(frozen=True)
class ClassSet(Checked):
    """The classes a network tells apart. Colors make no difference between two sets.

    In files, ``void`` may be left out, or be any id or a list of ids of label maps; a class may have no ``color``
    (`generated_color` gives it one), and may have one ``id`` in place of ``ids``.

    Attributes:
        name: For instance ``camvid``.
        void: Id of pixels that no score counts, from K to 255, once a label map is read (`read`). In label maps, too,
            it stands for such pixels, and so does 255, unless 255 is an id of a class.
        classes: The K classes. The position of a class is its id in masks.
        void_ids: More ids of label maps that are void.
        void_colors: RGB colors that are void in label maps of colors.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=100)]
    void: Byte
    classes: Annotated[tuple[ClassEntry, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    void_ids: Annotated[tuple[LabelId, ...], Field(max_length=MAX_ID)] = ()
    void_colors: Annotated[tuple[Color, ...], Field(max_length=1000)] = field(default=(), compare=False)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, content: Any) -> Any:
        """Turn the short forms that files may use into the attributes."""
        if not isinstance(content, dict):
            return content
        content, entries = dict(content), []
        if isinstance(content.get("classes"), list):
            entries = [_with_ids(entry) for entry in content["classes"]]
            content["classes"] = _with_colors(entries, content.get("void_colors"))
        void: Any = content.get("void", VOID)
        own = {number for position, entry in enumerate(entries) for number in _ids_of(entry, position)}
        if _is_int(void) and not (len(entries) <= void <= VOID and (void == VOID or void not in own)):
            void = [void]
        if isinstance(void, list):
            more = content.get("void_ids", [])
            if isinstance(more, list):
                content["void_ids"] = [*_checked_ids("void", void), *_checked_ids("void_ids", more)]
            void = VOID
        return {**content, "void": void}

    def __post_init__(self) -> None:
        if repeated := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise ValueError(f"{quote(repeated[0])} occurs more than once: name each class once")
        if self.void < len(self):
            raise ValueError(f"void is {self.void}: give an id from {len(self)}, the number of classes, to 255")
        owners: dict[int, str] = {}
        for name, ids in zip(self.names, self._ids, strict=True):
            for number in ids:
                if owners.setdefault(number, name) != name:
                    raise ValueError(
                        f"{quote(owners[number])} and {quote(name)} both have the id {number} in label maps: give each "
                        "class ids of its own"
                    )
        for number in (*self.void_ids, *((self.void,) if self.void != VOID else ())):
            if number in owners:
                raise ValueError(
                    f"{number} is void and an id of {quote(owners[number])} in label maps: give the class other ids, "
                    f"or leave {number} out of void"
                )

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
        return _paint(mask, self._colors)

    def overlay(self, image: np.ndarray, mask: np.ndarray, alpha: float = 0.5, *, rgb: bool = False) -> np.ndarray:
        """Blend the colors of a mask's classes over an image. Pixels of no class, such as void, become darker.

        Args:
            image: ``(H, W, 3)`` uint8, BGR.
            mask: ``(H, W)`` uint8 class ids.
            alpha: Weight of the colors, from 0 (image only) to 1 (colors only).
            rgb: Return RGB instead of BGR.

        Returns:
            ``(H, W, 3)`` uint8, BGR or RGB.

        Raises:
            ValueError: Image and mask differ in size, or alpha is out of its range.
        """
        if image.shape != (*mask.shape, 3):
            raise ValueError(f"image is {image.shape}, mask is {mask.shape}: give (H, W, 3) and (H, W)")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}: give 0 to 1")
        blended = _paint(mask, self._colors if rgb else self._colors[:, ::-1])
        for top in range(0, len(mask), _STRIP):
            part, out = image[top : top + _STRIP], blended[top : top + _STRIP]
            part = cv2.cvtColor(part, cv2.COLOR_BGR2RGB) if rgb else part
            cv2.addWeighted(part, 1 - alpha, out, alpha, 0, dst=out)
        return blended

    def read(self, label: np.ndarray, name: str) -> np.ndarray:
        """Convert a label map, as it is stored, to the ids that masks have.

        Args:
            label: ``(H, W)`` uint8 or uint16 ids, or ``(H, W, 3)`` uint8 colors, BGR.
            name: Name of the label map, for the error.

        Returns:
            ``(H, W)`` uint8: the position of each pixel's class, or ``void``.

        Raises:
            ValueError: It is no such array, an id or color belongs to no class and is not void, or two classes have the
                same color and the label map holds colors.
        """
        if label.ndim == 2 and label.dtype in (np.uint8, np.uint16):
            return self._read_ids(label, name)
        if label.ndim == 3 and label.shape[2] == 3 and label.dtype == np.uint8:
            return self._read_colors(label, name)
        raise ValueError(
            f"{name} is {label.shape} {label.dtype}: a label map holds class ids, one channel of 8 or 16 bits, or the "
            "colors of the classes, three channels of 8 bits"
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

    def _read_ids(self, label: np.ndarray, name: str) -> np.ndarray:
        positions, known = self._id_tables
        if label.dtype == np.uint8:
            found, is_known = (cv2.LUT(label, table[:256]) for table in (positions, known))
        else:
            found, is_known = positions[label], known[label]
        if not is_known.all():
            row, column = np.argwhere(is_known == 0)[0]
            raise ValueError(
                f"{name} holds class id {label[row, column]} at x {column}, y {row}; the ids of {self.name} are "
                f"{_ranges(number for ids in self._ids for number in ids)}, and {_ranges(self._void_ids) or 'none'} "
                "for void: give the id to a class or to void in a class file"
            )
        return found

    def _read_colors(self, label: np.ndarray, name: str) -> np.ndarray:
        colors, positions = self._color_table
        packed = _pack(label[..., ::-1])
        index = np.searchsorted(colors, packed).clip(max=len(colors) - 1)
        known = colors[index] == packed
        if not known.all():
            row, column = np.argwhere(~known)[0]
            color = tuple(label[row, column, ::-1].tolist())
            raise ValueError(
                f"{name} holds the RGB color {color} at x {column}, y {row}, which no class of {self.name} has: give "
                "it to a class or to void_colors in a class file"
            )
        return positions[index]

    @cached_property
    def _ids(self) -> tuple[tuple[int, ...], ...]:
        """Ids of each class in label maps."""
        return tuple(entry.ids or (position,) for position, entry in enumerate(self.classes))

    @cached_property
    def _void_ids(self) -> frozenset[int]:
        """All ids of label maps that are void."""
        return frozenset({*self.void_ids, self.void, VOID}.difference(*self._ids))

    @cached_property
    def _id_tables(self) -> tuple[np.ndarray, np.ndarray]:
        """``(65536,)`` uint8 each, by id in label maps: what it becomes, and whether it may occur (0 or 1)."""
        positions, known = np.full(MAX_ID + 1, self.void, np.uint8), np.zeros(MAX_ID + 1, np.uint8)
        for position, ids in enumerate(self._ids):
            positions[list(ids)] = position
            known[list(ids)] = 1
        known[list(self._void_ids)] = 1
        return positions, known

    @cached_property
    def _color_table(self) -> tuple[np.ndarray, np.ndarray]:
        """The colors of label maps, packed and sorted, ``(N,)`` int32, and what each becomes, ``(N,)`` uint8.

        Raises:
            ValueError: Two classes have the same color, or a class has a color that is void.
        """
        owners: dict[tuple[int, ...], tuple[str, int]] = dict.fromkeys(self.void_colors, ("void", self.void))
        for position, entry in enumerate(self.classes):
            if entry.color in owners:
                raise ValueError(
                    f"{quote(owners[entry.color][0])} and {quote(entry.name)} of {self.name} have the same color "
                    f"{entry.color}, so label maps of colors cannot be read: give each class a color of its own"
                )
            owners[entry.color] = (entry.name, position)
        colors = sorted(owners)
        positions = np.array([owners[color][1] for color in colors], np.uint8)
        return _pack(np.array(colors, np.uint8)), positions

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
    return read_yaml(ClassSet, find_yaml("classes", name_or_path, "class set", "class file"))


def classes_from_labels(name: str, labels: Sequence[str]) -> ClassSet:
    """Make a class set of the names of classes alone, such as ``id2label`` of a Hugging Face model.

    If they are those of a class set of this package, in the same order (upper and lower case make no difference), that
    set is returned, with its name, colors and ids.

    Args:
        name: Of the set. Letters become lower case, and whatever a name must not have becomes ``-``.
        labels: The names of the K classes, by id. A name that occurs again gets a number: ``wall``, ``wall (2)``.
            Control characters become spaces, names are cut at 100 characters, and an empty name becomes ``class 7``.

    Raises:
        ValueError: There is no class, or there are more than 255.
    """
    if not 1 <= len(labels) <= MAX_CLASSES:
        raise ValueError(f"{name} has {len(labels)} classes: at least 1 and at most {MAX_CLASSES} are possible")
    names: list[str] = []
    for position, label in enumerate(labels):
        names.append(_unique(cut(label, 90) or f"class {position}", names))
    for shipped in map(load_classes, shipped_names("classes")):
        if [known.casefold() for known in shipped.names] == [given.casefold() for given in names]:
            return shipped
    entries = tuple(ClassEntry(given, generated_color(position)) for position, given in enumerate(names))
    return ClassSet(re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:100] or "classes", VOID, entries)


def generated_color(position: int) -> tuple[int, int, int]:
    """Return the RGB color of the class at a position that is given none: that of PASCAL VOC's color map, one further.

    The color map deals the bits of an index out to red, green and blue, in turn, the lowest bit of the index to the
    highest bit of red. Indices below 2**24 have different colors. Index 0, black, is left out.
    """
    index, color = position + 1, [0, 0, 0]
    for place in range(24):
        color[place % 3] |= (index >> place & 1) << (7 - place // 3)
    red, green, blue = color
    return red, green, blue


def _unique(name: str, others: Sequence[str]) -> str:
    """Return a name that is not among others: with a number, if it is."""
    number, unique = 1, name
    while unique in others:
        number += 1
        unique = f"{name} ({number})"
    return unique


def _with_ids(entry: Any) -> Any:
    """Return a class of a file with ``ids`` in place of ``id``, and a list in place of a number.

    What is checked here is no longer where the file has it, so that `resources.parse` could not name its key.
    """
    if not isinstance(entry, Mapping):
        return entry
    if "id" in entry:
        if "ids" in entry:
            raise ValueError(f"{quote(entry.get('name'))} has both id and ids: give one of them")
        entry = {
            **{key: value for key, value in entry.items() if key != "id"},
            "ids": _checked_ids(f"id of {quote(entry.get('name'))}", [entry["id"]]),
        }
    if _is_int(entry.get("ids")):
        return {**entry, "ids": _checked_ids(f"ids of {quote(entry.get('name'))}", [entry["ids"]])}
    return entry


def _checked_ids(key: str, ids: list[Any]) -> list[int]:
    for number in ids:
        if not _is_int(number) or not 0 <= number <= MAX_ID:
            raise ValueError(f"{key} is {quote(number)}: give ids of label maps, whole numbers from 0 to {MAX_ID}")
    return ids


def _ids_of(entry: Any, position: int) -> list[Any]:
    """Return the ids of a class of a file, which may be anything."""
    ids = entry.get("ids") if isinstance(entry, Mapping) else getattr(entry, "ids", None)
    return [number for number in ids if _is_int(number)] if isinstance(ids, (list, tuple)) and ids else [position]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _with_colors(entries: list[Any], void_colors: Any) -> list[Any]:
    """Return the classes of a file, each with a color. No generated color is one that the file gives."""
    given = [entry.get("color") for entry in entries if isinstance(entry, Mapping)]
    given += void_colors if isinstance(void_colors, list) else []
    taken = {tuple(color) for color in given if isinstance(color, list) and all(map(_is_int, color))}
    colored = []
    for position, entry in enumerate(entries):
        if isinstance(entry, Mapping) and "color" not in entry:
            while (color := generated_color(position)) in taken:
                position += 256  # the color map's own indices end there
            entry = {**entry, "color": list(color)}
            taken.add(color)
        colored.append(entry)
    return colored


def _paint(mask: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Return the color, ``(H, W, 3)`` uint8, of each pixel of a mask, ``(H, W)`` uint8, out of ``(256, 3)``.

    OpenCV's color maps are such tables. At 1920x1080 this takes a tenth of the time of ``colors[mask]``.
    """
    if not mask.size:  # OpenCV 5.0 divides by zero
        return np.zeros((*mask.shape, 3), np.uint8)
    return cv2.applyColorMap(mask, np.ascontiguousarray(colors)[:, None])


def _pack(rgb: np.ndarray) -> np.ndarray:
    """Convert ``(..., 3)`` uint8 colors to ``(...)`` int32 numbers."""
    red, green, blue = (rgb[..., channel].astype(np.int32) for channel in range(3))
    return (red << 16) | (green << 8) | blue


def _ranges(numbers: Iterable[int]) -> str:
    """Return numbers as text: ``0 to 10, 12``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return cut(", ".join(f"{first} to {last}" if last > first else f"{first}" for first, last in runs))
