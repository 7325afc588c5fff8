# SPDX-License-Identifier: Apache-2.0
"""Frames of synthetic streets as a data set."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from netwarp_ros.classes import load_classes
from netwarp_ros.datasets.samples import Sample, Samples
from netwarp_ros.street import Street

SPACING = 12
"""Every 12th frame of a street is a sample, so that samples differ."""


class StreetDataset(Samples):
    """Every 12th frame of several streets, in CamVid's classes. Frames are rendered when first read, then kept.

    Args:
        width: Width of the frames in pixels.
        height: Height of the frames in pixels.
        seeds: One seed for each street.
        frames: Samples per street.
        rate: Frames per second.
        with_motion: Whether the samples have their exact motion, which takes three times as much memory as all else.
    """

    def __init__(
        self, width: int, height: int, seeds: range, frames: int, rate: float = 10.0, *, with_motion: bool = False
    ) -> None:
        self.classes = load_classes("camvid")
        self.width, self.height, self.seeds, self.frames, self.rate = width, height, seeds, frames, rate
        self.with_motion = with_motion
        self._rendered: dict[tuple[int, int], Sample] = {}

    def __str__(self) -> str:
        return f"{len(self.seeds)} streets"

    def __len__(self) -> int:
        return len(self.seeds) * self.frames

    def frames_before(self, index: int) -> int:
        return SPACING * (1 + index % self.frames)

    def name(self, index: int, before: int = 0) -> str:
        return "street_{}_{}".format(*self._seed_and_number(index, before))

    def read(self, index: int, before: int = 0) -> Sample:
        seed, number = key = self._seed_and_number(index, before)
        if key not in self._rendered:
            frame = _street(self.width, self.height, seed, self.rate).frame(number)
            motion = np.where(frame.valid[..., None], frame.flow, np.float32(np.nan)) if self.with_motion else None
            self._rendered[key] = Sample(self.name(index, before), frame.image, frame.label, motion)
        return self._rendered[key]

    def _seed_and_number(self, index: int, before: int) -> tuple[int, int]:
        """Return the seed of a frame's street, and the frame's number in that street."""
        return self.seeds[index // self.frames], self.frames_before(index) - before


@lru_cache(maxsize=1)
def _street(width: int, height: int, seed: int, rate: float) -> Street:
    return Street(width, height, seed, rate)
