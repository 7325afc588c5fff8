# SPDX-License-Identifier: Apache-2.0
"""The frames of a recording that are most worth to be looked at."""

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
"""Seconds of a recording that no more than one of the best frames, and one of the worst, is taken of."""

WIDTH = 480
"""Pixels that pictures are scaled down to."""


@dataclass(frozen=True)
class Picture:
    """A frame to be looked at.

    Attributes:
        record: What became of it.
        value: What it was chosen for, as `FrameGallery.measure` says.
        images: The image, and the masks over it, by what they are called; each a JPEG as a ``data:`` URI. Where host
            and NetWarp differ, the colours are strong.
    """

    record: FrameRecord
    value: float
    images: dict[str, str]


class FrameGallery:
    """Keeps the best and the worst frames of an evaluation, each of another stretch of the recording.

    Where the host is run, best are those in which NetWarp gains most over it, in mean IoU or, without labels, in
    temporal consistency; elsewhere those that have most of that.

    Args:
        classes: Names and colours of the ids.
        labelled: Whether there are labels.
        host: Whether the host is run.
        count: How many of each are kept.

    Attributes:
        measure: What they are chosen by.
    """

    def __init__(self, classes: ClassSet, *, labelled: bool, host: bool, count: int = 3) -> None:
        self._classes, self._labelled, self._host, self._count = classes, labelled, host, count
        self.measure = ("mean IoU" if labelled else "temporal consistency") + (" gained over the host" if host else "")
        self._stretch: tuple[str, int] | None = None
        self._candidates: list[tuple[float, ScoredFrame]] = []
        self._best: list[Picture] = []
        self._worst: list[Picture] = []

    def add(self, moment: ScoredFrame) -> None:
        """Look at the next frame of the evaluation."""
        record = moment.record
        value, host = (record.miou, record.host_miou) if self._labelled else (record.tc, record.host_tc)
        if self._host:
            value -= host
        if math.isnan(value):
            return
        stretch = record.camera, int(record.stamp_ns * 1e-9 / STRETCH_S)
        if stretch != self._stretch:
            self._close()
            self._stretch = stretch
        ranked = sorted([*self._candidates, (value, moment)], key=lambda candidate: candidate[0])
        self._candidates = [ranked[0], ranked[-1]] if len(ranked) > 1 else ranked

    def best(self) -> Sequence[Picture]:
        """Return the best frames, the best of all first."""
        self._close()
        return self._best

    def worst(self) -> Sequence[Picture]:
        """Return the worst frames, the worst of all first; none that is among the best."""
        self._close()
        shown = {id(picture.record) for picture in self._best}
        return [picture for picture in self._worst if id(picture.record) not in shown]

    def _close(self) -> None:
        """Keep what the stretch that ends here has, if it is among the best or the worst."""
        if self._candidates:
            pictures = [self._picture(value, moment) for value, moment in self._candidates]
            self._best = sorted([*self._best, pictures[-1]], key=lambda picture: -picture.value)[: self._count]
            self._worst = sorted([*self._worst, pictures[0]], key=lambda picture: picture.value)[: self._count]
            self._candidates = []

    def _picture(self, value: float, moment: ScoredFrame) -> Picture:
        images = {"image": moment.frame.image}
        if moment.host_mask is None:
            images["mask"] = self._classes.overlay(moment.frame.image, moment.mask, 0.6)
        else:
            differing = (moment.mask != moment.host_mask)[..., None]
            for name, mask in (("host", moment.host_mask), ("NetWarp", moment.mask)):
                faint, strong = (self._classes.overlay(moment.frame.image, mask, alpha) for alpha in (0.35, 0.9))
                images[name] = np.where(differing, strong, faint)
        return Picture(moment.record, value, {name: _data_uri(image) for name, image in images.items()})


def _data_uri(image: np.ndarray) -> str:
    height, width = image.shape[:2]
    if width > WIDTH:
        image = cv2.resize(image, (WIDTH, round(height * WIDTH / width)), interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    return "data:image/jpeg;base64," + b64encode(encoded.tobytes()).decode()
