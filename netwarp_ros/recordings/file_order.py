# SPDX-License-Identifier: Apache-2.0
"""The order of numbered files: frame_2 before frame_10."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

_NUMBER = re.compile(r"([0-9]+)")


def in_natural_order(paths: Iterable[Path]) -> list[Path]:
    """Sort paths by their stems. Numbers in a stem are compared as numbers, and everything else as text."""
    return sorted(paths, key=lambda path: (_parts(path), path.name))


def ambiguous_names(paths: Iterable[Path]) -> tuple[Path, Path] | None:
    """Return two successive files whose order cannot be known from their names; None if there are none.

    Either their numbers are equal (``frame_2``, ``frame_02``), or they would change places if the digits after a point
    were a fraction (``1.5``, ``1.25``).

    Args:
        paths: Files in natural order.
    """
    for first, second in pairwise(paths):
        if _parts(first) == _parts(second) or _is_reversed_as_fraction(first, second):
            return first, second
    return None


def _parts(path: Path) -> list[str | int]:
    """Split a stem at its numbers: text at even positions, numbers at odd ones."""
    return [int(part) if position % 2 else part for position, part in enumerate(_NUMBER.split(path.stem))]


def _is_reversed_as_fraction(first: Path, second: Path) -> bool:
    """Return whether the first difference is in digits after a point, where the second is the smaller fraction."""
    parts = _NUMBER.split(first.stem), _NUMBER.split(second.stem)
    for position, (ours, theirs) in enumerate(zip(*parts, strict=False)):
        if ours != theirs:
            is_fraction = position % 2 and position >= 3 and parts[0][position - 1] == "."
            return bool(is_fraction and float(f"0.{ours}") > float(f"0.{theirs}"))
    return False
