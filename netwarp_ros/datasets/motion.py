# SPDX-License-Identifier: Apache-2.0
"""Stills set in motion, so that single labelled images give clips that are labelled throughout.

A camera that drives past a flat picture: the picture zooms, turns and shifts a little more with each frame. What it
lacks, parallax and occlusion, the synthetic street has; noise and exposure, which differ from frame to frame, are
`netwarp_ros.datasets.augmentation.Augmentation`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Motion:
    """Random motion of a camera on a vehicle, steady over a clip.

    Attributes:
        approach: Mean and deviation of the logarithm of the zoom from frame to frame.
        turn: Deviation of the rotation, in degrees.
        shift: Deviations of the horizontal and vertical translation, in parts of the frame's width.
    """

    approach: tuple[float, float] = (0.008, 0.015)
    turn: float = 0.25
    shift: tuple[float, float] = (0.0104, 0.0031)

    def __call__(self, length: int, height: int, width: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Return where each frame of a clip sees what its last frame sees.

        Args:
            length: Frames of the clip, T.
            height: Of a frame, in pixels.
            width: Of a frame, in pixels.
            rng: Source of every random choice.

        Returns:
            T matrices (3, 3): pixel (x, y) of the last frame is at ``matrix @ (x, y, 1)`` in frame t. The last is the
            identity.
        """
        scale, angle = np.exp(rng.normal(*self.approach)), np.deg2rad(rng.normal(0, self.turn))
        shift = rng.normal(0, self.shift) * width
        centre = np.array([width / 2, height / 2])
        step = np.eye(3)
        step[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        step[:2, 2] = centre + shift - step[:2, :2] @ centre
        back = np.linalg.inv(step)
        return [np.linalg.matrix_power(back, age) for age in reversed(range(length))]
