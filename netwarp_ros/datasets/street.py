# SPDX-License-Identifier: Apache-2.0
"""Drives down synthetic streets, as a data set to train on."""

from __future__ import annotations

from functools import lru_cache

from netwarp_ros.classes import load_classes
from netwarp_ros.datasets.samples import Sample, Samples
from netwarp_ros.street import Street

SPACING = 12
"""Frames from one sample to the next, so that they show another view each."""


class StreetDataset(Samples):
    """Every twelfth frame of several streets, in CamVid's classes; made when asked for, and kept.

    Args:
        width: Of the frames, in pixels.
        height: Of the frames, in pixels.
        seeds: Of the streets.
        frames: Samples of each street.
        rate: Frames per second.
    """

    def __init__(self, width: int, height: int, seeds: range, frames: int, rate: float = 10.0) -> None:
        self.classes = load_classes("camvid")
        self.width, self.height, self.seeds, self.frames, self.rate = width, height, seeds, frames, rate
        self._kept: dict[tuple[int, int], Sample] = {}

    def __str__(self) -> str:
        return f"{len(self.seeds)} streets"

    def __len__(self) -> int:
        return len(self.seeds) * self.frames

    def frames_before(self, index: int) -> int:
        return SPACING * (1 + index % self.frames)

    def name(self, index: int, before: int = 0) -> str:
        return "street_{}_{}".format(*self._place(index, before))

    def read(self, index: int, before: int = 0) -> Sample:
        seed, number = place = self._place(index, before)
        if place not in self._kept:
            frame = _street(self.width, self.height, seed, self.rate).frame(number)
            self._kept[place] = Sample(self.name(index, before), frame.image, frame.label)
        return self._kept[place]

    def _place(self, index: int, before: int) -> tuple[int, int]:
        """Return the seed of a frame's street, and its number there."""
        return self.seeds[index // self.frames], self.frames_before(index) - before


@lru_cache(maxsize=1)
def _street(width: int, height: int, seed: int, rate: float) -> Street:
    return Street(width, height, seed, rate)
