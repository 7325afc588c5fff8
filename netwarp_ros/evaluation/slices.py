# SPDX-License-Identifier: Apache-2.0
"""Recordings cut into slices, which are evaluated one by one.

The result of a slice depends on the slice alone: each has a segmenter of its own, runs on one thread, and reads
some frames before its first one to fill the memory. So scores do not depend on the process and the order in which
slices are evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import torch

from netwarp_ros.classes import ClassSet
from netwarp_ros.evaluation.results import PartialResults
from netwarp_ros.evaluation.scoring import TRIMAP_WIDTHS, Labels, score_frames
from netwarp_ros.flow import create_estimator
from netwarp_ros.recordings.atomic import replacing
from netwarp_ros.recordings.bags import BagLabels
from netwarp_ros.recordings.frames import FrameSource
from netwarp_ros.recordings.open import open_frames, open_labels
from netwarp_ros.segmenter import Segmenter


@dataclass(frozen=True)
class SliceSettings:
    """How recordings are opened and evaluated; plain values, which can be sent to other processes.

    Attributes:
        segmenter: Arguments of `Segmenter`. The model is a file, and the flow the name of an estimator.
        classes: The classes of labels and masks.
        topics: Image topics of each recording.
        label_topics: Topics of the label maps, in the order of ``topics``.
        rate: Frames per second, instead of the recorded stamps.
        stills: As in `score_frames`.
        host: As in `score_frames`.
        widths: As in `score_frames`.
    """

    segmenter: Mapping[str, Any]
    classes: ClassSet
    topics: Sequence[str] = ()
    label_topics: Sequence[str] = ()
    rate: float | None = None
    stills: bool = False
    host: bool = False
    widths: Sequence[int] = TRIMAP_WIDTHS

    def open(self, recording: Path) -> tuple[FrameSource, Labels | None]:
        """Open a recording and its label maps."""
        frames = open_frames(recording, rate=self.rate, topics=self.topics, leave_out=self.label_topics)
        return frames, open_labels(frames, recording, None, self.label_topics)


@dataclass(frozen=True)
class Slice:
    """A range of frames of a recording, by index.

    Attributes:
        recording: Path of the recording.
        read_from: First frame to read; those before ``score_from`` are the warm-up.
        score_from: First frame to score.
        end: The frame after the last one; None if the slice reaches to the end of the recording.
    """

    recording: Path
    read_from: int
    score_from: int
    end: int | None

    @property
    def name(self) -> str:
        """Name of the slice's file of results, without its ending."""
        return f"{recording_name(self.recording)}-{self.score_from:06d}"


@dataclass(frozen=True)
class SliceResults:
    """Results of a slice.

    Attributes:
        results: Results for its frames.
        damage: What could not be read or matched, a sentence for each.
    """

    results: PartialResults
    damage: Sequence[str]


SliceRunner = Callable[[SliceSettings, Sequence[Slice]], Iterable[tuple[Slice, dict[str, Any]]]]
"""Calls `evaluate_slice` for each slice, and returns the slices with what it returned, in any order."""


def recording_name(recording: Path) -> str:
    """Return the name under which the results of a recording are kept."""
    return recording.name if recording.is_dir() else recording.stem


def cut_slices(
    settings: SliceSettings, recordings: Sequence[Path], *, seconds: float = 0.0, warm_up: int = 0
) -> list[Slice]:
    """Cut recordings into slices.

    Args:
        settings: How to open the recordings.
        recordings: Their paths.
        seconds: Length of a slice at the rate of its recording; 0 for whole recordings.
        warm_up: Number of frames of each camera to segment before a slice, to fill the memory.

    Raises:
        ValueError: If an argument is < 0, two recordings have the same name, or a recording cannot be opened.
        FileNotFoundError: If a path does not exist.
    """
    if not 0 <= seconds < float("inf") or warm_up < 0:
        raise ValueError(f"slice is {seconds} s, warm-up is {warm_up}: give seconds >= 0 and frames >= 0")
    by_name: dict[str, Path] = {}
    slices = []
    for recording in recordings:
        other = by_name.setdefault(recording_name(recording), recording)
        if other is not recording:
            raise ValueError(f"{other} and {recording} have the same name, and so would their results: rename one")
        frames, _ = settings.open(recording)
        cameras, count = len(frames.cameras), len(frames)
        length = max(1, round(seconds * frames.rate * cameras)) if seconds else max(1, count)
        begins = range(0, max(1, count), length)
        for begin in begins:
            end = None if begin == begins[-1] else begin + length
            slices.append(Slice(recording, max(0, begin - warm_up * cameras), begin, end))
    return slices


def evaluate_slice(settings: SliceSettings, slice_: Slice) -> dict[str, Any]:
    """Evaluate a slice; return plain values: ``part`` (of `PartialResults.to_json`) and ``damage``."""
    with _one_thread():
        frames, labels = settings.open(slice_.recording)
        segmenter = Segmenter(**{**settings.segmenter, "flow": create_estimator(settings.segmenter["flow"])})
        results = score_frames(
            frames.read(slice_.read_from, slice_.end), labels, segmenter, settings.classes,
            stills=settings.stills, host=settings.host, widths=settings.widths, begin=slice_.score_from,
        )  # fmt: skip
    damage = list(frames.damage)
    if isinstance(labels, BagLabels):
        damage += labels.damage
        if slice_.score_from == 0 and slice_.end is None:
            damage += labels.unmatched()
    return {"part": results.to_json(), "damage": damage}


def run_serially(settings: SliceSettings, slices: Sequence[Slice]) -> Iterator[tuple[Slice, dict[str, Any]]]:
    """Evaluate slices in this process, one after the other."""
    for slice_ in slices:
        yield slice_, evaluate_slice(settings, slice_)


def evaluate_slices(
    settings: SliceSettings,
    slices: Sequence[Slice],
    folder: Path,
    origins: Mapping[Path, Any],
    run: SliceRunner = run_serially,
    on_slice: Callable[[Slice], None] = lambda slice_: None,
) -> list[SliceResults]:
    """Evaluate slices, and write the results of each to ``folder/NAME.json`` as soon as they are there.

    A slice whose file exists and has the same origin is not evaluated again.

    Args:
        settings: How to evaluate.
        slices: The slices.
        folder: Created if it does not exist.
        origins: For each recording, plain values that its results depend on.
        run: `run_serially`, or `netwarp_ros.evaluation.ray_runner.run_on_ray`.
        on_slice: Called with each slice when its results are there.

    Returns:
        The results, in the order of the slices.

    Raises:
        ValueError: If a slice cannot be evaluated.
        OSError: If a file cannot be written, or as ``run`` does.
    """
    files = {slice_: folder / f"{slice_.name}.json" for slice_ in slices}
    results: dict[Slice, dict[str, Any]] = {}
    origin_of = {
        slice_: {"recording": origins[slice_.recording], "frames": [slice_.read_from, slice_.score_from, slice_.end]}
        for slice_ in slices
    }
    for slice_, file in files.items():
        kept = _read_results(file)
        if kept and kept["origin"] == origin_of[slice_]:
            results[slice_] = kept
            on_slice(slice_)
    for slice_, result in run(settings, [slice_ for slice_ in slices if slice_ not in results]):
        results[slice_] = result
        with replacing(files[slice_]) as temporary:
            text = json.dumps({"origin": origin_of[slice_], **result}, allow_nan=False)
            temporary.write_text(text, encoding="utf-8")
        on_slice(slice_)
    count = len(settings.classes)
    return [
        SliceResults(PartialResults.from_json(results[slice_]["part"], count), results[slice_]["damage"])
        for slice_ in slices
    ]


def prefix_cameras(recording: Path, results: PartialResults) -> PartialResults:
    """Put the name of a recording before the names of its cameras, so that cameras of several recordings differ."""
    name = recording_name(recording)
    records = [replace(record, camera=f"{name} {record.camera}".strip()) for record in results.records]
    return replace(results, records=records)


def _read_results(file: Path) -> dict[str, Any] | None:
    """Read the results of a slice; None if there is no file, or no valid one."""
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return results if isinstance(results, dict) and results.keys() == {"origin", "part", "damage"} else None


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let PyTorch and OpenCV compute on one thread. The number of threads can change the last digits of a result."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
