# SPDX-License-Identifier: Apache-2.0
"""DIS optical flow by our own operator: on a GPU by CUDA kernels, elsewhere in plain PyTorch, which is slow."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import torch
from torch import Tensor

from netwarp_ros.flow.dis import PRESETS, grey_pair
from netwarp_ros.ops.dis import LEAST_SIDE, Search, dis_flow, dis_pyramid

Size = tuple[int, int]
"""Height and width."""

SEARCHES = {
    "ultrafast": Search(finest=2, stride=4, rounds=4, steps=3),
    "fast": Search(finest=2, stride=4, rounds=6, steps=3, refinements=5),
    "medium": Search(finest=1, stride=3, rounds=8, steps=3, refinements=5),
}
"""The presets of DIS for patches that are searched all together: OpenCV's steps of descent, in more rounds."""


class TensorDis:
    """Reverse flow between frames that are tensors, by DIS. It keeps no state between calls.

    Args:
        preset: A key of `netwarp_ros.flow.PRESETS`.
        device: Where NumPy frames are computed; tensors are computed where they are.
        level: The grid of the flow: its cells cover 2^level pixels of the frames.
        fine: As for `DisFlow`.

    Raises:
        ValueError: If the preset is unknown.
    """

    def __init__(
        self, preset: str = "ultrafast", device: str | torch.device = "cuda", *, level: int = 0, fine: bool = False
    ) -> None:
        if preset not in PRESETS:
            raise ValueError(f"unknown DIS preset {preset!r}: choose one of {', '.join(PRESETS)}")
        self.preset, self.device, self.level = preset, torch.device(device), level
        self.search = SEARCHES[preset]
        if fine:
            self.search = replace(self.search, finest=max(0, self.search.finest - 1), stride=5)

    def pyramid(self, frames: Tensor) -> Tensor:
        """Return the pyramid of frames ``(B, 3, H, W)`` RGB or ``(B, 1, H, W)`` grey, uint8.

        It is the same for all presets, unless they are ``fine``.
        """
        return dis_pyramid(_grown(frames, _padded((frames.shape[2], frames.shape[3]))), self.search.first)

    def flow(self, present: Tensor, previous: Tensor, size: Size, start: Tensor | None = None) -> Tensor:
        """Return the flow ``(B, 2, h, w)`` between frames of a size ``(height, width)``, from their pyramids.

        Args:
            present: What `pyramid` returned for the present frames.
            previous: The same for those before them.
            size: Their size.
            start: A flow from which the search starts, as of the pair before: what this method returned.

        Raises:
            ValueError: If the start has another size, or `netwarp_ros.ops.dis.dis_flow` refuses an argument.
        """
        padded, (rows, columns) = _padded(size), self._on_grid(size)
        if start is not None:
            if start.shape[-2:] != (rows, columns):
                raise ValueError(f"start is {tuple(start.shape)}: give (B, 2, {rows}, {columns})")
            start = _grown(start, self._on_grid(padded))
        return dis_flow(present, previous, padded, self.search, start, self.level)[..., :rows, :columns]

    def __call__(self, present: np.ndarray, previous: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
        """Estimate the flow of NumPy frames, as `DisFlow` does; it has the size of the frames if ``level`` is 0."""
        grey = (torch.from_numpy(np.ascontiguousarray(image)) for image in grey_pair(present, previous))
        now, before = (self.pyramid(image.to(self.device)[None, None]) for image in grey)
        begin = None if start is None else torch.from_numpy(start).to(self.device).permute(2, 0, 1)[None]
        flow = self.flow(now, before, (present.shape[0], present.shape[1]), begin)
        return np.ascontiguousarray(flow[0].permute(1, 2, 0).cpu().numpy())

    def _on_grid(self, size: Size) -> Size:
        """Return the size of the grid of the flow."""
        return -(-size[0] >> self.level), -(-size[1] >> self.level)


@cache
def dis_problem(device: torch.device) -> str:
    """Try `TensorDis` on a device: return why it cannot be used there; empty if it can.

    On a texture that moves, its flow must be that of the reference on the CPU, bit for bit.
    """
    noise = np.random.default_rng(0).integers(0, 256, (12, 16), np.uint8)
    frames = [np.roll(cv2.resize(noise, (96, 72), interpolation=cv2.INTER_CUBIC), 2 * step, axis=1) for step in (1, 0)]
    try:
        found, expected = (TensorDis("fast", where)(*frames) for where in (device, "cpu"))
    except RuntimeError as error:  # of CUDA
        return f"DIS fails on {device}: {str(error).partition(chr(10))[0]}"
    return "" if np.array_equal(found, expected) else f"DIS on {device} gives another flow than its reference"


def _padded(size: Size) -> Size:
    return max(size[0], LEAST_SIDE), max(size[1], LEAST_SIDE)


def _grown(maps: Tensor, size: Size) -> Tensor:
    """Return maps ``(B, C, h, w)`` whose last row and column are repeated up to a size."""
    for dim, side in zip((2, 3), size, strict=True):
        if (own := maps.shape[dim]) < side:
            maps = maps.index_select(dim, torch.arange(side, device=maps.device).clamp(max=own - 1))
    return maps
