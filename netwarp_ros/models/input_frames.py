# SPDX-License-Identifier: Apache-2.0
"""How an image becomes a frame that a network takes: scaled, and padded; and how its mask becomes the image's."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from netwarp_ros.models.resampling import Size
from netwarp_ros.models.spec import MAX_INPUT_HEIGHT, ModelSpec


@dataclass(frozen=True)
class InputFrames:
    """Frames of a model. Their padding, on the right and below, has the mean color, which the network sees as zeros.

    Args:
        spec: The model's spec.
        height: Images are scaled to this height in pixels; the aspect ratio is kept. 0: that of the spec.
        max_width: An image that would then be wider keeps its own size; if it is wider itself, it is scaled to this
            width.

    Raises:
        ValueError: If a value is out of its range, or the network takes another height only.
    """

    spec: ModelSpec
    height: int
    max_width: int

    def __post_init__(self) -> None:
        fixed, height = self.spec.input_size.fixed, self.height
        if not 0 <= height <= MAX_INPUT_HEIGHT:
            raise ValueError(
                f"input_height is {height}: give pixels up to {MAX_INPUT_HEIGHT}, or 0 for the height of training"
            )
        if self.max_width < 1:
            raise ValueError(f"max_input_width is {self.max_width}: give pixels > 0")
        if fixed and height not in (0, fixed[0]):
            raise ValueError(f"input_height is {height}, and the network takes {fixed[1]}x{fixed[0]} only: give 0")
        object.__setattr__(self, "height", fixed[0] if fixed else height or self.spec.input_height)

    def scaled(self, image: Size) -> Size:
        """Return the size ``(height, width)`` that an image of a size is scaled to."""
        height, width = image
        if (fixed := self.spec.input_size.fixed) is not None:
            factor = min(fixed[0] / height, fixed[1] / width)
            return max(1, round(height * factor)), max(1, round(width * factor))
        scaled_width = round(width * self.height / height)
        if scaled_width <= self.max_width:
            return self.height, max(1, scaled_width)
        own_width = min(width, self.max_width)
        return max(1, round(height * own_width / width)), own_width

    def frame(self, image: np.ndarray) -> np.ndarray:
        """Scale and pad an image ``(H, W, 3)``, BGR uint8. One that needs neither is returned itself."""
        mean = [round(255 * value) for value in reversed(self.spec.mean)]
        return self._padded(self._resized(image), mean)

    def flow(self, flow: np.ndarray) -> np.ndarray:
        """Scale and pad the flow ``(H, W, 2)`` of an image as the image; the padding does not move.

        A flow that needs no padding is returned itself: the network takes one of any size.
        """
        scaled = self.scaled(flow.shape[:2])
        if self.spec.input_size.padded(scaled) == scaled:
            return flow
        factors = np.array([scaled[1] / flow.shape[1], scaled[0] / flow.shape[0]], np.float32)
        return self._padded(self._resized(flow) * factors, [0])

    def cropped(self, mask: np.ndarray, image: Size) -> np.ndarray:
        """Return the mask ``(H, W)`` of a frame without its padding; dense, and the mask itself if there is none."""
        height, width = self.scaled(image)
        return np.ascontiguousarray(mask[:height, :width])

    def _resized(self, array: np.ndarray) -> np.ndarray:
        height, width = self.scaled(array.shape[:2])
        if (height, width) == array.shape[:2]:
            return array
        method = cv2.INTER_AREA if array.shape[0] > height else cv2.INTER_LINEAR
        return cv2.resize(array, (width, height), interpolation=method)

    def _padded(self, array: np.ndarray, value: list[int]) -> np.ndarray:
        size: Size = array.shape[:2]
        height, width = self.spec.input_size.padded(size)
        if (height, width) == size:
            return array
        return cv2.copyMakeBorder(array, 0, height - size[0], 0, width - size[1], cv2.BORDER_CONSTANT, value=value)
