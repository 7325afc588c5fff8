# SPDX-License-Identifier: Apache-2.0
"""The best and worst frames of a recording, as pictures for a report."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from netwarp_ros.classes import ClassSet
from netwarp_ros.evaluation.results import FrameRecord
from netwarp_ros.evaluation.scoring import ScoredFrame

STRETCH_S = 2.0
"""Length in s of the stretches that a recording is divided into. Each gives at most one best and one worst frame."""

MAX_WIDTH = 480
"""Greatest width of a picture in pixels; wider images are scaled down."""


@dataclass(frozen=True)
class Picture:
    """A frame of the gallery.

    Attributes:
        record: Scores and timings.
        value: The value of `FrameGallery.measure`.
        images: The image, and the masks over it, by name; each a JPEG as a ``data:`` URI. Colors are strong where the
            masks of host and NetWarp differ.
    """

    record: FrameRecord
    value: float
    images: dict[str, str]


class FrameGallery:
    """Keeps the best and the worst frames of an evaluation.

    The measure is the frame's mean IoU or, without labels, its temporal consistency. If the host is run, it is
    NetWarp's gain over the host.

    Args:
        classes: Names and colors of the classes.
        labelled: Whether there are labels.
        host: Whether the host is run.
        count: Number of best frames to keep, and of worst frames.

    Attributes:
        measure: Name of the measure.
    """

    def __init__(self, classes: ClassSet, *, labelled: bool, host: bool, count: int = 3) -> None:
        self._classes, self._labelled, self._host, self._count = classes, labelled, host, count
        self.measure = ("mean IoU" if labelled else "temporal consistency") + (" gained over the host" if host else "")
        self._stretch: tuple[str, int] | None = None
        self._candidates: list[tuple[float, ScoredFrame]] = []
        self._best: list[Picture] = []
        self._worst: list[Picture] = []

    def add(self, scored: ScoredFrame) -> None:
        """Consider the next frame of the evaluation."""
        record = scored.record
        value, host = (record.miou, record.host_miou) if self._labelled else (record.tc, record.host_tc)
        if self._host:
            value -= host
        if math.isnan(value):
            return
        stretch = record.camera, int(record.stamp_ns * 1e-9 / STRETCH_S)
        if stretch != self._stretch:
            self._end_stretch()
            self._stretch = stretch
        ranked = sorted([*self._candidates, (value, scored)], key=lambda candidate: candidate[0])
        self._candidates = [ranked[0], ranked[-1]] if len(ranked) > 1 else ranked

    def best(self) -> Sequence[Picture]:
        """Return the best frames, the best one first."""
        self._end_stretch()
        return self._best

    def worst(self) -> Sequence[Picture]:
        """Return the worst frames, the worst one first, without those that are among the best."""
        self._end_stretch()
        best = {id(picture.record) for picture in self._best}
        return [picture for picture in self._worst if id(picture.record) not in best]

    def _end_stretch(self) -> None:
        """Keep the best and the worst frame of the stretch, if they are among the best or worst of all."""
        if self._candidates:
            pictures = [self._picture(value, scored) for value, scored in self._candidates]
            self._best = sorted([*self._best, pictures[-1]], key=lambda picture: -picture.value)[: self._count]
            self._worst = sorted([*self._worst, pictures[0]], key=lambda picture: picture.value)[: self._count]
            self._candidates = []

    def _picture(self, value: float, scored: ScoredFrame) -> Picture:
        images = {"image": scored.frame.image}
        if scored.host_mask is None:
            images["mask"] = self._classes.overlay(scored.frame.image, scored.mask, 0.6)
        else:
            differing = (scored.mask != scored.host_mask)[..., None]
            for name, mask in (("host", scored.host_mask), ("NetWarp", scored.mask)):
                faint, strong = (self._classes.overlay(scored.frame.image, mask, alpha) for alpha in (0.35, 0.9))
                images[name] = np.where(differing, strong, faint)
        return Picture(scored.record, value, {name: _data_uri(image) for name, image in images.items()})


def _data_uri(image: np.ndarray) -> str:
    height, width = image.shape[:2]
    if width > MAX_WIDTH:
        size = (MAX_WIDTH, max(1, round(height * MAX_WIDTH / width)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    return "data:image/jpeg;base64," + b64encode(encoded.tobytes()).decode()
