# SPDX-License-Identifier: Apache-2.0
"""The warp operator against numbers computed by hand, plain loops, and finite differences.

Every test runs twice: on the reference in plain PyTorch, and on the compiled operator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from netwarp_ros.ops import compiled, warp, warp_combine


@pytest.fixture(scope="module", params=["reference", "compiled"], autouse=True)
def implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "compiled" and "cpu" not in compiled.DEVICES:
        pytest.skip("the compiled operator is not built: `make setup`, with a C++ compiler")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "reference":
            patch.setattr(compiled, "DEVICES", frozenset())
        yield


def ramp(height: int = 3, width: int = 4) -> Tensor:
    """Return a feature map with the value x + 10 y at (x, y), so that a warped value shows where it was read."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (x + 10.0 * y).view(1, 1, height, width)


def constant_flow(features: Tensor, u: float, v: float) -> Tensor:
    flow = torch.empty(features.shape[0], 2, *features.shape[2:])
    flow[:, 0], flow[:, 1] = u, v
    return flow


def warp_by_loops(features: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Warp as `netwarp_ros.ops` specifies, by plain loops in float64."""
    batch, _, height, width = features.shape
    out = np.zeros(features.shape)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                u, v = (0.0 if math.isnan(d) else float(d) for d in flow[b, :, y, x])
                px, py = min(max(x + u, 0), width - 1), min(max(y + v, 0), height - 1)
                x0, y0 = math.floor(px), math.floor(py)
                x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
                fx, fy = px - x0, py - y0
                out[b, :, y, x] = (1 - fy) * ((1 - fx) * features[b, :, y0, x0] + fx * features[b, :, y0, x1]) + fy * (
                    (1 - fx) * features[b, :, y1, x0] + fx * features[b, :, y1, x1]
                )
    return out


def test_integer_flow_shifts_whole_pixels() -> None:
    warped = warp(ramp(), constant_flow(ramp(), 1, -1))
    assert warped[0, 0].tolist() == [[1, 2, 3, 3], [1, 2, 3, 3], [11, 12, 13, 13]]


def test_half_pixel_flow_averages_four_neighbours() -> None:
    warped = warp(ramp(), constant_flow(ramp(), 0.5, 0.5))
    assert warped[0, 0, 0, 0].item() == (0 + 1 + 10 + 11) / 4


def test_zero_flow_is_the_identity_bit_for_bit() -> None:
    features = torch.randn(2, 5, 6, 7)
    assert torch.equal(warp(features, torch.zeros(2, 2, 6, 7)), features)


def test_each_axis_is_clamped_by_itself() -> None:
    warped = warp(ramp(), constant_flow(ramp(), 100, 0.5))
    assert warped[0, 0].tolist() == [[8] * 4, [18] * 4, [23] * 4]


@pytest.mark.parametrize(
    ("u", "v", "expected"),
    [
        (math.nan, math.nan, 11.0),
        (math.inf, 0.0, 13.0),
        (-math.inf, 0.0, 10.0),
        (0.0, math.inf, 21.0),
        (math.nan, -math.inf, 1.0),
        (3e38, -3e38, 3.0),
    ],
)
def test_non_finite_and_huge_flow_is_defined(u: float, v: float, expected: float) -> None:
    assert warp(ramp(), constant_flow(ramp(), u, v))[0, 0, 1, 1].item() == expected


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6)),
    scale=st.sampled_from([0.5, 3.0, 50.0]),
    seed=st.integers(0, 2**16),
)
def test_equals_plain_loops(shape: tuple[int, int, int, int], scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal(shape).astype(np.float32)
    flow = (scale * rng.standard_normal((shape[0], 2, *shape[2:]))).astype(np.float32)
    warped = warp(torch.from_numpy(features), torch.from_numpy(flow)).numpy()
    np.testing.assert_allclose(warped, warp_by_loops(features, flow), atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_float32_result_rounded_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 4, 40, 300, generator=generator).to(dtype)
    flow = 20 * torch.randn(1, 2, 40, 300, generator=generator)
    assert torch.equal(warp(features, flow), warp(features.float(), flow).to(dtype))


def test_coordinates_are_more_precise_than_float16() -> None:
    """float16 cannot represent 2051: a coordinate in half precision would read a neighboring column."""
    features = (torch.arange(2100) % 2).to(torch.float16).expand(1, 1, 1, 2100)
    warped = warp(features, torch.ones(1, 2, 1, 2100))
    assert torch.equal(warped[0, 0, 0, :-1], features[0, 0, 0, 1:])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_keeps_the_memory_format(memory_format: torch.memory_format) -> None:
    features = torch.randn(2, 3, 4, 5).contiguous(memory_format=memory_format)
    flow = torch.randn(2, 2, 4, 5)
    assert warp(features, flow).is_contiguous(memory_format=memory_format)
    assert torch.equal(warp(features, flow), warp(features.contiguous(), flow))


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[:, ::2],
        lambda t: t[..., 1:-1],
        lambda t: t.transpose(2, 3),
        lambda t: t[:, :1].expand(-1, 4, -1, -1),
        lambda t: t[:0],
        lambda t: t[:, :0],
    ],
    ids=["channel step", "cropped", "transposed", "expanded", "no batch", "no channels"],
)
def test_any_strides(view) -> None:  # type: ignore[no-untyped-def]
    features = view(torch.randn(2, 4, 6, 8))
    flow = torch.randn(features.shape[0], 2, *features.shape[2:])
    assert torch.equal(warp(features, flow), warp(features.contiguous(), flow))


def test_combine_by_hand() -> None:
    present, previous = ramp(), 100 + ramp()
    combined = warp_combine(present, previous, constant_flow(ramp(), 1, 0), torch.tensor([0.5]), torch.tensor([2.0]))
    assert combined[0, 0, 0].tolist() == [202.0, 204.5, 207.0, 207.5]


def test_combine_with_one_and_zero_is_present_bit_for_bit() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        present, previous = torch.randn(2, 3, 4, 5).to(dtype), torch.randn(2, 3, 4, 5).to(dtype)
        assert torch.equal(
            warp_combine(present, previous, 9 * torch.randn(2, 2, 4, 5), torch.ones(3), torch.zeros(3)), present
        )


def test_gradients_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    # Fractions stay within (0.1, 0.9), off the integers where bilinear interpolation has no derivative.
    whole = torch.randint(-3, 4, (2, 2, 4, 5), generator=generator)
    flow = (whole + 0.1 + 0.8 * torch.rand(2, 2, 4, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(warp, (random(2, 3, 4, 5), flow))
    assert torch.autograd.gradcheck(warp_combine, (random(2, 3, 4, 5), random(2, 3, 4, 5), flow, random(3), random(3)))


def test_clamped_axis_has_no_flow_gradient() -> None:
    flow = constant_flow(ramp(), 100, 0.5).requires_grad_()
    warp(ramp(), flow).sum().backward()
    assert flow.grad is not None
    assert flow.grad[0, 0].tolist() == [[0.0] * 4] * 3, "u is clamped everywhere"
    assert flow.grad[0, 1].tolist() == [[10.0] * 4, [10.0] * 4, [0.0] * 4], "v is clamped in the last row only"


def test_non_finite_flow_has_no_gradient() -> None:
    flow = constant_flow(ramp(), math.nan, math.inf).requires_grad_()
    features = ramp().requires_grad_()
    warp(features, flow).sum().backward()
    assert flow.grad is not None and torch.equal(flow.grad, torch.zeros_like(flow))
    assert features.grad is not None and features.grad.sum().item() == features.numel()


@pytest.mark.parametrize(
    ("features", "flow", "message"),
    [
        (torch.zeros(3, 4, 5), torch.zeros(1, 2, 4, 5), r"features is \(3, 4, 5\)"),
        (torch.zeros(1, 3, 4, 5, dtype=torch.int32), torch.zeros(1, 2, 4, 5), "torch.int32"),
        (torch.zeros(1, 3, 4, 5), torch.zeros(1, 2, 8, 10), r"flow is \(1, 2, 8, 10\), expected \(1, 2, 4, 5\)"),
        (torch.zeros(1, 3, 4, 5), torch.zeros(1, 4, 5, 2), r"flow is \(1, 4, 5, 2\)"),
        (torch.zeros(1, 3, 4, 5).half(), torch.zeros(1, 2, 4, 5).half(), "flow is torch.float16"),
    ],
)
def test_wrong_shapes_and_types_are_named(features: Tensor, flow: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        warp(features, flow)


def test_tensors_on_different_devices_are_named() -> None:
    with pytest.raises(RuntimeError, match="features on cpu, flow on meta"):
        warp(torch.zeros(1, 3, 4, 5), torch.zeros(1, 2, 4, 5, device="meta"))


def test_combine_names_wrong_shapes() -> None:
    features, flow, weights = torch.zeros(1, 3, 4, 5), torch.zeros(1, 2, 4, 5), torch.ones(3)
    with pytest.raises(ValueError, match=r"previous is \(1, 3, 4, 6\)"):
        warp_combine(features, torch.zeros(1, 3, 4, 6), flow, weights, weights)
    with pytest.raises(ValueError, match=r"w2 is \(4,\)"):
        warp_combine(features, features, flow, weights, torch.ones(4))
