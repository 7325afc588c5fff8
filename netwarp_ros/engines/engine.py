# SPDX-License-Identifier: Apache-2.0
"""What an engine is: it runs a video CNN for one frame."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from netwarp_ros.models.spec import ModelSpec
from netwarp_ros.models.video_cnn import Flow, Memory, map_size
from netwarp_ros.ops import resize_argmax


class EngineError(ValueError):
    """An engine is not installed, cannot run this model or precision, or failed; the message names it."""


class Normalisation(NamedTuple):
    """``(rgb / 255 - mean) / std`` as one product and one sum: ``rgb * scale + shift``, both ``(1, 3, 1, 1)``."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, spec: ModelSpec, device: torch.device) -> Normalisation:
        """Return the normalisation of a model, on a device."""
        mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
        return cls(1 / (255 * std), -mean / std)

    def __call__(self, frame: Tensor) -> Tensor:
        """Return a frame ``(B, 3, H, W)`` normalised, in floating point; if it is floating-point, the frame itself."""
        return frame if frame.is_floating_point() else self.of_pixels(frame)

    def of_pixels(self, pixels: Tensor) -> Tensor:
        """Return pixels ``(B, 3, H, W)`` from 0 to 255, of any type, normalised."""
        return torch.addcmul(self.shift, pixels, self.scale)


class FlowOnDevice(ABC):
    """The flow of a frame, computed on the frame's device: a `Flow` whose work can be recorded with the network's.

    Args:
        frame: ``(B, 3, H, W)`` uint8, RGB.
        before: What was kept of the frame before.

    Attributes:
        before: As above.
        kept: What to keep of this frame; None until the flow was computed.
    """

    def __init__(self, frame: Tensor, before: tuple[Tensor, ...]) -> None:
        self._frame, self.before = frame, before
        self.kept: tuple[Tensor, ...] | None = None

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """What `compute` depends on besides its arguments: of flows of one key, it does the same."""

    @abstractmethod
    def compute(self, frame: Tensor, before: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the flow ``(B, 2, h, w)`` and what to keep. It only launches work on the current stream."""

    def __call__(self) -> Tensor:
        """Compute the flow ``(B, 2, h, w)`` now."""
        flow, self.kept = self.compute(self._frame, self.before)
        return flow


class Engine(Protocol):
    """Runs a video CNN for one frame of each stream of a batch.

    It is called as `VideoCNN` is: ``scores, memory = engine(frame, flow, memory)``. Memory is a value of the caller, so
    one engine serves all cameras. But call it from one thread at a time.

    Attributes:
        name: Name of the engine, as in `netwarp_ros.engines.ENGINES`, with the compile mode if there is one.
        precision: Precision of the host: ``float32``, ``bfloat16``, ``float16`` or ``int8``.
        device: Where frames, scores and memory are.
        normalisation: That of the frames.
    """

    name: str
    precision: str
    device: torch.device
    normalisation: Normalisation

    def __call__(self, frame: Tensor, flow: Flow | None = None, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        """Run the network.

        Args:
            frame: ``(B, 3, H, W)``, RGB: uint8 pixels, or floating-point values that are normalised already. It is
                not copied if it is channels-last.
            flow: See `VideoCNN.forward`; or a `FlowOnDevice` of this frame.
            memory: The memory that the previous call on these streams returned, or None for a first frame.

        Returns:
            The scores ``(B, K, h, w)``, and the memory for the next call.

        Raises:
            ValueError: If the shapes or types of frame, flow and memory do not match.
            EngineError: If the engine cannot run a frame of this size.
        """
        ...

    def segment(self, frame: Tensor, flow: Flow | None = None, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        """Run the network; instead of the scores, return the class of each pixel of the frame, ``(B, H, W)`` uint8.

        Arguments and errors are those of a call.
        """
        scores, memory = self(frame, flow, memory)
        return resize_argmax(scores, map_size(frame)), memory
