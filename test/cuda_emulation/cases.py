# SPDX-License-Identifier: Apache-2.0
"""Tests of the emulated CUDA operators, on CPU tensors: run.py runs them. Several are tests of the other devices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import test_cuda
import test_operator
import torch
from test_cuda import test_values_and_gradients_equal_float64  # noqa: F401
from test_operator import (  # noqa: F401
    DTYPES,
    FLOWS,
    LAYOUTS,
    assert_equals_the_reference,
    generator,
    test_all_halves_pass_through_unchanged,
    test_direct_calls_are_checked,
    test_direct_calls_of_the_backward_operators_are_checked,
    test_equals_the_reference,
    test_infinite_gradients_give_the_flow_no_gradient_on_a_clamped_axis,
    test_infinity_beside_the_border_does_not_leak_into_it,
    test_layouts_give_the_same_result_bit_for_bit,
    test_sides_that_float32_cannot_count_are_refused,
    with_exact_places,
)
from torch import Tensor

from netwarp_ros.ops import compiled, reference, warp

test_cuda.GPU = torch.device("cpu")
OPS = torch.ops.netwarp_ros


def test_the_library_is_the_emulated_one() -> None:
    assert "cpu" in compiled.DEVICES
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("netwarp_ros::resize_argmax", "CPU")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_vectors_are_computed_in_tiles_of_pixels(dtype: torch.dtype) -> None:
    """A tile is four pixels wide, and the last one of a row has one."""
    assert_equals_the_reference("cpu", (1, 1024, 33, 65), "channels-last", "contiguous", "scattered", dtype, 0)


@pytest.mark.parametrize(
    ("flow", "dtype", "layout"),
    [(*case, layout) for case, layout in zip(itertools.product(FLOWS, DTYPES), itertools.cycle(LAYOUTS))],
    ids=str,
)
def test_gradients_equal_the_reference(flow: str, dtype: torch.dtype, layout: str) -> None:
    test_operator.test_gradients_equal_the_reference.hypothesis.inner_test((2, 37, 6, 13), layout, flow, dtype, 0)


@pytest.fixture(params=[False, True], ids=["atomics", "in order"])
def _algorithms(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.use_deterministic_algorithms(request.param)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_algorithms")
def test_gradients_of_many_pixels_equal_the_reference() -> None:
    test_operator.test_gradients_equal_the_reference.hypothesis.inner_test(
        (2, 3, 36, 60), "channels-last", "scattered", torch.float32, 0
    )


@pytest.mark.usefixtures("_algorithms")
def test_gradients_without_a_weight_equal_float64() -> None:
    random = generator(0)
    features, flow, grad = random(2, 40, 6, 13), with_exact_places(5 * random(2, 2, 6, 13)), random(2, 40, 6, 13)
    exact = [t.double().requires_grad_() for t in (features, flow)]
    wanted = torch.autograd.grad(reference.warp(*exact), exact, grad.double())
    inputs = [features.requires_grad_(), flow.requires_grad_()]
    for got, want in zip(torch.autograd.grad(warp(*inputs), inputs, grad), wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-4)


def operands(shape: tuple[int, int, int, int], layout: str, dtype: torch.dtype) -> list[Tensor]:
    """Return a gradient and the operands of `warp_combine`."""
    random = generator(0)
    maps = [LAYOUTS[layout](random(*shape).to(dtype)) for _ in range(3)]
    return [*maps, 5 * random(shape[0], 2, *shape[2:]), random(shape[1]), random(shape[1])]


def forward(grad: Tensor, present: Tensor, previous: Tensor, flow: Tensor, w1: Tensor, w2: Tensor) -> list[Tensor]:
    return [OPS.warp(previous, flow), OPS.warp_combine(present, previous, flow, w1, w2)]


def backward(grad: Tensor, present: Tensor, previous: Tensor, flow: Tensor, w1: Tensor, w2: Tensor) -> list[Tensor]:
    return [
        *OPS.warp_combine_backward_weights(grad, present, previous, flow),
        *(OPS.warp_backward_flow(grad, previous, flow, weight) for weight in (None, w2)),
        *(OPS.warp_backward_features(grad, flow, weight, True) for weight in (None, w2)),
    ]


def assert_all_equal(results: list[Tensor], expected: list[Tensor]) -> None:
    for number, (got, want) in enumerate(zip(results, expected, strict=True)):
        assert torch.equal(got, want), number


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("channels", "layout"), [(64, "channels-last"), (12, "contiguous")])
def test_memory_that_is_not_aligned_gives_the_same_results(channels: int, layout: str, dtype: torch.dtype) -> None:
    def moved(tensor: Tensor) -> Tensor:
        memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
        return memory.as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor)

    inputs = operands((2, channels, 3, 13), layout, dtype)
    for index, tensor in enumerate(inputs):
        assert_all_equal(forward(*inputs[:index], moved(tensor), *inputs[index + 1 :]), forward(*inputs))
    assert_all_equal(backward(*map(moved, inputs)), backward(*inputs))


@pytest.mark.parametrize("layout", ["channels-last", "contiguous"])
def test_results_do_not_depend_on_the_order_of_threads(monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    inputs = operands((2, 40, 5, 13), layout, torch.float32)
    expected = [*forward(*inputs), *backward(*inputs)]
    for order in ("reversed", "1"):
        monkeypatch.setenv("EMULATION_ORDER", order)
        assert_all_equal([*forward(*inputs), *backward(*inputs)], expected)
        atomic = OPS.warp_backward_features(inputs[0], inputs[3], None, False)
        torch.testing.assert_close(atomic, expected[-2], rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 5, 6, 7), (2, 0, 6, 7), (2, 5, 0, 7), (2, 5, 6, 0)], ids=str)
def test_empty_maps_have_empty_or_zero_results(shape: tuple[int, int, int, int]) -> None:
    """A grid without threads cannot be launched."""
    inputs = operands(shape, "contiguous", torch.float32)
    atomic = OPS.warp_backward_features(inputs[0], inputs[3], None, False)
    assert not any(result.any() for result in (*forward(*inputs), *backward(*inputs), atomic))


def test_many_channels_and_images_are_within_the_limits_of_a_launch() -> None:
    features = torch.randn(1, 2**18 + 1, 1, 2)
    warped = OPS.warp(features, torch.tensor([[0.25, 0.25], [0, 0]]).view(1, 2, 1, 2))
    torch.testing.assert_close(warped[..., 0], 0.75 * features[..., 0] + 0.25 * features[..., 1])
    grad = torch.randn(2**16 + 1, 1, 1, 1)
    assert torch.equal(OPS.warp_backward_features(grad, torch.zeros(2**16 + 1, 2, 1, 1), None, True), grad)


def test_more_channels_than_a_launch_can_have_are_refused() -> None:
    features = torch.zeros(1, 2**23 + 1, 1, 2).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="too large for a kernel"):
        OPS.warp(features, torch.zeros(1, 2, 1, 2))
