# SPDX-License-Identifier: Apache-2.0
"""Results of an evaluation, and their plain values for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from netwarp_ros.metrics import miou


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
class FrameCounts:
    """Pixel counts of one frame: matrices ``(K, K)``, as `ConfusionMatrix.counts`.

    They take 16 bytes for each of the cells that are not 0, 2 to 10 kB in all. So nothing keeps those of many frames.

    Attributes:
        confusion: Labels and predictions; None without a label.
        trimap: Labels and predictions within the trimap, by its width in pixels.
        consistency: Predictions and warped predictions of the frame before, over the pixels that pass `flows_agree`;
            None if there is no frame to compare with.
        unmasked: As ``consistency``, over all pixels whose flow stays within the image.
    """

    confusion: np.ndarray | None = None
    trimap: Mapping[int, np.ndarray] = field(default_factory=dict)
    consistency: np.ndarray | None = None
    unmasked: np.ndarray | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; matrices as by `sparse`."""
        return {
            "confusion": sparse(self.confusion),
            "tiou": {str(width): sparse(counts) for width, counts in self.trimap.items()},
            "tc": sparse(self.consistency),
            "tc_unmasked": sparse(self.unmasked),
        }


@dataclass(frozen=True, slots=True)
class FrameRecord:
    """Scores and timings of one frame.

    Attributes:
        name: Name of the frame.
        camera: Camera of the frame.
        stamp_ns: Stamp of the frame in ns.
        stages_ms: Duration of each stage of the segmenter.
        reason: Why the memory was reset; empty if it was kept.
        is_key: Whether the network was run on the frame.
        wait_ms: Waiting time in the mailbox; 0 unless real time is simulated.
        age_ms: Time from the stamp to the mask; nan unless real time is simulated.
        disagreement: Per cent of the pixels to which the host gives another class; nan without the host.
        labelled: Whether the frame has a label.
        miou: Mean IoU of this frame alone, in per cent; nan without a label.
        tc: Temporal consistency with the frame before, in per cent; nan if there is none to compare with.
        host_miou: `miou` of the host's mask; nan without the host.
        host_tc: `tc` of the host's mask; nan without the host.
    """

    name: str
    camera: str
    stamp_ns: int
    stages_ms: Mapping[str, float]
    reason: str = ""
    is_key: bool = True
    wait_ms: float = 0.0
    age_ms: float = math.nan
    disagreement: float = math.nan
    labelled: bool = False
    miou: float = math.nan
    tc: float = math.nan
    host_miou: float = math.nan
    host_tc: float = math.nan

    @property
    def total_ms(self) -> float:
        """Duration of all stages."""
        return sum(self.stages_ms.values())

    def to_json(self, counts: FrameCounts) -> dict[str, Any]:
        """Return plain values for JSON, with the counts of the frame; its ``miou`` and ``tc`` follow from them."""
        return {
            "name": self.name,
            "camera": self.camera,
            "stamp_ns": self.stamp_ns,
            "stages_ms": {stage: round(value, 3) for stage, value in self.stages_ms.items()},
            "reason": self.reason,
            "is_key": self.is_key,
            "wait_ms": round(self.wait_ms, 3),
            "age_ms": _plain(round(self.age_ms, 3)),
            "disagreement": _plain(self.disagreement),
            **counts.to_json(),
            "host_miou": _plain(self.host_miou),
            "host_tc": _plain(self.host_tc),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], num_classes: int) -> FrameRecord:
        """Undo `to_json`, but for the counts; times stay rounded."""
        numbers: dict[str, Any] = {
            name: math.nan if data[name] is None else data[name]
            for name in ("wait_ms", "age_ms", "disagreement", "host_miou", "host_tc")
        }
        for name, key in (("miou", "confusion"), ("tc", "tc")):
            numbers[name] = mean_iou(None if data[key] is None else dense(data[key], num_classes))
        plain = {name: data[name] for name in ("name", "camera", "stamp_ns", "stages_ms", "reason")}
        return cls(**plain, is_key=data.get("is_key", True), **numbers, labelled=data["confusion"] is not None)


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
    def key_frames(self) -> int:
        """Number of frames that the network was run on."""
        return sum(record.is_key for record in self.records)

    @property
    def segmenting_percent(self) -> float:
        """Per cent of the time for reading and segmenting that went to segmenting. JSON calls it ``share``."""
        return 100 * self.wall_s["segmenting"] / (self.wall_s["segmenting"] + self.wall_s["reading"])

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON, without the records; None stands for nan."""
        return {
            "frames": self.frames,
            "labelled": self.labelled,
            **super().to_json(),
            "host": self.host and self.host.to_json(),
            "disagreement": _plain(self.disagreement),
            "stages_ms": _plain(self.stages_ms),
            "key_frames": self.key_frames,
            "fps": _plain(self.fps),
            "resets": dict(self.resets),
            "dropped": dict(self.dropped),
            "latency_ms": _plain(self.latency_ms),
            "age_ms": _plain(self.age_ms),
            "wall_s": _plain(self.wall_s),
            "share": self.segmenting_percent,
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
        """Return plain values for JSON, without the records."""
        totals = [{name: values.tolist() for name, values in network.items()} for network in self.totals]
        return {"totals": totals, "resets": self.resets, "dropped": self.dropped, "wall_s": self.wall_s}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], records: Sequence[FrameRecord]) -> PartialResults:
        """Undo `to_json`."""
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
    numbers = np.array(pairs, np.int64)
    cells, values = numbers[::2], numbers[1::2]
    if len(cells) != len(values) or (cells.size and (numbers.min() < 0 or cells.max() >= num_classes**2)):
        raise ValueError(f"{len(numbers)} numbers are not pairs of cell and count for {num_classes} classes")
    counts = np.zeros(num_classes**2, np.int64)
    counts[cells] = values
    return counts.reshape(num_classes, num_classes)


def _plain(value: Any) -> Any:
    """Replace nan by None and keys by strings, for JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
