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
"""Images with a smaller side are padded to this many pixels. DIS matches 8-pixel patches at quarter resolution, and
OpenCV 5.0 reads out of bounds where an image is lower than a patch."""


class DisFlow:
    """Reverse flow between two frames by DIS. It keeps no state between calls.

    Args:
        preset: A key of `PRESETS`.
        halved: Whether the frames come from `halve`. The search then ends one level earlier, at the same resolution: on
            the way there, DIS halves frames itself, all presets at least once. So the flow is nearly the same, in two
            thirds of the time. It is the flow of the halved frames, in their pixels.
        fine: Whether the search goes on for one level, with fewer patches, to follow small objects and edges. For class
            scores that are moved along the flow, where NetWarp's blend forgives more.

    Raises:
        ValueError: If the preset is unknown.
    """

    def __init__(self, preset: str = "ultrafast", *, halved: bool = False, fine: bool = False) -> None:
        if preset not in PRESETS:
            raise ValueError(f"unknown DIS preset {preset!r}: choose one of {', '.join(PRESETS)}")
        self.preset, self.halved, self.fine = preset, halved, fine
        # Two objects: once OpenCV's has had a start, it begins a call without one at its own last flow.
        self._cold, self._warm = (cv2.DISOpticalFlow.create(PRESETS[preset]) for _ in range(2))
        for dis in (self._cold, self._warm):
            dis.setFinestScale(max(0, dis.getFinestScale() - halved - fine))
            if fine:
                dis.setPatchStride(5)
                dis.setGradientDescentIterations(8)
        self._min_side = MIN_SIDE // 2 if halved else MIN_SIDE

    def __call__(self, present: np.ndarray, previous: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
        """Estimate the flow from the present frame back to the previous one.

        Args:
            present: ``(H, W)`` grey or ``(H, W, 3)`` BGR, uint8.
            previous: The frame before it, of the same height and width.
            start: ``(H, W, 2)`` float32, a flow from which the search starts, such as that of the pair before. Motion
                mostly continues, so the result is more accurate in the same time (docs/benchmarks.md). By default,
                OpenCV chooses the start.

        Returns:
            ``(H, W, 2)`` float32, in pixels: pixel (x, y) of ``present`` is at (x + u, y + v) in ``previous``.

        Raises:
            ValueError: If a frame or the start has another shape or type.
        """
        present, previous = grey_pair(present, previous)
        if start is not None and (start.shape != (*present.shape, 2) or start.dtype != np.float32):
            raise ValueError(f"start is {start.shape} {start.dtype}: give {(*present.shape, 2)} float32")
        height, width = present.shape
        below, right = max(0, self._min_side - height), max(0, self._min_side - width)
        if below or right:
            present, previous = (
                cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE) for image in (present, previous)
            )
        if start is None:  # OpenCV's own start is better than a flow of zero
            flow = self._cold.calc(present, previous, None)  # type: ignore[call-overload]  # the stub omits None
        else:
            start = cv2.copyMakeBorder(start, 0, below, 0, right, cv2.BORDER_REPLICATE)  # a copy: OpenCV writes to it
            flow = self._warm.calc(present, previous, start)
        return flow[:height, :width]


def halve(grey: np.ndarray) -> np.ndarray:
    """Return a grey frame ``(H, W)`` at half its size, as DIS halves it; odd sides are rounded up."""
    height, width = grey.shape
    return cv2.resize(grey, ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA)


def grey_pair(present: np.ndarray, previous: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert two frames to grey, ``(H, W)`` uint8.

    Raises:
        ValueError: If they are not ``(H, W)`` grey or ``(H, W, 3)`` BGR, uint8, of the same size.
    """
    present, previous = _grey(present, "present"), _grey(previous, "previous")
    if present.shape != previous.shape:
        raise ValueError(f"present is {present.shape}, previous is {previous.shape}: give two frames of the same size")
    return present, previous


def _grey(image: np.ndarray, name: str) -> np.ndarray:
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise ValueError(f"{name} is {image.shape} {image.dtype}: give (H, W) grey or (H, W, 3) BGR, uint8")
    # OpenCV's DIS takes dense arrays only.
    return np.ascontiguousarray(image) if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
