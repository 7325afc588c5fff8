# SPDX-License-Identifier: Apache-2.0
"""Stills set in motion: short clips, labelled throughout, from single labelled images.

A camera that drives past a flat picture: the picture zooms, turns and shifts a little more with each frame, while noise
and exposure differ from frame to frame. What it lacks, parallax and occlusion, the synthetic street has.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from netwarp_ros.data.samples import Clip


@dataclass(frozen=True)
class Motion:
    """Random motion, per frame, of a camera on a vehicle; a clip moves steadily.

    Attributes:
        length: Frames of a clip, T.
        height: Height of a frame in pixels.
        width: Width of a frame in pixels.
        max_zoom: The still is first enlarged by 1.05 to this, and cropped.
        approach: Mean and deviation of the logarithm of the zoom from frame to frame.
        turn: Deviation of the rotation, in degrees.
        shift: Deviations of the horizontal and vertical translation, in pixels.
        noise: Largest deviation of the pixels' noise, in grey levels.
        exposure: Deviation of the relative exposure.
    """

    length: int
    height: int
    width: int
    max_zoom: float = 1.6
    approach: tuple[float, float] = (0.008, 0.015)
    turn: float = 0.25
    shift: tuple[float, float] = (5.0, 1.5)
    noise: float = 4.0
    exposure: float = 0.03

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator, *, void: int) -> Clip:
        """Make a clip of a still.

        Args:
            image: ``(h, w, 3)`` uint8, BGR.
            label: ``(h, w)`` uint8 class ids.
            rng: Source of every random choice.
            void: Class id for pixels that show nothing of the still.
        """
        last = self._crop(label.shape[0], label.shape[1], rng)
        back = np.linalg.inv(self._step(rng))
        flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
        deviation = rng.uniform(0, self.noise)
        images, labels = [], []
        for age in reversed(range(self.length)):
            matrix = (np.linalg.matrix_power(back, age) @ last)[:2]
            size = (self.width, self.height)
            view = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
            labels.append(cv2.warpAffine(label, matrix, size, flags=cv2.INTER_NEAREST, borderValue=void)[:, flip])
            exposed = view[:, flip] * rng.normal(1, self.exposure) + rng.normal(0, deviation, view.shape)
            images.append(np.clip(exposed, 0, 255).astype(np.uint8))
        return Clip(np.stack(images), np.stack(labels))

    def _crop(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """Return the matrix from the still to the last frame."""
        zoom = rng.uniform(1.05, self.max_zoom) * max(self.height / height, self.width / width)
        left = rng.uniform(0, zoom * width - self.width)
        top = rng.uniform(0, zoom * height - self.height)
        return np.array([[zoom, 0, -left], [0, zoom, -top], [0, 0, 1]])

    def _step(self, rng: np.random.Generator) -> np.ndarray:
        """Return the matrix from one frame to the next, about the frame's centre."""
        scale, angle = np.exp(rng.normal(*self.approach)), np.deg2rad(rng.normal(0, self.turn))
        shift = rng.normal(0, self.shift)
        centre = np.array([self.width / 2, self.height / 2])
        turned = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        step = np.eye(3)
        step[:2, :2], step[:2, 2] = turned, centre + shift - turned @ centre
        return step
