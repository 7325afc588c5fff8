# SPDX-License-Identifier: Apache-2.0
"""The CUDA build of csrc/: it compiles, and loads without a GPU. test_cuda.py runs its kernels on one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"

pytestmark = [
    pytest.mark.skipif(
        not shutil.which("cmake") or not shutil.which("c++"),
        reason="no CMake or no C++ compiler: install cmake and g++",
    ),
    pytest.mark.skipif(not shutil.which("nvcc"), reason="no CUDA compiler: install the CUDA toolkit, which has nvcc"),
]


def configure(build: Path, gpus: str) -> subprocess.CompletedProcess[str]:
    command = ["cmake", "-S", CSRC, "-B", build, f"-DPython3_EXECUTABLE={sys.executable}"]
    environment = {**os.environ, "FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": gpus}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.timeout(900)
def test_the_cuda_build_compiles_and_loads_without_a_gpu(tmp_path: Path) -> None:
    """Build for Jetson Orin and Hopper, load with a PyTorch without CUDA, and run on the CPU."""
    configured = configure(tmp_path, "8.7 9.0")
    assert "built for CUDA: 87-real;90-real" in configured.stdout, configured.stdout + configured.stderr
    built = subprocess.run(["cmake", "--build", tmp_path, "--parallel"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr

    library = tmp_path / "libnetwarp_ops.so"
    script = f"""
import torch
torch.ops.load_library({str(library)!r})
operators = ("warp", "warp_combine", "warp_backward_features", "warp_backward_flow", "warp_combine_backward_weights")
for operator in operators:
    for device in ("CPU", "CUDA"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"netwarp_ros::{{operator}}", device), (operator, device)
features = torch.arange(12.0).view(1, 1, 3, 4)
assert torch.equal(torch.ops.netwarp_ros.warp(features, torch.zeros(1, 2, 3, 4)), features)
"""
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr
    if cuobjdump := shutil.which("cuobjdump"):
        contents = subprocess.run([cuobjdump, "--list-elf", library], capture_output=True, text=True, check=True).stdout
        assert "sm_87" in contents and "sm_90" in contents


def test_gpus_must_be_given_as_numbers(tmp_path: Path) -> None:
    configured = configure(tmp_path, "Hopper")
    assert configured.returncode != 0
    assert "TORCH_CUDA_ARCH_LIST has 'Hopper'" in configured.stderr
