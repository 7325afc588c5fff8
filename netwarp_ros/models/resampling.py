# SPDX-License-Identifier: Apache-2.0
"""Averages and bilinear interpolation of maps, as `torch.nn.functional.interpolate` computes them.

On the CPU, OpenCV does the same several times faster for maps of two or three channels: a flow, a frame. It is used
where no gradient is needed; whatever it does not do in the same way is left to PyTorch.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]
"""Height and width."""

_MOST_CHANNELS = 4
"""Most channels that OpenCV resizes by its fast code."""


def average(maps: Tensor, size: Size) -> Tensor:
    """Average ``(B, C, H, W)`` over the cells of a coarser grid: ``F.interpolate(mode="area")``, in float32."""
    height, width = maps.shape[-2:]
    if height % size[0] or width % size[1] or not _is_for_opencv(maps):
        return F.interpolate(maps.float(), size=size, mode="area")
    return _resize(maps, size, cv2.INTER_AREA)


def interpolate(maps: Tensor, size: Size) -> Tensor:
    """Resize float32 maps ``(B, C, H, W)`` bilinearly: ``F.interpolate(mode="bilinear", align_corners=False)``."""
    if not _is_for_opencv(maps):
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    return _resize(maps, size, cv2.INTER_LINEAR)


def as_maps(array: np.ndarray) -> Tensor:
    """Return an array ``(H, W, C)`` as ``(1, C, H, W)``, with the same memory if it is contiguous."""
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1).unsqueeze(0)


def _is_for_opencv(maps: Tensor) -> bool:
    """Whether these are the maps of one image on the CPU, and nothing traces or differentiates what is done to them."""
    return (
        maps.device.type == "cpu"
        and maps.shape[0] == 1
        and maps.shape[1] <= _MOST_CHANNELS
        and maps.dtype in (torch.float32, torch.uint8)
        and not maps.requires_grad
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def _resize(maps: Tensor, size: Size, interpolation: int) -> Tensor:
    pixels = maps[0].permute(1, 2, 0).float().contiguous().numpy()
    resized = cv2.resize(pixels, (size[1], size[0]), interpolation=interpolation)
    return torch.from_numpy(resized).view(*size, -1).permute(2, 0, 1).unsqueeze(0)
