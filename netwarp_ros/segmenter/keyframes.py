# SPDX-License-Identifier: Apache-2.0
"""Key frames: the network runs on them alone; on the frames between, its scores are moved along the flow.

Scores are moved from the key frame itself, along the flow accumulated since then, so that they are sampled once and do
not blur. This is the clockwork of Shelhamer et al. ("Clockwork Convnets for Video Semantic Segmentation", ECCV 2016
workshops, seed [39] of the paper) with warping in place of stale features.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor

from netwarp_ros import ops
from netwarp_ros.models import resize_flow
from netwarp_ros.models.resampling import Size, as_maps
from netwarp_ros.models.video_cnn import map_size, to_device
from netwarp_ros.resources import quote

MOST_FRAMES = 100
"""Greatest N: after so many frames, nothing of a moving camera's image is left."""

_SAMPLES = 160
"""`unseen_share` looks at a grid of about so many pixels on the longer side."""


@dataclass(frozen=True)
class KeyFrames:
    """Which frames are key frames. The first one after a reset always is.

    Args:
        text: ``none``: every frame, nothing is skipped. A number N from 2 to `MOST_FRAMES`: every N-th frame.
            ``adaptive``: when too much of the image has not been seen in the key frame.
        most_unseen: For ``adaptive``, the `unseen_share` above which a frame becomes a key frame.
        bound: For ``adaptive``, how many frames after a key frame the next one follows at the latest.

    Raises:
        ValueError: If a value is none of these.
    """

    text: str = "none"
    most_unseen: float = 0.035
    bound: int = 6

    def __post_init__(self) -> None:
        if self.text not in ("none", "adaptive") and not (
            _NUMBER.fullmatch(self.text) and 2 <= int(self.text) <= MOST_FRAMES
        ):
            raise ValueError(
                f"keyframes is {quote(self.text)}: give none, adaptive, or a number N from 2 to {MOST_FRAMES} for "
                "every N-th frame"
            )
        if not 0 <= self.most_unseen <= 1:
            raise ValueError(f"most_unseen is {self.most_unseen}: give a share from 0 to 1")
        if not 1 <= self.bound <= MOST_FRAMES:
            raise ValueError(f"bound is {self.bound}: give 1 to {MOST_FRAMES} frames")

    @property
    def skip(self) -> bool:
        """Whether any frame is skipped."""
        return self.text != "none"

    @property
    def distance(self) -> int:
        """Frames from a key frame to the next one at the latest."""
        if not self.skip:
            return 1
        return self.bound if self.text == "adaptive" else int(self.text)

    def is_due(self, key: KeyFrame, grey: np.ndarray | None, flow: Callable[[], np.ndarray]) -> bool:
        """Tell whether the next frame has to be a key frame.

        Args:
            key: The latest key frame.
            grey: ``(h, w)`` uint8, the frame.
            flow: Returns its flow ``(h, w, 2)`` to the key frame.
        """
        if key.since + 1 >= self.distance:
            return True
        return self.text == "adaptive" and grey is not None and unseen_share(grey, key.grey, flow()) > self.most_unseen


_NUMBER = re.compile(r"[1-9][0-9]{0,2}")


@dataclass(frozen=True)
class KeyFrame:
    """What is kept of a key frame until the next one.

    Attributes:
        scores: ``(1, K, h, w)``, on the network's device.
        grey: ``(h, w)`` uint8, as the flow estimator takes it.
        since: Frames since then.
        flow: ``(h, w, 2)`` float32, from the latest of these frames to the key frame, in pixels of the grey image;
            None for the key frame itself.
    """

    scores: Tensor
    grey: np.ndarray
    since: int = 0
    flow: np.ndarray | None = None

    def followed(self, flow: np.ndarray) -> KeyFrame:
        """Return it for the next frame, whose flow to the key frame is this."""
        return replace(self, since=self.since + 1, flow=flow)

    def flow_from(self, flow: np.ndarray) -> np.ndarray:
        """Return the flow from a frame to the key frame, in pixels of the grey image.

        Args:
            flow: The frame's flow ``(h, w, 2)`` to the frame before it, in pixels of its own grid.
        """
        return accumulate(_resized(flow, (self.grey.shape[0], self.grey.shape[1])), self.flow)


def accumulate(flow: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """Return the flow over two steps: ``F(x) = flow(x) + before(x + flow(x))``.

    Args:
        flow: ``(h, w, 2)`` float32, from a frame to the one before it, in pixels.
        before: From there further back, of the same shape; None for no second step. Outside of its grid, its border
            goes on.
    """
    if before is None:
        return flow
    columns, rows = _grid(flow.shape[0], flow.shape[1], 1)
    # OpenCV rounds places to 1/32 pixel, which matters little to a smooth flow, in a third of our operator's time.
    x, y = columns + flow[..., 0], rows + flow[..., 1]
    return flow + cv2.remap(before, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


@torch.inference_mode()
def move(scores: Tensor, flow: np.ndarray) -> Tensor:
    """Return scores ``(1, K, h, w)`` moved along a flow ``(H, W, 2)`` to the frame that they come from."""
    size, along = map_size(scores), as_maps(flow)
    return ops.warp(scores, to_device(resize_flow(along, size), scores.device))


def unseen_share(grey: np.ndarray, key: np.ndarray, flow: np.ndarray) -> float:
    """Return how much of a frame was not seen in its key frame, from 0 to 1.

    A pixel was not seen if its flow leads out of the image, or to another grey value: they differ by more than
    `_DIFFERING`, after the mean difference, as by the exposure, is taken off. About `_SAMPLES` columns are looked at.

    Args:
        grey: ``(h, w)`` uint8, the frame.
        key: The key frame, of the same shape.
        flow: ``(h, w, 2)`` float32, from the frame to the key frame, in pixels.
    """
    height, width = grey.shape
    step = max(1, round(max(height, width) / _SAMPLES))
    columns, rows = _grid(height, width, step)
    x, y = columns + flow[::step, ::step, 0], rows + flow[::step, ::step, 1]
    found = cv2.remap(key, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    difference = cv2.subtract(grey[::step, ::step], found, dtype=cv2.CV_32F)
    difference -= difference.mean()
    outside = (x < 0) | (x > width - 1) | (y < 0) | (y > height - 1)
    return float((outside | (np.abs(difference) > _DIFFERING)).mean())


_DIFFERING = 25.0


@lru_cache(8)
def _grid(height: int, width: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of each pixel, or of each ``step``-th one in both directions, float32."""
    rows, columns = np.mgrid[0:height:step, 0:width:step].astype(np.float32)
    return columns, rows


def _resized(flow: np.ndarray, size: Size) -> np.ndarray:
    if flow.shape[:2] == size:
        return flow
    return np.ascontiguousarray(resize_flow(as_maps(flow), size)[0].permute(1, 2, 0).numpy())
