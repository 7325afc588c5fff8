# SPDX-License-Identifier: Apache-2.0
"""Inference as in the paper: average over sliding windows, scales and mirror images, each with its own memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from netwarp_ros.models.netwarp import resize_flow, scale_flow
from netwarp_ros.models.outputs import class_scores
from netwarp_ros.models.spec import InputSize
from netwarp_ros.models.video_cnn import Memory, Size

Network = Callable[[Tensor, Tensor | None, Memory | None], tuple[Any, Memory]]
"""A `VideoCNN`, or a function that calls one."""

Window = tuple[slice, slice]
"""Rows and columns of a frame. They go beyond its edge if the window is larger than the frame."""


class InferenceMemory(NamedTuple):
    """What a call passes on to the next call. It is a value that the caller owns, as `Memory` is.

    Attributes:
        inference: The `Inference` that made it.
        shape: ``(B, 3, H, W)``, shape of the frame.
        passes: The memory of each pass through the network; a pass is a batch of views.
    """

    inference: Inference
    shape: tuple[int, ...]
    passes: tuple[Memory, ...]


@dataclass(frozen=True)
class Inference:
    """Which views of a frame a network sees; their class probabilities are averaged.

    ``probabilities, memory = inference(video_cnn, frame, flow, memory)``. A view is a window at one scale, or its
    mirror image. The frame is resized to each scale, and windows are laid over it one stride apart; the last one of a
    row or column is moved back to the edge. This is what PSPNet's authors do (Zhao et al., CVPR 2017): with windows of
    713 pixels, a frame of 2048x1024 has 8 windows, and 81 at the scales 0.5, 0.75 ... 1.75. A frame smaller than the
    window is padded with zeros on the right and below: the mean color of a normalised frame, and no displacement.

    At each scale, the probabilities of a pixel are averaged over the views that contain it; then the scales are
    averaged. Each view has its own memory, which holds that view alone: if the flow leads out of a window, the previous
    representation is taken from the window's border, although the frame continues there.

    Attributes:
        window: Side of the square window in pixels; 0 means the whole frame at each scale.
        stride: Pixels from one window to the next; 0 means two thirds of the window, rounded up.
        scales: Factors that the frame is resized by.
        flip: Whether each window is also seen mirrored left to right.
        windows_per_pass: How many views go through the network in one batch.
        multiple: Height and width of the resized frames are multiples of this.

    Raises:
        ValueError: If a value is out of its range, or the stride is larger than the window.
    """

    window: int = 0
    stride: int = 0
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    windows_per_pass: int = 8
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.window < 0:
            raise ValueError(f"window is {self.window}: give pixels, or 0 for the whole frame")
        if not 0 <= self.stride <= self.window:
            raise ValueError(f"stride is {self.stride}: give 1 to window ({self.window}), or 0 for two thirds of it")
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise ValueError(f"scales is {self.scales}: give one or more factors > 0, such as (0.5, 1.0, 1.5)")
        if self.multiple < 1:
            raise ValueError(f"multiple is {self.multiple}: give 1 or more")
        if self.windows_per_pass < 1:
            raise ValueError(f"windows_per_pass is {self.windows_per_pass}: give 1 or more")

    def fitted(self, taken: InputSize) -> Inference:
        """Return the views in sizes that a network takes.

        Raises:
            ValueError: If it takes none of other sizes than the whole frame's, or no windows of this size.
        """
        if self == WHOLE_FRAME:
            return self
        if taken.fixed and (self.scales != (1.0,) or self.window):
            raise ValueError(f"the network takes {taken}: give no windows, and no scales other than 1")
        if self.window % taken.multiple:
            raise ValueError(f"window is {self.window}, and the network takes {taken}: give a multiple")
        return replace(self, multiple=math.lcm(self.multiple, taken.multiple))

    def windows(self, height: int, width: int) -> list[tuple[Size, list[Window]]]:
        """For each scale, return the size ``(h, w)`` of the resized frame and its windows, row by row."""
        sizes = [(self._scaled(height, scale), self._scaled(width, scale)) for scale in self.scales]
        return [
            (size, [(y, x) for y in self._windows_along(size[0]) for x in self._windows_along(size[1])])
            for size in sizes
        ]

    def _scaled(self, length: int, scale: float) -> int:
        return max(1, round(length * scale / self.multiple)) * self.multiple

    def _windows_along(self, length: int) -> list[slice]:
        """Return the windows along one side of a frame."""
        window = self.window or length
        stride = self.stride or math.ceil(window * 2 / 3)
        last = max(0, length - window)
        starts = [min(step * stride, last) for step in range(math.ceil(last / stride) + 1)]
        return [slice(start, start + window) for start in starts]

    def __call__(
        self,
        video_cnn: Network,
        frame: Tensor,
        flow: Tensor | Callable[[], Tensor] | None = None,
        memory: InferenceMemory | None = None,
    ) -> tuple[Tensor, InferenceMemory]:
        """Run a network on all views of one frame of each stream of the batch.

        Args:
            video_cnn: A `VideoCNN`, or a function that calls one. The class scores in its output are resized to the
                window.
            frame: ``(B, 3, H, W)``, normalised as the host expects.
            flow: ``(B, 2, H, W)`` float32, reverse flow in pixels of the frame, or a function that returns it. Not used
                when ``memory`` is None.
            memory: The memory that the previous call on these streams returned, or None for a first frame.

        Returns:
            The class probabilities ``(B, K, H, W)`` float32, and the memory for the next call.

        Raises:
            ValueError: If the shapes or types of frame, flow and memory do not match, or the memory was made by another
                inference.
        """
        if flow is not None and not isinstance(flow, Tensor):
            flow = flow() if memory else None
        self._check(frame, flow, memory)
        memories: Iterator[Memory | None] = iter(memory.passes) if memory else repeat(None)
        passes: list[Memory] = []
        total = torch.zeros((), device=frame.device)
        for size, windows in self.windows(frame.shape[-2], frame.shape[-1]):
            scaled, scaled_flow = _resize(frame, size), None
            if memory and flow is not None:
                scaled_flow = resize_flow(flow, size)
            probabilities, scale_passes = self._average_windows(video_cnn, scaled, scaled_flow, windows, memories)
            total = total + _resize(probabilities, (frame.shape[-2], frame.shape[-1]))
            passes += scale_passes
        return total / len(self.scales), InferenceMemory(self, tuple(frame.shape), tuple(passes))

    def _check(self, frame: Tensor, flow: Tensor | None, memory: InferenceMemory | None) -> None:
        if frame.ndim != 4:
            raise ValueError(f"frame is {tuple(frame.shape)}: give (B, C, H, W)")
        if memory is None:
            return
        shape = tuple(frame.shape)
        if (memory.inference, memory.shape) != (self, shape):
            raise ValueError(
                f"memory is of {memory.inference} on frames {memory.shape}, this is {self} on {shape}: when either "
                "changes, reset it with memory=None"
            )
        expected = (shape[0], 2, *shape[2:])
        if flow is not None and tuple(flow.shape) != expected:
            raise ValueError(f"flow is {tuple(flow.shape)}, expected {expected}")

    def _average_windows(
        self,
        video_cnn: Network,
        frame: Tensor,
        flow: Tensor | None,
        windows: list[Window],
        memories: Iterator[Memory | None],
    ) -> tuple[Tensor, list[Memory]]:
        """Run the network on all views at one scale; return the averaged probabilities and the memory of each pass."""
        batch, _, height, width = frame.shape
        rows, columns = windows[-1]
        padding = (0, max(0, columns.stop - width), 0, max(0, rows.stop - height))
        frame = F.pad(frame, padding)
        flow = None if flow is None else F.pad(flow, padding)
        views = [(window, mirrored) for window in windows for mirrored in ((False, True) if self.flip else (False,))]
        passes: list[Memory] = []
        total: Tensor | None = None
        count = torch.zeros(frame.shape[-2:], device=frame.device)
        for start in range(0, len(views), self.windows_per_pass):
            group = views[start : start + self.windows_per_pass]
            frames, flows = torch.cat([_view(frame, *view) for view in group]), None
            if flow is not None:
                flows = torch.cat([_view_flow(flow, *view) for view in group])
            output, memory = video_cnn(frames, flows, next(memories))
            passes.append(memory)
            probabilities = _resize(class_scores(output).float(), (frames.shape[-2], frames.shape[-1])).softmax(dim=1)
            if total is None:
                total = probabilities.new_zeros(batch, probabilities.shape[1], *count.shape)
            for (window, mirrored), in_view in zip(group, probabilities.split(batch), strict=True):
                total[..., *window] += _mirror(in_view) if mirrored else in_view
                count[window] += 1
        assert total is not None
        return (total / count)[..., :height, :width], passes


WHOLE_FRAME = Inference()
"""One view, the whole frame at its own size: the video CNN without windows, scales and mirror images."""


def _resize(image: Tensor, size: Size) -> Tensor:
    """Resize bilinearly with antialiasing, in float32: on the CPU, PyTorch lacks it in half precision."""
    if tuple(image.shape[-2:]) == size:
        return image
    resized = F.interpolate(image.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized.to(image.dtype)


def _view(image: Tensor, window: Window, mirrored: bool) -> Tensor:
    view = image[..., *window]
    return _mirror(view) if mirrored else view


def _view_flow(flow: Tensor, window: Window, mirrored: bool) -> Tensor:
    view = _view(flow, window, mirrored)
    return scale_flow(view, -1, 1) if mirrored else view


def _mirror(image: Tensor) -> Tensor:
    """Swap left and right."""
    return image.flip(-1)
