# SPDX-License-Identifier: Apache-2.0
"""What an engine is: it runs a video CNN for one frame."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from netwarp_ros.models.spec import ModelSpec
from netwarp_ros.models.video_cnn import Flow, Memory


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
            flow: See `VideoCNN.forward`.
            memory: The memory that the previous call on these streams returned, or None for a first frame.

        Returns:
            The scores ``(B, K, h, w)``, and the memory for the next call.

        Raises:
            ValueError: If the shapes or types of frame, flow and memory do not match.
            EngineError: If the engine cannot run a frame of this size.
        """
        ...
