# SPDX-License-Identifier: Apache-2.0
"""DIS optical flow on tensors (Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016).

`dis_pyramid` makes the grey pyramid of a frame, once; `dis_flow` finds the flow between two of them. `csrc/cuda/`
implements both for GPUs, and `netwarp_ros.ops.dis_reference` in plain PyTorch. The two agree bit for bit: sums have one
order, and no product is fused with a sum. docs/flow.md describes the algorithm, and where it differs from OpenCV's.

The flow is reverse flow: pixel (x, y) of the present frame is found at (x + u, y + v) in the previous one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from netwarp_ros.ops import compiled, dis_reference
from netwarp_ros.ops.dis_reference import PATCH

LEAST_SIDE = 32
"""Least height and width of a frame, in pixels: a patch must fit in at the finest level of every search."""

_LARGEST_SIDE = 1 << 14
_MOST_FINEST = 2  # there, a patch of 8 pixels then covers LEAST_SIDE


_LIMITS = {
    "finest": (0, _MOST_FINEST),
    "stride": (1, PATCH),
    "rounds": (1, 100),
    "steps": (1, 100),
    "refinements": (0, 100),
}


@dataclass(frozen=True)
class Search:
    """How thoroughly the flow is searched.

    Attributes:
        finest: The search ends at this level of the pyramid, where a pixel covers 2^finest pixels of the frame.
        stride: Patches of 8×8 pixels begin at every stride-th pixel, 1 to 8.
        rounds: At each level, patches try the displacements of their neighbors so often.
        steps: Steps of gradient descent in each round.
        refinements: Iterations of variational refinement at each level; 0 for none.

    Raises:
        ValueError: If a value is out of its range.
    """

    finest: int
    stride: int
    rounds: int
    steps: int
    refinements: int = 0

    def __post_init__(self) -> None:
        for name, (least, most) in _LIMITS.items():
            if not least <= (value := getattr(self, name)) <= most:
                raise ValueError(f"{name} is {value}: give {least} to {most}")

    @property
    def first(self) -> int:
        """First level of the pyramids that are searched: 1, except for searches at full resolution."""
        return min(1, self.finest)

    def coarsest(self, size: tuple[int, int]) -> int:
        """Return the level at which the search begins, for frames of a size ``(height, width)``.

        There, patches reach a displacement of a quarter of the longer side, and still fit in.
        """
        by_motion = math.floor(math.log2(max(size) / (4 * PATCH)) + 0.5)
        return max(self.finest, min(by_motion, last_level(size)))


def last_level(size: tuple[int, int]) -> int:
    """Return the last level of pyramids of frames of a size ``(height, width)``: a patch just fits in."""
    return math.floor(math.log2(min(size) / PATCH))


def pyramid_pixels(size: tuple[int, int], first: int) -> int:
    """Return how many pixels the pyramid of a frame has, from its first level on."""
    return sum((size[0] >> level) * (size[1] >> level) for level in range(first, last_level(size) + 1))


def dis_pyramid(frame: Tensor, first: int = 1) -> Tensor:
    """Return the grey pyramid of frames.

    Each level halves the one before: a pixel is the rounded mean of four; an odd last row or column is left out.

    Args:
        frame: ``(B, 3, H, W)`` RGB or ``(B, 1, H, W)`` grey, uint8, of any strides. Grey is that of OpenCV.
        first: First level that is wanted: `Search.first`. Level 0 is the frame itself.

    Returns:
        ``(B, N)`` uint8, N being `pyramid_pixels`: the pixels of each level, row by row, the first level first.

    Raises:
        ValueError: If the shape or type is wrong, or a side is shorter than `LEAST_SIDE`.
    """
    if frame.ndim != 4 or frame.shape[1] not in (1, 3) or frame.dtype != torch.uint8:
        raise ValueError(f"frame is {tuple(frame.shape)} {frame.dtype}: give (B, 3, H, W) or (B, 1, H, W) uint8")
    size = (frame.shape[2], frame.shape[3])
    _check_size(size)
    if not 0 <= first <= _MOST_FINEST:
        raise ValueError(f"first is {first}: give 0 to {_MOST_FINEST}")
    last = last_level(size)
    if frame.device.type in compiled.DIS_DEVICES:
        return torch.ops.netwarp_ros.dis_pyramid(frame, first, last)
    return dis_reference.dis_pyramid(frame, first, last)


def dis_flow(
    present: Tensor,
    previous: Tensor,
    size: tuple[int, int],
    search: Search,
    start: Tensor | None = None,
    level: int = 0,
) -> Tensor:
    """Return the flow between frames, from their pyramids.

    Args:
        present: ``(B, N)`` uint8, what `dis_pyramid` returned for the present frames and `Search.first`.
        previous: The same for the frames before them.
        size: Height and width of the frames, in pixels.
        search: How to search.
        start: ``(B, 2, h, w)`` float32, a flow that the search tries at every level, such as that of the pair before;
            on any grid, in pixels of this grid. NaN counts as no displacement.
        level: The grid of the result: its cells cover 2^level pixels of the frame. Odd sizes are rounded up.

    Returns:
        ``(B, 2, h, w)`` float32, contiguous, in pixels of its grid. It has no gradient.

    Raises:
        ValueError: If a shape or type does not fit.
        RuntimeError: If the tensors are on different devices.
    """
    _check_size(size)
    pixels = pyramid_pixels(size, search.first)
    for name, pyramid in (("present", present), ("previous", previous)):
        if pyramid.ndim != 2 or pyramid.shape[1] != pixels or pyramid.dtype != torch.uint8:
            raise ValueError(
                f"{name} is {tuple(pyramid.shape)} {pyramid.dtype}: give (B, {pixels}) uint8, the pyramid from level "
                f"{search.first} on of frames of {size[1]}x{size[0]}"
            )
    if present.shape != previous.shape:
        raise ValueError(f"present has {present.shape[0]} frames, previous {previous.shape[0]}: give as many")
    if not 0 <= level <= 8:
        raise ValueError(f"level is {level}: give 0 to 8")
    tensors = {"present": present, "previous": previous}
    if start is not None:
        wanted = start.ndim == 4 and tuple(start.shape[:2]) == (present.shape[0], 2)
        wanted = wanted and min(start.shape[2:]) > 0 and max(start.shape[2:]) <= _LARGEST_SIDE
        if not wanted or start.dtype != torch.float32:
            raise ValueError(f"start is {tuple(start.shape)} {start.dtype}: give ({present.shape[0]}, 2, h, w) float32")
        tensors["start"] = start
    if len({tensor.device for tensor in tensors.values()}) > 1:
        places = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        raise RuntimeError(f"tensors are on different devices ({places}): move them to one")
    run = torch.ops.netwarp_ros.dis_flow if present.device.type in compiled.DIS_DEVICES else dis_reference.dis_flow
    height, width = size
    return run(
        present, previous, start, height, width, level, search.first, search.finest, search.coarsest(size),
        search.stride, search.rounds, search.steps, search.refinements,
    )  # fmt: skip


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < LEAST_SIDE or max(size) > _LARGEST_SIDE:
        raise ValueError(
            f"frames are {size[1]}x{size[0]}: give {LEAST_SIDE} to {_LARGEST_SIDE} pixels in each direction"
        )
