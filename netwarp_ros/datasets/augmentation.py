# SPDX-License-Identifier: Apache-2.0
"""Data augmentation: random changes to clips and their label maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from netwarp_ros.datasets.motion import flow_of
from netwarp_ros.datasets.samples import Clip

_GREY = (104, 116, 124)  # BGR, about the mean of ImageNet


@dataclass(frozen=True)
class Augmentation:
    """Random scale, crop, flip, color and blur for all frames of a clip; random exposure and noise for each frame.

    Attributes:
        height: Height of the crop in pixels.
        width: Width of the crop in pixels.
        min_scale: Smallest zoom. If the crop is larger than the zoomed image, the rest is grey and void.
        max_scale: Largest zoom.
        colour: Strength of the color changes: 0 for none, 1 for the full ranges in `_draw_colors`.
        blur: Probability of blurring the clip.
        exposure: Standard deviation of each frame's relative exposure.
        noise: Largest standard deviation of the pixel noise, in grey levels.
    """

    height: int
    width: int
    min_scale: float = 0.7
    max_scale: float = 2.0
    colour: float = 0.6
    blur: float = 0.2
    exposure: float = 0.0
    noise: float = 0.0

    def __call__(
        self, clip: Clip, rng: np.random.Generator, *, void: int, motion: Sequence[np.ndarray] | None = None
    ) -> Clip:
        """Augment a clip.

        Args:
            clip: T frames; or one frame, if a motion is given.
            rng: Source of all random values.
            void: Class id for pixels outside the image.
            motion: T matrices (3, 3) from `netwarp_ros.datasets.motion.Motion`, for frames of the crop's size.

        Returns:
            The clip, with T frames of size (height, width).
        """
        images, labels, flow = self._views(clip, motion, rng, void)
        saturation, table = _draw_colors(self.colour, rng)
        deviation = rng.uniform(0.4, 1.3) if rng.random() < self.blur else 0.0
        noise = rng.uniform(0, self.noise)
        for t, image in enumerate(images):
            image = _saturate(cv2.LUT(image, table), saturation)
            if deviation:
                image = cv2.GaussianBlur(image, (0, 0), deviation)
            if self.exposure or noise:
                image = image * np.float32(rng.normal(1, self.exposure))
                image += np.float32(noise) * rng.standard_normal(image.shape, dtype=np.float32)
                image = image.clip(0, 255).astype(np.uint8)
            images[t] = image
        return Clip(np.stack(images), np.stack(labels), flow)

    def _views(
        self, clip: Clip, motion: Sequence[np.ndarray] | None, rng: np.random.Generator, void: int
    ) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray | None]:
        """Zoom, crop, flip and move images, label maps, and their exact motion."""
        zoom = np.exp(rng.uniform(np.log(self.min_scale), np.log(self.max_scale)))
        view = self._view(zoom, clip.labels.shape[1:], rng)
        frames = list(zip(clip.images, clip.labels, strict=True))
        if zoom < 1:  # warpAffine does not filter when it shrinks
            frames = [(cv2.GaussianBlur(image, (0, 0), 0.5 / zoom), label) for image, label in frames]
        moves = [np.eye(3)] * len(frames) if motion is None else motion
        images, labels = [], []
        for (image, label), move in zip(frames * (len(moves) // len(frames)), moves, strict=True):
            matrix, size = (move @ view)[:2], (self.width, self.height)
            images.append(cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderValue=_GREY))
            labels.append(cv2.warpAffine(label, matrix, size, flags=cv2.INTER_NEAREST, borderValue=void))
        if motion is not None:
            return images, labels, flow_of(motion, self.height, self.width)
        flow = None if clip.motion is None else np.stack([self._moved(field, view) for field in clip.motion])
        return images, labels, flow

    def _moved(self, flow: np.ndarray, view: np.ndarray) -> np.ndarray:
        """Return a flow ``(H, W, 2)`` as it is in the crop."""
        size, unknown = (self.width, self.height), (np.nan, np.nan)
        there = cv2.warpAffine(flow, view[:2], size, flags=cv2.INTER_NEAREST, borderValue=unknown)
        return (there @ view[:2, :2].T).astype(np.float32)

    def _view(self, zoom: float, size: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Return the matrix (3, 3) from the image to the crop."""
        height, width = size
        zoom_x = zoom * np.exp(rng.uniform(-0.08, 0.08))
        # A crop larger than the zoomed image lies anywhere around it, a smaller crop anywhere inside it.
        left = rng.uniform(0, 1) * (width * zoom_x - self.width)
        top = rng.uniform(0, 1) * (height * zoom - self.height)
        # Pixel centers are at half-integers for the zoom and at integers for warpAffine.
        view = np.array([[zoom_x, 0, 0.5 * zoom_x - 0.5 - left], [0, zoom, 0.5 * zoom - 0.5 - top], [0, 0, 1]])
        if rng.random() < 0.5:
            view[0] = (self.width - 1) * view[2] - view[0]
        return view


def _draw_colors(strength: float, rng: np.random.Generator) -> tuple[float, np.ndarray]:
    """Draw a saturation, and a lookup table (1, 256, 3) of contrast, brightness, gamma and tint."""
    gain = 1 + strength * rng.uniform(-0.3, 0.3)
    offset = strength * rng.uniform(-0.15, 0.15)
    gamma = np.exp(strength * rng.uniform(-0.5, 0.5))
    tint = 1 + strength * rng.uniform(-0.15, 0.15, size=3)
    saturation = 1 + strength * rng.uniform(-0.6, 0.6)
    level = np.linspace(0, 1, 256)[:, None] ** gamma
    table = np.clip(255 * ((level - 0.5) * gain * tint + 0.5 + offset), 0, 255).round().astype(np.uint8)
    return saturation, table[None]


def _saturate(image: np.ndarray, saturation: float) -> np.ndarray:
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return cv2.addWeighted(image, saturation, grey, 1 - saturation, 0)
