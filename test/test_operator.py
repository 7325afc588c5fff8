# SPDX-License-Identifier: Apache-2.0
"""The compiled warp operator: it equals its reference on any input, and works with the features of PyTorch.

test_warp.py tests what the operator computes. Here it is compared with the reference, under autograd, torch.compile,
torch.export, autocast, several threads and lesser instruction sets, and called directly. Speed is not tested.
"""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from netwarp_ros.ops import compiled, reference, warp, warp_combine

pytestmark = pytest.mark.skipif(
    "cpu" not in compiled.DEVICES, reason="the compiled operator is not built: `make setup`, with a C++ compiler"
)

LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels-last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "channel step": lambda t: t.repeat_interleave(2, dim=1)[:, ::2],
    "cropped": lambda t: torch.nn.functional.pad(t, (1, 2, 3, 1))[..., 3:-1, 1:-2],
    "column step": lambda t: t.repeat_interleave(2, dim=3)[..., ::2],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "channels-last slice": lambda t: torch.cat((t, t), 1).contiguous(memory_format=torch.channels_last)[
        :, : t.shape[1]
    ],
    "expanded": lambda t: t[:, :1].expand(t.shape),
}
FLOWS = {
    "still": lambda shape, random: torch.zeros(shape),
    "smooth": lambda shape, random: 2 * random(shape[0], 2, 1, 1) + 0.1 * random(*shape),
    "scattered": lambda shape, random: 20 * random(*shape),
    "huge": lambda shape, random: 1e30 * random(*shape),
    "whole": lambda shape, random: (3 * random(*shape)).round(),
    "to the borders": lambda shape, random: (
        random(*shape).sign() * torch.tensor([shape[3] - 1.0, shape[2] - 1.0])[:, None, None]
    ),
    "not finite": lambda shape, random: (
        (random(*shape) * 5)
        .where(random(*shape) > -0.5, math.nan)
        .where(random(*shape) > -1, math.inf)
        .where(random(*shape) > -1, -math.inf)
    ),
}
SHAPES = st.tuples(st.integers(0, 3), st.integers(0, 70), st.integers(0, 20), st.integers(0, 70)) | st.tuples(
    st.integers(1, 2), st.integers(1, 5), st.sampled_from([1, 2, 64, 130]), st.sampled_from([1, 2, 17, 100, 131])
)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]  # in the order of csrc/cpu/kernels.h


def generator(seed: int) -> Any:
    source = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=source)


def with_exact_places(flow: Tensor) -> Tensor:
    """Round displacements until float32 and float64 agree on the places: at whole numbers, the gradient jumps."""
    height, width = flow.shape[2:]
    pixels = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")).float()
    return (pixels + flow) - pixels


def assert_rounded_from(result: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Assert that ``result`` is the float32 ``expected`` to 1e-5 of its magnitude, and one rounding to ``dtype``."""
    assert result.dtype == dtype and result.shape == expected.shape
    rounding = torch.finfo(dtype).eps / 2 if dtype != torch.float32 else 0.0
    magnitude = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(result.float(), expected, rtol=rounding, atol=1e-5 * max(magnitude, 1.0))


ANY_OPERANDS = given(
    shape=SHAPES,
    layout=st.sampled_from(sorted(LAYOUTS)),
    flow_layout=st.sampled_from(sorted(LAYOUTS)),
    flow=st.sampled_from(sorted(FLOWS)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)


def assert_equals_the_reference(
    device: str,
    shape: tuple[int, int, int, int],
    layout: str,
    flow_layout: str,
    flow: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    """Assert that `warp` and `warp_combine` on a device equal the reference on the CPU, in float32."""
    random = generator(seed)
    present, previous = (LAYOUTS[layout](random(*shape).to(device, dtype)) for _ in range(2))
    displacement = LAYOUTS[flow_layout](FLOWS[flow]((shape[0], 2, *shape[2:]), random).to(device))
    w1, w2 = random(shape[1]), random(shape[1])

    warped = warp(previous, displacement)
    combined = warp_combine(present, previous, displacement, w1.to(device), w2.to(device))
    if warped.numel() > 0:
        for memory_format in (torch.contiguous_format, torch.channels_last):
            expected = reference.warp(previous, displacement).is_contiguous(memory_format=memory_format)
            assert warped.is_contiguous(memory_format=memory_format) == expected
    present, previous, displacement = (tensor.cpu() for tensor in (present, previous, displacement))
    assert_rounded_from(warped.cpu(), reference.warp(previous.float(), displacement), dtype)
    blend = reference.warp_combine(present.float(), previous.float(), displacement, w1, w2)
    assert_rounded_from(combined.cpu(), blend, dtype)


@settings(max_examples=150)
@ANY_OPERANDS
def test_equals_the_reference(**operands: Any) -> None:
    assert_equals_the_reference("cpu", **operands)


@settings(max_examples=60)
@given(shape=SHAPES, flow=st.sampled_from(sorted(FLOWS)), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**16))
def test_layouts_give_the_same_result_bit_for_bit(
    shape: tuple[int, int, int, int], flow: str, dtype: torch.dtype, seed: int
) -> None:
    random = generator(seed)
    maps = [random(*shape).to(dtype) for _ in range(2)]
    others = [FLOWS[flow]((shape[0], 2, *shape[2:]), random), random(shape[1]), random(shape[1])]
    pixels = [features.contiguous(memory_format=torch.channels_last) for features in maps]
    assert torch.equal(warp(maps[0], others[0]), warp(pixels[0], others[0]))
    assert torch.equal(warp_combine(*maps, *others), warp_combine(*pixels, *others))


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_larger_than_the_caches(layout: str, dtype: torch.dtype) -> None:
    """From 32 MiB on, results are written past the caches, by other code."""
    random = generator(0)
    shape = (1, 64, 256, 512 if dtype == torch.float32 else 1024)
    present, previous = (LAYOUTS[layout](random(*shape).to(dtype)) for _ in range(2))
    flow, w1, w2 = 2 + 0.3 * random(1, 2, *shape[2:]), random(64), random(64)
    assert_rounded_from(warp(previous, flow), reference.warp(previous.float(), flow), dtype)
    expected = reference.warp_combine(present.float(), previous.float(), flow, w1, w2)
    assert_rounded_from(warp_combine(present, previous, flow, w1, w2), expected, dtype)


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 70), st.integers(1, 9), st.integers(1, 40)),
    layout=st.sampled_from(sorted(LAYOUTS)),
    flow=st.sampled_from(sorted(FLOWS)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
def test_gradients_equal_the_reference(
    shape: tuple[int, int, int, int], layout: str, flow: str, dtype: torch.dtype, seed: int
) -> None:
    random = generator(seed)
    maps = [LAYOUTS[layout](random(*shape).to(dtype)) for _ in range(2)]
    displacement = with_exact_places(FLOWS[flow]((shape[0], 2, *shape[2:]), random))
    others = [displacement, random(shape[1]), random(shape[1])]
    grad = random(*shape).to(dtype)

    inputs = [t.detach().requires_grad_() for t in (*maps, *others)]
    gradients = torch.autograd.grad(warp_combine(*inputs), inputs, grad)
    exact = [t.detach().double().requires_grad_() for t in (*maps, *others)]
    expected = torch.autograd.grad(reference.warp_combine(*exact), exact, grad.double())
    for name, got, want in zip(("present", "previous", "flow", "w1", "w2"), gradients, expected, strict=True):
        rounding = torch.finfo(got.dtype).eps
        atol = 2e-5 * max(1.0, want.abs().max().item())
        torch.testing.assert_close(got.double(), want, rtol=rounding, atol=atol, msg=f"{{}} in {name}".format)


def test_all_halves_pass_through_unchanged() -> None:
    """Every value of float16 and bfloat16, subnormals too, is read and written exactly. NaN stays NaN."""
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        # In each map all pixels are equal, so that no interpolation mixes values: many images, or many channels.
        planes = every.view(-1, 1, 1, 1).expand(-1, 1, 1, 2).contiguous()
        pixels = every.view(1, -1, 1, 1).expand(-1, -1, 1, 2).contiguous(memory_format=torch.channels_last)
        for features in (planes, pixels, every.view(-1, 1, 1, 1)):
            warped = warp(features, torch.zeros(features.shape[0], 2, *features.shape[2:]))
            finite = torch.isfinite(features)
            assert torch.equal(warped[finite], features[finite])
            assert warped[torch.isnan(features)].isnan().all()


def test_infinity_beside_the_border_does_not_leak_into_it() -> None:
    """A coordinate clamped to the border reads the border alone: 0 * infinity would give NaN."""
    features = torch.zeros(1, 1, 3, 40)
    features[..., -2] = math.inf
    for layout in ("contiguous", "channels-last"):
        warped = warp(LAYOUTS[layout](features.expand(-1, 2, -1, -1)), torch.full((1, 2, 3, 40), 100.0))
        assert torch.equal(warped, torch.zeros(1, 2, 3, 40))


def test_infinite_gradients_give_the_flow_no_gradient_on_a_clamped_axis() -> None:
    """Training in float16 can overflow: 0 times infinity would be NaN, and stay."""
    features = torch.randn(1, 4, 3, 5)
    flow = torch.zeros(1, 2, 3, 5).index_fill_(1, torch.tensor(0), 100.0).requires_grad_()
    for layout in ("contiguous", "channels-last"):
        warped = warp(LAYOUTS[layout](features), flow)
        (grad,) = torch.autograd.grad(warped, flow, torch.full_like(warped, math.inf))
        assert torch.equal(grad[:, 0], torch.zeros(1, 3, 5))


def test_sides_that_float32_cannot_count_are_refused() -> None:
    features = torch.zeros(1, 1, 1, 1).expand(1, 1, 1, 2**24 + 1)
    flow = torch.zeros(1, 2, 1, 1).expand(1, 2, 1, 2**24 + 1)
    with pytest.raises(RuntimeError, match="1 x 16777217 pixels: give at most 2.24 in each direction"):
        torch.ops.netwarp_ros.warp(features, flow)
    with pytest.raises(
        ValueError, match=r"features is \(1, 1, 1, 16777217\).*at most 2\*\*24 pixels in each direction"
    ):
        warp(features, flow)


def in_new_process(arguments: list[str], **environment: str) -> str:
    """Run Python, which reads the environment only once; return its output and errors."""
    run = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    return run.stdout + run.stderr


def instruction_sets(**environment: str) -> list[str]:
    """Return those that can be used here, the fastest first, as the error about an unknown one lists them."""
    call = "import torch; from netwarp_ros.ops import warp; warp(torch.zeros(1, 1, 1, 1), torch.zeros(1, 2, 1, 1))"
    output = in_new_process(["-c", call], NETWARP_ISA="sse9", **environment)
    message = re.search("NETWARP_ISA is 'sse9': give an instruction set that can be used here: (.*)", output)
    assert message, output
    return message[1].split(", ")


@pytest.mark.timeout(300)
def test_every_instruction_set_passes_the_same_tests() -> None:
    """The fastest one is tested by all other tests."""
    names = (
        "test_equals_the_reference",
        "test_layouts_give_the_same_result_bit_for_bit",
        "test_results_larger_than_the_caches",
        "test_gradients_equal_the_reference",
        "test_all_halves_pass_through_unchanged",
        "test_infinity_beside_the_border_does_not_leak_into_it",
    )
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"{Path(__file__)}::{name}" for name in names)]
    for name in instruction_sets()[1:]:
        output = in_new_process(arguments, NETWARP_ISA=name)
        assert "9 passed" in output, f"{name}: {output}"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="this is for x86-64")
def test_instruction_sets_of_this_processor_can_be_chosen_within_the_limit() -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    expected = [name for flag, name in (("avx512dq", "avx512"), ("avx2", "avx2")) if flag in flags] + ["baseline"]
    assert instruction_sets(ATEN_CPU_CAPABILITY="") == expected
    assert instruction_sets(ATEN_CPU_CAPABILITY="avx2") == [name for name in expected if name != "avx512"]
    assert instruction_sets(ATEN_CPU_CAPABILITY="default") == ["baseline"]


def operands(layout: str = "contiguous", dtype: torch.dtype = torch.float32, grad: bool = True) -> list[Tensor]:
    random = generator(0)
    maps = [LAYOUTS[layout](random(2, 5, 6, 7).to(dtype)) for _ in range(2)]
    return [t.requires_grad_(grad) for t in (*maps, 2 * random(2, 2, 6, 7), random(5), random(5))]


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "cropped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(layout: str, dtype: torch.dtype) -> None:
    ops = torch.ops.netwarp_ros
    present, previous, flow, w1, w2 = operands(layout, dtype)
    torch.library.opcheck(ops.warp.default, (previous, flow))
    torch.library.opcheck(ops.warp_combine.default, (present, previous, flow, w1, w2))
    present, previous, flow, w1, w2 = operands(layout, dtype, grad=False)
    for weight in (None, w2):
        torch.library.opcheck(ops.warp_backward_features.default, (present, flow, weight, False))
        torch.library.opcheck(ops.warp_backward_flow.default, (present, previous, flow, weight))
    torch.library.opcheck(ops.warp_combine_backward_weights.default, (present, previous, present, flow))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_without_a_graph_break(dynamic: bool) -> None:
    def blend(*inputs: Tensor) -> Tensor:
        return warp_combine(*inputs).relu() + warp(inputs[1], inputs[2])

    inputs = operands()
    # aot_eager traces forward and backward as Inductor does, and leaves out the C++ compiler.
    graph = torch.compile(blend, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    expected, result = blend(*inputs), graph(*inputs)
    assert torch.equal(result, expected)
    for got, want in zip(
        torch.autograd.grad(result.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_exports() -> None:
    class Blend(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return warp_combine(*inputs)

    inputs = tuple(operands(grad=False))
    program = torch.export.export(Blend(), inputs)
    assert "netwarp_ros.warp_combine" in str(program.graph)
    assert torch.equal(program.module()(*inputs), warp_combine(*inputs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast_keeps_the_features_type_and_converts_the_flow_to_float32(dtype: torch.dtype) -> None:
    present, previous, flow, w1, w2 = operands(dtype=dtype, grad=False)
    half_flow = flow.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        warped, combined = warp(previous, half_flow), warp_combine(present, previous, half_flow, w1, w2)
    assert torch.equal(warped, warp(previous, half_flow.float())) and warped.dtype == dtype
    assert torch.equal(combined, warp_combine(present, previous, half_flow.float(), w1, w2))


def test_weights_of_any_type_have_gradients_of_that_type() -> None:
    present, previous, flow, w1, w2 = operands(dtype=torch.bfloat16)
    half1, half2 = (w.detach().bfloat16().requires_grad_() for w in (w1, w2))
    gradients = torch.autograd.grad(warp_combine(present, previous, flow, half1, half2).sum(), (half1, half2))
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.bfloat16]


def test_gradient_of_one_input_alone_is_the_same() -> None:
    inputs = operands()
    everything = torch.autograd.grad(warp_combine(*inputs).sum(), inputs)
    for index, expected in enumerate(everything):
        copies = [t.detach().requires_grad_(i == index) for i, t in enumerate(inputs)]
        warp_combine(*copies).sum().backward()
        for i, t in enumerate(copies):
            assert (t.grad is not None) == (i == index)
        grad = copies[index].grad
        assert grad is not None and torch.equal(grad, expected)


def test_results_are_the_same_bit_for_bit_with_any_number_of_threads() -> None:
    random = generator(0)
    inputs = [random(2, 40, 33, 70), random(2, 40, 33, 70), 5 * random(2, 2, 33, 70), random(40), random(40)]
    inputs = [t.requires_grad_() for t in inputs]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            combined = warp_combine(*inputs)
            results.append((combined, *torch.autograd.grad(combined.square().sum(), inputs)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_second_derivative_is_refused() -> None:
    previous, flow = operands()[1:3]
    (gradient,) = torch.autograd.grad(warp(previous, flow).square().sum(), flow, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative: differentiate netwarp_ros\.ops\.reference"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("index", "wrong", "message"),
    [
        (0, torch.zeros(2, 5, 6, 8), "previous and the features differ in shape"),
        (0, torch.zeros(2, 5, 6, 7).half(), "differ in type"),
        (2, torch.zeros(2, 2, 6, 8), r"flow must be \(B, 2, H, W\)"),
        (2, torch.zeros(1, 2, 6, 7), r"flow must be \(B, 2, H, W\)"),
        (2, torch.zeros(2, 2, 6, 7).double(), "flow must be float32"),
        (3, torch.zeros(4), "one for each channel"),
        (4, torch.zeros(5).half(), "weights must be float32"),
    ],
)
def test_direct_calls_are_checked(index: int, wrong: Tensor, message: str) -> None:
    arguments = operands(grad=False)
    arguments[index] = wrong
    with pytest.raises(RuntimeError, match=message):
        torch.ops.netwarp_ros.warp_combine(*arguments)


def test_direct_calls_of_the_backward_operators_are_checked() -> None:
    present, previous, flow, w1, _ = operands(grad=False)
    small = flow[:1]
    ops = torch.ops.netwarp_ros
    for call in (
        lambda: ops.warp_backward_features(present, small, None, False),
        lambda: ops.warp_backward_features(present, flow, w1[:-1], False),
        lambda: ops.warp_backward_flow(present[:1], previous, flow, None),
        lambda: ops.warp_combine_backward_weights(present, previous, previous[:, :-1], flow),
    ):
        with pytest.raises(RuntimeError):
            call()


def test_missing_or_damaged_library_gives_a_warning(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match=r"it is not built.*plain PyTorch is used instead.*`make setup`"):
        assert compiled.load(tmp_path / "libnetwarp_ops.so") == frozenset()
    (tmp_path / "libnetwarp_ops.so").write_bytes(b"not a library")
    with pytest.warns(RuntimeWarning, match="invalid ELF header|file too short"):
        assert compiled.load(tmp_path / "libnetwarp_ops.so") == frozenset()
