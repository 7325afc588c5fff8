# SPDX-License-Identifier: Apache-2.0
"""Batch norms are folded into the convolutions before them, where that changes nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from netwarp_ros.engines.folding import fold_batch_norms
from netwarp_ros.models import load_model

FRAME = torch.linspace(-2, 2, 3 * 24 * 32).view(1, 3, 24, 32)


def conv(inputs: int = 4, **options: bool) -> nn.Conv2d:
    return nn.Conv2d(inputs, 4, 3, padding=1, **options)


def norm() -> nn.BatchNorm2d:
    """Return a batch norm that does something."""
    module = nn.BatchNorm2d(4)
    for values in (module.weight, module.bias, module.running_mean, module.running_var):
        assert values is not None
        nn.init.uniform_(values, 0.5, 1.5)
    return module


class TwoUses(nn.Module):
    """The convolution's output is taken by the norm, and once more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(3), norm()

    def forward(self, frame: Tensor) -> Tensor:
        features: Tensor = self.conv(frame)
        return self.norm(features) + features.relu()


class TwoRuns(nn.Module):
    """The same convolution is run twice; a norm follows one run."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.norm = conv(3), conv(), norm()

    def forward(self, frame: Tensor) -> Tensor:
        features = self.first(frame)
        normalised: Tensor = self.norm(self.conv(features))
        return normalised + self.conv(features.relu())


class Doubling(nn.Conv2d):
    """A convolution of its own kind."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Written(nn.Module):
    """Order of construction and names tell nothing about what follows what."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.x, self.y = norm(), norm(), conv(bias=False), conv(3)

    def forward(self, frame: Tensor) -> Tensor:
        features: Tensor = self.a(self.y(frame)).relu_()
        return features + self.b(self.x(features))


CASES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "one after the other": (lambda: nn.Sequential(conv(3), norm(), nn.ReLU(inplace=True), conv(bias=False), norm()), 2),
    "in an order of its own": (Written, 2),
    "the norm comes first": (lambda: nn.Sequential(conv(3), nn.ReLU(), norm(), conv()), 0),
    "two uses": (TwoUses, 0),
    "two runs": (TwoRuns, 0),
    "another kind of convolution": (lambda: nn.Sequential(Doubling(3, 4, 3), norm()), 0),
    "norm of the batch": (lambda: nn.Sequential(conv(3), nn.BatchNorm2d(4, track_running_stats=False)), 0),
    "norm without weights": (lambda: nn.Sequential(conv(3), nn.BatchNorm2d(4, affine=False)), 1),
}


@pytest.mark.parametrize(("make", "folded"), CASES.values(), ids=CASES.keys())
def test_folding_keeps_the_result(make: Callable[[], nn.Module], folded: int) -> None:
    torch.manual_seed(0)
    network = make().eval()
    with torch.inference_mode():
        expected = copy.deepcopy(network)(FRAME)
        norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        assert fold_batch_norms(network, lambda: network(FRAME[..., :8, :8])) == folded
        assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == norms - folded
        torch.testing.assert_close(network(FRAME), expected, rtol=1e-5, atol=1e-5)
        assert fold_batch_norms(network, lambda: network(FRAME)) == 0


@pytest.mark.parametrize("hooked", ["0", "1"])
def test_modules_with_hooks_stay(hooked: str) -> None:
    network, seen = nn.Sequential(conv(3), norm()).eval(), list[Tensor]()
    network.get_submodule(hooked).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    expected = network(FRAME)
    fold_batch_norms(network, lambda: network(FRAME))
    seen.clear()
    torch.testing.assert_close(network(FRAME), expected)
    torch.testing.assert_close(seen[0], expected if hooked == "1" else network[0](FRAME))
    assert isinstance(network[1], nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("name", "folded"), [("swiftnet-lite0-netwarp-camvid", 50), ("ddrnet23slim-netwarp-camvid", 43)]
)
def test_shipped_models(name: str, folded: int) -> None:
    """What is left comes before a convolution, not after one."""
    network = load_model(name).network.eval()
    whole = copy.deepcopy(network)
    assert fold_batch_norms(network.host, lambda: network.host(torch.zeros(1, 3, 64, 64))) == folded
    first, second = torch.rand(2, 1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    flow = torch.full((1, 2, 96, 128), 1.5)
    results = []
    with torch.inference_mode():
        for one in (whole, network):
            _, memory = one(first)
            scores, memory = one(second, flow, memory)
            results.append((scores, memory.representations))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)
