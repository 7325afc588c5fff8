# SPDX-License-Identifier: Apache-2.0
"""How an image becomes a frame that a network takes: scaled, and padded; and how its mask becomes the image's."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from torch import Tensor
from torch.nn import functional as F

from netwarp_ros.models.resampling import Size
from netwarp_ros.models.spec import MAX_INPUT_HEIGHT, ModelSpec


@dataclass(frozen=True)
class InputFrames:
    """Frames of a model. Their padding, on the right and below, repeats the last row and column.

    So an image goes on beyond its edge as maps do for the warp, which takes what is outside from the border. The flow
    is estimated on the scaled image without padding, and padded likewise.

    Args:
        spec: The model's spec.
        height: Images are scaled to this height in pixels; the aspect ratio is kept. 0: that of the spec.
        max_width: An image that would then be wider keeps its own size; if it is wider itself, it is scaled to this
            width. Padding comes on top.

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
            raise ValueError(f"input_height is {height}, and the network takes {self.spec.input_size}: give 0")
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

    def padded(self, image: Size) -> Size:
        """Return the size ``(height, width)`` of the frame that an image of a size becomes."""
        return self.spec.input_size.padded(self.scaled(image))

    def scale(self, image: np.ndarray) -> np.ndarray:
        """Scale an image ``(H, W, 3)``, BGR uint8. One that has the size already is returned itself."""
        height, width = self.scaled((image.shape[0], image.shape[1]))
        if (height, width) == image.shape[:2]:
            return image
        method = cv2.INTER_AREA if image.shape[0] > height else cv2.INTER_LINEAR
        return cv2.resize(image, (width, height), interpolation=method)

    def pad(self, scaled: np.ndarray) -> np.ndarray:
        """Pad a scaled image to a size that the network takes. One that has such a size already is returned itself."""
        height, width = self.spec.input_size.padded((scaled.shape[0], scaled.shape[1]))
        return _padded(scaled, height, width)

    def frame(self, image: np.ndarray) -> np.ndarray:
        """Scale and pad an image."""
        return self.pad(self.scale(image))

    def pad_flow(self, flow: np.ndarray, image: Size) -> np.ndarray:
        """Pad the flow ``(h, w, 2)`` of an image, in pixels of any grid, so that it covers the padded frame.

        One that needs no padding is returned itself.

        Args:
            flow: The flow.
            image: Size of the image.
        """
        return _padded(flow, *self._covering((flow.shape[0], flow.shape[1]), image))

    def pad_flow_maps(self, flow: Tensor, image: Size) -> Tensor:
        """Pad the flow ``(B, 2, h, w)`` as `pad_flow` does."""
        height, width = self._covering((flow.shape[2], flow.shape[3]), image)
        below, right = height - flow.shape[2], width - flow.shape[3]
        return F.pad(flow, (0, right, 0, below), mode="replicate") if below or right else flow

    def _covering(self, grid: Size, image: Size) -> Size:
        """Return the size of the grid of an image's flow that covers the padded frame as well."""
        scaled = self.scaled(image)
        height, width = (
            round(cells * whole / part)
            for cells, whole, part in zip(grid, self.spec.input_size.padded(scaled), scaled, strict=True)
        )
        return height, width

    def cropped(self, mask: np.ndarray, image: Size) -> np.ndarray:
        """Return the mask ``(H, W)`` of a frame without its padding; dense, and the mask itself if there is none."""
        height, width = self.scaled(image)
        return np.ascontiguousarray(mask[:height, :width])


def _padded(array: np.ndarray, height: int, width: int) -> np.ndarray:
    below, right = height - array.shape[0], width - array.shape[1]
    if not (below or right):
        return array
    return cv2.copyMakeBorder(array, 0, below, 0, right, cv2.BORDER_REPLICATE)
