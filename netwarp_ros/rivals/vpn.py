# SPDX-License-Identifier: Apache-2.0
"""Propagation of earlier frames' probabilities by learnt bilateral filters.

After Jampani, Gadde, Gehler, "Video Propagation Networks" (CVPR 2017), reduced to its idea: the probabilities of
earlier frames are splatted on the permutohedral lattice over place and color, filtered there by learnt taps, and read
by the pixels of the present frame. Earlier frames are moved along the flow, as in the paper's VPN-Flow. Instead of the
paper's spatial network there is a learnt weight for each class, and instead of its filters of several channels one set
of taps for each direction of the lattice, which all classes share.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from netwarp_ros.engines import Engine
from netwarp_ros.models.resampling import Size
from netwarp_ros.ops.lattice import GAUSSIAN, Lattice
from netwarp_ros.rivals.rival import Pixels, Rival, places, softmax

WEIGHTS = Path(__file__).with_name("vpn.safetensors")
"""The learnt weights, for the classes of CamVid; ``studies/vpn.py`` makes them."""

FRAMES = 2
DISTANCE, DEVIATION = 0.03, 30.0
"""Standard deviations before the taps are learnt: of the place in parts of the frame's height, and of each color."""

_DIMENSIONS = 5
_LEAST = 1e-3
"""Added to a probability before its logarithm is taken."""


class Propagation(nn.Module):
    """What is learnt.

    Args:
        num_classes: Number of classes K.

    Attributes:
        taps: ``(6, 3)``, of the blur along each direction of the lattice.
        past: ``(2,)``, logarithm of the weight of each earlier frame, the latest first.
        doubt: Logarithm of the weight of the pixel's own probabilities beside those of earlier frames.
        own: ``(K,)``, weight of the host's logarithmic probabilities.
        propagated: ``(K,)``, weight of the propagated ones.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.tensor(GAUSSIAN).repeat(_DIMENSIONS + 1, 1))
        self.past = nn.Parameter(torch.zeros(FRAMES))
        self.doubt = nn.Parameter(torch.tensor(-2.0))
        self.own = nn.Parameter(torch.full((num_classes,), 0.5))
        self.propagated = nn.Parameter(torch.full((num_classes,), 0.5))

    def forward(self, probabilities: Tensor, lattice: Lattice, past: list[Pixels]) -> Tensor:
        """Return scores ``(N, K)``.

        Args:
            probabilities: ``(N, K)``, of the host.
            lattice: The pixels of the present frame, then those of the earlier ones.
            past: Earlier frames, the latest first.
        """
        count = len(probabilities)
        splat = torch.zeros(())
        for number, (one, factor) in enumerate(zip(past, self.past.exp(), strict=False), 1):
            values = torch.cat((one.probabilities, torch.ones_like(one.weights)), 1) * one.weights
            splat = splat + factor * lattice.points(number * count, (number + 1) * count).splat(values)
        read = lattice.points(0, count).slice(lattice.blur(splat, self.taps))
        doubt = self.doubt.exp()
        propagated = (read[:, :-1] + doubt * probabilities) / (read[:, -1:] + doubt)
        return self.own * _log(probabilities) + self.propagated * _log(propagated)


def _log(probabilities: Tensor) -> Tensor:
    return (probabilities.clamp(min=0) + _LEAST).log()


class Vpn(Rival):
    """The propagation network on top of a host.

    Args:
        host: Runs the image CNN.
        name: Name of the rival.
        propagation: What is learnt.
    """

    def __init__(self, host: Engine, name: str, propagation: Propagation) -> None:
        super().__init__(host, name, FRAMES)
        self.propagation = propagation

    def refine(self, scores: Tensor, colors: Tensor, past: list[Pixels], size: Size) -> Tensor:
        if not past:
            return scores
        place = places(size) / (DISTANCE * size[0])
        all_colors = (colors, *(one.colors for one in past))
        lattice = Lattice.of(torch.cat([torch.cat((place, each / DEVIATION), 1) for each in all_colors]))
        return self.propagation(softmax(scores), lattice, past)


def load_propagation(num_classes: int, weights: Path = WEIGHTS) -> Propagation:
    """Return what was learnt.

    Raises:
        ValueError: If it was learnt for another number of classes.
    """
    state = load_file(weights)
    if len(state["own"]) != num_classes:
        raise ValueError(
            f"the rival vpn was trained for {len(state['own'])} classes, the model has {num_classes}: choose another "
            "rival, or train it by studies/vpn.py"
        )
    propagation = Propagation(num_classes)
    propagation.load_state_dict(state)
    return propagation.requires_grad_(False)
