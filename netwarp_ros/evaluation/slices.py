# SPDX-License-Identifier: Apache-2.0
"""Many recordings evaluated, slice by slice: one after the other, or at once on Ray.

A slice is judged by itself, on one thread, from frames that are read before it and not scored. So it is the same
wherever and whenever that is done, and what slices add up to is the same, too.
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
from netwarp_ros.flow import estimator
from netwarp_ros.recordings.atomic import replacing
from netwarp_ros.recordings.bags import BagLabels
from netwarp_ros.recordings.frames import FrameSource
from netwarp_ros.recordings.open import open_frames, open_labels
from netwarp_ros.segmenter import Segmenter


@dataclass(frozen=True)
class SliceSettings:
    """How recordings are judged: plain values, for it travels to the workers.

    Attributes:
        segmenter: Arguments of `Segmenter`; the model is a file, and the flow is named.
        classes: What the ids of labels and predictions mean.
        topics: Image topics of each recording.
        label_topics: Topics of their label maps.
        rate: Frames per second, in place of recorded stamps.
        stills: As `score` takes it.
        host: As `score` takes it.
        widths: As `score` takes them.
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
    """Frames of a recording, by their indices.

    Attributes:
        recording: Its path.
        start: The first that is read; those before ``begin`` are the warm-up.
        begin: The first that is scored.
        end: The one after the last; None where that is the last of the recording.
    """

    recording: Path
    start: int
    begin: int
    end: int | None

    @property
    def name(self) -> str:
        """What files of it are called."""
        return f"{recording_name(self.recording)}-{self.begin:06d}"


@dataclass(frozen=True)
class SliceResults:
    """What was found of a slice.

    Attributes:
        results: Of its frames.
        damage: What could not be read or matched.
    """

    results: PartialResults
    damage: Sequence[str]


SliceRunner = Callable[[SliceSettings, Sequence[Slice]], Iterable[tuple[Slice, dict[str, Any]]]]
"""Judges slices by `evaluate_slice` and gives what that returned, in any order."""


def recording_name(recording: Path) -> str:
    """Return what files of a recording are called."""
    return recording.name if recording.is_dir() else recording.stem


def cut_slices(
    job: SliceSettings, recordings: Sequence[Path], *, seconds: float = 0.0, warm_up: int = 0
) -> list[Slice]:
    """Cut recordings into slices.

    Args:
        job: How they are opened.
        recordings: Their paths.
        seconds: Of each slice, at the rate of its recording; 0 for whole recordings.
        warm_up: Frames of each camera before a slice that are segmented for what is remembered of them.

    Raises:
        ValueError: If an argument is < 0, two recordings have the same name, or one cannot be opened.
        FileNotFoundError: If there is none at a path.
    """
    if not 0 <= seconds < float("inf") or warm_up < 0:
        raise ValueError(f"slice is {seconds} s, warm-up is {warm_up}: give seconds >= 0 and frames >= 0")
    seen: dict[str, Path] = {}
    slices = []
    for recording in recordings:
        other = seen.setdefault(recording_name(recording), recording)
        if other is not recording:
            raise ValueError(f"{other} and {recording} have the same name, which results go by: rename one")
        frames, _ = job.open(recording)
        cameras, count = len(frames.cameras), len(frames)
        length = max(1, round(seconds * frames.rate * cameras)) if seconds else max(1, count)
        begins = range(0, max(1, count), length)
        for begin in begins:
            end = None if begin == begins[-1] else begin + length
            slices.append(Slice(recording, max(0, begin - warm_up * cameras), begin, end))
    return slices


def evaluate_slice(job: SliceSettings, slice_: Slice) -> dict[str, Any]:
    """Judge a slice, and return what JSON can hold: ``part`` (of `PartialResults.to_json`) and ``damage``."""
    with _one_thread():
        frames, labels = job.open(slice_.recording)
        segmenter = Segmenter(**{**job.segmenter, "flow": estimator(job.segmenter["flow"])})
        results = score_frames(
            frames.read(slice_.start, slice_.end), labels, segmenter, job.classes,
            stills=job.stills, host=job.host, widths=job.widths, begin=slice_.begin,
        )  # fmt: skip
    damage = list(frames.damage)
    if isinstance(labels, BagLabels):
        damage += labels.damage
        if slice_.begin == 0 and slice_.end is None:
            damage += labels.unmatched()
    return {"part": results.to_json(), "damage": damage}


def run_serially(job: SliceSettings, slices: Sequence[Slice]) -> Iterator[tuple[Slice, dict[str, Any]]]:
    """Judge slices in this process, one after the other."""
    for slice_ in slices:
        yield slice_, evaluate_slice(job, slice_)


def evaluate_slices(
    job: SliceSettings,
    slices: Sequence[Slice],
    folder: Path,
    origins: Mapping[Path, Any],
    run: SliceRunner = run_serially,
    on_slice: Callable[[Slice], None] = lambda slice_: None,
) -> list[SliceResults]:
    """Judge slices, and keep what is found of each in a file of its own as it comes: ``folder/NAME.json``.

    What such a file has already is not done again, if it comes from the same.

    Args:
        job: How.
        slices: Which.
        folder: Made where there is none.
        origins: By recording, all that its results come from, as JSON can hold it.
        run: Where: `run_serially`, or `run_on_ray`.
        on_slice: Is shown every slice when it is there.

    Returns:
        What was found, in the order of the slices.

    Raises:
        ValueError: If a slice cannot be judged.
        OSError: If a file cannot be written, or as `run` does.
    """
    found: dict[Slice, dict[str, Any]] = {}
    origin_of = {
        slice_: {"recording": origins[slice_.recording], "frames": [slice_.start, slice_.begin, slice_.end]}
        for slice_ in slices
    }
    for slice_ in slices:
        kept = _kept(folder / f"{slice_.name}.json")
        if kept and kept["origin"] == origin_of[slice_]:
            found[slice_] = kept
            on_slice(slice_)
    for slice_, result in run(job, [slice_ for slice_ in slices if slice_ not in found]):
        found[slice_] = result
        with replacing(folder / f"{slice_.name}.json") as temporary:
            text = json.dumps({"origin": origin_of[slice_], **result}, allow_nan=False)
            temporary.write_text(text, encoding="utf-8")
        on_slice(slice_)
    count = len(job.classes)
    return [
        SliceResults(PartialResults.from_json(found[slice_]["part"], count), found[slice_]["damage"])
        for slice_ in slices
    ]


def prefix_cameras(recording: Path, part: PartialResults) -> PartialResults:
    """Return a part whose cameras are named by their recording, too, to stand among those of others."""
    name = recording_name(recording)
    return replace(part, records=[replace(each, camera=f"{name} {each.camera}".strip()) for each in part.records])


def _kept(path: Path) -> dict[str, Any] | None:
    """Read what was kept of a slice; None where nothing was, or nothing that can be used."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return kept if isinstance(kept, dict) and kept.keys() == {"origin", "part", "damage"} else None


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let PyTorch and OpenCV compute on one thread: how they share work among several can show in what comes out."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
