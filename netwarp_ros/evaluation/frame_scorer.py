# SPDX-License-Identifier: Apache-2.0
"""Scores of the masks of one frame, and their sums over all frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np

from netwarp_ros.classes import ClassSet
from netwarp_ros.evaluation.results import FrameCounts, Scores
from netwarp_ros.metrics import (
    ConfusionMatrix,
    InstanceIoU,
    TemporalConsistency,
    TrimapIoU,
    VideoConsistency,
    boundary_distance,
    flows_agree,
)
from netwarp_ros.recordings.frames import Frame

VIDEO_LENGTHS = (8, 16)
"""Window lengths in frames of video consistency, as in VSPW's benchmark."""


def consistency_flow(present: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """Estimate the flow that temporal consistency is measured along, by Farnebäck's method (SCIA 2003).

    No segmenter of this package uses this flow: measured along its own flow, a network would look too consistent. On
    CamVid's video, this flow carries labels from frame to frame with the same accuracy as DIS.

    Args:
        present: ``(H, W)`` uint8, grey image of frame t.
        previous: ``(H, W)`` uint8, grey image of frame t-1.

    Returns:
        ``(H, W, 2)`` float32, reverse flow in pixels: pixel (x, y) of frame t is at (x + u, y + v) in frame t-1.
    """
    estimator = cv2.FarnebackOpticalFlow.create(
        numLevels=5, winSize=21, numIters=3, polyN=7, polySigma=1.5, flags=cv2.OPTFLOW_FARNEBACK_GAUSSIAN
    )
    return estimator.calc(present, previous, np.empty((*present.shape, 2), np.float32))


class LabelledFrame(NamedTuple):
    """A frame and its annotation.

    Attributes:
        frame: The frame.
        label: ``(H, W)`` class ids or void; None if the frame has no label. What an ego mask leaves out is void.
        instances: ``(H, W)`` object numbers, as `InstanceIoU.update` takes them; None if there are none.
    """

    frame: Frame
    label: np.ndarray | None
    instances: np.ndarray | None


class FrameScorer:
    """Scores the masks of a network, and of its host beside it, frame by frame.

    Args:
        classes: The classes of masks and labels.
        widths: Widths of the trimap in pixels.
        sizes: Average sizes of objects, as `InstanceIoU` takes them.
        networks: Number of networks: 1, or 2 with the host.
        max_gap: Greatest time in s between two frames that are compared.
    """

    def __init__(
        self,
        classes: ClassSet,
        widths: Sequence[int],
        sizes: Mapping[int, float] | None,
        networks: int,
        max_gap: float,
    ) -> None:
        self._counters = [NetworkCounters(classes, widths, sizes) for _ in range(networks)]
        self._max_gap = max_gap
        self._previous: dict[str, _SegmentedFrame] = {}

    def score(self, labelled: LabelledFrame, masks: Sequence[np.ndarray], *, stills: bool) -> list[FrameCounts]:
        """Score the masks of a frame.

        Args:
            labelled: The frame. Temporal consistency compares it with the previous frame of its camera.
            masks: ``(H, W)`` uint8 class ids, or 255 for no class, by each network, the host last.
            stills: Do not compare the frame with the next one.

        Returns:
            The counts of each network, the host last.

        Raises:
            ValueError: If the label map does not fit.
        """
        frame, label, instances = labelled
        previous = self._previous.pop(frame.camera, None)
        present = self.remember(frame, masks)
        counts: list[dict[str, Any]] = [{} for _ in masks]
        if previous and present.follows(previous, self._max_gap):
            reverse = consistency_flow(present.grey, previous.grey)
            trusted = flows_agree(reverse, consistency_flow(previous.grey, present.grey))
            for counters, mask, before, counted in zip(self._counters, masks, previous.masks, counts, strict=True):
                counted["consistency"] = counters.consistency.update(mask, before, reverse, where=trusted)
                counted["unmasked"] = counters.unmasked.update(mask, before, reverse)
        if stills:
            del self._previous[frame.camera]

        for counters in self._counters:
            if label is None or "consistency" not in counts[0]:
                counters.video.restart(frame.camera)
        if label is not None:
            try:
                distance = boundary_distance(label)
                for counters, mask, counted in zip(self._counters, masks, counts, strict=True):
                    counted["confusion"] = counters.confusion.update(mask, label)
                    counted["trimap"] = counters.trimap.update(mask, label, distance)
                    counters.video.update(mask, label, frame.camera)
                    if instances is not None:
                        counters.instance.update(mask, label, instances)
            except ValueError as error:
                raise ValueError(f"the label of {frame.name} does not fit: {error}") from error
        return [FrameCounts(**counted) for counted in counts]

    def remember(self, frame: Frame, masks: Sequence[np.ndarray]) -> _SegmentedFrame:
        """Keep a frame and its masks, to compare with the next frame of its camera."""
        present = _SegmentedFrame(frame.stamp_ns, cv2.cvtColor(frame.image, cv2.COLOR_BGR2GRAY), masks)
        self._previous[frame.camera] = present
        return present

    def totals(self) -> list[dict[str, np.ndarray]]:
        """Return `NetworkCounters.totals` of each network, the host last."""
        return [counters.totals for counters in self._counters]


class NetworkCounters:
    """All measures of one network's masks.

    Attributes:
        totals: The arrays in which the measures count, by name. Totals of disjoint frames may be added up.
    """

    def __init__(self, classes: ClassSet, widths: Sequence[int], sizes: Mapping[int, float] | None) -> None:
        self._names = classes.names
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
            **{f"video {length}": total for length, total in self.video.totals.items()},
        }

    def add(self, totals: Mapping[str, np.ndarray]) -> None:
        """Add the totals of other frames."""
        for name, total in self.totals.items():
            total += totals[name]

    def scores(self) -> Scores:
        """Compute the scores of all frames so far."""
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
        return dict(zip(self._names, values.tolist(), strict=True))


@dataclass(frozen=True)
class _SegmentedFrame:
    """What temporal consistency needs of a frame."""

    stamp_ns: int
    grey: np.ndarray
    masks: Sequence[np.ndarray]

    def follows(self, previous: _SegmentedFrame, max_gap: float) -> bool:
        """Tell whether both frames have the same size, and this one is later by at most ``max_gap`` seconds."""
        seconds = (self.stamp_ns - previous.stamp_ns) * 1e-9
        return self.grey.shape == previous.grey.shape and 0 < seconds <= max_gap
