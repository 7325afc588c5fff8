# SPDX-License-Identifier: Apache-2.0
"""A model judged on recorded frames: scores against labels, consistency over time, and speed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from netwarp_ros.data.classes import ClassSet
from netwarp_ros.data.frames import Frame
from netwarp_ros.metrics import (
    ConfusionMatrix,
    InstanceIoU,
    TemporalConsistency,
    TrimapIoU,
    VideoConsistency,
    flows_agree,
)
from netwarp_ros.segmenter import Segmenter

TRIMAP_WIDTHS = (1, 2, 4, 8, 16, 32)
"""Half widths in pixels of the bands for which trimap IoU is reported; the paper's tables are at 2."""

VIDEO_LENGTHS = (8, 16)
"""Numbers of frames for which video consistency is reported, as is usual on VSPW."""

Labels = Callable[[Frame], np.ndarray | None]
"""Gives the label map of a frame, ``(H, W)`` of class ids or void, or None where it has none."""


@dataclass(frozen=True)
class Report:
    """What an evaluation found; scores in per cent, void pixels not counted, nan where nothing was to be scored.

    Attributes:
        frames: Frames segmented.
        labelled: Those of them that had a label.
        miou: Mean IoU over the classes that occur in the labels.
        iou: IoU by class name.
        miiou: Mean instance IoU over the classes that have objects in the labels; nan where objects are not told apart.
        iiou: Instance IoU by class name, of the classes that have one.
        tiou: Mean IoU within the trimap, by its width in pixels.
        tc: Temporal consistency of the predictions (see `TemporalConsistency`), over pixels whose flow is trusted; nan
            where the frames are no stream.
        tc_unmasked: The same over all pixels whose flow stays within the image.
        vc: Video consistency (see `VideoConsistency`) by number of frames; nan where not as many are labelled in a row.
        stages_ms: Durations by stage of the segmenter, and their ``total``, as p50, p95 and p99 over the frames.
        fps: Frames per second of the segmenter alone, without reading and scoring.
        resets: How often the memory started anew, by reason.
    """

    frames: int
    labelled: int
    miou: float
    iou: Mapping[str, float]
    miiou: float
    iiou: Mapping[str, float]
    tiou: Mapping[int, float]
    tc: float
    tc_unmasked: float
    vc: Mapping[int, float]
    stages_ms: Mapping[str, Mapping[str, float]]
    fps: float
    resets: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold: its keys are texts, and None stands for nan."""
        return {
            "frames": self.frames,
            "labelled": self.labelled,
            "miou": _number(self.miou),
            "iou": {name: _number(value) for name, value in self.iou.items()},
            "miiou": _number(self.miiou),
            "iiou": dict(self.iiou),
            "tiou": {str(width): _number(value) for width, value in self.tiou.items()},
            "tc": _number(self.tc),
            "tc_unmasked": _number(self.tc_unmasked),
            "vc": {str(length): _number(value) for length, value in self.vc.items()},
            "stages_ms": {stage: dict(percentiles) for stage, percentiles in self.stages_ms.items()},
            "fps": _number(self.fps),
            "resets": dict(self.resets),
        }


def evaluate(
    frames: Iterable[Frame],
    labels: Labels,
    segmenter: Segmenter,
    classes: ClassSet,
    *,
    stills: bool = False,
    widths: Iterable[int] = TRIMAP_WIDTHS,
    instances: Labels | None = None,
    sizes: Mapping[int, float] | None = None,
) -> Report:
    """Segment frames in their order, as one stream, and score the masks.

    Args:
        frames: The recording; one frame at a time is held.
        labels: Gives the label maps. Frames without one take part in all but the scores against labels.
        segmenter: Warmed up here, at the size of the first frame.
        classes: What the ids of labels and predictions mean.
        stills: Start anew at each image, as for pictures that are no stream; there is no temporal consistency then.
        widths: Of the trimap, in pixels.
        instances: Gives which object each pixel of a labelled frame is of, as `InstanceIoU.update` takes it.
        sizes: Average sizes of objects, as `InstanceIoU` takes them.

    Raises:
        ValueError: If the model was not trained on these classes, no frame has a label, or a label map does not fit.
    """
    trained_on = segmenter.model.spec.classes
    if trained_on != classes.name:
        raise ValueError(f"model {segmenter.model.name} has the classes of {trained_on}, not of {classes.name}")
    confusion = ConfusionMatrix(len(classes), classes.void)
    trimap = TrimapIoU(len(classes), classes.void, widths)
    instance = InstanceIoU(len(classes), classes.void, sizes)
    consistency, unmasked = TemporalConsistency(len(classes)), TemporalConsistency(len(classes))
    video = VideoConsistency(classes.void, VIDEO_LENGTHS)
    stream = segmenter.stream()
    durations: dict[str, list[float]] = defaultdict(list)
    previous: _Judged | None = None
    count = labelled = 0

    for count, frame in enumerate(frames, start=1):
        if count == 1:
            height, width = frame.image.shape[:2]
            segmenter.warm_up(width, height)
        if stills:
            stream.reset()
        result = stream.segment(frame.image, frame.stamp_ns)
        for stage, milliseconds in (*result.stages_ms.items(), ("total", sum(result.stages_ms.values()))):
            durations[stage].append(milliseconds)
        present = _Judged(frame.stamp_ns, cv2.cvtColor(frame.image, cv2.COLOR_BGR2GRAY), result.mask)
        if previous is not None and present.follows(previous, segmenter.max_gap):
            _compare(consistency, unmasked, present, previous)
        else:
            video.restart()
        previous = None if stills else present
        label = labels(frame)
        if label is None:
            video.restart()
        else:
            labelled += 1
            objects = instances(frame) if instances else None
            try:
                confusion.update(result.mask, label)
                trimap.update(result.mask, label)
                video.update(result.mask, label)
                if objects is not None:
                    instance.update(result.mask, label, objects)
            except ValueError as error:
                raise ValueError(f"the label of {frame.name} does not fit: {error}") from error

    if not labelled:
        raise ValueError(f"none of the {count} frames has a label: labels must be named like the images, NAME.png")
    return Report(
        frames=count,
        labelled=labelled,
        miou=confusion.miou(),
        iou=dict(zip(classes.names, confusion.iou().tolist(), strict=True)),
        miiou=instance.miou(),
        iiou={k: v for k, v in zip(classes.names, instance.iou().tolist(), strict=True) if not math.isnan(v)},
        tiou=trimap.miou(),
        tc=consistency.miou(),
        tc_unmasked=unmasked.miou(),
        vc=video.score(),
        stages_ms={stage: percentiles(values) for stage, values in durations.items()},
        fps=1e3 * count / sum(durations["total"]),
        resets=dict(stream.resets),
    )


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """Return the 50th, 95th and 99th percentile, as p50, p95 and p99."""
    return dict(zip(("p50", "p95", "p99"), np.percentile(list(values), (50, 95, 99)).tolist(), strict=True))


def judging_flow(present: np.ndarray, previous: np.ndarray) -> np.ndarray:
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


@dataclass(frozen=True)
class _Judged:
    """A frame as temporal consistency sees it."""

    stamp_ns: int
    grey: np.ndarray
    mask: np.ndarray

    def follows(self, previous: _Judged, max_gap: float) -> bool:
        """Tell whether it is of the same stream, no later than max_gap seconds after the previous frame."""
        seconds = (self.stamp_ns - previous.stamp_ns) * 1e-9
        return self.grey.shape == previous.grey.shape and 0 < seconds <= max_gap


def _compare(masked: TemporalConsistency, unmasked: TemporalConsistency, present: _Judged, previous: _Judged) -> None:
    """Count a pair of frames, where the flow is trusted and wherever it leads."""
    reverse = judging_flow(present.grey, previous.grey)
    forward = judging_flow(previous.grey, present.grey)
    masked.update(present.mask, previous.mask, reverse, where=flows_agree(reverse, forward))
    unmasked.update(present.mask, previous.mask, reverse)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
