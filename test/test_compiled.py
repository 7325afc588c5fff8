# SPDX-License-Identifier: Apache-2.0
"""What is said where the compiled operators have no CUDA kernels. No GPU is needed: fake tensors have no data."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from netwarp_ros import ops
from netwarp_ros.ops import compiled, reference


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Let the warning be new."""
    compiled.warn_of_missing_cuda_kernels.cache_clear()
    yield
    compiled.warn_of_missing_cuda_kernels.cache_clear()


def warnings_of_warps(device: str) -> list[str]:
    """Warp twice on a device, and return the warnings."""
    with FakeTensorMode(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        features, flow = torch.ones(1, 8, 4, 6, device=device), torch.zeros(1, 2, 4, 6, device=device)
        weight = torch.ones(8, device=device)
        for _ in range(2):
            ops.warp(features, flow)
            ops.warp_combine(features, features, flow, weight, weight)
    return [str(warning.message) for warning in caught if issubclass(warning.category, RuntimeWarning)]


def test_the_first_warp_on_a_gpu_warns_once_of_missing_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    for name in ("warp", "warp_combine"):  # PyTorch for the CPU cannot index a fake tensor on a GPU
        monkeypatch.setattr(reference, name, lambda *maps: used.append(maps[0].device.type))
    monkeypatch.setattr(compiled, "DEVICES", frozenset({"cpu"}))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert warnings_of_warps("cpu") == [] == used
    (warning,) = warnings_of_warps("cuda")
    assert used == ["cuda"] * 4
    for part in (
        "no CUDA kernels",
        "CUDA toolkit 12.8",
        "nvcc",
        "`make setup` or `pip install .`",
        "TORCH_CUDA_ARCH_LIST",
    ):
        assert part in warning


@pytest.mark.parametrize(("devices", "cuda"), [({"cpu", "cuda"}, "12.8"), ({"cpu"}, None)])
def test_nothing_is_missing_with_kernels_or_without_cuda(
    monkeypatch: pytest.MonkeyPatch, devices: set[str], cuda: str | None
) -> None:
    """The device of a ROCm build is called cuda, too."""
    monkeypatch.setattr(compiled, "DEVICES", frozenset(devices))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert compiled.missing_cuda_kernels() == ""
    compiled.warn_of_missing_cuda_kernels()


def test_importing_the_operators_neither_warns_nor_asks_for_a_gpu() -> None:
    """PyTorch's default for Linux is a CUDA build, also on robots without a GPU."""
    program = """
import torch
torch.version.cuda = "12.8"
def fail(*arguments):
    raise AssertionError("importing must not start CUDA")
torch.cuda.is_available = torch.cuda.device_count = torch._C._cuda_getDeviceCount = torch.cuda._lazy_init = fail
from netwarp_ros import ops
features, flow = torch.ones(1, 8, 4, 6), torch.zeros(1, 2, 4, 6)
assert torch.equal(ops.warp(features, flow), features)
"""
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
