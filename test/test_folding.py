# SPDX-License-Identifier: Apache-2.0
"""Batch norms are folded into the convolutions before them, where that changes nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from netwarp_ros.engines import choice
from netwarp_ros.engines.folding import fold_batch_norms
from netwarp_ros.models import DEFAULT_MODEL, augment, load_model

FRAME = torch.randn(1, 3, 24, 32, generator=torch.Generator().manual_seed(1))


def conv(inputs: int = 4, **options: bool) -> nn.Conv2d:
    return nn.Conv2d(inputs, 4, 3, padding=1, **options)


def norm() -> nn.BatchNorm2d:
    """Return a batch norm that does something."""
    module = nn.BatchNorm2d(4)
    for values in (module.weight, module.bias, module.running_mean, module.running_var):
        assert values is not None
        nn.init.uniform_(values, 0.5, 1.5)
    return module


class ConvNorm(nn.Module):
    """What hosts have that run the two in a way of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(3), norm()


class TwoUses(ConvNorm):
    """The convolution's output is taken by the norm, and once more."""

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


class Standardised(nn.Conv2d):
    """Its result differs from that of a convolution for most inputs, but not for zeros."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)


class Returned(ConvNorm):
    """The host gives the output of the convolution away."""

    def forward(self, frame: Tensor) -> dict[str, Tensor]:
        features: Tensor = self.conv(frame)
        return {"before": features, "after": self.norm(features)}


class ChangedInPlace(ConvNorm):
    """Something happens between the two."""

    def forward(self, frame: Tensor) -> Tensor:
        features: Tensor = self.conv(frame)
        features[:, :2] = 0
        result: Tensor = self.norm(features)
        return result


class NamedArgument(ConvNorm):
    """The norm takes its input by name, which hooks do not see."""

    def forward(self, frame: Tensor) -> Tensor:
        result: Tensor = self.norm(input=self.conv(frame))
        return result


class TwoNames(nn.Module):
    """The norm is registered twice, as in wrappers of a backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(3), norm()
        self.stem = nn.Sequential(self.conv, self.norm, nn.ReLU())

    def forward(self, frame: Tensor) -> Tensor:
        result: Tensor = self.stem(frame)
        return result


class Tuple(nn.Conv2d):
    """A layer that gives a tuple, and takes two inputs."""

    def forward(self, input: Tensor, scale: float = 1.0) -> Tensor:  # type: ignore[override]
        return (super().forward(input) * scale, scale)  # type: ignore[return-value]


class TakesTuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = Tuple(3, 4, 3), norm()

    def forward(self, frame: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(frame, 0.5)[0])
        return result


def normalised_weight() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(conv(3)), norm())


def norm_in_training() -> nn.Module:
    network = nn.Sequential(conv(3), norm()).eval()
    network[1].train()
    network.eval = lambda: network  # type: ignore[method-assign]
    return network


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
    "changed in place": (ChangedInPlace, 0),
    "input by name": (NamedArgument, 0),
    "weights standardised at each call": (lambda: nn.Sequential(Standardised(3, 4, 3, bias=False), norm()), 0),
    "given away": (Returned, 0),
    "under two names": (TwoNames, 1),
    "a tuple": (TakesTuple, 0),
    "normalised weight": (normalised_weight, 0),
    "in training": (norm_in_training, 0),
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
        torch.testing.assert_close(network(FRAME), expected, rtol=1e-5, atol=1e-5)


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


def test_a_block_that_is_hooked_keeps_its_output() -> None:
    """NetWarp blends what comes before the norm; folded, the norm would be applied before the blend."""
    torch.manual_seed(0)
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        network = augment(nn.Sequential(nn.Sequential(conv(3)), norm()), ["0"]).eval()
        nn.init.constant_(network.netwarps[0].w1, 0.4)
        nn.init.constant_(network.netwarps[0].w2, 0.2)
        networks.append(network)
    plain, network = networks
    with torch.inference_mode():
        assert fold_batch_norms(network.host, lambda: network.host(FRAME)) == 0
        results = []
        for one in (plain, network):
            _, memory = one(FRAME)
            results.append(one(2 * FRAME, torch.zeros(1, 2, 24, 32), memory)[0])
    torch.testing.assert_close(*results)


def test_an_engine_leaves_hosts_alone_that_cannot_run_on_a_small_frame() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(conv(3), norm())

        def forward(self, frame: Tensor) -> Tensor:
            assert frame.shape[-2:] == (24, 32), "this host has one size"
            result: Tensor = self.layers(frame)
            return result

    host = Fixed().eval()
    choice._fold(host, (128, 128))
    assert isinstance(host.layers[1], nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("name", "folded"),
    [(DEFAULT_MODEL, 65), ("swiftnet-lite0-netwarp-camvid", 50), ("ddrnet23slim-netwarp-camvid", 43)],
)
def test_shipped_models(name: str, folded: int) -> None:
    """What is left comes before a convolution, not after one."""
    network = load_model(name).network.eval()
    whole = copy.deepcopy(network)
    assert fold_batch_norms(network.host, lambda: network.host(FRAME)) == folded
    first, second = torch.rand(2, 1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    flow = torch.full((1, 2, 96, 128), 1.5)
    results = []
    with torch.inference_mode():
        for one in (whole, network):
            _, memory = one(first)
            scores, memory = one(second, flow, memory)
            results.append((scores, memory.representations))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


def test_a_host_that_returns_a_dataclass_is_compared_too() -> None:
    """Its convolution standardises its weights, which is no longer true of folded ones."""

    @dataclass
    class Output:
        logits: Tensor

    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return nn.functional.conv2d(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)

    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = Standardised(3, 8, 3), nn.BatchNorm2d(8)
            nn.init.uniform_(self.norm.weight, 1, 3)

        def forward(self, frame: Tensor) -> Output:
            return Output(self.norm(self.conv(frame)))

    host, frame = Host().eval(), torch.randn(1, 3, 16, 16)
    expected = host(frame).logits
    assert fold_batch_norms(host, lambda: host(frame)) == 0
    assert torch.equal(host(frame).logits, expected)


def test_nothing_is_folded_if_there_is_no_output_to_compare() -> None:
    host, frame = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval(), torch.randn(1, 3, 16, 16)
    assert fold_batch_norms(host, lambda: (host(frame), None)[1]) == 0
