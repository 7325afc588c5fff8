# SPDX-License-Identifier: Apache-2.0
"""NetWarp: blend a layer's output with that of the previous frame, warped along the flow. And a baseline.

`netwarp_ros.models.video_cnn` inserts them into a host.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from netwarp_ros import ops
from netwarp_ros.models.resampling import average, interpolate

EPSILON = 1e-4
"""Added to the flow, in pixels of the feature grid: at integers, bilinear interpolation has no derivative (paper,
Section 3.1)."""


class NetWarp(nn.Module):
    """z̃_t = w1 ⊙ z_t + w2 ⊙ Warp(z_{t-1}, Λ(F_t) + ε), with one weight per channel (paper, Eq. 2).

    Initially w1 = 1 and w2 = 0: the output is the present representation, bit for bit.

    Args:
        channels: C, the number of channels of the representation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.ones(channels))
        self.w2 = nn.Parameter(torch.zeros(channels))

    def forward(self, present: Tensor, previous: Tensor, flow: Tensor, gate: Tensor | None = None) -> Tensor:
        """Blend two representations.

        Args:
            present: ``(B, C, h, w)``, z_t.
            previous: ``(B, C, h, w)``, z_{t-1}.
            flow: ``(B, 2, h, w)`` float32, the transformed reverse flow in pixels of the feature grid.
            gate: ``(B, 1, h, w)`` float32, see `blend`; None is 1 everywhere.

        Returns:
            ``(B, C, h, w)``, z̃_t.
        """
        if gate is None:
            return ops.warp_combine(present, previous, flow + EPSILON, self.w1, self.w2)
        return self.blend(present, ops.warp(previous, flow + EPSILON), gate)

    def blend(self, present: Tensor, warped: Tensor, gate: Tensor | None = None) -> Tensor:
        """Blend z_t with a representation that is warped already; both ``(B, C, h, w)``. Rounded once, as `forward`.

        With a gate g, ``(B, 1, h, w)``, it is w1 ⊙ z_t + w2 ⊙ (z_t + g (warped - z_t)): what g takes from the warped
        representation, the present one gets. Written as here, g = 1 gives the very result that there is without a gate.

        The clamp changes no finite value. Without it, OpenVINO fuses the sum into the convolution that gives z_t, and
        then converts the layout of the result, which takes 2 % of a frame.
        """
        w1, w2, most = self.w1.view(1, -1, 1, 1), self.w2.view(1, -1, 1, 1), torch.finfo(present.dtype).max
        if gate is not None:
            w1, w2 = w1 + w2 * (1 - gate), w2 * gate
        return (w1 * present.clamp(-most, most) + w2 * warped).to(present.dtype)

    def extra_repr(self) -> str:
        return f"channels={self.w1.numel()}"


class Concatenation(nn.Module):
    """The baseline: concatenate z_t and the warped z_{t-1}, and reduce the 2C channels to C by a 1x1 convolution.

    Initially the output is the present representation. It has 2C² + C parameters, `NetWarp` has 2C.

    Args:
        channels: C, the number of channels of the representation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.combine = nn.Conv2d(2 * channels, channels, 1)
        with torch.no_grad():
            self.combine.weight.copy_(torch.eye(channels, 2 * channels).view(channels, 2 * channels, 1, 1))
            assert self.combine.bias is not None
            self.combine.bias.zero_()

    def forward(self, present: Tensor, previous: Tensor, flow: Tensor, gate: Tensor | None = None) -> Tensor:
        """Blend two representations; see `NetWarp.forward`. There is no gate."""
        return self.blend(present, ops.warp(previous, flow + EPSILON))

    def blend(self, present: Tensor, warped: Tensor, gate: Tensor | None = None) -> Tensor:
        """Blend z_t with a representation that is warped already; see `NetWarp.blend`. There is no gate."""
        both = torch.cat((present, warped), dim=1)
        return self.combine(both.to(self.combine.weight.dtype)).to(present.dtype)


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a flow to another grid and divide its displacements by the ratio of the sizes.

    To a coarser grid the flow is averaged over each cell; to a finer one it is interpolated.

    Args:
        flow: ``(B, 2, H, W)`` in pixels of its own grid.
        size: ``(h, w)`` of the new grid.

    Returns:
        ``(B, 2, h, w)`` in pixels of the new grid. If the size does not change, the flow itself.
    """
    height, width = flow.shape[-2:]
    if (height, width) == size:
        return flow
    to_x, to_y = size[1] / width, size[0] / height
    if size[0] > height or size[1] > width:
        return interpolate(scale_flow(flow, to_x, to_y), size)
    return scale_flow(average(flow, size), to_x, to_y)


def scale_flow(flow: Tensor, x: float, y: float) -> Tensor:
    """Multiply displacements ``(B, 2, H, W)``. The factors are no tensor: to send one to a GPU makes the CPU wait."""
    if x == y:
        return flow * x
    u, v = flow.unbind(1)
    return torch.stack((u * x, v * y), dim=1)
