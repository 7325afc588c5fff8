# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a model on recorded frames: scores against labels, consistency over time, and speed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from netwarp_ros.classes import VOID, ClassSet
from netwarp_ros.evaluation.frame_scorer import FrameScorer, LabelledFrame, NetworkCounters
from netwarp_ros.evaluation.results import EvaluationResults, FrameCounts, FrameRecord, PartialResults, mean_iou
from netwarp_ros.flow import FlowFolder
from netwarp_ros.mailbox import SimulatedRealtime
from netwarp_ros.offline import segment_frame
from netwarp_ros.recordings.ego_masks import NO_EGO_MASKS, EgoMasks
from netwarp_ros.recordings.frames import Frame, read_ahead
from netwarp_ros.segmenter import Segmenter, Stream
from netwarp_ros.segmenter.masks import at_size
from netwarp_ros.timing import Stopwatch, percentiles

TRIMAP_WIDTHS = (1, 2, 4, 8, 16, 32)
"""Widths of the trimap in pixels at which IoU is computed by default. The paper's tables use 2."""

Labels = Callable[[Frame], np.ndarray | None]
"""Returns the label map of a frame, ``(H, W)`` class ids or void; None if the frame has no label."""


@dataclass(frozen=True)
class ScoredFrame:
    """A frame with its masks and scores.

    Attributes:
        record: Scores and timings.
        counts: Pixel counts.
        frame: The frame.
        mask: ``(H, W)`` uint8 class ids, or 255 for no class.
        host_mask: The host's mask, of the same form; None if the host is not run.
        label: The label map, ``(H, W)`` class ids or void; None if the frame has no label.
    """

    record: FrameRecord
    counts: FrameCounts
    frame: Frame
    mask: np.ndarray
    host_mask: np.ndarray | None
    label: np.ndarray | None

    def to_json(self) -> dict[str, Any]:
        """Return scores, timings and counts as plain values for JSON."""
        return self.record.to_json(self.counts)


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
    ego_masks: EgoMasks = NO_EGO_MASKS,
    on_frame: Callable[[ScoredFrame], None] = lambda scored: None,
) -> EvaluationResults:
    """Evaluate a model on a whole recording. The arguments are those of `score_frames`.

    Raises:
        ValueError: As `score_frames`; if there is no frame; or if labels are given but no frame has one.
        FileNotFoundError: If a flow is missing.
    """
    results = score_frames(
        frames, labels, segmenter, classes, stills=stills, realtime=realtime, host=host, widths=widths,
        instances=instances, sizes=sizes, flows=flows, ego_masks=ego_masks, on_frame=on_frame,
    )  # fmt: skip
    return summarise([results], classes, labelled=labels is not None, widths=widths, sizes=sizes)


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
    ego_masks: EgoMasks = NO_EGO_MASKS,
    on_frame: Callable[[ScoredFrame], None] = lambda scored: None,
    begin: int = 0,
) -> PartialResults:
    """Segment frames in order, each camera as one stream, and score the masks.

    Args:
        frames: The recording. Frames are read ahead, so a few are in memory at a time.
        labels: Returns label maps; None if there are no labels. A frame without a label is segmented and timed, and
            counts in temporal consistency, but not in the scores against labels.
        segmenter: The model to evaluate. It is warmed up at the size of the first frame.
        classes: The classes of labels and masks.
        stills: Reset the memory before each image, for pictures that are not a video. There is no temporal consistency.
        realtime: Simulate the node. Frames arrive at the rate of the recording. A frame that arrives while another is
            processed waits; a newer frame of the same camera replaces it. By default, every frame is processed.
        host: Also run the host on its own on the same frames, and score its masks.
        widths: Widths of the trimap in pixels.
        instances: Returns the object numbers of a labelled frame, as `InstanceIoU.update` takes them.
        sizes: Average sizes of objects, as `InstanceIoU` takes them.
        flows: Precomputed flow; by default the segmenter estimates it.
        ego_masks: What the cameras see of their own robot. It is left out of the masks and of all scores.
        on_frame: Called with each frame after it is scored; only it gets the pixel counts, masks and images.
        begin: Index of the first frame to score. Earlier frames are only segmented, to fill the memory.

    Raises:
        ValueError: If the model has other classes, a label map or a flow does not fit, or ``realtime`` is combined with
            ``host`` or ``flows``.
        FileNotFoundError: If a flow is missing.
    """
    classes.check_names(segmenter.classes, f"model {segmenter.model.name}")
    if realtime and host:
        raise ValueError("the host cannot be scored in real time, where it would slow the model down: leave out one")
    if realtime and flows:
        raise ValueError(
            "precomputed flow cannot be used in real time, where the frame before may be dropped: estimate it instead"
        )
    segmenters = [segmenter, _host_segmenter(segmenter)] if host else [segmenter]
    scorer = FrameScorer(classes, widths, sizes, len(segmenters), segmenter.max_gap)
    streams: dict[str, list[Stream]] = {}
    records: list[FrameRecord] = []
    wall = Stopwatch()

    source = read_ahead(_with_labels(frames, labels, instances, ego_masks, classes.void))
    clock = SimulatedRealtime(
        source, camera=lambda item: item.frame.camera, arrival_ns=lambda item: item.frame.arrival_ns
    )
    for labelled, wait_ms in clock if realtime else ((item, 0.0) for item in source):
        frame = labelled.frame
        wall.lap("reading")
        if not streams:
            height, width = frame.image.shape[:2]
            for network in segmenters:
                network.warm_up(width, height)
            wall.restart()
        if frame.camera not in streams:
            streams[frame.camera] = [network.stream(ego_mask=ego_masks.of(frame.camera)) for network in segmenters]
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
            scorer.remember(frame, masks)
            continue
        counts = scorer.score(labelled, masks, stills=stills)
        record = FrameRecord(
            name=frame.name,
            camera=frame.camera,
            stamp_ns=frame.stamp_ns,
            stages_ms=results[0].stages_ms,
            reason=results[0].reason,
            is_key=results[0].is_key,
            wait_ms=wait_ms,
            age_ms=age_ms,
            disagreement=_disagreement(*masks) if host else math.nan,
            labelled=labelled.label is not None,
            miou=mean_iou(counts[0].confusion),
            tc=mean_iou(counts[0].consistency),
            host_miou=mean_iou(counts[1].confusion) if host else math.nan,
            host_tc=mean_iou(counts[1].consistency) if host else math.nan,
        )
        records.append(record)
        on_frame(ScoredFrame(record, counts[0], frame, masks[0], masks[1] if host else None, labelled.label))
        wall.lap("scoring")

    resets = Counter(record.reason for record in records if record.reason) if segmenter.uses_netwarp else {}
    return PartialResults(records, scorer.totals(), dict(resets), dict(clock.dropped), dict(wall.laps))


def summarise(
    partial_results: Sequence[PartialResults],
    classes: ClassSet,
    *,
    labelled: bool,
    widths: Sequence[int] = TRIMAP_WIDTHS,
    sizes: Mapping[int, float] | None = None,
) -> EvaluationResults:
    """Add up results in their order, and compute the scores of the sums.

    Args:
        partial_results: What `score_frames` returned for disjoint frames.
        classes: The classes that they were scored with.
        labelled: Whether labels were given.
        widths: Widths of the trimap that they were scored with.
        sizes: Average sizes of objects that they were scored with.

    Raises:
        ValueError: If there is no frame, or labels were given but no frame has one.
    """
    records = [record for partial in partial_results for record in partial.records]
    if not records:
        raise ValueError("there is no frame to evaluate")
    count = sum(record.labelled for record in records)
    if labelled and not count:
        raise ValueError(
            f"none of the {len(records)} frames has a label: labels must be named like the images, NAME.png, or have "
            "their stamps"
        )
    durations = {stage: [record.stages_ms[stage] for record in records] for stage in records[0].stages_ms}
    durations["total"] = [record.total_ms for record in records]
    scores = []
    for totals_of_network in zip(*(partial.totals for partial in partial_results), strict=True):
        counters = NetworkCounters(classes, widths, sizes)
        for totals in totals_of_network:
            counters.add(totals)
        scores.append(counters.scores())
    realtime = not math.isnan(records[0].age_ms)
    return EvaluationResults(
        **vars(scores[0]),
        frames=len(records),
        labelled=count,
        host=scores[1] if len(scores) > 1 else None,
        disagreement=_mean(record.disagreement for record in records),
        stages_ms={stage: percentiles(values) for stage, values in durations.items()},
        fps=1e3 * len(records) / sum(durations["total"]),
        resets=_sum_by_name(partial.resets for partial in partial_results),
        dropped=_sum_by_name(partial.dropped for partial in partial_results),
        latency_ms=percentiles(record.wait_ms + record.total_ms for record in records) if realtime else {},
        age_ms=percentiles(record.age_ms for record in records) if realtime else {},
        wall_s=_sum_by_name(partial.wall_s for partial in partial_results),
        records=records,
    )


def _with_labels(
    frames: Iterable[Frame], labels: Labels | None, instances: Labels | None, ego_masks: EgoMasks, void: int
) -> Iterator[LabelledFrame]:
    """Yield the frames with their labels, which are void where the ego mask leaves pixels out."""
    for frame in frames:
        label, ego_mask = labels and labels(frame), ego_masks.of(frame.camera)
        if label is not None and ego_mask is not None:
            left_out = at_size(ego_mask.astype(np.uint8), label.shape) != 0  # as the segmenter resizes it
            label = np.where(left_out, label.dtype.type(void), label)
        yield LabelledFrame(frame, label, instances and instances(frame))


def _disagreement(mask: np.ndarray, other: np.ndarray) -> float:
    """Return to how many of the pixels with a class two masks give different classes, in per cent; nan if none has."""
    differing = (mask != other)[(mask != VOID) & (other != VOID)]
    return 100 * float(np.mean(differing)) if differing.size else math.nan


def _mean(values: Iterable[float]) -> float:
    """Return the mean of the values that are not nan; nan if there is none."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _sum_by_name(mappings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    sums: dict[str, Any] = {}
    for mapping in mappings:
        for name, number in mapping.items():
            sums[name] = sums.get(name, 0) + number
    return sums


def _host_segmenter(segmenter: Segmenter) -> Segmenter:
    """Return a segmenter that runs the same host without NetWarp, with the same settings."""
    return Segmenter(
        segmenter.model,
        flow=segmenter.flow,
        input_height=segmenter.input_height,
        max_input_width=segmenter.frames.max_width,
        host_only=True,
        inference=segmenter.inference,
        label_map=segmenter.label_map,
        **vars(segmenter.engine_options),
    )
