# SPDX-License-Identifier: Apache-2.0
"""The operators in plain PyTorch: the compiled ones are tested against these, and these are used in their absence.

The warp gathers rows of a channels-last view, so one index reads all channels of a pixel; a channels-last tensor is not
copied. `torch.nn.functional.grid_sample` is not used: it normalises coordinates to [-1, 1] and back, which costs
precision, and it sets the flow's gradient to zero on border pixels that are not clamped.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def coordinate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type that coordinates, weights and sums have for features of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def warp(features: Tensor, flow: Tensor) -> Tensor:
    """Warp ``features (B, C, H, W)`` along ``flow (B, 2, H, W)``; see `netwarp_ros.ops.warp`."""
    return _like(_sample(features, flow), features)


def warp_combine(present: Tensor, previous: Tensor, flow: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """Return ``w1 * present + w2 * warp(previous, flow)``, rounded once; see `netwarp_ros.ops.warp_combine`."""
    warped = _sample(previous, flow)
    w1, w2 = (w.to(warped.dtype).view(1, -1, 1, 1) for w in (w1, w2))
    return _like(w1 * present.to(warped.dtype) + w2 * warped, present)


def resize_argmax(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the class of the greatest score of ``scores (B, K, h, w)`` at ``size``; see `netwarp_ros.ops`."""
    scores = scores.to(coordinate_dtype(scores.dtype))
    if scores.shape[2:] != size:
        scores = scores.contiguous(memory_format=torch.channels_last)
        scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
    return scores.max(dim=1).indices.to(torch.uint8).contiguous()


def _sample(features: Tensor, flow: Tensor) -> Tensor:
    """Return the warped features in the coordinates' type, not yet rounded to the features' type."""
    batch, channels, height, width = features.shape
    dtype = flow.dtype
    if features.numel() == 0:
        return features.to(dtype)
    x = torch.arange(width, device=flow.device, dtype=dtype) + _finite(flow[:, 0], width)
    y = torch.arange(height, device=flow.device, dtype=dtype).unsqueeze(1) + _finite(flow[:, 1], height)
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)

    left, top = x.detach().floor(), y.detach().floor()
    fraction_x, fraction_y = (x - left).unsqueeze(-1), (y - top).unsqueeze(-1)
    column, row = left.long(), top.long()
    next_column, next_row = (column + 1).clamp(max=width - 1), (row + 1).clamp(max=height - 1)

    pixels = features.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
    image = torch.arange(batch, device=flow.device).view(batch, 1, 1) * height

    def at(row: Tensor, column: Tensor) -> Tensor:
        index = (image + row) * width + column
        return pixels.index_select(0, index.flatten()).view(batch, height, width, channels).to(dtype)

    upper = at(row, column) * (1 - fraction_x) + at(row, next_column) * fraction_x
    lower = at(next_row, column) * (1 - fraction_x) + at(next_row, next_column) * fraction_x
    return (upper * (1 - fraction_y) + lower * fraction_y).permute(0, 3, 1, 2)


def _finite(displacement: Tensor, size: int) -> Tensor:
    """Replace NaN by 0 and clamp to the size of the grid, so that adding a coordinate stays exact and finite."""
    return displacement.nan_to_num(nan=0.0).clamp(-size, size)


def _like(result: Tensor, features: Tensor) -> Tensor:
    """Convert ``result`` to the type and the memory format of ``features``."""
    channels_last = features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return result.to(features.dtype).contiguous(memory_format=memory_format)
