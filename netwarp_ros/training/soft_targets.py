# SPDX-License-Identifier: Apache-2.0
"""Soft targets: what a host itself says of a drive that nobody labelled, when it looks several times.

The host sees each frame at two scales and mirrored. Its class probabilities are averaged over these views, and then
with those of the frames before and after, along the optical flow where it can be trusted. Such probabilities are right
more often than the host's masks, and much steadier, so that a video CNN can learn from them.

Targets and what belongs to them are on a grid of half the size of the network's input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from netwarp_ros import ops
from netwarp_ros.classes import VOID
from netwarp_ros.flow import DisFlow, halve
from netwarp_ros.metrics import flows_agree
from netwarp_ros.models import ModelSpec, VideoCNN, resize_flow
from netwarp_ros.models.input_frames import InputFrames
from netwarp_ros.recordings.frames import Frame, FrameSource
from netwarp_ros.segmenter import MAX_GAP, MAX_INPUT_WIDTH
from netwarp_ros.training.losses import normalise
from netwarp_ros.training.views import Views

ROUNDS = 2
"""How often the probabilities are averaged with those of both neighbours: frames t-2 to t+2 take part in frame t."""

SHARPNESS = 4.0
"""Power that the averaged probabilities are raised to, because an average is less decided than each view."""

SURE = 0.5
"""A pixel whose most probable class has less than this is void."""

SECTION = 50
"""Frames of a section, if a recording is too long to be used as a whole."""

MAX_BYTES = 2**32
"""Most memory for frames and their targets: 1,500 frames of 480x360 with 11 classes, 100 of 2048x1024 with 19."""

LabelSource = Callable[[Frame], np.ndarray | None]
"""Gives the label map of a frame, ``(H, W)`` uint8 class ids or void; None if it has none."""


class Recording(NamedTuple):
    """A recording to adapt to, and its label maps, if there are any."""

    frames: FrameSource
    labels: LabelSource | None = None


@dataclass
class Run:
    """Successive frames of one camera, without a gap.

    Attributes:
        inside: Height and width in pixels of the images without their padding.
        images: ``(H, W, 3)`` uint8, BGR: the network's input.
        labels: ``(H, W)`` uint8 class ids or `VOID` of each image; None if it has none.
    """

    inside: tuple[int, int]
    images: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def part(self, begin: int, end: int) -> Run:
        """Return some of the frames."""
        return Run(self.inside, self.images[begin:end], self.labels[begin:end])


class Drive(NamedTuple):
    """Frames of a run and their targets, or with one more axis in front, B, a batch of clips.

    Attributes:
        images: ``(T, H, W, 3)`` uint8, BGR.
        flows: ``(T, 2, h', w')`` float32, flow to the frame before as the segmenter estimates it, in its own pixels.
        targets: ``(T, K, h, w)`` float16, probabilities; all zero where a pixel is void.
        labels: ``(T, h, w)`` uint8 class ids or `VOID`.
        motion: ``(T, 2, h, w)`` float32, a more accurate flow to the frame before, in pixels of this grid.
        trust: ``(T, 1, h, w)`` float32, fraction of a pixel in which reverse and forward flow agree; 0 at t = 0.
    """

    images: Tensor
    flows: Tensor
    targets: Tensor
    labels: Tensor
    motion: Tensor
    trust: Tensor

    def part(self, begin: int, end: int) -> Drive:
        """Return some of the frames."""
        return Drive(*(values[begin:end] for values in self))


def read_runs(recordings: Sequence[Recording], spec: ModelSpec, most: int) -> list[Run]:
    """Read recordings, and split them where a stream would reset its memory.

    Args:
        recordings: The recordings.
        spec: The model's spec, which says how images are scaled and padded.
        most: Number of frames, which `MAX_BYTES` lowers for large images. If there are more, evenly spaced sections of
            the recordings are read.

    Raises:
        ValueError: If there is no frame, or a label map does not fit.
    """
    inputs = InputFrames(spec, 0, MAX_INPUT_WIDTH)
    first = next((frame for recording in recordings for frame in recording.frames.read(0, 1)), None)
    if first is None:
        raise ValueError("there is no frame to adapt to")
    most = min(most, MAX_BYTES // _frame_bytes(inputs.frame(first.image), len(spec.classes)))
    share = min(1.0, most / sum(len(recording.frames) for recording in recordings))
    runs: list[Run] = []
    for recording in recordings:
        for begin, end in _sections(len(recording.frames), share, len(recording.frames.cameras)):
            latest: dict[str, tuple[Frame, Run]] = {}
            for frame in recording.frames.read(begin, end):
                previous, run = latest.get(frame.camera, (None, None))
                if previous is None or run is None or not _follows(frame, previous):
                    run = Run(inputs.scaled(frame.image.shape[:2]))
                    runs.append(run)
                label = None if recording.labels is None else recording.labels(frame)
                run.images.append(inputs.frame(frame.image))
                run.labels.append(None if label is None else _label_of_frame(label, run, len(spec.classes)))
                latest[frame.camera] = frame, run
    return runs


def _sections(count: int, share: float, cameras: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the sections of a recording that are read."""
    length = min(count, SECTION * max(1, cameras))
    number = max(1, int(count * share) // max(1, length))
    if share == 1:
        yield 0, count
    else:
        for begin in np.linspace(0, count - length, number).round().astype(int).tolist():
            yield begin, begin + length


def _frame_bytes(image: np.ndarray, classes: int) -> int:
    """Return about how much memory a frame of a `Drive` takes, and its image once more."""
    return image.size // 3 * (11 + classes // 2)


def _follows(frame: Frame, previous: Frame) -> bool:
    """Tell whether a stream would keep its memory of the previous frame."""
    seconds = (frame.stamp_ns - previous.stamp_ns) * 1e-9
    return frame.image.shape == previous.image.shape and 0 < seconds <= MAX_GAP


def _label_of_frame(label: np.ndarray, run: Run, classes: int) -> np.ndarray:
    """Return the label map of the last frame of a run at that frame's size; its padding is void."""
    height, width = run.inside
    scaled = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
    padded = np.full(run.images[-1].shape[:2], VOID, np.uint8)
    padded[:height, :width] = np.where(scaled < classes, scaled, VOID)
    return padded


class Teacher:
    """Makes the targets of runs with a host that stays as it is.

    Args:
        host: The image CNN, in evaluation mode.
        spec: The model's spec.
        device: Where the host is.
        precision: Type that autocast computes in.
    """

    def __init__(self, host: VideoCNN, spec: ModelSpec, device: torch.device, precision: torch.dtype) -> None:
        self._views, self._spec, self._device, self._precision = Views(host, spec), spec, device, precision
        self._mean, self._std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (spec.mean, spec.std)
        )

    def prepare(self, run: Run, on_frame: Callable[[], object] = lambda: None) -> Drive:
        """Make the targets of a run, on the CPU.

        Where a pixel is labelled, its label is its target, and takes part in the averages of its neighbours.

        Args:
            run: The run.
            on_frame: Called after each frame.
        """
        grid = half(run.images[0].shape[:2])
        void = np.full(grid, VOID, np.uint8)
        labels = torch.from_numpy(np.stack([void if label is None else label[::2, ::2] for label in run.labels]))
        targets = torch.empty(len(run), len(self._spec.classes), *grid, dtype=torch.float16)
        for target, image in zip(targets, run.images, strict=True):
            target.copy_(self._probabilities(image, grid))
            on_frame()
        set_labelled(targets, labels)
        before, after = estimate_motion(run.images, grid)
        for _ in range(ROUNDS):
            targets = average_along_motion(targets, before, after)
        targets = sharpened(targets)
        height, width = half(run.inside)
        targets[..., height:, :], targets[..., width:] = 0, 0
        set_labelled(targets, labels)
        images = torch.from_numpy(np.stack(run.images))
        return Drive(images, estimate_flows(run.images), targets, labels, before.flow, before.trust)

    def _probabilities(self, image: np.ndarray, grid: tuple[int, int]) -> Tensor:
        """Return the host's probabilities for an image, averaged over its views: ``(K, h, w)`` float32."""
        frame = normalise(torch.from_numpy(image)[None].to(self._device), self._mean, self._std)
        with torch.autocast(self._device.type, self._precision, enabled=self._precision != torch.float32):
            return self._views(frame, grid)[0]


def half(size: tuple[int, ...]) -> tuple[int, int]:
    """Return the size of the targets' grid for images of a size; odd sides are rounded up."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def set_labelled(targets: Tensor, labels: Tensor) -> None:
    """Replace the targets ``(T, K, h, w)`` of labelled pixels by their labels ``(T, h, w)``."""
    classes = torch.arange(targets.shape[1]).view(-1, 1, 1)
    for target, label in zip(targets, labels, strict=True):
        target.copy_(torch.where(label < len(classes), (label == classes).to(target.dtype), target))


def sharpened(targets: Tensor) -> Tensor:
    """Raise probabilities ``(T, K, h, w)`` to the power of `SHARPNESS`; those of unsure pixels become zero."""
    powers = targets.float() ** SHARPNESS
    sure = targets.amax(1, keepdim=True) >= SURE
    return (sure * powers / powers.sum(1, keepdim=True).clamp(min=1e-6)).to(targets.dtype)


class Motion(NamedTuple):
    """Flow between the successive frames of a run; entry t is that of frame t.

    Attributes:
        flow: ``(T, 2, h, w)`` float32, to the frame before or after it, in pixels of this grid; 0 if there is none.
        trust: ``(T, 1, h, w)`` float32, fraction of a pixel in which the flow there agrees with the flow back.
    """

    flow: Tensor
    trust: Tensor


def estimate_motion(images: Sequence[np.ndarray], grid: tuple[int, int]) -> tuple[Motion, Motion]:
    """Return the motion to the frames before, and to the frames after.

    This flow is slower and better than that which networks use.

    Args:
        images: ``(H, W, 3)`` uint8.
        grid: The grid ``(h, w)`` of the result.
    """
    shape = len(images), 2, *grid
    before, after = (Motion(torch.zeros(shape), torch.zeros(shape)[:, :1]) for _ in range(2))
    dis = DisFlow("medium")
    greys = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in images]
    for t, (previous, present) in enumerate(pairwise(greys), start=1):
        reverse, forward = dis(present, previous), dis(previous, present)
        for motion, index, there, back in ((before, t, reverse, forward), (after, t - 1, forward, reverse)):
            motion.flow[index] = resize_flow(_as_maps(there), grid)[0]
            agree = torch.from_numpy(flows_agree(there, back))
            motion.trust[index] = F.interpolate(agree[None, None].float(), size=grid, mode="area")[0]
    return before, after


def average_along_motion(targets: Tensor, before: Motion, after: Motion) -> Tensor:
    """Average the probabilities of each frame with those of its two neighbours, as far as the flow to them is trusted.

    Args:
        targets: ``(T, K, h, w)``.
        before: The motion to the frames before, on the same grid.
        after: The motion to the frames after.

    Returns:
        ``(T, K, h, w)`` of the same type.
    """
    averaged = torch.empty_like(targets)
    for t in range(len(targets)):
        total, weight = targets[t : t + 1].float(), torch.ones(())
        for neighbour, motion in ((t - 1, before), (t + 1, after)):
            if 0 <= neighbour < len(targets):
                warped = ops.warp(targets[neighbour : neighbour + 1].float(), motion.flow[t : t + 1])
                total, weight = total + motion.trust[t] * warped, weight + motion.trust[t]
        averaged[t] = (total / weight)[0]
    return averaged


def estimate_flows(images: Sequence[np.ndarray]) -> Tensor:
    """Return the flow from each frame to the frame before as a segmenter estimates it, ``(T, 2, h, w)`` float32.

    That of the first frame is 0. The flow is in pixels of its own grid.
    """
    greys = [halve(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)) for image in images]
    flows = [np.zeros((*greys[0].shape, 2), np.float32)]
    dis = DisFlow("ultrafast", halved=True)
    for previous, present in pairwise(greys):
        flows.append(dis(present, previous, start=flows[-1] if len(flows) > 1 else None))
    return torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2).contiguous()


def _as_maps(flow: np.ndarray) -> Tensor:
    return torch.from_numpy(flow).permute(2, 0, 1)[None]
