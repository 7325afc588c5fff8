# SPDX-License-Identifier: Apache-2.0
"""The gate g: how far the warped representation of the previous frame may be blended in, at each pixel.

The paper's blend has one weight per channel for the whole image, so it also blends where the flow is wrong: at what was
hidden in the previous frame, at new objects, at glare. FraunhoferIVI/SSP gates the blend of class scores by the
similarity of the two frames' features. This gate is before the host runs, and sees the frames and the flow alone; so it
needs no map of features twice, and the graphs of the host stay as they are.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netwarp_ros import ops
from netwarp_ros.models.float32 import full_float32
from netwarp_ros.models.netwarp import EPSILON
from netwarp_ros.models.resampling import Size, average, interpolate
from netwarp_ros.ops import reference


class Gate(nn.Module):
    """Compute g ∈ [0, 1] from the transformed flow and the two frames it connects, on the grid that Λ works on.

    Two 3x3 convolutions, of `evidence` to 8 channels and of those to a; g = 2 sigmoid(-max(a, 0)). 441 parameters,
    shared by all insertion points. Initially a = 0, so that g = 1 everywhere, exactly: the network is NetWarp without a
    gate. The first layer starts as sums of evidence. Its rectifier is a leaky one: with another, all of it soon died.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(5, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 1, 3, padding=1)
        with torch.no_grad():
            self.conv1.weight.abs_()
            for values in (self.conv1.bias, self.conv2.weight, self.conv2.bias):
                assert values is not None
                values.zero_()

    def forward(self, flow: Tensor, previous: Tensor, present: Tensor) -> Tensor:
        """Return the gate. It computes in full float32, as `FlowCNN.forward` does.

        Args:
            flow: ``(B, 2, H, W)`` float32, the transformed reverse flow in pixels of its grid. It gets no gradient: the
                gate judges the flow, and does not change it.
            previous: ``(B, 3, H, W)`` float32, frame t-1, as the network sees it.
            present: ``(B, 3, H, W)`` float32, frame t.

        Returns:
            ``(B, 1, H, W)`` float32.
        """
        with nullcontext() if torch.compiler.is_compiling() else full_float32():
            hidden = F.leaky_relu(self.conv1(evidence(flow.detach(), previous, present)), 0.1)
            return 2 * torch.sigmoid(-_AtLeastZero.apply(self.conv2(hidden)))


class _AtLeastZero(torch.autograd.Function):
    """max(a, 0). Below 0, the gradient passes where a step against it would raise a.

    Else a gate that is open everywhere would stay so; and training opens it first, as frames then agree more.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return a.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return gradient.where((a >= 0) | (gradient < 0), 0)


def evidence(flow: Tensor, previous: Tensor, present: Tensor) -> Tensor:
    """Return what tells that a flow may be wrong: all values are >= 0, and 0 where nothing speaks against it.

    Args: see `Gate.forward`.

    Returns:
        ``(B, 5, H, W)``: the absolute difference of the frame and the warped previous frame, by channel; by how many
        pixels the flow differs from that of the pixel on the left and above, in all; and by how many it leads out of
        the frame. The last two are 2 at most.
    """
    height, width = flow.shape[-2:]
    warp = reference.warp if torch.compiler.is_exporting() else ops.warp  # other runtimes do not have the operator
    residual = (present - warp(previous, flow + EPSILON)).abs()
    across = F.pad((flow[..., 1:] - flow[..., :-1]).abs(), (1, 0))
    down = F.pad((flow[..., 1:, :] - flow[..., :-1, :]).abs(), (0, 0, 1, 0))
    variation = (across + down).sum(1, keepdim=True)
    x = torch.arange(width, device=flow.device, dtype=flow.dtype) + flow[:, :1]
    y = torch.arange(height, device=flow.device, dtype=flow.dtype).view(-1, 1) + flow[:, 1:]
    outside = F.relu(-x) + F.relu(x - (width - 1)) + F.relu(-y) + F.relu(y - (height - 1))
    return torch.cat((residual, variation.clamp(max=2), outside.clamp(max=2)), dim=1)


def resize_gate(gate: Tensor, size: Size) -> Tensor:
    """Resize a gate ``(B, 1, H, W)`` to another grid: averaged over each cell of a coarser one, else interpolated."""
    finer = size[0] > gate.shape[-2] or size[1] > gate.shape[-1]
    return interpolate(gate, size) if finer else average(gate, size)
