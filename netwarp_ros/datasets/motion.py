# SPDX-License-Identifier: Apache-2.0
"""Camera motion added to single labelled images. It makes clips of them in which every frame has a label map.

The image becomes a flat picture that a camera drives past: it zooms, rotates and shifts a little more with each frame.
There is no parallax and no occlusion; the synthetic street has both. Noise and changes of exposure are added by
`netwarp_ros.datasets.augmentation.Augmentation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Motion:
    """Random motion of a camera on a vehicle, constant over a clip.

    Each value is drawn from a normal distribution and is the change from one frame to the next.

    Attributes:
        approach: Mean and standard deviation of the logarithm of the zoom.
        turn: Standard deviation of the rotation, in degrees.
        shift: Standard deviations of the horizontal and vertical shift, as fractions of the frame's width.
    """

    approach: tuple[float, float] = (0.008, 0.015)
    turn: float = 0.25
    shift: tuple[float, float] = (0.0104, 0.0031)

    def __call__(self, length: int, height: int, width: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Draw a motion, and return the matrices that move the last frame of a clip to the place of each frame.

        Args:
            length: Frames per clip, T.
            height: Height of a frame in pixels.
            width: Width of a frame in pixels.
            rng: Source of all random values.

        Returns:
            T matrices (3, 3): pixel (x, y) of the last frame is at ``matrix @ (x, y, 1)`` in frame t. The last is the
            identity.
        """
        scale, angle = np.exp(rng.normal(*self.approach)), np.deg2rad(rng.normal(0, self.turn))
        shift = rng.normal(0, self.shift) * width
        center = np.array([width / 2, height / 2])
        step = np.eye(3)
        step[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        step[:2, 2] = center + shift - step[:2, :2] @ center
        back = np.linalg.inv(step)
        return [np.linalg.matrix_power(back, before) for before in reversed(range(length))]


def flow_of(moves: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Return the exact reverse flow of frames that `Motion` moves.

    Args:
        moves: T matrices, as `Motion` returns them.
        height: Height of a frame in pixels.
        width: Width of a frame in pixels.

    Returns:
        ``(T, height, width, 2)`` float32, in pixels; 0 for the first frame.
    """
    y, x = np.mgrid[:height, :width]
    points = np.stack([x, y, np.ones_like(x)], axis=-1).astype(np.float64)
    flow = np.zeros((len(moves), height, width, 2), np.float32)
    for t in range(1, len(moves)):
        back = moves[t - 1] @ np.linalg.inv(moves[t])
        flow[t] = (points @ (back - np.eye(3))[:2].T).astype(np.float32)
    return flow
