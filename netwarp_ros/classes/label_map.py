# SPDX-License-Identifier: Apache-2.0
"""Label maps: a model's classes turned into those of whoever reads the masks.

(In `ClassSet` and in `netwarp_ros.datasets`, a label map is an annotated image. Here it is a table of classes.)

The label maps of this package are in ``config/label_maps/``.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from netwarp_ros.classes.class_set import VOID, ClassSet, load_classes
from netwarp_ros.resources import Checked, cut, find_yaml, quote, read_yaml

ClassName = Annotated[str, Field(max_length=100)]
ClassNames = Annotated[tuple[ClassName, ...], Field(max_length=2000)]


@dataclass(frozen=True)
class LabelMap(Checked):
    """Which class of another class set each class of a model becomes.

    In files, ``classes`` is the name of a class set of this package, or a list of classes as in a class file.

    A label map may serve several models: it may name classes that a model does not have. But it must name every class
    of a model, once.

    Attributes:
        name: For instance ``nav2``.
        classes: The classes of the masks. The position of a class is its id. Classes that nothing becomes are allowed.
        map: By class of the masks, the names of the model's classes that become it.
        void: The names of the model's classes that become 255, void.
        file: Where it was read from, for errors; empty if it is from no file.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=100)]
    classes: ClassSet
    map: Annotated[Mapping[ClassName, ClassNames], Field(min_length=1)]
    void: ClassNames = ()
    file: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _find_classes(cls, content: Any) -> Any:
        """Turn the short forms of ``classes`` that files may use into a class set."""
        if not isinstance(content, dict):
            return content
        classes = content.get("classes")
        if isinstance(classes, str):
            try:
                return {**content, "classes": load_classes(_plain_name(classes))}
            except FileNotFoundError as error:
                raise ValueError(f"classes is {quote(classes)}: {error}") from None
        if isinstance(classes, list):
            return {**content, "classes": {"name": content.get("name"), "classes": classes}}
        return content

    def __post_init__(self) -> None:
        for target in self.map:
            if target not in self.classes.names:
                close = difflib.get_close_matches(target, self.classes.names, n=1)
                hint = f"did you mean {quote(close[0])}?" if close else f"give {cut(', '.join(self.classes.names))}"
                raise ValueError(f"map has {quote(target)}, which is no class of {self.classes.name}: {hint}")
        places: dict[str, str] = {}
        for place, names in [*((f"under {quote(target)}", names) for target, names in self.map.items()),
                             ("in void", self.void)]:  # fmt: skip
            for name in names:
                if name in places:
                    raise ValueError(f"{quote(name)} is named {places[name]} and {place}: name each class once")
                places[name] = place

    def table(self, source: ClassSet) -> np.ndarray:
        """Return the table that turns masks of a model into those of this label map.

        Args:
            source: The classes of the model.

        Returns:
            ``(256,)`` uint8: by id in the model's masks, the id in the new ones; 255 for void, and for ids that are no
            class.

        Raises:
            ValueError: The label map does not name every class of the model.
        """
        targets = dict.fromkeys(self.void, VOID)
        for target, names in self.map.items():
            targets |= dict.fromkeys(names, self.classes.names.index(target))
        if missing := [name for name in source.names if name not in targets]:
            raise ValueError(
                f"label map {self.file or self.name} leaves out classes of {source.name}: "
                f"{cut(', '.join(map(quote, missing)))}. Name each of them under a class in map, or in void"
            )
        table = np.full(256, VOID, np.uint8)
        table[: len(source)] = [targets[name] for name in source.names]
        return table


def load_label_map(name_or_path: str | Path) -> LabelMap:
    """Load a label map of this package (``nav2``, ``autoware``) by its name, or any other from a ``.yaml`` file.

    Raises:
        FileNotFoundError: There is no such label map or file.
        ValueError: The file is not valid.
    """
    path = label_map_file(name_or_path)
    label_map = read_yaml(LabelMap, path)
    object.__setattr__(label_map, "file", str(path))
    return label_map


def label_map_file(name_or_path: str | Path) -> Path:
    """Return the file of a label map of this package, or the path itself.

    Raises:
        FileNotFoundError: There is no such label map or file.
    """
    return find_yaml("label_maps", name_or_path, "label map", "label map")


def _plain_name(name: str) -> str:
    """Return the name of a class set. A label map may come from anybody, so it cannot have other files read.

    Raises:
        FileNotFoundError: It is a path.
    """
    if name.endswith((".yaml", ".yml")):
        raise FileNotFoundError("give the name of a class set of the package, such as camvid, or a list of classes")
    return name
