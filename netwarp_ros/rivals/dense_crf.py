# SPDX-License-Identifier: Apache-2.0
"""DenseCRF, over the pixels of one frame or of several.

Krähenbühl, Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials" (NIPS 2011): each pixel
is connected with all others by two Gaussian kernels, one over place and color and one over place alone, with Potts
compatibility. Mean field finds the probabilities; its messages are filters on the permutohedral lattice.

Kundu, Vineet, Koltun, "Feature Space Optimization for Semantic Video Segmentation" (CVPR 2016) connect the pixels of
several frames too, after moving them so that corresponding pixels are close. Here, earlier frames are moved along the
flow. Their probabilities stay as they were found, since later frames must not change what was said before. So their
kernel over time is one factor for each earlier frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from netwarp_ros.engines import Engine
from netwarp_ros.models.resampling import Size
from netwarp_ros.ops.lattice import Lattice
from netwarp_ros.rivals.rival import Pixels, Rival, places, softmax


@dataclass(frozen=True)
class CrfParameters:
    """Parameters of a DenseCRF. Distances are in parts of the frame's height.

    Attributes:
        color_weight: Weight of the kernel over place and color, w1 of the paper.
        color_distance: Its standard deviation over place, θα.
        color_deviation: Its standard deviation over each color, θβ, of 255.
        place_weight: Weight of the kernel over place, w2.
        place_distance: Its standard deviation, θγ.
        iterations: Of mean field.
        past: Factors of earlier frames in both kernels, the latest first.
    """

    color_weight: float
    color_distance: float
    color_deviation: float
    place_weight: float
    place_distance: float
    iterations: int = 5
    past: tuple[float, ...] = ()


class Kernel(NamedTuple):
    """A Gaussian kernel between the pixels whose probabilities are sought and all pixels.

    Attributes:
        weight: Its weight.
        lattice: The lattice, with the points of the pixels that are sought.
        fixed: ``(M, K)``, what all other pixels add to the vertices; None if there are none.
        sums: ``(N, 1)``, sum of the kernel over all pixels.
    """

    weight: float
    lattice: Lattice
    fixed: Tensor | None
    sums: Tensor

    @classmethod
    def of(cls, weight: float, sought: Lattice, others: Lattice, values: Tensor | None) -> Kernel:
        """Make a kernel.

        Args:
            weight: Its weight.
            sought: The pixels that are sought.
            others: All others, on the same vertices.
            values: ``(N', K + 1)``, their probabilities and 1, both multiplied by the weight of the pixel; None if
                there are none.
        """
        ones = sought.splat(torch.ones(len(sought.vertices), 1))
        if values is None:
            return cls(weight, sought, None, sought.slice(sought.blur(ones)))
        fixed = others.splat(values)
        return cls(weight, sought, fixed[:, :-1], sought.slice(sought.blur(ones + fixed[:, -1:])))

    def message(self, probabilities: Tensor) -> Tensor:
        """Return the weighted mean of the probabilities of all pixels, for each pixel that is sought, ``(N, K)``."""
        values = self.lattice.splat(probabilities)
        if self.fixed is not None:
            values += self.fixed
        return self.lattice.slice(self.lattice.blur(values)).mul_(self.weight / self.sums)


def mean_field(scores: Tensor, kernels: Sequence[Kernel], iterations: int) -> Tensor:
    """Return scores ``(N, K)`` whose softmax are the probabilities that mean field finds.

    With Potts compatibility, a class gains what its own probability sends (paper, Algorithm 1). As in the authors'
    program, a pixel's message contains its own probability; each kernel is divided by its sum.

    Args:
        scores: ``(N, K)``, whose softmax are the probabilities without kernels.
        kernels: The kernels.
        iterations: How often messages are sent.
    """
    refined = scores
    for _ in range(iterations):
        probabilities = softmax(refined)
        refined = scores.clone()
        for kernel in kernels:
            refined += kernel.message(probabilities)
    return refined


class DenseCrf(Rival):
    """Mean field over the pixels of a frame, and of earlier ones.

    Args:
        host: Runs the image CNN.
        name: Name of the rival.
        parameters: Its parameters.
    """

    def __init__(self, host: Engine, name: str, parameters: CrfParameters) -> None:
        super().__init__(host, name, len(parameters.past))
        self.parameters = parameters
        self._place_lattice = lru_cache(4)(lambda size: Lattice.of(self._scaled(size, parameters.place_distance)))

    def refine(self, scores: Tensor, colors: Tensor, past: list[Pixels], size: Size) -> Tensor:
        own, count = self.parameters, len(scores)
        place = self._scaled(size, own.color_distance)
        all_colors = (colors, *(one.colors for one in past))
        near = Lattice.of(torch.cat([torch.cat((place, each / own.color_deviation), 1) for each in all_colors]))
        flat = self._place_lattice(size)
        values = [
            torch.cat((one.probabilities, torch.ones_like(one.weights)), 1) * (factor * one.weights)
            for one, factor in zip(past, own.past, strict=False)
        ]
        kernels = (
            Kernel.of(
                own.color_weight,
                near.points(0, count),
                near.points(count, len(near.vertices)),
                torch.cat(values) if past else None,
            ),
            # All frames have their pixels at the same places, so their values add up.
            Kernel.of(own.place_weight, flat, flat, torch.stack(values).sum(0) if past else None),
        )
        return mean_field(scores, kernels, own.iterations)

    @staticmethod
    def _scaled(size: Size, distance: float) -> Tensor:
        """Return the places of the pixels in standard deviations."""
        return places(size) / (distance * size[0])


DENSE_CRF = CrfParameters(1.5, 0.3, 15.0, 0.2, 0.01)
"""Parameters of ``densecrf``."""

FSO_CRF = CrfParameters(2.0, 0.02, 15.0, 1.0, 0.006, iterations=2, past=(8.0,))
"""Parameters of ``fso-crf``."""
