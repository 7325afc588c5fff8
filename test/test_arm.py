# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels for Arm: cross-compiled, run by QEMU, and compared with the reference in plain PyTorch.

run_kernels.cpp calls the kernels. PyTorch for Arm is not needed.
"""

from __future__ import annotations

import math
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from test_operator import DTYPES, FLOWS, assert_rounded_from, generator, with_exact_places
from torch import Tensor

from netwarp_ros.ops import reference

ROOT = Path(__file__).resolve().parent.parent
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
PLANES, PIXELS, BACKWARD = 0, 1, 2
SHAPES = [(2, 5, 6, 7), (1, 17, 3, 1), (1, 1, 1, 1), (1, 33, 20, 130), (2, 16, 9, 4), (1, 3, 1, 65)]

pytestmark = pytest.mark.skipif(
    not shutil.which(COMPILER) or not shutil.which(EMULATOR),
    reason="no cross-compiler or emulator for Arm: install g++-aarch64-linux-gnu and qemu-user",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the kernels with the options of csrc/CMakeLists.txt, and the program that calls them."""
    built = tmp_path_factory.mktemp("arm") / "run_kernels"
    sources = (ROOT / "csrc/cpu/kernels.cpp", ROOT / "csrc/cpu/resize_argmax_kernel.cpp", ROOT / "test/run_kernels.cpp")
    options = ("-std=c++17", "-O3", "-ffp-contract=off", "-DNETWARP_ARM", "-DNETWARP_NEON", "-DNETWARP_ISA=neon")
    subprocess.run([COMPILER, *options, "-Wall", "-Werror", "-static", *sources, "-o", built], check=True)
    return built


class Task:
    """A call of a kernel on random maps. ``layout`` is PLANES or PIXELS, or BACKWARD for all gradients."""

    def __init__(self, layout: int, shape: Sequence[int], flow: str, dtype: torch.dtype, combine: bool = False) -> None:
        random = generator(0)
        self.layout, self.shape, self.dtype, self.combine = layout, shape, dtype, combine
        self.previous, self.present = random(*shape).to(dtype), random(*shape).to(dtype)
        self.flow = FLOWS[flow]((shape[0], 2, *shape[2:]), random)
        self.w1, self.w2 = random(shape[1]), random(shape[1])

    def to_bytes(self) -> bytes:
        header = struct.pack("7q", self.layout, DTYPES.index(self.dtype), self.combine, *self.shape)
        maps = [self.previous, self.present]
        if self.layout != PLANES:
            maps = [features.permute(0, 2, 3, 1) for features in maps]
        return header + b"".join(map(raw, (self.flow, *maps, self.w1, self.w2)))

    def expected(self) -> Tensor:
        previous, present = self.previous.float(), self.present.float()
        if self.combine:
            return reference.warp_combine(present, previous, self.flow, self.w1, self.w2)
        return reference.warp(previous, self.flow)


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def run(program: Path, tasks: Sequence[Task]) -> bytearray:
    stdin = b"".join(task.to_bytes() for task in tasks)
    return bytearray(subprocess.run([EMULATOR, program], input=stdin, capture_output=True, check=True).stdout)


def warped(program: Path, tasks: Sequence[Task]) -> list[Tensor]:
    """Return the results as contiguous maps."""
    output, results = run(program, tasks), []
    for task in tasks:
        batch, channels, height, width = task.shape
        count = task.previous.numel()
        result = torch.frombuffer(output, dtype=task.dtype, count=count)
        output = output[count * task.dtype.itemsize :]
        pixels = result.view(batch, height, width, channels).permute(0, 3, 1, 2)
        results.append(result.view(task.shape) if task.layout == PLANES else pixels.contiguous())
    assert not output
    return results


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_warps_equal_the_reference_and_do_not_depend_on_the_layout(program: Path, dtype: torch.dtype) -> None:
    cases = [(shape, flow, combine) for shape in SHAPES for flow in FLOWS for combine in (False, True)]
    tasks = [Task(layout, shape, flow, dtype, combine) for shape, flow, combine in cases for layout in (PLANES, PIXELS)]
    results = warped(program, tasks)
    for case, task, planes, pixels in zip(cases, tasks[::2], results[::2], results[1::2], strict=True):
        assert torch.equal(planes, pixels), case
        assert_rounded_from(planes, task.expected(), dtype)


def test_all_halves_pass_through_unchanged(program: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        task = Task(PIXELS, (1, 2**16, 1, 1), "still", dtype)
        task.previous = every.view(task.shape)
        (result,) = warped(program, [task])
        finite = torch.isfinite(task.previous)
        assert torch.equal(result[finite], task.previous[finite])
        assert result[task.previous.isnan()].isnan().all()


def test_infinity_beside_the_border_does_not_leak_into_it(program: Path) -> None:
    tasks = [Task(layout, (1, 2, 3, 40), "still", torch.float32) for layout in (PLANES, PIXELS)]
    for task in tasks:
        task.previous = torch.zeros(task.shape)
        task.previous[..., -2] = math.inf
        task.flow += 100
    assert all(torch.equal(result, torch.zeros(1, 2, 3, 40)) for result in warped(program, tasks))


@pytest.mark.parametrize("flow", ["smooth", "scattered", "not finite"])
def test_gradients_equal_the_reference(program: Path, flow: str) -> None:
    task = Task(BACKWARD, (2, 37, 6, 13), flow, torch.float32)
    task.flow = with_exact_places(task.flow)
    batch, channels, height, width = task.shape
    results = torch.frombuffer(run(program, [task]), dtype=torch.float32)
    sizes = (task.previous.numel(), task.flow.numel(), channels, channels)
    features, displacement, w1, w2 = results.split(sizes)

    # The map that is blended is also the gradient of the result.
    inputs = [t.double().requires_grad_() for t in (task.present, task.previous, task.flow, task.w1, task.w2)]
    wanted = torch.autograd.grad(reference.warp_combine(*inputs), inputs, task.present.double())
    pixels = features.view(batch, height, width, channels).permute(0, 3, 1, 2)
    for got, want in zip((pixels, displacement.view(task.flow.shape), w1, w2), wanted[1:], strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=2e-5 * max(1.0, want.abs().max().item()))
