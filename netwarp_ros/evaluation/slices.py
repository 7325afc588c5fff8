# SPDX-License-Identifier: Apache-2.0
"""Recordings cut into slices, which are evaluated one by one.

The result of a slice depends on the slice alone: each has a segmenter of its own, runs on one thread, and reads
some frames before its first one to fill the memory. So scores do not depend on the process and the order in which
slices are evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import torch

from netwarp_ros.classes import ClassSet
from netwarp_ros.engines import EngineError
from netwarp_ros.evaluation.result_files import FramesFile, FrameSpool, write_json
from netwarp_ros.evaluation.results import FrameRecord, PartialResults
from netwarp_ros.evaluation.scoring import TRIMAP_WIDTHS, Labels, score_frames
from netwarp_ros.recordings.bags import BagLabels
from netwarp_ros.recordings.ego_masks import NO_EGO_MASKS, EgoMasks
from netwarp_ros.recordings.frames import FrameSource
from netwarp_ros.recordings.open import open_frames, open_labels
from netwarp_ros.segmenter import Segmenter

Opened = tuple[FrameSource, Labels | None]
"""A recording and its label maps."""


@dataclass(frozen=True)
class SliceSettings:
    """How recordings are opened and evaluated; plain values, which can be sent to other processes.

    Attributes:
        segmenter: Arguments of `Segmenter`. The model is a file, the flow the name of an estimator, and the label map a
            name or a file.
        classes: The classes of labels and masks.
        topics: Image topics of each recording.
        label_topics: Topics of the label maps, in the order of ``topics``.
        rate: Frames per second, instead of the recorded stamps.
        stills: As in `score_frames`.
        host: As in `score_frames`.
        widths: As in `score_frames`.
        ego_masks: As in `score_frames`.
    """

    segmenter: Mapping[str, Any]
    classes: ClassSet
    topics: Sequence[str] = ()
    label_topics: Sequence[str] = ()
    rate: float | None = None
    stills: bool = False
    host: bool = False
    widths: Sequence[int] = TRIMAP_WIDTHS
    ego_masks: EgoMasks = NO_EGO_MASKS

    def open(self, recording: Path) -> Opened:
        """Open a recording and its label maps.

        Raises:
            ValueError: An ego mask is of a camera that the recording does not have.
        """
        frames = open_frames(recording, rate=self.rate, topics=self.topics, leave_out=self.label_topics)
        self.ego_masks.check_cameras(frames.cameras)
        return frames, open_labels(frames, recording, None, self.label_topics, self.classes)


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
        file: Holds them, and the JSON of each frame.
    """

    results: PartialResults
    damage: Sequence[str]
    file: FramesFile


EvaluatedSlice = tuple[Slice, dict[str, Any], Iterable[dict[str, Any]]]
"""A slice, what `evaluate_slice` returned, and the JSON of its frames."""

SliceRunner = Callable[[SliceSettings, Sequence[Slice], Path], Iterable[EvaluatedSlice]]
"""Calls `evaluate_slice` for each slice, and yields the results in any order; temporary files go into the folder."""


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


def evaluate_slice(
    settings: SliceSettings, slice_: Slice, opened: Opened, add_frame: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Evaluate a slice.

    Args:
        settings: How to evaluate.
        slice_: The slice.
        opened: Its recording, opened once for all its slices.
        add_frame: Called with the JSON of each frame.

    Returns:
        Plain values: ``results`` (of `PartialResults.to_json`) and ``damage``.
    """
    frames, labels = opened
    with _one_thread():
        segmenter = _segmenter(**settings.segmenter)
        results = score_frames(
            frames.read(slice_.read_from, slice_.end), labels, segmenter, settings.classes,
            stills=settings.stills, host=settings.host, widths=settings.widths, begin=slice_.score_from,
            ego_masks=settings.ego_masks,
            on_frame=lambda scored: add_frame(scored.to_json()),
        )  # fmt: skip
    damage = list(frames.damage)
    if isinstance(labels, BagLabels):
        damage += labels.damage
        if slice_.score_from == 0 and slice_.end is None:
            damage += labels.unmatched()
    return {"results": results.to_json(), "damage": damage}


@lru_cache(maxsize=1)  # an engine takes seconds to start, and a process evaluates many slices
def _segmenter(**arguments: Any) -> Segmenter:
    """Return the segmenter of the slices, on one thread.

    Raises:
        EngineError: If another engine than asked for would run: its scores would differ from other processes'.
    """
    segmenter = Segmenter(**{**arguments, "threads": 1})
    if segmenter.engine_problem:
        raise EngineError(f"engine {segmenter.engine.name} is in use: {segmenter.engine_problem}")
    return segmenter


def run_serially(settings: SliceSettings, slices: Sequence[Slice], folder: Path) -> Iterator[EvaluatedSlice]:
    """Evaluate slices in this process, one after the other."""
    for recording, own in groupby(slices, key=lambda slice_: slice_.recording):
        opened = settings.open(recording)
        for slice_ in own:
            with FrameSpool(folder) as frames:
                yield slice_, evaluate_slice(settings, slice_, opened, frames.add), frames


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
    folder.mkdir(parents=True, exist_ok=True)
    files = {slice_: folder / f"{slice_.name}.json" for slice_ in slices}
    origin_of = {
        slice_: {"recording": origins[slice_.recording], "frames": [slice_.read_from, slice_.score_from, slice_.end]}
        for slice_ in slices
    }
    results: dict[Slice, SliceResults] = {}

    def read_kept(slice_: Slice) -> None:
        kept = _read_results(files[slice_], origin_of[slice_], len(settings.classes))
        if kept:
            results[slice_] = kept
            on_slice(slice_)

    for slice_ in slices:
        read_kept(slice_)
    for slice_, result, frames in run(settings, [slice_ for slice_ in slices if slice_ not in results], folder):
        write_json(files[slice_], {"origin": origin_of[slice_], **result}, frames)
        read_kept(slice_)
    return [results[slice_] for slice_ in slices]


def prefix_cameras(recording: Path, results: PartialResults) -> PartialResults:
    """Put the name of a recording before the names of its cameras, so that cameras of several recordings differ."""
    records = [replace(record, camera=prefixed(recording, record.camera)) for record in results.records]
    return replace(results, records=records)


def prefixed(recording: Path, camera: str) -> str:
    """Return the name of a camera with that of its recording before it."""
    return f"{recording_name(recording)} {camera}".strip()


def _read_results(file: Path, origin: Mapping[str, Any], num_classes: int) -> SliceResults | None:
    """Read the results of a slice; None if there is no file, or no valid one of this origin."""
    try:
        kept = FramesFile(file)
        if not {"origin", "results", "damage"} <= kept.head.keys() or kept.head["origin"] != origin:
            return None
        records = [FrameRecord.from_json(frame, num_classes) for frame in kept.frames()]
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return SliceResults(PartialResults.from_json(kept.head["results"], records), kept.head["damage"], kept)


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
