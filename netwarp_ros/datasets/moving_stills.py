# SPDX-License-Identifier: Apache-2.0
"""Labelled stills set in motion, to judge a video CNN on places of which there is no labelled video."""

from __future__ import annotations

import cv2
import numpy as np

from netwarp_ros.datasets.motion import Motion
from netwarp_ros.datasets.samples import Sample, Samples


class MovingStills(Samples):
    """The stills of a data set, each with frames before it, by simulated camera motion.

    The last frame of a clip is the still, with its label map. The frames before it show it from where the camera was
    (`Motion`), with the picture mirrored at its edges. Each frame has an exposure and pixel noise of its own, as that
    of a camera. There is no parallax, nothing moves by itself, and nothing is uncovered: real video is harder.

    Args:
        stills: The data set.
        length: Frames of each clip, T; at least 2.
        motion: The motion; it and the noise depend on the number of the still alone.
        exposure: Standard deviation of each frame's relative exposure.
        noise: Standard deviation of the pixel noise, in grey levels.

    Raises:
        ValueError: If the length is less than 2.
    """

    def __init__(
        self,
        stills: Samples,
        length: int,
        *,
        motion: Motion | None = None,
        exposure: float = 0.02,
        noise: float = 2.0,
    ) -> None:
        if length < 2:
            raise ValueError(f"length is {length}: give at least 2 frames")
        self.classes, self.stills, self.length = stills.classes, stills, length
        self.motion, self.exposure, self.noise = motion or Motion(), exposure, noise

    def __str__(self) -> str:
        return f"{self.stills}, in motion"

    def __len__(self) -> int:
        return len(self.stills)

    def frames_before(self, index: int) -> int:
        return self.length - 1

    def name(self, index: int, before: int = 0) -> str:
        return self.stills.name(index) + (f"-{before}" if before else "")

    def read(self, index: int, before: int = 0) -> Sample:
        still = self.stills.read(index)
        height, width = still.label.shape
        image = still.image
        if before:
            matrices = self.motion(self.length, height, width, np.random.default_rng((0, index)))
            image = cv2.warpAffine(
                image, matrices[-1 - before][:2], (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
            )
        rng = np.random.default_rng((1, index, before))
        pixels = image * np.float32(rng.normal(1, self.exposure))
        pixels += np.float32(self.noise) * rng.standard_normal(image.shape, dtype=np.float32)
        image = pixels.clip(0, 255).round().astype(np.uint8)
        name = self.name(index, before)
        return self.without_label(name, image) if before else Sample(name, image, still.label)
