# SPDX-License-Identifier: Apache-2.0
"""DIS optical flow in plain PyTorch: what the CUDA kernels compute, bit for bit. See `netwarp_ros.ops.dis`.

Floating-point sums depend on their order, so that of a patch is fixed (`_sum_patch`). A number divided by a tensor is
PyTorch's reciprocal times the number, and the kernels do the same. Flow is ``(B, h, w, 2)`` here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

PATCH = 8
"""Side of a patch, in pixels."""

NEIGHBORS = ((0, -1), (-1, 0), (0, 1), (1, 0))
"""Rows down and columns right to the patches whose displacement a patch tries, in this order."""

_SINGULAR = 1e-3  # a structure tensor of a smaller determinant is given this one
_STEP = 4.0  # Sobel's gradients are 8 times the derivatives: half of a Gauss-Newton step
_FARTHEST = float(PATCH)  # pixels that a round of descent may lead away from where it began

_ALPHA, _DELTA, _GAMMA = 20.0, 5.0, 10.0  # weights of smoothness, of grey values and of gradients, as OpenCV's
_OMEGA = 1.6  # over-relaxation
_SWEEPS = 5  # of over-relaxation, in each iteration of refinement
_ZETA2, _EPSILON2 = 0.1**2, 0.01**2


def dis_pyramid(frame: Tensor, first: int, last: int) -> Tensor:
    """See `netwarp_ros.ops.dis.dis_pyramid`."""
    channels = frame.int()
    if frame.shape[1] == 3:  # OpenCV's weights of red, green and blue
        red, green, blue = channels.unbind(1)
        level = (9798 * red + 19235 * green + 3735 * blue + (1 << 14)) >> 15
    else:
        level = channels[:, 0]
    levels = []
    for index in range(last + 1):
        if index >= first:
            levels.append(level.flatten(1))
        level = _halve(level)
    return torch.cat(levels, 1).to(torch.uint8)


def _halve(grey: Tensor) -> Tensor:
    """Return the rounded means of 2×2 pixels of ``(B, h, w)`` int32."""
    height, width = grey.shape[1] & ~1, grey.shape[2] & ~1
    grey = grey[:, :height, :width]
    return (grey[:, 0::2, 0::2] + grey[:, 0::2, 1::2] + grey[:, 1::2, 0::2] + grey[:, 1::2, 1::2] + 2) >> 2


def dis_flow(
    present: Tensor,
    previous: Tensor,
    start: Tensor | None,
    height: int,
    width: int,
    level: int,
    first: int,
    finest: int,
    coarsest: int,
    stride: int,
    rounds: int,
    steps: int,
    refinements: int,
) -> Tensor:
    """See `netwarp_ros.ops.dis.dis_flow`."""
    batch, flow = present.shape[0], None
    sizes = [(height >> index, width >> index) for index in range(coarsest + 1)]
    begins = [sum(rows * columns for rows, columns in sizes[first:index]) for index in range(coarsest + 1)]
    for index in range(coarsest, finest - 1, -1):
        rows, columns = sizes[index]
        pixels = slice(begins[index], begins[index] + rows * columns)
        frames = _Frames(*(each[:, pixels].reshape(batch, rows, columns).float() for each in (present, previous)))
        coarser = None if flow is None else _Guess(flow, 0.5, 0.5)
        begin = None
        if start is not None:  # its grid covers the frame
            scale = start.shape[3] * 2**index / width, start.shape[2] * 2**index / height
            begin = _Guess(start.permute(0, 2, 3, 1), *scale)
        flow = _densify(_search(frames, coarser, begin, stride, rounds, steps), frames, stride)
        if refinements:
            flow = _refine(frames, flow, refinements)
    assert flow is not None
    ratio = 2.0 ** (level - finest)
    rows, columns = (-(-side >> level) for side in (height, width))
    result = _Guess(flow, ratio, ratio).at(*_centres(flow, rows, columns, 1, 0))
    return result.permute(0, 3, 1, 2).contiguous()


class _Frames(NamedTuple):
    """Two frames at a level, ``(B, h, w)`` float32: whole numbers from 0 to 255."""

    present: Tensor
    previous: Tensor


class _Guess(NamedTuple):
    """A flow on another grid, ``(B, h, w, 2)``, and how many of its columns and rows make one of the grid in use."""

    flow: Tensor
    columns: float
    rows: float

    def at(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the flow at places of the grid in use, counted from the edge of the image: bilinear, in its pixels."""
        height, width = self.flow.shape[1:3]
        y, x = ((centre * scale - 0.5) for centre, scale in ((y, self.rows), (x, self.columns)))
        value = _bilinear(self.flow, y.clamp(0, height - 1), x.clamp(0, width - 1))
        return torch.stack([value[..., 0] * (1 / self.columns), value[..., 1] * (1 / self.rows)], -1)


class _Patches(NamedTuple):
    """Patches of the present frame, on a grid ``(hs, ws)``, and the level of the previous frame.

    Attributes:
        y: ``(hs, 1)`` float32, where patches begin.
        x: ``(ws,)``
        grey: ``(B, hs, ws, 8, 8)`` pixels.
        gradient: ``(2, B, hs, ws, 8, 8)`` gradients in x and y.
        sums: ``(2, B, hs, ws)`` their sums.
        inverse: xx, xy and yy of the inverse of the structure tensor, times the step, ``(B, hs, ws)`` each.
        previous: ``(B, h, w)``
    """

    y: Tensor
    x: Tensor
    grey: Tensor
    gradient: Tensor
    sums: Tensor
    inverse: tuple[Tensor, Tensor, Tensor]
    previous: Tensor


class _Match(NamedTuple):
    """Displacements of patches ``(B, hs, ws, 2)``, how unlike the patches are there, and a step of descent from there.

    The unlikeness is the sum of squared differences, with the means of both patches subtracted.
    """

    displacement: Tensor
    unlikeness: Tensor
    step: Tensor

    def or_better(self, other: _Match) -> _Match:
        """Return the better of two matches for each patch; of equal ones this."""
        return self.replaced(other, other.unlikeness < self.unlikeness)

    def replaced(self, other: _Match, where: Tensor) -> _Match:
        pairs = zip(self, other, strict=True)
        return _Match(*(torch.where(where if a.ndim == 3 else where[..., None], b, a) for a, b in pairs))


def _centres(like: Tensor, rows: int, columns: int, stride: int, half: int) -> tuple[Tensor, Tensor]:
    """Return the places of the centres of pixels, or of patches, counted from the edge of the image."""
    y, x = (
        torch.arange(count, device=like.device, dtype=like.dtype) * stride + (half + 0.5) for count in (rows, columns)
    )
    return y[:, None], x


def _search(
    frames: _Frames, coarser: _Guess | None, start: _Guess | None, stride: int, rounds: int, steps: int
) -> Tensor:
    """Return the displacement of each patch, ``(B, hs, ws, 2)``: the inverse search (Section 2.1 of the paper).

    All patches go together. In each round, a patch takes the best of its own displacement and those of its neighbors,
    and goes down from there. In the first round, it begins at the flow of the coarser level or at none, and also tries
    the start.
    """
    patches = _patches(frames, stride)
    rows, columns = patches.grey.shape[1:3]
    none = patches.grey.new_zeros((*patches.grey.shape[:3], 2))
    height, width = frames.previous.shape[1:]
    centres = _centres(none, rows, columns, stride, PATCH // 2)
    found = none if coarser is None else _bounded(coarser.at(*centres), height, width)
    for number in range(rounds):
        best = _match(patches, found)
        if number == 0 and start is not None:
            best = best.or_better(_match(patches, _bounded(start.at(*centres), height, width)))
        for down, right in NEIGHBORS:
            y = (torch.arange(rows, device=none.device) + down).clamp(0, rows - 1)
            x = (torch.arange(columns, device=none.device) + right).clamp(0, columns - 1)
            best = best.or_better(_match(patches, found[:, y][:, :, x]))
        found = _descend(patches, best, steps)
    return found


def _bounded(flow: Tensor, height: int, width: int) -> Tensor:
    """Return a flow without NaN, and within the size of the image."""
    bounded = (flow[..., axis].nan_to_num(0.0).clamp(-side, side) for axis, side in ((0, width), (1, height)))
    return torch.stack(list(bounded), -1)


def _patches(frames: _Frames, stride: int) -> _Patches:
    grey = F.pad(frames.present[:, None], (1, 1, 1, 1), mode="reflect")[:, 0]
    left, right, top, bottom = grey[:, :, :-2], grey[:, :, 2:], grey[:, :-2], grey[:, 2:]
    across, down = right - left, bottom - top
    gradient = torch.stack(  # Sobel's: whole numbers, so exact
        [
            across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:],
            down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:],
        ]
    )
    gradient = gradient.unfold(2, PATCH, stride).unfold(3, PATCH, stride)
    whole = gradient.long()  # sums of squares exceed float32's whole numbers
    sums = whole.sum((-2, -1)).float()
    xx, xy, yy = ((whole[a] * whole[b]).sum((-2, -1)).float() for a, b in ((0, 0), (0, 1), (1, 1)))
    determinant = xx * yy - xy * xy
    determinant = torch.where(determinant.abs() < _SINGULAR, _SINGULAR, determinant)
    rows, columns = gradient.shape[2:4]
    y, x = (torch.arange(count, device=sums.device, dtype=sums.dtype) * stride for count in (rows, columns))
    pixels = frames.present.unfold(1, PATCH, stride).unfold(2, PATCH, stride)
    inverse = yy / determinant * _STEP, -xy / determinant * _STEP, xx / determinant * _STEP
    return _Patches(y[:, None], x, pixels, gradient, sums, inverse, frames.previous)


def _match(patches: _Patches, displacement: Tensor) -> _Match:
    """Compare patches with the previous frame at a displacement."""
    height, width = patches.previous.shape[1:]
    y = (patches.y + displacement[..., 1]).clamp(1.0 - PATCH, height - 1.0)
    x = (patches.x + displacement[..., 0]).clamp(1.0 - PATCH, width - 1.0)
    top, left = y.floor(), x.floor()
    down, right = (y - top)[..., None, None], (x - left)[..., None, None]
    cells = torch.arange(PATCH + 1, device=y.device)
    rows = (top.long()[..., None] + cells).clamp(0, height - 1)  # outside, the border goes on
    columns = (left.long()[..., None] + cells).clamp(0, width - 1)
    index = rows[..., :, None] * width + columns[..., None, :]
    pixels = patches.previous.flatten(1).gather(1, index.flatten(1)).view(index.shape)
    difference = (
        (1 - down) * (1 - right) * pixels[..., :-1, :-1]
        + (1 - down) * right * pixels[..., :-1, 1:]
        + down * (1 - right) * pixels[..., 1:, :-1]
        + down * right * pixels[..., 1:, 1:]
        - patches.grey
    )
    total = _sum_patch(difference)
    mean = total * (1 / PATCH**2)
    unlikeness = _sum_patch(difference * difference) - total * mean
    slope_x, slope_y = (_sum_patch(difference * patches.gradient[axis]) - mean * patches.sums[axis] for axis in (0, 1))
    xx, xy, yy = patches.inverse
    step = torch.stack([xx * slope_x + xy * slope_y, xy * slope_x + yy * slope_y], -1)
    return _Match(displacement, unlikeness, step)


def _sum_patch(values: Tensor) -> Tensor:
    """Sum ``(..., 8, 8)``: each row from left to right, then pairs of rows that are 4, 2 and 1 apart."""
    rows = values[..., 0]
    for column in range(1, PATCH):
        rows = rows + values[..., column]
    while (half := rows.shape[-1] // 2) > 0:
        rows = rows[..., :half] + rows[..., half:]
    return rows[..., 0]


def _descend(patches: _Patches, match: _Match, steps: int) -> Tensor:
    """Return where descent leads from a match, or the match's displacement if that is too far away.

    A patch stops at the step after which it is no less unlike.
    """
    displacement = match.displacement - match.step
    goes_on = torch.ones_like(match.unlikeness, dtype=torch.bool)
    best = match.unlikeness
    for _ in range(steps - 1):
        at = _match(patches, displacement)
        displacement = torch.where(goes_on[..., None], displacement - at.step, displacement)
        goes_on = goes_on & (at.unlikeness < best)
        best = torch.where(goes_on, at.unlikeness, best)
    moved = displacement - match.displacement
    near = moved[..., 0] * moved[..., 0] + moved[..., 1] * moved[..., 1] <= _FARTHEST * _FARTHEST
    return torch.where(near[..., None], displacement, match.displacement)


def _densify(found: Tensor, frames: _Frames, stride: int) -> Tensor:
    """Return the flow of each pixel: the mean of the patches over it, weighted by how well each matches the pixel.

    Equation 3 of the paper; a difference of less than one grey value counts as one.
    """
    batch, height, width = frames.present.shape
    (low_y, high_y), (low_x, high_x) = (
        _patches_over(side, count, stride, found.device)
        for side, count in zip((height, width), found.shape[1:3], strict=True)
    )
    y, x = (torch.arange(side, device=found.device, dtype=found.dtype) for side in (height, width))
    most = -(-PATCH // stride)
    weights, sums = found.new_zeros((batch, height, width)), found.new_zeros((batch, height, width, 2))
    previous = frames.previous[..., None]
    for down in range(most):
        for right in range(most):
            row, column = low_y + down, low_x + right
            is_over = (row <= high_y)[:, None] & (column <= high_x)
            flow = found[:, row.clamp(max=found.shape[1] - 1)][:, :, column.clamp(max=found.shape[2] - 1)]
            at = (y[:, None] + flow[..., 1]).clamp(0, height - 1), (x + flow[..., 0]).clamp(0, width - 1)
            difference = _bilinear(previous, *at)[..., 0] - frames.present
            weight = torch.where(is_over, 1 / difference.abs().clamp(min=1), 0.0)
            weights = weights + weight
            sums = sums + weight[..., None] * flow
    return sums / weights[..., None]


def _patches_over(side: int, count: int, stride: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the first and the last patch over each pixel of a row or column; behind all of them, the last one."""
    pixels = torch.arange(side, device=device)
    last = torch.div(pixels, stride, rounding_mode="floor").clamp(max=count - 1)
    first = torch.div(pixels - PATCH, stride, rounding_mode="floor") + 1
    return torch.minimum(first.clamp(min=0), last), last


def _bilinear(maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Interpolate maps ``(B, h, w, C)`` at places within them; y and x broadcast to ``(B, H, W)`` or ``(H, W)``."""
    batch, height, width, channels = maps.shape
    y, x = torch.broadcast_tensors(y, x)
    if y.ndim == 2:
        y, x = y.expand(batch, -1, -1), x.expand(batch, -1, -1)
    top, left = y.long(), x.long()
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    down, across = (y - top.to(y.dtype))[..., None], (x - left.to(x.dtype))[..., None]
    flat = maps.reshape(batch, height * width, channels)

    def corner(row: Tensor, column: Tensor) -> Tensor:
        index = (row * width + column).flatten(1)[..., None].expand(-1, -1, channels)
        return flat.gather(1, index).view(*row.shape, channels)

    upper = (1 - across) * corner(top, left) + across * corner(top, right)
    lower = (1 - across) * corner(bottom, left) + across * corner(bottom, right)
    return (1 - down) * upper + down * lower


def _refine(frames: _Frames, flow: Tensor, iterations: int) -> Tensor:
    """Return the flow, near a flow, that minimises the energy of Section 2.3 of the paper.

    That is constancy of grey values and of gradients, and smoothness, each under a robust norm. The Euler-Lagrange
    equations are linearised in each iteration, and solved by red-black over-relaxation.
    """
    height, width = flow.shape[1:3]
    y, x = (torch.arange(side, device=flow.device, dtype=flow.dtype) for side in (height, width))
    at = (y[:, None] + flow[..., 1]).clamp(0, height - 1), (x + flow[..., 0]).clamp(0, width - 1)
    warped = _bilinear(frames.previous[..., None], *at)[..., 0]
    mean, difference = (frames.present + warped) * 0.5, warped - frames.present
    ix, iy, ixz, iyz = _slope(mean, 2), _slope(mean, 1), _slope(difference, 2), _slope(difference, 1)
    ixx, ixy, iyy = _slope(ix, 2), _slope(ix, 1), _slope(iy, 1)
    norm = ix * ix + iy * iy + _ZETA2
    norm_x, norm_y = ixx * ixx + ixy * ixy + _ZETA2, iyy * iyy + ixy * ixy + _ZETA2
    is_red = (y[:, None] + x) % 2 == 0
    change = torch.zeros_like(flow)
    for _ in range(iterations):
        du, dv = change.unbind(-1)
        error = difference + ix * du + iy * dv
        weight = (0.5 * _DELTA) / _root(error * error / norm + _EPSILON2) / norm
        a11, a12, a22 = weight * (ix * ix) + _ZETA2, weight * (ix * iy), weight * (iy * iy) + _ZETA2
        b1, b2 = -weight * (difference * ix), -weight * (difference * iy)
        error_x, error_y = ixz + ixx * du + ixy * dv, iyz + ixy * du + iyy * dv
        weight = (0.5 * _GAMMA) / _root(error_x * error_x / norm_x + error_y * error_y / norm_y + _EPSILON2)
        by_x, by_y = weight / norm_x, weight / norm_y
        a11, a12 = a11 + (by_x * (ixx * ixx) + by_y * (ixy * ixy)), a12 + (by_x * (ixx * ixy) + by_y * (ixy * iyy))
        a22 = a22 + (by_x * (ixy * ixy) + by_y * (iyy * iyy))
        b1 = b1 - (by_x * (ixx * ixz) + by_y * (ixy * iyz))
        b2 = b2 - (by_x * (ixy * ixz) + by_y * (iyy * iyz))

        present = flow + change
        across, down = _next(present, 2) - present, _next(present, 1) - present
        slopes = across[..., 0] * across[..., 0] + across[..., 1] * across[..., 1]
        slopes = slopes + (down[..., 0] * down[..., 0] + down[..., 1] * down[..., 1])
        links = _Links.of((0.5 * _ALPHA) / _root(slopes + _EPSILON2))
        smooth = links.sum(flow) - links.total[..., None] * flow
        b1, b2 = b1 + smooth[..., 0], b2 + smooth[..., 1]
        scale_u, scale_v = _OMEGA / (a11 + links.total), _OMEGA / (a22 + links.total)
        for _ in range(_SWEEPS):
            for is_due in (is_red, ~is_red):
                around = links.sum(change)
                u, v = change.unbind(-1)
                new_u = (1 - _OMEGA) * u + scale_u * (around[..., 0] + b1 - v * a12)
                new_v = (1 - _OMEGA) * v + scale_v * (around[..., 1] + b2 - new_u * a12)
                change = torch.where(is_due[..., None], torch.stack([new_u, new_v], -1), change)
    return flow + change


def _root(maps: Tensor) -> Tensor:
    """Return the square root, rounded correctly: that of PyTorch on the CPU is not always."""
    return maps.double().sqrt().to(maps.dtype)


def _next(maps: Tensor, dim: int) -> Tensor:
    """Shift maps by one pixel: each gets the value of the next one in a dimension; the last one keeps its own."""
    last = maps.narrow(dim, maps.shape[dim] - 1, 1)
    return torch.cat([maps.narrow(dim, 1, maps.shape[dim] - 1), last], dim)


def _slope(maps: Tensor, dim: int) -> Tensor:
    """Return the difference of the next and the previous pixel in a dimension; at the border, of the pixel itself."""
    first = maps.narrow(dim, 0, 1)
    return _next(maps, dim) - torch.cat([first, maps.narrow(dim, 0, maps.shape[dim] - 1)], dim)


class _Links(NamedTuple):
    """How strongly smoothness ties each pixel to its neighbors, ``(B, h, w)`` each; 0 where there is none."""

    left: Tensor
    right: Tensor
    up: Tensor
    down: Tensor
    total: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> _Links:
        """Return the links of pixels that are tied to the next pixel and to the one below by a weight."""
        right, down = F.pad(weight[:, :, :-1], (0, 1)), F.pad(weight[:, :-1], (0, 0, 0, 1))
        left, up = F.pad(weight[:, :, :-1], (1, 0)), F.pad(weight[:, :-1], (0, 0, 1, 0))
        return cls(left, right, up, down, left + right + up + down)

    def sum(self, maps: Tensor) -> Tensor:
        """Sum the neighbors of each pixel of ``(B, h, w, 2)``, by their links."""
        left, right = F.pad(maps[:, :, :-1], (0, 0, 1, 0)), F.pad(maps[:, :, 1:], (0, 0, 0, 1))
        up, down = F.pad(maps[:, :-1], (0, 0, 0, 0, 1, 0)), F.pad(maps[:, 1:], (0, 0, 0, 0, 0, 1))
        pairs = ((self.left, left), (self.right, right), (self.up, up), (self.down, down))
        terms = [link[..., None] * neighbor for link, neighbor in pairs]
        return terms[0] + terms[1] + terms[2] + terms[3]
