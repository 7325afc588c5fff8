# SPDX-License-Identifier: Apache-2.0
"""The permutohedral lattice: Gaussian filters over points in a space of several dimensions.

Adams, Baek, Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice" (Computer Graphics Forum 2010).
Points lie anywhere in d dimensions, such as the place and the color of pixels. The lattice divides that space into
simplices. A filter has three steps, each linear in the values:

* **splat**: each point adds its value to the d + 1 vertices of its simplex, by barycentric weights;
* **blur**: along each of the d + 1 directions, each vertex adds up its value and those of its two neighbors by three
  taps; vertices that no point touches do not exist, and count as 0;
* **slice**: each point reads the vertices of its simplex, by the same weights.

With the default taps (1/4, 1/2, 1/4) this approximates a Gaussian of standard deviation 1, up to a factor: divide the
positions by the standard deviations, and divide the result by that for values of 1. Other taps make another filter, and
can be learnt (Jampani, Kiefel, Gehler, CVPR 2016).

`csrc/cpu/lattice.cpp` implements all this in float32 on the CPU. Plain PyTorch is used for values that need a gradient,
for other devices, and if the library is not built.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from netwarp_ros.ops import compiled

MOST_DIMENSIONS = 8
_FARTHEST = 2.0**15

GAUSSIAN = (0.25, 0.5, 0.25)
"""Taps of the Gaussian filter, in each direction."""


class Lattice(NamedTuple):
    """The vertices around N points in d dimensions; made by `Lattice.of`.

    Attributes:
        vertices: ``(N, d + 1)`` int32, the vertices of each point's simplex, as numbers from 0 to M - 1.
        weights: ``(N, d + 1)`` float32, the barycentric weight of each; their sum is 1.
        neighbors: ``(M, d + 1, 2)`` int32, the neighbors of each vertex, backward and forward in each direction; M
            where there is none.
    """

    vertices: Tensor
    weights: Tensor
    neighbors: Tensor

    @classmethod
    def of(cls, positions: Tensor) -> Lattice:
        """Make the lattice of some points.

        Args:
            positions: ``(N, d)`` float32, d from 1 to 8, in standard deviations of the filter.

        Raises:
            ValueError: If shape or type are wrong, or a position is not finite or not between -2^15 and 2^15.
        """
        if positions.ndim != 2 or not 1 <= positions.shape[1] <= MOST_DIMENSIONS or positions.dtype != torch.float32:
            raise ValueError(
                f"positions are {tuple(positions.shape)} {positions.dtype}: give float32 (N, d), "
                f"d from 1 to {MOST_DIMENSIONS}"
            )
        if not bool((positions.abs() < _FARTHEST).all()):
            raise ValueError(
                "a position is not finite, or not between -2^15 and 2^15: divide positions by the filter's standard "
                "deviations"
            )
        if _is_compiled_for(positions):
            return cls(*torch.ops.netwarp_ros.lattice_build(positions))
        return cls(*_build(_elevate(positions)))

    def points(self, begin: int, end: int) -> Lattice:
        """Return the lattice with the points ``begin`` to ``end - 1`` alone, and all vertices."""
        return Lattice(self.vertices[begin:end], self.weights[begin:end], self.neighbors)

    def splat(self, values: Tensor) -> Tensor:
        """Add the values of the points, ``(N, K)`` float32, to the vertices: ``(M, K)``."""
        if not values.requires_grad and _is_compiled_for(values):
            return torch.ops.netwarp_ros.lattice_splat(values, self.vertices, self.weights, len(self.neighbors))
        shares = self.weights.unsqueeze(2) * values.unsqueeze(1)
        sums = values.new_zeros(len(self.neighbors), values.shape[1])
        return sums.index_add(0, self.vertices.flatten(), shares.flatten(0, 1))

    def blur(self, values: Tensor, taps: Tensor | None = None) -> Tensor:
        """Filter the values of the vertices, ``(M, K)``, along each direction in turn.

        Args:
            values: What `splat` returned.
            taps: ``(d + 1, 3)`` float32, for each direction the factors of the neighbor backward, of the vertex itself
                and of the neighbor forward; by default `GAUSSIAN`.
        """
        if taps is None:
            taps = values.new_tensor(GAUSSIAN).repeat(self.neighbors.shape[1], 1)
        if not (values.requires_grad or taps.requires_grad) and _is_compiled_for(values):
            return torch.ops.netwarp_ros.lattice_blur(values, self.neighbors, taps)
        for (backward, forward), (tap_backward, own, tap_forward) in zip(
            self.neighbors.permute(1, 2, 0), taps, strict=True
        ):
            padded = torch.cat((values, values.new_zeros(1, values.shape[1])))
            sides = tap_backward * padded.index_select(0, backward) + tap_forward * padded.index_select(0, forward)
            values = own * values + sides
        return values

    def slice(self, values: Tensor) -> Tensor:
        """Read the values of the vertices, ``(M, K)``, at the points: ``(N, K)``."""
        if not values.requires_grad and _is_compiled_for(values):
            return torch.ops.netwarp_ros.lattice_slice(values, self.vertices, self.weights)
        read = values.index_select(0, self.vertices.flatten()).unflatten(0, self.vertices.shape)
        return (self.weights.unsqueeze(2) * read).sum(1)

    def filter(self, values: Tensor, taps: Tensor | None = None) -> Tensor:
        """Splat, blur and slice the values of the points, ``(N, K)`` to ``(N, K)``."""
        return self.slice(self.blur(self.splat(values), taps))


def _is_compiled_for(values: Tensor) -> bool:
    return values.device.type == "cpu" and "cpu" in compiled.DEVICES


def _elevate(positions: Tensor) -> Tensor:
    """Map ``(N, d)`` to the plane of d + 1 coordinates, ``(N, d + 1)``, whose sum is 0, and scale them for the blur."""
    d = positions.shape[1]
    index = torch.arange(1, d + 1, device=positions.device)
    scaled = positions * ((d + 1) * (2 / 3) ** 0.5 / (index * (index + 1.0)).sqrt())
    after = scaled.flip(1).cumsum(1).flip(1)  # the sum of an axis and of those behind it
    nothing = scaled.new_zeros(len(scaled), 1)
    return torch.cat((after, nothing), 1) - torch.cat((nothing, scaled * index), 1)


def _build(elevated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return vertices, weights and neighbors, in the order of the compiled operator."""
    points, corners = elevated.shape
    d = corners - 1
    nearest = (elevated / corners + 0.5).floor()
    rest = elevated - nearest * corners
    # Of equal coordinates, the first one ranks first.
    rank = rest.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + nearest.sum(1, keepdim=True).long()
    wrap = corners * ((rank < 0).long() - (rank > d).long())
    base, rank = nearest.long() * corners + wrap, rank + wrap
    share = (rest - wrap) / corners
    sums = elevated.new_zeros(points, corners + 1)
    sums = sums.scatter_add(1, d - rank, share).scatter_add(1, corners - rank, -share)
    weights = torch.cat((sums[:, :1] + 1 + sums[:, corners:], sums[:, 1:corners]), 1)

    corner = torch.arange(corners, device=elevated.device).view(1, -1, 1)
    keys = base.unsqueeze(1) + corner - corners * (rank.unsqueeze(1) > d - corner).long()
    unique, inverse = keys.flatten(0, 1).unique(dim=0, return_inverse=True)
    count, entries = len(unique), torch.arange(len(inverse), device=elevated.device)
    first = torch.full((count,), len(inverse), device=elevated.device).scatter_reduce(0, inverse, entries, "amin")
    order = first.argsort()  # vertices are numbered in the order of their first point
    numbers = torch.arange(count, device=elevated.device)
    vertices = torch.empty_like(order).scatter(0, order, numbers)[inverse]
    return vertices.int().view(points, corners), weights, _neighbors(unique[order], numbers)


def _neighbors(keys: Tensor, numbers: Tensor) -> Tensor:
    """Return the neighbors of vertices by their coordinates ``(M, d + 1)``."""
    count, corners = keys.shape
    sides = []
    for direction in range(corners):
        for sign in (-1, 1):
            step = keys.new_full((corners,), sign)
            step[direction] -= sign * corners
            both = torch.cat((keys + step, keys)).unique(dim=0, return_inverse=True)[1]
            found = keys.new_full((len(both),), count).scatter(0, both[count:], numbers)
            sides.append(found[both[:count]])
    return torch.stack(sides, 1).int().view(count, corners, 2)
