# SPDX-License-Identifier: Apache-2.0
"""A model judged on recorded frames: scores against labels, consistency over time, and speed."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np

from netwarp_ros.classes import ClassSet
from netwarp_ros.evaluation.results import EvaluationResults, FrameRecord, Scores, mean_iou
from netwarp_ros.flow import FlowFolder
from netwarp_ros.mailbox import SimulatedRealtime
from netwarp_ros.metrics import (
    ConfusionMatrix,
    InstanceIoU,
    TemporalConsistency,
    TrimapIoU,
    VideoConsistency,
    boundary_distance,
    flows_agree,
)
from netwarp_ros.offline import segment_frame
from netwarp_ros.recordings.frames import Frame, read_ahead
from netwarp_ros.segmenter import Segmenter, Stream
from netwarp_ros.timing import Stopwatch, percentiles

TRIMAP_WIDTHS = (1, 2, 4, 8, 16, 32)
"""Half widths in pixels of the bands for which trimap IoU is reported; the paper's tables are at 2."""

VIDEO_LENGTHS = (8, 16)
"""Numbers of frames for which video consistency is reported, as is usual on VSPW."""

Labels = Callable[[Frame], np.ndarray | None]
"""Gives the label map of a frame, ``(H, W)`` of class ids or void, or None where it has none."""


@dataclass(frozen=True)
class ScoredFrame:
    """One frame with all that was made of it.

    Attributes:
        record: What became of it.
        frame: The frame.
        mask: ``(H, W)`` uint8 class ids.
        host_mask: What the host makes of it, or None where it is not run.
        label: Its label map, or None.
    """

    record: FrameRecord
    frame: Frame
    mask: np.ndarray
    host_mask: np.ndarray | None
    label: np.ndarray | None


@dataclass(frozen=True)
class PartialResults:
    """What was found of a part of a recording, or of all of it.

    Attributes:
        records: What became of each frame.
        totals: What the masks of each network add up to, the host's last: arrays that may be added to those of other
            parts, by what they are of.
        resets: How often the memory started anew, by reason.
        dropped: Frames by camera that newer ones displaced.
        wall_s: What the time went to.
    """

    records: Sequence[FrameRecord]
    totals: Sequence[Mapping[str, np.ndarray]]
    resets: Mapping[str, int]
    dropped: Mapping[str, int]
    wall_s: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        totals = [{name: values.tolist() for name, values in network.items()} for network in self.totals]
        return {**vars(self), "totals": totals, "records": [record.to_json() for record in self.records]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], num_classes: int) -> PartialResults:
        """Return what `to_json` was given, its times rounded."""
        records = [FrameRecord.from_json(record, num_classes) for record in data["records"]]
        totals = [{name: np.array(values) for name, values in network.items()} for network in data["totals"]]
        return cls(records, totals, data["resets"], data["dropped"], data["wall_s"])


def evaluate(
    frames: Iterable[Frame],
    labels: Labels | None,
    segmenter: Segmenter,
    classes: ClassSet,
    *,
    stills: bool = False,
    realtime: bool = False,
    host: bool = False,
    widths: Sequence[int] = TRIMAP_WIDTHS,
    instances: Labels | None = None,
    sizes: Mapping[int, float] | None = None,
    flows: FlowFolder | None = None,
    on_frame: Callable[[ScoredFrame], None] = lambda moment: None,
) -> EvaluationResults:
    """Evaluate a recording as a whole; its arguments are those of `score_frames`.

    Raises:
        ValueError: As `score_frames`; if there is no frame; or if labels are to be had but no frame has one.
        FileNotFoundError: If a flow is missing.
    """
    part = score_frames(
        frames, labels, segmenter, classes, stills=stills, realtime=realtime, host=host, widths=widths,
        instances=instances, sizes=sizes, flows=flows, on_frame=on_frame,
    )  # fmt: skip
    return summarise([part], classes, labelled=labels is not None, widths=widths, sizes=sizes)


def score_frames(
    frames: Iterable[Frame],
    labels: Labels | None,
    segmenter: Segmenter,
    classes: ClassSet,
    *,
    stills: bool = False,
    realtime: bool = False,
    host: bool = False,
    widths: Sequence[int] = TRIMAP_WIDTHS,
    instances: Labels | None = None,
    sizes: Mapping[int, float] | None = None,
    flows: FlowFolder | None = None,
    on_frame: Callable[[ScoredFrame], None] = lambda moment: None,
    begin: int = 0,
) -> PartialResults:
    """Segment frames in their order, those of each camera as one stream, and score the masks.

    Args:
        frames: The recording; a few frames at a time are held, for they are read ahead.
        labels: Gives the label maps; frames without one take part in all but the scores against labels. None where
            there are none at all.
        segmenter: Warmed up here, at the size of the first frame.
        classes: What the ids of labels and predictions mean.
        stills: Start anew at each image, as for pictures that are no stream; there is no temporal consistency then.
        realtime: Take the recording at its own rate, as the node would: a frame that comes while another is in work is
            displaced by the next one. Otherwise every frame is taken, however long that takes.
        host: Run the host by itself on the same frames, too, and score its masks.
        widths: Of the trimap, in pixels.
        instances: Gives which object each pixel of a labelled frame is of, as `InstanceIoU.update` takes it.
        sizes: Average sizes of objects, as `InstanceIoU` takes them.
        flows: Flow that is known beforehand; by default the segmenter estimates it.
        on_frame: Is shown every frame when it is scored.
        begin: Index of the first frame to be scored. Those before it are segmented all the same, for what is remembered
            of them.

    Raises:
        ValueError: If the model was not trained on these classes, a label map or a flow does not fit, or the host or
            known flow is to be used in real time.
        FileNotFoundError: If a flow is missing.
    """
    classes.check_names(segmenter.model.spec.classes, f"model {segmenter.model.name}")
    if realtime and host:
        raise ValueError("in real time there is no time for the host: leave out one of the two")
    if realtime and flows:
        raise ValueError("in real time frames are lost, which known flow leads to: let it be estimated")
    segmenters = [segmenter, _host_of(segmenter)] if host else [segmenter]
    scoring = _Scoring(classes, widths, sizes, len(segmenters), segmenter.max_gap)
    streams: dict[str, list[Stream]] = {}
    records: list[FrameRecord] = []
    wall = Stopwatch()

    coming = read_ahead(_read(frames, labels, instances))
    clock = SimulatedRealtime(
        coming, camera=lambda taken: taken.frame.camera, arrival_ns=lambda taken: taken.frame.arrival_ns
    )
    for taken, wait_ms in clock if realtime else ((taken, 0.0) for taken in coming):
        frame = taken.frame
        wall.lap("reading")
        if not streams:
            for each in segmenters:
                each.warm_up(frame.image.shape[1], frame.image.shape[0])
            wall.restart()
        if frame.camera not in streams:
            streams[frame.camera] = [each.stream() for each in segmenters]
        results = []
        for stream in streams[frame.camera]:
            if stills:
                stream.reset()
            results.append(segment_frame(stream, frame, flows))
        total_ms, age_ms = sum(results[0].stages_ms.values()), math.nan
        if realtime:
            clock.work(total_ms)
            age_ms = (frame.arrival_ns - frame.stamp_ns) * 1e-6 + wait_ms + total_ms
        wall.lap("segmenting")
        masks = [result.mask for result in results]
        if frame.index < begin:
            scoring.see(frame, masks)
            continue
        record = FrameRecord(
            name=frame.name,
            camera=frame.camera,
            stamp_ns=frame.stamp_ns,
            stages_ms=results[0].stages_ms,
            reason=results[0].reason,
            wait_ms=wait_ms,
            age_ms=age_ms,
            disagreement=100 * float(np.mean(masks[0] != masks[1])) if host else math.nan,
            **scoring.score(taken, masks, stills=stills),
        )
        records.append(record)
        on_frame(ScoredFrame(record, frame, masks[0], masks[1] if host else None, taken.label))
        wall.lap("scoring")

    resets = Counter(record.reason for record in records if record.reason) if segmenter.uses_netwarp else {}
    return PartialResults(records, scoring.totals(), dict(resets), dict(clock.dropped), dict(wall.laps))


def summarise(
    parts: Sequence[PartialResults],
    classes: ClassSet,
    *,
    labelled: bool,
    widths: Sequence[int] = TRIMAP_WIDTHS,
    sizes: Mapping[int, float] | None = None,
) -> EvaluationResults:
    """Bring parts together, in their order: what they add up to is scored.

    Args:
        parts: What `score_frames` returned.
        classes: As they were scored with, and what follows.
        labelled: Whether there are to be labels.
        widths: Of the trimap.
        sizes: Average sizes of objects.

    Raises:
        ValueError: If there is no frame, or none is labelled that should be.
    """
    records = [record for part in parts for record in part.records]
    if not records:
        raise ValueError("there is no frame to evaluate")
    count = sum(record.confusion is not None for record in records)
    if labelled and not count:
        raise ValueError(
            f"none of the {len(records)} frames has a label: labels must be named like the images, NAME.png, or have "
            "their stamps"
        )
    durations = {stage: [record.stages_ms[stage] for record in records] for stage in records[0].stages_ms}
    durations["total"] = [record.total_ms for record in records]
    scores = []
    for of_parts in zip(*(part.totals for part in parts), strict=True):
        judge = _NetworkScores(classes, widths, sizes)
        for totals in of_parts:
            judge.add(totals)
        scores.append(judge.scores())
    realtime = not math.isnan(records[0].age_ms)
    return EvaluationResults(
        **vars(scores[0]),
        frames=len(records),
        labelled=count,
        host=scores[1] if len(scores) > 1 else None,
        disagreement=float(np.mean([record.disagreement for record in records])),
        stages_ms={stage: percentiles(values) for stage, values in durations.items()},
        fps=1e3 * len(records) / sum(durations["total"]),
        resets=_sum(part.resets for part in parts),
        dropped=_sum(part.dropped for part in parts),
        latency_ms=percentiles(record.wait_ms + record.total_ms for record in records) if realtime else {},
        age_ms=percentiles(record.age_ms for record in records) if realtime else {},
        wall_s=_sum(part.wall_s for part in parts),
        records=records,
    )


def consistency_flow(present: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """Estimate the flow that temporal consistency is measured along, ``(H, W, 2)`` float32, from present to previous.

    It is Farnebäck's (SCIA 2003), which no segmenter of this package uses: a network judged along the flow it is given
    would be right by definition. On CamVid's video it carries labels from frame to frame as well as DIS does.

    Args:
        present: ``(H, W)`` uint8, grey.
        previous: The same of the frame before.
    """
    estimator = cv2.FarnebackOpticalFlow.create(
        numLevels=5, winSize=21, numIters=3, polyN=7, polySigma=1.5, flags=cv2.OPTFLOW_FARNEBACK_GAUSSIAN
    )
    return estimator.calc(present, previous, np.empty((*present.shape, 2), np.float32))


class _Taken(NamedTuple):
    """A frame, its label map, and which object each of its pixels is of; None where it has none."""

    frame: Frame
    label: np.ndarray | None
    objects: np.ndarray | None


def _read(frames: Iterable[Frame], labels: Labels | None, instances: Labels | None) -> Iterator[_Taken]:
    """Read the frames, and of each what it is labelled with."""
    for frame in frames:
        yield _Taken(frame, labels and labels(frame), instances and instances(frame))


def _sum(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up the numbers of each name."""
    total: dict[str, Any] = defaultdict(int)
    for part in parts:
        for name, number in part.items():
            total[name] += number
    return dict(total)


def _host_of(segmenter: Segmenter) -> Segmenter:
    """Return a segmenter that runs the same host, on the same device and in the same way, without NetWarp."""
    return Segmenter(
        segmenter.model,
        flow=segmenter.flow,
        device=str(segmenter.device),
        precision=segmenter.precision,
        input_height=segmenter.input_height,
        host_only=True,
        inference=segmenter.inference,
    )


@dataclass(frozen=True)
class _MaskedFrame:
    """A frame as temporal consistency sees it: its stamp, its grey image, and the mask of each network."""

    stamp_ns: int
    grey: np.ndarray
    masks: Sequence[np.ndarray]

    def follows(self, previous: _MaskedFrame, max_gap: float) -> bool:
        """Tell whether it is of the same stream, no later than max_gap seconds after the previous frame."""
        seconds = (self.stamp_ns - previous.stamp_ns) * 1e-9
        return self.grey.shape == previous.grey.shape and 0 < seconds <= max_gap


class _Scoring:
    """Scores the masks that a network, and perhaps its host, make of the same frames.

    Args:
        classes: What the ids mean.
        widths: Of the trimap.
        sizes: Average sizes of objects, as `InstanceIoU` takes them.
        networks: How many there are: 1, or 2 with the host.
        max_gap: Seconds between two frames of a camera over which they are not compared.
    """

    def __init__(
        self,
        classes: ClassSet,
        widths: Sequence[int],
        sizes: Mapping[int, float] | None,
        networks: int,
        max_gap: float,
    ) -> None:
        self._judges = [_NetworkScores(classes, widths, sizes) for _ in range(networks)]
        self._max_gap = max_gap
        self._previous: dict[str, _MaskedFrame] = {}

    def score(self, taken: _Taken, masks: Sequence[np.ndarray], *, stills: bool) -> dict[str, Any]:
        """Score the masks of a frame; return what `FrameRecord` holds of it, by its names there."""
        frame, label, objects = taken
        previous = self._previous.pop(frame.camera, None)
        present = self.see(frame, masks)
        counts: list[dict[str, Any]] = [{} for _ in masks]
        if previous and present.follows(previous, self._max_gap):
            reverse = consistency_flow(present.grey, previous.grey)
            trusted = flows_agree(reverse, consistency_flow(previous.grey, present.grey))
            for judge, mask, before, counted in zip(self._judges, masks, previous.masks, counts, strict=True):
                counted["consistency"] = _small(judge.consistency.update(mask, before, reverse, where=trusted))
                counted["unmasked"] = _small(judge.unmasked.update(mask, before, reverse))
        if stills:
            del self._previous[frame.camera]

        for judge in self._judges:
            if label is None or "consistency" not in counts[0]:
                judge.video.restart(frame.camera)
        if label is not None:
            try:
                distance = boundary_distance(label)
                for judge, mask, counted in zip(self._judges, masks, counts, strict=True):
                    counted["confusion"] = _small(judge.confusion.update(mask, label))
                    trimap = judge.trimap.update(mask, label, distance)
                    counted["trimap"] = {width: _small(of_width) for width, of_width in trimap.items()}
                    judge.video.update(mask, label, frame.camera)
                    if objects is not None:
                        judge.instance.update(mask, label, objects)
            except ValueError as error:
                raise ValueError(f"the label of {frame.name} does not fit: {error}") from error
        host = counts[1] if len(counts) > 1 else {}
        return {
            **counts[0],
            "host_miou": mean_iou(host.get("confusion")),
            "host_tc": mean_iou(host.get("consistency")),
        }

    def see(self, frame: Frame, masks: Sequence[np.ndarray]) -> _MaskedFrame:
        """Keep a frame for the next one of its camera to be compared with, and return it as it is kept."""
        present = _MaskedFrame(frame.stamp_ns, cv2.cvtColor(frame.image, cv2.COLOR_BGR2GRAY), masks)
        self._previous[frame.camera] = present
        return present

    def totals(self) -> list[dict[str, np.ndarray]]:
        """Return what the masks of each network add up to."""
        return [judge.totals for judge in self._judges]


class _NetworkScores:
    """The measures of one network's masks.

    Attributes:
        totals: The arrays that they count in, by what they are of.
    """

    def __init__(self, classes: ClassSet, widths: Sequence[int], sizes: Mapping[int, float] | None) -> None:
        self.names = classes.names
        self.confusion = ConfusionMatrix(len(classes), classes.void)
        self.trimap = TrimapIoU(len(classes), classes.void, widths)
        self.instance = InstanceIoU(len(classes), classes.void, sizes)
        self.consistency, self.unmasked = TemporalConsistency(len(classes)), TemporalConsistency(len(classes))
        self.video = VideoConsistency(classes.void, VIDEO_LENGTHS)
        self.totals = {
            "confusion": self.confusion.counts,
            **{f"trimap {width}": matrix.counts for width, matrix in self.trimap.matrices.items()},
            "instance": self.instance.totals,
            "instance confusion": self.instance.matrix.counts,
            "consistency": self.consistency.matrix.counts,
            "unmasked": self.unmasked.matrix.counts,
            **{f"video {length}": windows for length, windows in self.video.windows.items()},
        }

    def add(self, totals: Mapping[str, np.ndarray]) -> None:
        """Add what another judge's masks add up to."""
        for name, ours in self.totals.items():
            ours += totals[name]

    def scores(self) -> Scores:
        return Scores(
            miou=self.confusion.miou(),
            iou=self._by_name(self.confusion.iou()),
            miiou=self.instance.miou(),
            iiou={name: value for name, value in self._by_name(self.instance.iou()).items() if not math.isnan(value)},
            tiou=self.trimap.miou(),
            tc=self.consistency.miou(),
            tc_unmasked=self.unmasked.miou(),
            flicker=self._by_name(self.consistency.flicker()),
            vc=self.video.score(),
        )

    def _by_name(self, values: np.ndarray) -> dict[str, float]:
        return dict(zip(self.names, values.tolist(), strict=True))


def _small(counts: np.ndarray) -> np.ndarray:
    """Return the counts of one frame in half the memory: there is a record of every frame."""
    return counts.astype(np.int32)
