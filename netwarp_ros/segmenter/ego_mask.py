# SPDX-License-Identifier: Apache-2.0
"""The ego mask: what a camera sees of its own robot, which is left out."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import torch

from netwarp_ros.models import Memory
from netwarp_ros.models.input_frames import InputFrames
from netwarp_ros.segmenter.masks import Size, at_size


class EgoMask:
    """Pixels of a camera's images that are left out.

    * Their content has no effect: the image is painted over with the network's mean color before network and flow see
      it. At the network's size, a pixel is painted over if any part of it is left out.
    * They do not flow into the blend: what is remembered of them is 0, so that their w2 is 0 (paper, Eq. 2).
    * In the mask they are 255, with confidence 0.

    Args:
        mask: ``(h, w)`` of any size, bool or uint8: what is not 0 is left out. Resized to the images by nearest
            neighbor.
        frames: How the images become frames of the network.

    Raises:
        ValueError: If the mask has another shape or type, or leaves nothing in.
    """

    def __init__(self, mask: np.ndarray, frames: InputFrames) -> None:
        if mask.ndim != 2 or mask.size == 0 or mask.dtype not in (np.bool_, np.uint8):
            raise ValueError(f"the ego mask is {mask.shape} {mask.dtype}: give (h, w) uint8 or bool")
        if mask.all():
            raise ValueError("the ego mask leaves out every pixel: give one that is 0 where the scene is seen")
        self._mask = np.where(mask, np.uint8(255), np.uint8(0))
        self._frames = frames
        # Images of a camera usually have one size.
        self._left_out = lru_cache(2)(lambda size: at_size(self._mask, size))
        self._kept_of_frame = lru_cache(2)(self._find_kept_of_frame)
        self._left_out_of_map = lru_cache(16)(self._find_left_out_of_map)
        self._paint = lru_cache(2)(self._make_paint)

    def paint_over(self, scaled: np.ndarray, image: Size) -> np.ndarray:
        """Return an image that is scaled for the network, painted over with the mean color where it is left out.

        Args:
            scaled: ``(h, w, 3)`` BGR uint8.
            image: Size of the image that was scaled.
        """
        return cv2.copyTo(scaled, self._kept_of_frame(image), self._paint(scaled.shape).copy())

    def forget(self, memory: Memory, image: Size) -> Memory:
        """Return the memory of a frame without the representations of what is left out."""
        representations = {}
        for name, z in memory.representations.items():
            left_out = self._left_out_of_map(image, (z.shape[-2], z.shape[-1]), z.device)
            representations[name] = z.clone().masked_fill_(left_out, 0)  # masked_fill would change the layout
        return memory._replace(representations=representations)

    def leave_out(self, mask: np.ndarray) -> np.ndarray:
        """Return a mask with 255 for the pixels that are left out."""
        return cv2.bitwise_or(mask, self._left_out(mask.shape))

    def _find_kept_of_frame(self, image: Size) -> np.ndarray:
        """Return what is kept of a scaled image, ``(h, w)`` uint8, 0 or 255."""
        # Scaled like the image, in float32: no left-out pixel may be rounded away.
        left_out = self._frames.scale(self._left_out(image).astype(np.float32))
        return np.where(left_out > 0, np.uint8(0), np.uint8(255))

    def _find_left_out_of_map(self, image: Size, size: Size, device: torch.device) -> torch.Tensor:
        """Return what is left out of a representation, ``(h, w)`` bool: cells with any pixel that is left out."""
        left_out = (255 - self._frames.pad(self._kept_of_frame(image))).astype(np.float32)
        return torch.from_numpy(cv2.resize(left_out, size[::-1], interpolation=cv2.INTER_AREA) > 0).to(device)

    def _make_paint(self, shape: tuple[int, int, int]) -> np.ndarray:
        """Return an image ``(h, w, 3)`` of the mean color, BGR uint8."""
        mean = [round(255 * value) for value in reversed(self._frames.spec.mean)]
        return np.full(shape, np.array(mean, np.uint8))
