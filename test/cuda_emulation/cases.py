# SPDX-License-Identifier: Apache-2.0
"""Tests of the emulated CUDA operators, on CPU tensors: run.py runs them. Several are tests of the other devices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import test_cuda
import test_operator
import torch
from hypothesis import settings
from test_cuda import test_values_and_gradients_equal_float64  # noqa: F401
from test_dis import (  # noqa: F401
    ANY_DIS,
    assert_dis_equals_the_reference,
    frames_of,
    test_fake_results_have_the_shape_and_type_of_real_ones,
    test_opcheck_of_dis,
)
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
from test_resize_argmax import (  # noqa: F401
    test_all_halves_are_read_exactly,
    test_equals_float64,
    test_half_precision_is_interpolated_in_float32,
    test_scores_that_are_not_finite_count_as_in_interpolate_and_argmax,
    test_the_lowest_of_equal_classes_counts,
    test_values_worked_out_by_hand,
)
from torch import Tensor

from netwarp_ros.ops import compiled, reference, warp
from netwarp_ros.ops.dis import Search

test_cuda.GPU = torch.device("cpu")
OPS = torch.ops.netwarp_ros


def test_the_library_is_the_emulated_one() -> None:
    assert "cpu" in compiled.DEVICES and "cpu" in compiled.DIS_DEVICES
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("netwarp_ros::lattice_build", "CPU")


@pytest.fixture(scope="module")
def implementation() -> str:
    """What the tests of `resize_argmax` run on."""
    return "compiled"


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


# DIS

DIS = {
    "one patch": ((8, 8), 1, Search(0, 1, 2, 2, 1), 0, "no start", 1),
    "one patch in each image": ((16, 17), 3, Search(1, 3, 2, 2), 1, "start", 3, "channels-last"),
    "one patch at level 2": ((32, 35), 2, Search(2, 8, 1, 1, 5), 0, "start on one cell", 3, "expanded"),
    "no image": ((40, 50), 0, Search(1, 4, 2, 2, 1), 1, "start", 3),
    "patches that end before the image": ((39, 47), 1, Search(0, 8, 2, 3), 0, "start on another grid", 3, "cropped"),
    "patches at every pixel": ((70, 66), 2, Search(2, 1, 2, 3, 1), 2, "transposed start", 3, "channels-last slice"),
    "several tiles": ((37, 70), 1, Search(0, 3, 1, 2, 5), 0, "start that is not finite", 1, "column step"),
    "several tiles, twice": ((71, 100), 2, Search(1, 4, 2, 3, 2), 3, "expanded start", 3, "transposed"),
    "several levels": ((97, 131), 1, Search(1, 3, 3, 4, 1), 1, "start that is not finite", 3, "channel step"),
    "a search that begins below the last level": ((64, 70), 1, Search(0, 4, 2, 3, 1), 8, "no start", 3),
}
"""Arguments of `assert_dis_equals_the_reference` after the device."""


@pytest.mark.parametrize("case", DIS)
def test_dis_equals_its_reference(case: str) -> None:
    assert_dis_equals_the_reference("cpu", *DIS[case])


@settings(max_examples=20, derandomize=True)
@ANY_DIS
def test_dis_of_any_arguments_equals_its_reference(**arguments: Any) -> None:
    assert_dis_equals_the_reference("cpu", **arguments)


@pytest.mark.parametrize("order", ["reversed", "1"])
def test_dis_does_not_depend_on_the_order_of_threads(monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    monkeypatch.setenv("EMULATION_ORDER", order)
    for case in ("one patch in each image", "several tiles", "several tiles, twice"):
        assert_dis_equals_the_reference("cpu", *DIS[case])


PIXELS = 16 * 20 + 8 * 10
"""Of the pyramid of 40x32 pixels, from level 1 on."""
PYRAMID = torch.zeros(2, PIXELS, dtype=torch.uint8)
SEARCHED = {
    "present": PYRAMID, "previous": PYRAMID, "start": None, "height": 32, "width": 40, "level": 0, "first": 1,
    "finest": 1, "coarsest": 2, "stride": 4, "rounds": 1, "steps": 1, "refinements": 0,
}  # fmt: skip
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"first": -1}, "the levels are -1 to 2: begin with 0 to 2"),
    ({"first": 3}, "the levels are 3 to 2"),
    ({"finest": -1}, "the levels are -1 to 2"),
    ({"finest": 3, "coarsest": 3, "height": 64, "width": 64}, "the levels are 3 to 3: begin with 0 to 2"),
    ({"finest": 0}, "first is 1, and finest 0"),
    ({"finest": 2, "coarsest": 1}, "the levels are 2 to 1"),
    ({"coarsest": 3}, "frames are 40x32: .* must fit into the last level, 3"),
    ({"coarsest": 16}, "must fit into the last level, 16"),
    ({"coarsest": 70}, "must fit into the last level, 70"),
    ({"height": -32}, "frames are 40x-32"),
    ({"height": 0}, "frames are 40x0"),
    ({"width": (1 << 14) + 1}, "frames are 16385x32: give at most 16384 pixels"),
    ({"width": 42}, "present must be .*, with 416 pixels or more"),
    ({"present": PYRAMID[0]}, "present must be"),
    ({"present": PYRAMID[:, 1:]}, "present must be .* uint8, with 400 pixels or more"),
    ({"present": PYRAMID.char()}, "present must be"),
    ({"previous": PYRAMID[:1]}, "previous must be as present"),
    ({"previous": PYRAMID[:, 1:]}, "previous must be as present"),
    ({"previous": PYRAMID.char()}, "previous must be as present"),
    ({"level": -1}, "level is -1: give 0 to 8"),
    ({"level": 9}, "level is 9: give 0 to 8"),
    *(({name: value}, "stride must be 1 to 8, rounds and steps at least 1, and refinements at least 0")
      for name, value in (("stride", 0), ("stride", 9), ("rounds", 0), ("steps", 0), ("refinements", -1))),
    *(({"start": start}, r"start must be \(B, 2, h, w\) float32")
      for start in (torch.zeros(2, 2, 32), torch.zeros(1, 2, 32, 40), torch.zeros(2, 3, 32, 40),
                    torch.zeros(2, 2, 0, 40), torch.zeros(2, 2, 32, 0), torch.zeros(2, 2, 32, 40).double(),
                    torch.zeros(1).expand(2, 2, (1 << 14) + 1, 1))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "message"), WRONG, ids=[f"{next(iter(wrong))} {i}" for i, (wrong, _) in enumerate(WRONG)]
)
def test_direct_calls_of_the_flow_are_checked(wrong: dict[str, Any], message: str) -> None:
    assert not OPS.dis_flow(*SEARCHED.values()).any()
    with pytest.raises(RuntimeError, match=message):
        OPS.dis_flow(*{**SEARCHED, **wrong}.values())


@pytest.mark.parametrize(
    ("frame", "levels", "message"),
    [
        (torch.zeros(3, 32, 40, dtype=torch.uint8), (1, 2), r"frame must be \(B, 3, H, W\)"),
        (torch.zeros(1, 2, 32, 40, dtype=torch.uint8), (1, 2), "frame must be"),
        (torch.zeros(1, 1, 32, 40), (1, 2), "frame must be"),
        (torch.zeros(1, 1, 32, 40, dtype=torch.uint8), (-1, 2), "the levels are -1 to 2"),
        (torch.zeros(1, 1, 32, 40, dtype=torch.uint8), (3, 3), "begin with 0 to 2"),
        (torch.zeros(1, 1, 32, 40, dtype=torch.uint8), (2, 1), "the levels are 2 to 1"),
        (torch.zeros(1, 1, 31, 40, dtype=torch.uint8), (1, 2), "frames are 40x31: .* must fit into the last level, 2"),
        (torch.zeros(1, 1, 32, 40, dtype=torch.uint8), (1, 64), "must fit into the last level, 64"),
        (torch.zeros(1, 1, 0, 40, dtype=torch.uint8), (0, 0), "frames are 40x0"),
        (torch.zeros(1, dtype=torch.uint8).expand(1, 1, 32, (1 << 14) + 1), (1, 2), "frames are 16385x32"),
    ],
    ids=str,
)
def test_direct_calls_of_the_pyramid_are_checked(frame: Tensor, levels: tuple[int, int], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        OPS.dis_pyramid(frame, *levels)


def test_more_frames_than_a_launch_can_have_are_refused() -> None:
    pyramid = torch.zeros(1, 64, dtype=torch.uint8).expand(1 << 16, 64)
    with pytest.raises(RuntimeError, match="too large for a kernel: split the batch"):
        OPS.dis_flow(pyramid, pyramid, None, 8, 8, 0, 0, 0, 0, 8, 1, 1, 0)
