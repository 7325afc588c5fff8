# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: the file of their figures, and lists of numbers and sizes as options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

FIGURES = "Write the figures to this file."

Number = TypeVar("Number", int, float)


def make_folder(file: Path | None) -> None:
    """Make the folder of a file before anything is measured.

    Raises:
        FileExistsError: If there is a file that `netwarp benchmark` did not write.
    """
    from netwarp_ros.recordings.atomic import refuse_foreign, written_by

    if file:
        refuse_foreign(file, written_by("benchmark"))
        file.parent.mkdir(parents=True, exist_ok=True)


def write(file: Path | None, content: Mapping[str, Any]) -> None:
    """Write figures to a file, if there is one, with the mark of `netwarp benchmark`."""
    from netwarp_ros.recordings.atomic import write_marked_json

    if file:
        write_marked_json(file, content, "benchmark")


def read_numbers(name: str, text: str, kind: type[Number], example: str) -> list[Number]:
    """Read numbers > 0, separated by commas."""
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise ValueError(f"{name} is {text!r}: give numbers > 0, such as {example}")
    return numbers


def read_sizes(text: str) -> list[tuple[int, int]]:
    """Read sizes, separated by commas."""
    try:
        sizes = [(int(width), int(height)) for width, height in (size.split("x") for size in text.split(","))]
    except ValueError:
        sizes = []
    if not sizes or min(map(min, sizes)) <= 0:
        raise ValueError(f"sizes is {text!r}: give sizes in whole pixels, such as 480x360,1920x1080")
    return sizes
