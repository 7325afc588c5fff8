# SPDX-License-Identifier: Apache-2.0
"""Results of an evaluation, in memory and as the JSON of ``netwarp evaluate --json``."""

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
    """Scores of one network's masks, in per cent.

    Void pixels are not counted. A score is nan if no pixel counts for it.

    Attributes:
        miou: Mean IoU over the classes that occur in the labels.
        iou: IoU by class name.
        miiou: Mean instance IoU over the classes that have objects in the labels; nan if there are no object numbers.
        iiou: Instance IoU by class name, for the classes that have one.
        tiou: Mean IoU within the trimap, by its width in pixels.
        tc: Temporal consistency (see `TemporalConsistency`) over the pixels that pass `flows_agree`; nan for stills.
        tc_unmasked: Temporal consistency over all pixels whose flow stays within the image.
        flicker: Flicker by class name (see `TemporalConsistency.flicker`), over the pixels of ``tc``.
        vc: Video consistency (see `VideoConsistency`) by window length in frames; nan if no window is fully labelled.
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
        """Return plain values for JSON; None stands for nan."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(Scores)}

    def measures(self) -> dict[str, float]:
        """Return the scores over all classes that are not nan, by their full names."""
        names = {
            "mean IoU": self.miou,
            "mean instance IoU": self.miiou,
            **{f"trimap IoU, width {width}": value for width, value in self.tiou.items()},
            "temporal consistency": self.tc,
            "temporal consistency, unmasked": self.tc_unmasked,
            **{f"video consistency, {length} frames": value for length, value in self.vc.items()},
        }
        return {name: value for name, value in names.items() if not math.isnan(value)}


@dataclass(frozen=True)
class FrameRecord:
    """Scores and timings of one frame.

    Matrices count pixels, ``(K, K)`` int32, as `ConfusionMatrix.counts` does.

    Attributes:
        name: Name of the frame.
        camera: Camera of the frame.
        stamp_ns: Stamp of the frame in ns.
        stages_ms: Duration of each stage of the segmenter.
        reason: Why the memory was reset; empty if it was kept.
        wait_ms: Waiting time in the mailbox; 0 unless real time is simulated.
        age_ms: Time from the stamp to the mask; nan unless real time is simulated.
        disagreement: Per cent of the pixels to which the host gives another class; nan without the host.
        confusion: Labels and predictions; None without a label.
        trimap: Labels and predictions within the trimap, by its width in pixels.
        consistency: Predictions and warped predictions of the frame before, over the pixels that pass `flows_agree`;
            None if there is no frame to compare with.
        unmasked: As ``consistency``, over all pixels whose flow stays within the image.
        host_miou: `miou` of the host's mask; nan without the host.
        host_tc: `tc` of the host's mask; nan without the host.
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
        """Mean IoU of this frame alone, in per cent; nan without a label."""
        return mean_iou(self.confusion)

    @property
    def tc(self) -> float:
        """Temporal consistency with the frame before, in per cent; nan if there is none to compare with."""
        return mean_iou(self.consistency)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; matrices as by `sparse`."""
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
        """Undo `to_json`; times stay rounded."""
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
    """Results of an evaluation.

    Attributes:
        frames: Number of frames segmented.
        labelled: Number of frames with a label.
        host: Scores of the host on the same frames; None if it was not run.
        disagreement: Per cent of the pixels to which the host gives another class, mean over the frames; nan if it was
            not run.
        stages_ms: Durations of the stages of the segmenter, and their ``total``: p50, p95 and p99 over the frames.
        fps: Frames per second of the segmenter alone, without reading and scoring.
        resets: How often the memory was reset, by reason.
        dropped: By camera, the number of frames that a newer one replaced; empty unless real time is simulated.
        latency_ms: Time from arrival to mask: p50, p95 and p99 over the frames; empty unless real time is simulated.
        age_ms: Time from stamp to mask, in the same form.
        wall_s: Seconds spent on ``reading`` (waiting for frames and labels), ``segmenting`` (the host included), and
            ``scoring``.
        records: Scores and timings of each frame, in order.
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
        """Per cent of the time for reading and segmenting that went to segmenting. JSON calls it ``share``."""
        return 100 * self.wall_s["segmenting"] / (self.wall_s["segmenting"] + self.wall_s["reading"])

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; None stands for nan."""
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
        totals: For each network, the host last: the arrays in which its measures count, by name. Totals of disjoint
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
    """Return the mean IoU of a confusion matrix in per cent; nan for None."""
    return math.nan if counts is None else miou(counts)


def sparse(counts: np.ndarray | None) -> list[int] | None:
    """Return a matrix of counts as a flat list for JSON: index and count of each cell that is not 0, alternating."""
    if counts is None:
        return None
    cells = np.flatnonzero(counts)
    return np.stack([cells, counts.ravel()[cells]], axis=1).ravel().tolist()


def dense(pairs: Sequence[int], num_classes: int) -> np.ndarray:
    """Undo `sparse`: return the matrix ``(K, K)`` int64.

    Raises:
        ValueError: If the list does not hold such pairs.
    """
    cells = np.array(pairs, np.int64).reshape(-1, 2)
    if cells.size and (cells.min() < 0 or cells[:, 0].max() >= num_classes**2):
        raise ValueError(f"{pairs} are not pairs of cell and count for {num_classes} classes")
    counts = np.zeros(num_classes**2, np.int64)
    counts[cells[:, 0]] = cells[:, 1]
    return counts.reshape(num_classes, num_classes)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a file with the keys of `EvaluationResults.to_json`, and perhaps more; each frame on a line of its own.

    The file is written completely or not at all.
    """
    lines = [json.dumps(record, allow_nan=False) for record in data["per_frame"]]
    head = json.dumps({**data, "per_frame": []}, indent=2, allow_nan=False)
    text = head.replace('"per_frame": []', '"per_frame": [\n    ' + ",\n    ".join(lines) + "\n  ]")
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a file written by `write_json`.

    Raises:
        ValueError: If the file is not one.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if not all(
            isinstance(results[key], kind) for key, kind in (("per_frame", list), ("iou", dict), ("tiou", dict))
        ):
            raise TypeError
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} has no scores by frame: give a file of `netwarp evaluate --json`") from error
    return results


def write_csv(path: Path, records: Sequence[FrameRecord]) -> None:
    """Write a table with a line for each frame: times in ms, scores in per cent, empty cells for nan."""
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
    """Replace nan by None and keys by strings, for JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
