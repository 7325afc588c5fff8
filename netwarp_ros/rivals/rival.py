# SPDX-License-Identifier: Apache-2.0
"""What a rival is: it refines the scores of an image CNN, and may remember what it saw in earlier frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from netwarp_ros.engines import Engine
from netwarp_ros.models import Memory, resize_flow
from netwarp_ros.models.resampling import Size, average
from netwarp_ros.models.video_cnn import Flow, map_size
from netwarp_ros.ops import warp

PAST = "past"
"""Name of what is remembered, among the representations of a `Memory`."""


class Pixels(NamedTuple):
    """The pixels of a frame on the grid of the scores, row by row.

    Attributes:
        probabilities: ``(N, K)``, of the classes.
        colors: ``(N, 3)``, RGB from 0 to 255.
        weights: ``(N, 1)``, 1, or 0 for a pixel that was forgotten.
    """

    probabilities: Tensor
    colors: Tensor
    weights: Tensor

    @classmethod
    def of(cls, maps: Tensor) -> Pixels:
        """Split maps ``(K + 4, h, w)``."""
        rows = maps.flatten(1).t()
        return cls(rows[:, :-4], rows[:, -4:-1], rows[:, -1:])


class Rival(Engine, ABC):
    """An engine that runs a host by another engine and refines its scores.

    Earlier frames are remembered on the grid of the scores: probabilities and colors, each warped along the flow at
    every frame. So a pixel of an earlier frame is at its place in the present one, as in the feature space of Kundu,
    Vineet, Koltun (CVPR 2016), but resampled by bilinear interpolation.

    All of this is computed on the CPU; the scores of a host on another device are copied there and back.

    Args:
        host: Runs the image CNN.
        name: Name of the rival.
        frames: How many earlier frames it uses.
    """

    def __init__(self, host: Engine, name: str, frames: int) -> None:
        self.host, self.frames = host, frames
        self.name = f"{host.name}, {name}"
        self.precision, self.device, self.normalisation = host.precision, host.device, host.normalisation

    @abstractmethod
    def refine(self, scores: Tensor, colors: Tensor, past: list[Pixels], size: Size) -> Tensor:
        """Return better scores ``(N, K)``.

        Args:
            scores: ``(N, K)`` float32, of the host.
            colors: ``(N, 3)``, RGB from 0 to 255.
            past: Earlier frames, the latest first, each pixel at its present place.
            size: Of the grid, ``h * w = N``.
        """

    def __call__(self, frame: Tensor, flow: Flow | None = None, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        """Run the host and refine its scores; see `Engine`.

        Raises:
            ValueError: If the frame is not ``(1, 3, H, W)`` uint8, or flow and memory do not fit to it.
        """
        if frame.shape[0] != 1 or frame.dtype != torch.uint8:
            raise ValueError(f"frame is {tuple(frame.shape)} {frame.dtype}: give a rival (1, 3, H, W) uint8")
        if memory is not None and tuple(memory.shape) != tuple(frame.shape):
            raise ValueError(f"memory is of frames {memory.shape}, this is {tuple(frame.shape)}: reset it with None")
        host_scores = self.host(frame)[0]
        maps = host_scores.float().cpu()
        size, classes = map_size(maps), maps.shape[1]
        colors = average(frame.cpu(), size)
        past = self._warped_past(flow, memory, size)
        earlier = [] if past is None else [Pixels.of(one) for one in past[0].split(classes + 4)]
        rows = self.refine(_rows(maps), _rows(colors), earlier, size)
        scores = rows.view(1, *size, classes).permute(0, 3, 1, 2)
        return scores.to(host_scores.device), Memory(tuple(frame.shape), {}, self._remember(scores, colors, past))

    def _warped_past(self, flow: Flow | None, memory: Memory | None, size: Size) -> Tensor | None:
        """Return what is remembered on the grid of the present frame; None if there is nothing."""
        if memory is None or not self.frames:
            return None
        motion = flow() if callable(flow) else flow
        if not isinstance(motion, Tensor):
            raise ValueError("there is a memory, but no flow: give the flow to the previous frame, (1, 2, h, w)")
        return warp(memory.representations[PAST], resize_flow(motion.float().cpu(), size))

    def _remember(self, scores: Tensor, colors: Tensor, past: Tensor | None) -> dict[str, Tensor]:
        if not self.frames:
            return {}
        present = torch.cat((scores.softmax(1), colors, torch.ones_like(colors[:, :1])), 1)
        kept = present if past is None else torch.cat((present, past), 1)[:, : self.frames * present.shape[1]]
        return {PAST: kept.contiguous(memory_format=torch.channels_last)}


def _rows(maps: Tensor) -> Tensor:
    """Turn maps ``(1, C, h, w)`` into ``(N, C)``."""
    return maps[0].flatten(1).t().contiguous()


def places(size: Size) -> Tensor:
    """Return the place (x, y) of each pixel of a grid, ``(N, 2)``, in pixels."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return torch.stack((x, y), -1).view(-1, 2).float()


def softmax(scores: Tensor) -> Tensor:
    """Return the softmax of each row of ``(N, K)``; for a few classes, ``Tensor.softmax`` takes four times as long."""
    powers = (scores - scores.amax(1, keepdim=True)).exp_()
    return powers.div_(powers.sum(1, keepdim=True))
