# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found, in memory and as the JSON of ``netwarp evaluate --json``."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from netwarp_ros.metrics import miou
from netwarp_ros.recordings.atomic import replacing


@dataclass(frozen=True)
class Scores:
    """What the masks of one network scored, in per cent; void pixels not counted, nan where nothing was to be scored.

    Attributes:
        miou: Mean IoU over the classes that occur in the labels.
        iou: IoU by class name.
        miiou: Mean instance IoU over the classes that have objects in the labels; nan where objects are not told apart.
        iiou: Instance IoU by class name, of the classes that have one.
        tiou: Mean IoU within the trimap, by its width in pixels.
        tc: Temporal consistency of the predictions (see `TemporalConsistency`), over pixels whose flow is trusted; nan
            where the frames are no stream.
        tc_unmasked: The same over all pixels whose flow stays within the image.
        flicker: Of the pixels that are of a class in a frame or in the one before, the part that is not in both, by
            class name; over pixels whose flow is trusted.
        vc: Video consistency (see `VideoConsistency`) by number of frames; nan where not as many are labelled in a row.
    """

    miou: float
    iou: Mapping[str, float]
    miiou: float
    iiou: Mapping[str, float]
    tiou: Mapping[int, float]
    tc: float
    tc_unmasked: float
    flicker: Mapping[str, float]
    vc: Mapping[int, float]

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold: its keys are texts, and None stands for nan."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(Scores)}

    def measures(self) -> dict[str, float]:
        """Return the scores that are of no single class, by what they are called, but for those that there are not."""
        named = {
            "mean IoU": self.miou,
            "mean instance IoU": self.miiou,
            **{f"trimap IoU, width {width}": value for width, value in self.tiou.items()},
            "temporal consistency": self.tc,
            "temporal consistency, unmasked": self.tc_unmasked,
            **{f"video consistency, {length} frames": value for length, value in self.vc.items()},
        }
        return {name: value for name, value in named.items() if not math.isnan(value)}


@dataclass(frozen=True)
class FrameRecord:
    """What became of one frame; matrices are counts of pixels, ``(K, K)`` int32, as of `ConfusionMatrix`.

    Attributes:
        name: Of the frame.
        camera: Where it comes from.
        stamp_ns: When it was taken.
        stages_ms: Duration of each stage of the segmenter.
        reason: Why the memory started anew; empty where it was kept.
        wait_ms: How long it waited for its turn; 0 unless the recording was taken in real time.
        age_ms: From its stamp to its mask; nan unless the recording was taken in real time.
        disagreement: Part of its pixels, in per cent, that the host sees otherwise; nan without the host.
        confusion: Label and prediction; None without a label.
        trimap: The same within the trimap, by its width.
        consistency: This prediction and the one before it, over pixels whose flow is trusted; None without one.
        unmasked: The same over all pixels whose flow stays within the image.
        host_miou: What `miou` is for the host; nan without it.
        host_tc: What `tc` is for the host; nan without it.
    """

    name: str
    camera: str
    stamp_ns: int
    stages_ms: Mapping[str, float]
    reason: str = ""
    wait_ms: float = 0.0
    age_ms: float = math.nan
    disagreement: float = math.nan
    confusion: np.ndarray | None = None
    trimap: Mapping[int, np.ndarray] = field(default_factory=dict)
    consistency: np.ndarray | None = None
    unmasked: np.ndarray | None = None
    host_miou: float = math.nan
    host_tc: float = math.nan

    @property
    def total_ms(self) -> float:
        """Duration of all stages."""
        return sum(self.stages_ms.values())

    @property
    def miou(self) -> float:
        """Mean IoU of the frame by itself, in per cent; nan without a label."""
        return mean_iou(self.confusion)

    @property
    def tc(self) -> float:
        """Temporal consistency with the frame before, in per cent; nan without one."""
        return mean_iou(self.consistency)

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold; matrices as `sparse` makes them."""
        return {
            "name": self.name,
            "camera": self.camera,
            "stamp_ns": self.stamp_ns,
            "stages_ms": {stage: round(value, 3) for stage, value in self.stages_ms.items()},
            "reason": self.reason,
            "wait_ms": round(self.wait_ms, 3),
            "age_ms": _plain(round(self.age_ms, 3)),
            "disagreement": _plain(self.disagreement),
            "confusion": sparse(self.confusion),
            "tiou": {str(width): sparse(counts) for width, counts in self.trimap.items()},
            "tc": sparse(self.consistency),
            "tc_unmasked": sparse(self.unmasked),
            "host_miou": _plain(self.host_miou),
            "host_tc": _plain(self.host_tc),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], num_classes: int) -> FrameRecord:
        """Return what `to_json` was given, its times rounded."""
        matrices: dict[str, Any] = {
            name: None if data[key] is None else dense(data[key], num_classes)
            for name, key in (("confusion", "confusion"), ("consistency", "tc"), ("unmasked", "tc_unmasked"))
        }
        numbers: dict[str, Any] = {
            name: math.nan if data[name] is None else data[name]
            for name in ("wait_ms", "age_ms", "disagreement", "host_miou", "host_tc")
        }
        trimap = {int(width): dense(pairs, num_classes) for width, pairs in data["tiou"].items()}
        plain = {name: data[name] for name in ("name", "camera", "stamp_ns", "stages_ms", "reason")}
        return cls(**plain, **numbers, **matrices, trimap=trimap)


@dataclass(frozen=True)
class EvaluationResults(Scores):
    """What an evaluation found.

    Attributes:
        frames: Frames segmented.
        labelled: Those of them that had a label.
        host: What the host scored on the same frames by itself; None where it was not run.
        disagreement: Part of the pixels, in per cent, that the host sees otherwise; nan where it was not run.
        stages_ms: Durations by stage of the segmenter, and their ``total``, as p50, p95 and p99 over the frames.
        fps: Frames per second of the segmenter alone, without reading and scoring.
        resets: How often the memory started anew, by reason.
        dropped: Frames by camera that newer ones displaced, where the recording was taken in real time.
        latency_ms: From the arrival of a frame to its mask, as p50, p95 and p99, in real time; else empty.
        age_ms: From the stamp of a frame to its mask, likewise.
        wall_s: What the time went to: ``reading`` (waiting for frames and labels, that is), ``segmenting``, the host
            included, and ``scoring``.
        records: What became of each frame, in their order.
    """

    frames: int
    labelled: int
    host: Scores | None
    disagreement: float
    stages_ms: Mapping[str, Mapping[str, float]]
    fps: float
    resets: Mapping[str, int]
    dropped: Mapping[str, int]
    latency_ms: Mapping[str, float]
    age_ms: Mapping[str, float]
    wall_s: Mapping[str, float]
    records: Sequence[FrameRecord]

    @property
    def segmenting_percent(self) -> float:
        """Part of the time, scoring left out, in per cent, that went to segmenting; the rest is waiting for frames."""
        return 100 * self.wall_s["segmenting"] / (self.wall_s["segmenting"] + self.wall_s["reading"])

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold: its keys are texts, and None stands for nan."""
        return {
            "frames": self.frames,
            "labelled": self.labelled,
            **super().to_json(),
            "host": self.host and self.host.to_json(),
            "disagreement": _plain(self.disagreement),
            "stages_ms": _plain(self.stages_ms),
            "fps": _plain(self.fps),
            "resets": dict(self.resets),
            "dropped": dict(self.dropped),
            "latency_ms": _plain(self.latency_ms),
            "age_ms": _plain(self.age_ms),
            "wall_s": _plain(self.wall_s),
            "share": self.segmenting_percent,
            "per_frame": [record.to_json() for record in self.records],
        }


@dataclass(frozen=True)
class PartialResults:
    """Results for some of the frames of a recording, or for all of them.

    Attributes:
        records: Scores and timings of each frame.
        totals: For each network, the host's last: the arrays that its measures count in, by name. Totals of disjoint
            frames may be added up.
        resets: How often the memory was reset, by reason.
        dropped: By camera, the number of frames that a newer one replaced.
        wall_s: Seconds spent on ``reading``, ``segmenting`` and ``scoring``.
    """

    records: Sequence[FrameRecord]
    totals: Sequence[Mapping[str, np.ndarray]]
    resets: Mapping[str, int]
    dropped: Mapping[str, int]
    wall_s: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        totals = [{name: values.tolist() for name, values in network.items()} for network in self.totals]
        return {**vars(self), "totals": totals, "records": [record.to_json() for record in self.records]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], num_classes: int) -> PartialResults:
        """Undo `to_json`; times of frames stay rounded."""
        records = [FrameRecord.from_json(record, num_classes) for record in data["records"]]
        totals = [{name: np.array(values) for name, values in network.items()} for network in data["totals"]]
        return cls(records, totals, data["resets"], data["dropped"], data["wall_s"])


def mean_iou(counts: np.ndarray | None) -> float:
    """Return the mean IoU of a matrix of counts in per cent; nan where there is none."""
    return math.nan if counts is None else miou(counts)


def sparse(counts: np.ndarray | None) -> list[int] | None:
    """Return a matrix of counts as JSON can hold it: index and count of each cell that is not 0, by turns."""
    if counts is None:
        return None
    cells = np.flatnonzero(counts)
    return np.stack([cells, counts.ravel()[cells]], axis=1).ravel().tolist()


def dense(pairs: Sequence[int], num_classes: int) -> np.ndarray:
    """Return the matrix ``(K, K)`` int64 that `sparse` was given.

    Raises:
        ValueError: If these are no such pairs.
    """
    cells = np.array(pairs, np.int64).reshape(-1, 2)
    if cells.size and (cells.min() < 0 or cells[:, 0].max() >= num_classes**2):
        raise ValueError(f"{pairs} are no counts of {num_classes} classes")
    counts = np.zeros(num_classes**2, np.int64)
    counts[cells[:, 0]] = cells[:, 1]
    return counts.reshape(num_classes, num_classes)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write what `EvaluationResults.to_json` returned, and more, with a line for each frame; whole or not at all."""
    lines = [json.dumps(record, allow_nan=False) for record in data["per_frame"]]
    head = json.dumps({**data, "per_frame": []}, indent=2, allow_nan=False)
    text = head.replace('"per_frame": []', '"per_frame": [\n    ' + ",\n    ".join(lines) + "\n  ]")
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        ValueError: If the file is no such JSON.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if not all(
            isinstance(results[key], kind) for key, kind in (("per_frame", list), ("iou", dict), ("tiou", dict))
        ):
            raise TypeError
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} has no scores frame by frame: give what `netwarp evaluate --json` wrote") from error
    return results


def write_csv(path: Path, records: Sequence[FrameRecord]) -> None:
    """Write a line for each frame: times in ms, scores in per cent, and nothing where there is no score."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        stages = list(records[0].stages_ms) if records else []
        table = csv.writer(file)
        names = ["name", "camera", "stamp_ns", "reason"]
        times = [f"{stage}_ms" for stage in (*stages, "total", "wait", "age")]
        table.writerow([*names, *times, "miou", "tc", "disagreement"])
        for record in records:
            durations = [*(record.stages_ms[stage] for stage in stages), record.total_ms, record.wait_ms, record.age_ms]
            values = [*durations, record.miou, record.tc, record.disagreement]
            table.writerow(
                [record.name, record.camera, record.stamp_ns, record.reason]
                + ["" if math.isnan(value) else f"{value:.3f}" for value in values]
            )


def _plain(value: Any) -> Any:
    """Return a number, or a mapping of them, as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
