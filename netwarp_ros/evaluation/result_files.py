# SPDX-License-Identifier: Apache-2.0
"""The JSON and CSV of ``netwarp evaluate``, written and read frame by frame, so that any length fits into memory."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from netwarp_ros.evaluation.results import FrameRecord
from netwarp_ros.recordings.atomic import replacing, written_by

MARK = written_by("evaluate")
"""Mark of the JSON files and reports."""

CSV_MARK = "name,camera,stamp_ns,reason,"
"""Beginning of the CSV files, which have no place for another mark."""

_BEGIN, _END = '"per_frame": [', "]"
"""The lines before and after the frames. Each frame is on a line of its own."""


def write_json(path: Path, scores: Mapping[str, Any], frames: Iterable[Mapping[str, Any]]) -> None:
    """Write scores, and behind them ``per_frame``, each frame on a line of its own.

    The file is written completely or not at all.

    Args:
        path: The file.
        scores: `EvaluationResults.to_json`, and perhaps more.
        frames: `ScoredFrame.to_json` of each frame.
    """
    with replacing(path, MARK) as temporary, temporary.open("w", encoding="utf-8") as file:
        content = {"generator": MARK, **scores, "per_frame": []}
        file.write(json.dumps(content, indent=2, allow_nan=False).removesuffix("]\n}"))
        comma = ""
        for frame in frames:
            file.write(f"{comma}\n    {json.dumps(frame, allow_nan=False)}")
            comma = ","
        file.write("\n  ]\n}\n")


class FrameSpool:
    """Keeps the JSON of frames in a temporary file until it is read, once. Use it in a ``with`` statement.

    Args:
        folder: Folder of the temporary file, which has no name and vanishes at the end.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder)  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> FrameSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, frame: Mapping[str, Any]) -> None:
        """Keep the next frame."""
        self._file.write(json.dumps(frame, allow_nan=False) + "\n")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._file.seek(0)
        yield from map(json.loads, self._file)


class FramesFile:
    """A file written by `write_json`, whose frames are read one by one.

    If its frames are not on lines of their own, because another program has written it again, it is read as a whole.

    Attributes:
        path: Path of the file.
        head: What stands before ``per_frame``.

    Raises:
        ValueError: If the file is not a JSON object, or ``per_frame`` is not a list.
        RecursionError: If it is nested too deeply.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._frames: list[dict[str, Any]] | None = None
        with path.open(encoding="utf-8") as file:
            before = "".join(takewhile(lambda line: line.strip() != _BEGIN, file))
            first = next(file, "").strip().removesuffix(",")
        if first == _END or (first.startswith("{") and first.endswith("}")):
            self.head = json.loads(before.rstrip().removesuffix(",") + "}")
            return
        self.head = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(self.head, dict):
            raise ValueError("the file is not a JSON object")
        self._frames = self.head.pop("per_frame", [])
        if not isinstance(self._frames, list):
            raise ValueError("per_frame is not a list")

    def frames(self) -> Iterator[dict[str, Any]]:
        """Read the JSON of each frame.

        Raises:
            ValueError: If a frame is not JSON, or the file is cut off.
            RecursionError: If a frame is nested too deeply.
        """
        if self._frames is not None:
            yield from self._frames
            return
        with self.path.open(encoding="utf-8") as file:
            lines = (line.strip() for line in file)
            for line in lines:
                if line == _BEGIN:
                    break
            for line in lines:
                if line.startswith(_END):
                    return
                yield json.loads(line.removesuffix(","))
        raise ValueError("the file is cut off")


def read_json(path: Path) -> FramesFile:
    """Open a file written by ``netwarp evaluate --json``.

    Raises:
        ValueError: If the file is not one.
    """
    try:
        file = FramesFile(path)
        if not all(isinstance(file.head.get(key), dict) for key in ("iou", "tiou")):
            raise ValueError("iou or tiou is missing")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has no scores by frame: give a file of `netwarp evaluate --json`") from error
    return file


def write_csv(path: Path, records: Sequence[FrameRecord]) -> None:
    """Write a table with a line for each frame: times in ms, scores in per cent, empty cells for nan."""
    with replacing(path, CSV_MARK) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        stages = list(records[0].stages_ms) if records else []
        table = csv.writer(file)
        names = ["name", "camera", "stamp_ns", "reason", "is_key"]
        times = [f"{stage}_ms" for stage in (*stages, "total", "wait", "age")]
        table.writerow([*names, *times, "miou", "tc", "disagreement"])
        for record in records:
            durations = [*(record.stages_ms[stage] for stage in stages), record.total_ms, record.wait_ms, record.age_ms]
            values = [*durations, record.miou, record.tc, record.disagreement]
            table.writerow(
                [record.name, record.camera, record.stamp_ns, record.reason, int(record.is_key)]
                + ["" if math.isnan(value) else f"{value:.3f}" for value in values]
            )
