# SPDX-License-Identifier: Apache-2.0
"""What a host says of a frame when it looks several times: the teacher of distillation and of `netwarp adapt`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from netwarp_ros.models import Inference, ModelSpec, VideoCNN

SCALES = (1.0, 1.5)
"""Scales that the host sees each frame at."""


class Views:
    """Class probabilities of a host, averaged over two scales and mirrored.

    Args:
        host: The image CNN, in evaluation mode.
        spec: The model's spec.
    """

    def __init__(self, host: VideoCNN, spec: ModelSpec) -> None:
        scales = (1.0,) if spec.input_size.fixed else SCALES
        self._host = host
        self._inference = Inference(scales=scales, flip=True, multiple=spec.input_size.multiple)

    @torch.no_grad()
    def __call__(self, frame: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the probabilities of a normalised frame ``(B, 3, H, W)`` on a grid: ``(B, K, h, w)`` float32."""
        probabilities, _ = self._inference(self._host, frame)
        return F.interpolate(probabilities.float(), size=grid, mode="area")
