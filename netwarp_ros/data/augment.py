# SPDX-License-Identifier: Apache-2.0
"""Random changes to an image and its label map that a training network should not mind."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Augmentation:
    """Random scale, crop, flip, colour and blur.

    Attributes:
        height: Height of the crop in pixels.
        width: Width of the crop in pixels.
        min_scale: Smallest zoom; below 1 the crop is filled up with grey and void.
        max_scale: Largest zoom.
        colour: Strength of the colour changes; 0 is none, 1 the ranges of `_change_colour`.
        blur: Probability of a blur.
    """

    height: int
    width: int
    min_scale: float = 0.7
    max_scale: float = 2.0
    colour: float = 0.6
    blur: float = 0.2

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator, *, void: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augment one sample.

        Args:
            image: (H, W, 3) uint8, BGR.
            label: (H, W) uint8 class ids.
            rng: Source of every random choice.
            void: Class id for pixels that no longer show the image.

        Returns:
            Image (height, width, 3) uint8 and label (height, width) uint8.
        """
        image, label = self._zoom_and_crop(image, label, rng, void)
        if rng.random() < 0.5:
            image, label = image[:, ::-1], label[:, ::-1]
        image = _change_colour(np.ascontiguousarray(image), self.colour, rng)
        if rng.random() < self.blur:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.3))
        return image, np.ascontiguousarray(label)

    def _zoom_and_crop(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator, void: int
    ) -> tuple[np.ndarray, np.ndarray]:
        zoom = np.exp(rng.uniform(np.log(self.min_scale), np.log(self.max_scale)))
        zoom_x = zoom * np.exp(rng.uniform(-0.08, 0.08))
        height, width = label.shape
        # A crop larger than the zoomed image may lie anywhere around it, a smaller one anywhere inside it.
        left = rng.uniform(0, 1) * (width * zoom_x - self.width)
        top = rng.uniform(0, 1) * (height * zoom - self.height)
        # Pixel centres are at half-integers for the zoom and at integers for warpAffine.
        matrix = np.array([[zoom_x, 0, 0.5 * zoom_x - 0.5 - left], [0, zoom, 0.5 * zoom - 0.5 - top]], dtype=np.float64)
        size = (self.width, self.height)
        if zoom < 1:
            image = cv2.GaussianBlur(image, (0, 0), 0.5 / zoom)  # warpAffine itself does not filter when it shrinks
        image = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderValue=(104, 116, 124))
        label = cv2.warpAffine(label, matrix, size, flags=cv2.INTER_NEAREST, borderValue=void)
        return image, label


def _change_colour(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Contrast, brightness and gamma by one table per channel, then saturation."""
    gain = 1 + strength * rng.uniform(-0.3, 0.3)
    offset = strength * rng.uniform(-0.15, 0.15)
    gamma = np.exp(strength * rng.uniform(-0.5, 0.5))
    tint = 1 + strength * rng.uniform(-0.15, 0.15, size=3)
    level = np.linspace(0, 1, 256)[:, None] ** gamma
    table = np.clip(255 * ((level - 0.5) * gain * tint + 0.5 + offset), 0, 255).round().astype(np.uint8)
    image = cv2.LUT(image, table[None])
    saturation = 1 + strength * rng.uniform(-0.6, 0.6)
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return cv2.addWeighted(image, saturation, grey, 1 - saturation, 0)
