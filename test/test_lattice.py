# SPDX-License-Identifier: Apache-2.0
"""The permutohedral lattice against sums over all pairs of points, and the compiled one against plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from netwarp_ros.ops import compiled
from netwarp_ros.ops.lattice import GAUSSIAN, Lattice


@pytest.fixture(params=["reference", "compiled"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "compiled" and "cpu" not in compiled.DEVICES:
        pytest.skip("the compiled operator is not built: `make setup`, with a C++ compiler")
    if request.param == "reference":
        monkeypatch.setattr(compiled, "DEVICES", frozenset())
    return str(request.param)


def grid(height: int, width: int, deviation: float) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((x, y), -1).view(-1, 2) / deviation


def colored_grid(height: int = 20, width: int = 24) -> Tensor:
    """Places and colors of an image of two halves, with a little noise."""
    generator = torch.Generator().manual_seed(1)
    place = grid(height, width, 4.0)
    color = (place[:, :1] > width / 8).float() * torch.tensor([6.0, 3.0, -4.0])
    return torch.cat((place, color + 0.3 * torch.randn(len(place), 3, generator=generator)), 1)


def gaussian_mean(positions: Tensor, values: Tensor) -> Tensor:
    """Return the mean of all values, weighted by a Gaussian of the distance, in float64."""
    kernel = torch.exp(-0.5 * torch.cdist(positions.double(), positions.double()) ** 2)
    return (kernel @ values.double()) / kernel.sum(1, keepdim=True)


def lattice_mean(positions: Tensor, values: Tensor) -> Tensor:
    lattice = Lattice.of(positions)
    return lattice.filter(values) / lattice.filter(torch.ones(len(values), 1))


@pytest.mark.parametrize(("positions", "rms", "greatest"), [
    (torch.arange(40.0).unsqueeze(1) / 3, 0.06, 0.18),
    (grid(20, 24, 2.0), 0.14, 0.85),
    (grid(20, 24, 4.0), 0.14, 0.50),
    (colored_grid(), 0.22, 0.90),
])  # fmt: skip
def test_the_filter_is_nearly_gaussian(implementation: str, positions: Tensor, rms: float, greatest: float) -> None:
    """Errors are in parts of the deviation of what a Gaussian makes of noise; what is smooth has less."""
    values = torch.rand(len(positions), 3, generator=torch.Generator().manual_seed(0))
    expected = gaussian_mean(positions, values)
    error = (lattice_mean(positions, values) - expected) / expected.std()
    assert error.pow(2).mean().sqrt() < rms and error.abs().max() < greatest


def test_edges_between_colors_stay(implementation: str) -> None:
    positions = colored_grid()
    left = (positions[:, 2:3] < 3).float()
    means = lattice_mean(positions, left)
    assert means[left == 1].min() > 0.97 and means[left == 0].max() < 0.03


def test_one_point_by_hand(implementation: str) -> None:
    """In one dimension, vertices are sqrt(3)/2 deviations apart; the point is a quarter of the way between two.

    The two blurs have a variance of 1/2 each, splat and slice of 1/6 each: 4/3 of the squared distance, which is 1.
    """
    lattice = Lattice.of(torch.tensor([[0.25 * math.sqrt(3) / 2]]))
    assert len(lattice.neighbors) == 2
    torch.testing.assert_close(lattice.weights.sort(1).values, torch.tensor([[0.25, 0.75]]))
    torch.testing.assert_close(lattice.splat(torch.tensor([[8.0]])).sort(0).values, torch.tensor([[2.0], [6.0]]))


def test_steps_by_hand(implementation: str) -> None:
    """Three vertices in a row, the middle one touched by no point of its own."""
    lattice = Lattice(
        torch.tensor([[0, 1], [1, 2]], dtype=torch.int32),
        torch.tensor([[1.0, 0.0], [0.25, 0.75]]),
        torch.tensor([[[3, 1], [1, 3]], [[0, 2], [2, 0]], [[1, 3], [3, 1]]], dtype=torch.int32),
    )
    splat = lattice.splat(torch.tensor([[4.0, 1.0], [8.0, 0.0]]))
    assert splat.tolist() == [[4.0, 1.0], [2.0, 0.0], [6.0, 0.0]]
    # Along the first direction: 4*own + 1*backward + 2*forward; the second one leaves the values as they are.
    blurred = lattice.blur(splat, torch.tensor([[1.0, 4.0, 2.0], [0.0, 1.0, 0.0]]))
    assert blurred.tolist() == [[20.0, 4.0], [24.0, 1.0], [26.0, 0.0]]
    assert lattice.slice(blurred).tolist() == [[20.0, 4.0], [25.5, 0.25]]
    assert lattice.points(1, 2).slice(blurred).tolist() == [[25.5, 0.25]]


@pytest.mark.parametrize("dimensions", range(1, 9))
def test_both_implementations_agree(dimensions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if "cpu" not in compiled.DEVICES:
        pytest.skip("the compiled operator is not built: `make setup`, with a C++ compiler")
    generator = torch.Generator().manual_seed(dimensions)
    positions = 2 * torch.randn(300, dimensions, generator=generator)
    values, taps = torch.rand(300, 5, generator=generator), torch.rand(dimensions + 1, 3, generator=generator)
    lattice, filtered = Lattice.of(positions), Lattice.of(positions).filter(values, taps)
    monkeypatch.setattr(compiled, "DEVICES", frozenset())
    reference = Lattice.of(positions)
    assert torch.equal(lattice.vertices, reference.vertices) and torch.equal(lattice.neighbors, reference.neighbors)
    torch.testing.assert_close(lattice.weights, reference.weights, atol=1e-5, rtol=0)
    torch.testing.assert_close(filtered, reference.filter(values, taps), rtol=1e-4, atol=1e-4 * float(filtered.max()))


def test_weights_are_barycentric(implementation: str) -> None:
    """They are not negative and add up to 1, and each vertex is its neighbors' neighbor."""
    lattice = Lattice.of(50 * torch.randn(500, 5, generator=torch.Generator().manual_seed(0)))
    assert lattice.weights.min() > -1e-4
    torch.testing.assert_close(lattice.weights.sum(1), torch.ones(500))
    count = len(lattice.neighbors)
    vertex, direction = torch.where(lattice.neighbors[:, :, 1] < count)
    assert len(vertex) > 1000
    assert torch.equal(lattice.neighbors[lattice.neighbors[vertex, direction, 1], direction, 0].long(), vertex)


def test_gradients_are_those_of_finite_differences() -> None:
    lattice = Lattice.of(colored_grid(4, 5))
    values = torch.rand(20, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    taps = torch.tensor(GAUSSIAN).repeat(6, 1).requires_grad_()
    (lattice.filter(values, taps) ** 2).sum().backward()
    for tensor in (values, taps):
        assert tensor.grad is not None
        for index in (0, 7, tensor.numel() - 1):
            step = torch.zeros(tensor.numel())
            step[index] = 1e-2
            sums = []
            for sign in (-1, 1):
                moved = tensor.detach() + sign * step.view(tensor.shape)
                inputs = (moved, taps.detach()) if tensor is values else (values.detach(), moved)
                sums.append(float((lattice.filter(*inputs) ** 2).sum()))
            assert float(tensor.grad.flatten()[index]) == pytest.approx((sums[1] - sums[0]) / 2e-2, rel=2e-2)


def test_threads_do_not_change_the_result() -> None:
    positions, threads = colored_grid(60, 80), torch.get_num_threads()
    values = torch.rand(len(positions), 11, generator=torch.Generator().manual_seed(0))
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(Lattice.of(positions).filter(values))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_there_may_be_no_points(implementation: str) -> None:
    lattice = Lattice.of(torch.empty(0, 3))
    assert lattice.filter(torch.empty(0, 2)).shape == (0, 2)


@pytest.mark.parametrize("positions", [torch.zeros(3), torch.zeros(3, 9), torch.zeros(3, 2, dtype=torch.float64)])
def test_other_shapes_and_types_are_refused(positions: Tensor) -> None:
    with pytest.raises(ValueError, match=r"give float32 \(N, d\), d from 1 to 8"):
        Lattice.of(positions)


@pytest.mark.parametrize("value", [math.nan, math.inf, -(2.0**15)])
def test_positions_without_a_place_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="divide positions by the filter's standard deviations"):
        Lattice.of(torch.tensor([[0.0, 1.0], [0.0, value]]))
    if "cpu" in compiled.DEVICES:
        with pytest.raises(RuntimeError, match="positions must be finite"):
            torch.ops.netwarp_ros.lattice_build(torch.tensor([[0.0, value]]))


def test_the_operators_stay_within_bounds() -> None:
    """Indices that a caller makes up are refused, not followed."""
    if "cpu" not in compiled.DEVICES:
        pytest.skip("the compiled operator is not built: `make setup`, with a C++ compiler")
    ops, one = torch.ops.netwarp_ros, torch.ones(1, 2)
    for index in (-1, 3):
        wrong = torch.tensor([[0, index]], dtype=torch.int32)
        for call in (
            lambda wrong=wrong: ops.lattice_splat(one, wrong, one, 3),
            lambda wrong=wrong: ops.lattice_slice(torch.ones(3, 2), wrong, one),
            lambda wrong=wrong: ops.lattice_blur(one, wrong.view(1, 1, 2), torch.ones(1, 3)),
        ):
            with pytest.raises(RuntimeError, match="an index is out of range"):
                call()
    with pytest.raises(RuntimeError, match="values must have a row for each point"):
        ops.lattice_splat(torch.ones(2, 2), torch.zeros(1, 2, dtype=torch.int32), one, 3)
    with pytest.raises(RuntimeError, match=r"taps must be float32 \(d \+ 1, 3\)"):
        ops.lattice_blur(one, torch.zeros(1, 1, 2, dtype=torch.int32), torch.ones(2, 3))
