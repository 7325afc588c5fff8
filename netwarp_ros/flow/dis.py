# SPDX-License-Identifier: Apache-2.0
"""DIS optical flow (Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016), through OpenCV."""

from __future__ import annotations

import cv2
import numpy as np

PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}
"""OpenCV's presets by name, from the fastest to the most accurate."""

MIN_SIDE = 32
"""The smallest side handed to DIS as it is; smaller images are padded. Its presets match 8-pixel patches at quarter
resolution, and where an image is lower than that OpenCV 5.0 reads out of bounds."""


class DisFlow:
    """Reverse DIS flow between two frames; it keeps nothing from call to call.

    Args:
        preset: A key of `PRESETS`.

    Raises:
        ValueError: If the preset is unknown.
    """

    def __init__(self, preset: str = "ultrafast") -> None:
        if preset not in PRESETS:
            raise ValueError(f"unknown DIS preset {preset!r}: choose one of {', '.join(PRESETS)}")
        self.preset = preset
        # OpenCV's object that was ever given a start goes on from its own last flow when it is given none.
        self._cold, self._warm = (cv2.DISOpticalFlow.create(PRESETS[preset]) for _ in range(2))

    def __call__(self, present: np.ndarray, previous: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
        """Estimate the flow from the present frame back to the previous one.

        Args:
            present: ``(H, W)`` grey or ``(H, W, 3)`` BGR, uint8.
            previous: The frame before it, of the same height and width.
            start: ``(H, W, 2)`` float32, where the search starts: the flow of the pair before this one, when there is
                one. Motion goes on as it was, mostly, so the flow is nearer the truth, in the same time
                (docs/benchmarks.md). By default OpenCV's own start.

        Returns:
            ``(H, W, 2)`` float32, in pixels: pixel (x, y) of ``present`` is at (x + u, y + v) in ``previous``.

        Raises:
            ValueError: If a frame or the start is not of these shapes or types.
        """
        present, previous = grey_pair(present, previous)
        if start is not None and (start.shape != (*present.shape, 2) or start.dtype != np.float32):
            raise ValueError(f"start is {start.shape} {start.dtype}: give {(*present.shape, 2)} float32")
        height, width = present.shape
        below, right = max(0, MIN_SIDE - height), max(0, MIN_SIDE - width)
        if below or right:
            present, previous = (
                cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE) for image in (present, previous)
            )
        if start is None:  # not zero: OpenCV starts better by itself than from a flow of zero
            flow = self._cold.calc(present, previous, None)  # type: ignore[call-overload]  # its stub omits None
        else:
            start = cv2.copyMakeBorder(start, 0, below, 0, right, cv2.BORDER_REPLICATE)  # a copy: it is written to
            flow = self._warm.calc(present, previous, start)
        return flow[:height, :width]


def grey_pair(present: np.ndarray, previous: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two frames in grey, ``(H, W)`` uint8.

    Raises:
        ValueError: If they are not ``(H, W)`` grey or ``(H, W, 3)`` BGR, uint8, of one size.
    """
    present, previous = _grey(present, "present"), _grey(previous, "previous")
    if present.shape != previous.shape:
        raise ValueError(f"present is {present.shape}, previous is {previous.shape}: give two frames of one size")
    return present, previous


def _grey(image: np.ndarray, name: str) -> np.ndarray:
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise ValueError(f"{name} is {image.shape} {image.dtype}: give (H, W) grey or (H, W, 3) BGR, uint8")
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
