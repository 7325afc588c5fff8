# SPDX-License-Identifier: Apache-2.0
"""What an engine keeps for each shape of frame, such as compiled graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

MAX_SHAPES = 16
"""Shapes of frames for which something is kept; when there are more, those used longest ago are dropped."""

T = TypeVar("T")


class Latest(Generic[T]):
    """Values by their keys; at most `MAX_SHAPES`, those used latest."""

    def __init__(self) -> None:
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value of a key; make it if there is none."""
        if key not in self._values:
            self._values[key] = make()
            if len(self._values) > MAX_SHAPES:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return self._values[key]

    def __len__(self) -> int:
        return len(self._values)
