# SPDX-License-Identifier: Apache-2.0
"""What a comparison reads: the pixel counts of two evaluations of the same frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from netwarp_ros.evaluation.result_files import FramesFile, read_json
from netwarp_ros.evaluation.results import dense
from netwarp_ros.resources import cut

MAX_GROUPS = 600
"""Greatest number of groups in which the frames of a recording are added up, so that any length fits into memory."""


@dataclass(frozen=True)
class Observations:
    """N recordings, or N successive frames of one recording, of one evaluation with K classes.

    Attributes:
        names: Their names. Frames of a long recording are added up in groups; a group has the name of its first frame.
        classes: Names of the classes.
        counts: Confusion matrices ``(N, K, K)`` by measure: ``iou``, ``tiou.WIDTH``, ``tc``, ``tc_unmasked``.
        times: ``(N, 2)``: total milliseconds, and the number of frames in that total.
        independent: Whether the N are recordings.
    """

    names: Sequence[str]
    classes: Sequence[str]
    counts: Mapping[str, np.ndarray]
    times: np.ndarray
    independent: bool = False

    @property
    def frames(self) -> int:
        """Number of frames."""
        return int(self.times[:, 1].sum())


def read_pair(first: Path, second: Path) -> tuple[Observations, Observations]:
    """Read two evaluations of the same frames.

    Args:
        first: A file written by ``netwarp evaluate --json``; or a folder of such files, one for each recording.
        second: A file with the same frames, or a folder with files of the same names.

    Returns:
        Observations of recordings if there are several, else of frames.

    Raises:
        ValueError: If a file does not hold such results, or the two differ in frames, classes or labels.
    """
    files = [(read_json(ours), read_json(theirs)) for ours, theirs in _pair_files(first, second)]
    classes = list(files[0][0].head["iou"])
    widths = [set(file.head["tiou"]) for pair in files for file in pair]
    measures = ["iou", *(f"tiou.{width}" for width in files[0][0].head["tiou"] if all(width in has for has in widths))]
    sums = _Sums(), _Sums()
    for pair in files:
        _check_classes(*pair, classes)
        for frames in _frame_pairs(*pair):
            for of_evaluation, frame in zip(sums, frames, strict=True):
                of_evaluation.add(frame, f"{pair[0].path.name} {frame.recording}".strip())
    before, after = (of_evaluation.observations(classes, [*measures, "tc", "tc_unmasked"]) for of_evaluation in sums)
    return before, after


@dataclass(frozen=True)
class _Sum:
    """Counts of one frame, or of several.

    Attributes:
        name: Name of the first frame.
        recording: Name of its recording; empty if the file holds a single one.
        counts: Confusion matrices ``(K, K)`` by measure.
        times: ``(2,)``, as in `Observations`.
    """

    name: str
    recording: str
    counts: Mapping[str, np.ndarray]
    times: np.ndarray

    @classmethod
    def of_frame(cls, frame: Mapping[str, Any], num_classes: int) -> _Sum:
        """Take the counts from the JSON of a frame."""
        cells = {"iou": frame["confusion"], "tc": frame["tc"], "tc_unmasked": frame["tc_unmasked"]}
        cells |= {f"tiou.{width}": counts for width, counts in frame["tiou"].items()}
        return cls(
            f"{frame['camera']} {frame['name']}".strip(),
            frame.get("recording", ""),
            {measure: dense(counts or [], num_classes).astype(float) for measure, counts in cells.items()},
            np.array([sum(frame["stages_ms"].values()), 1.0]),
        )

    def __add__(self, other: _Sum) -> _Sum:
        counts = dict(self.counts)
        for measure, more in other.counts.items():
            counts[measure] = counts[measure] + more if measure in counts else more
        return _Sum(self.name, self.recording, counts, self.times + other.times)


class _Sums:
    """The sums of one evaluation, by recording and by group of successive frames."""

    def __init__(self) -> None:
        self._recordings: dict[str, _Sum] = {}
        self._groups: list[_Sum] = []
        self._length = 1

    def add(self, frame: _Sum, recording: str) -> None:
        """Add the next frame. When there are `MAX_GROUPS` full groups, neighbors are joined."""
        self._recordings[recording] = self._recordings[recording] + frame if recording in self._recordings else frame
        if self._groups and self._groups[-1].times[1] < self._length:
            self._groups[-1] += frame
            return
        if len(self._groups) == MAX_GROUPS:
            self._groups = [one + next_ for one, next_ in zip(self._groups[::2], self._groups[1::2], strict=True)]
            self._length *= 2
        self._groups.append(frame)

    def observations(self, classes: Sequence[str], measures: Sequence[str]) -> Observations:
        """Return the sums of the recordings if there are several, else those of the groups."""
        several = len(self._recordings) > 1
        names = list(self._recordings) if several else [group.name for group in self._groups]
        sums = list(self._recordings.values()) if several else self._groups
        nothing = np.zeros((len(classes), len(classes)))
        counts = {measure: np.stack([one.counts.get(measure, nothing) for one in sums]) for measure in measures}
        return Observations(names, classes, counts, np.stack([one.times for one in sums]), several)


def _pair_files(first: Path, second: Path) -> list[tuple[Path, Path]]:
    """Return the files to compare with each other."""
    if not first.is_dir():
        return [(first, second)]
    names = [sorted(path.name for path in folder.glob("*.json")) for folder in (first, second)]
    if names[0] != names[1] or not names[0]:
        unpaired = ", ".join(sorted(set(names[0]) ^ set(names[1]))) or "no file at all"
        raise ValueError(f"{first} and {second} must hold JSON files of the same names, but there is {unpaired} in one")
    return [(first / name, second / name) for name in names[0]]


def _check_classes(first: FramesFile, second: FramesFile, classes: Sequence[str]) -> None:
    """Check that two files have the same classes as all others.

    Raises:
        ValueError: If they do not.
    """
    for file in (first, second):
        if list(file.head["iou"]) != classes:
            raise ValueError(
                f"{first.path} has the classes {cut(', '.join(first.head['iou']))}, "
                f"{second.path} {cut(', '.join(second.head['iou']))}"
            )


def _frames(file: FramesFile) -> Iterator[_Sum]:
    """Read the frames of a file.

    Raises:
        ValueError: If one cannot be read.
    """
    try:
        for frame in file.frames():
            yield _Sum.of_frame(frame, len(file.head["iou"]))
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file.path} has frames that cannot be read: {cut(str(error))}") from error


def _frame_pairs(first: FramesFile, second: FramesFile) -> Iterator[tuple[_Sum, _Sum]]:
    """Read the frames of two files side by side.

    Raises:
        ValueError: If a frame cannot be read, or the two files differ in frames or labels.
    """
    count = [0, 0]
    for ours, theirs in zip_longest(_frames(first), _frames(second)):
        count = [count[0] + (ours is not None), count[1] + (theirs is not None)]
        if ours is None or theirs is None:
            continue
        if ours.name != theirs.name:
            raise ValueError(
                f"a frame is {ours.name} in {first.path}, but {theirs.name} in {second.path}: give results on the same "
                "frames"
            )
        if (ours.counts["iou"].sum(axis=1) != theirs.counts["iou"].sum(axis=1)).any():
            raise ValueError(
                f"{ours.name} has another label in {first.path} than in {second.path}: give results on the same labels"
            )
        yield ours, theirs
    if not any(count):
        raise ValueError(f"{first.path} has no frames: give a file of `netwarp evaluate --json`")
    if count[0] != count[1]:
        raise ValueError(
            f"{first.path} has {count[0]} frames, {second.path} has {count[1]}: give results on the same frames"
        )
