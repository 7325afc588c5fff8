# SPDX-License-Identifier: Apache-2.0
"""The CUDA build of csrc/: its versions; it compiles, and loads without a GPU. test_cuda.py runs its kernels on one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CSRC = Path(__file__).resolve().parent.parent / "csrc"

pytestmark = [
    pytest.mark.skipif(
        not shutil.which("cmake") or not shutil.which("c++"),
        reason="no CMake or no C++ compiler: install cmake and g++",
    ),
    pytest.mark.skipif(not shutil.which("nvcc"), reason="no CUDA compiler: install the CUDA toolkit, which has nvcc"),
]


def configure(build: Path, python: str | Path = sys.executable, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run CMake, with a Python that has PyTorch and with variables of the environment."""
    command = ["cmake", "-S", CSRC, "-B", build, f"-DPython3_EXECUTABLE={python}"]
    environment = {name: value for name, value in os.environ.items() if name not in ("FORCE_CUDA", "CUDACXX")}
    return subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True, check=False)


def python_with_cuda(path: Path, version: str) -> Path:
    """Write a Python whose PyTorch says that it was built with a version of CUDA."""
    torch_root = Path(torch.__file__).parent
    path.write_text(f"""#!/bin/sh
case "$*" in
*torch.version.cuda*) echo "{torch_root};{version}" ;;
*) exec {sys.executable} "$@" ;;
esac
""")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def nvcc_version() -> tuple[int, int]:
    """Major and minor version of CUDA."""
    output = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\d+)\.(\d+)", output)
    assert match
    return int(match[1]), int(match[2])


def test_the_versions_of_nvcc_and_pytorch_are_compared(tmp_path: Path, nvcc_version: tuple[int, int]) -> None:
    """Another major version is an error. It says what to do, and to do that helps in the same folder."""
    major, minor = nvcc_version
    build, other = tmp_path / "build", python_with_cuda(tmp_path / "other", f"{major + 1}.{minor}")
    configured = configure(build, other)
    assert configured.returncode != 0
    message = " ".join(configured.stderr.split())  # CMake breaks lines
    versions = rf"nvcc \(\S+\) is of CUDA {major}\.{minor}\.\d+, PyTorch of CUDA {major + 1}\.{minor}: "
    assert re.search(versions, message)
    assert (
        f"install the CUDA toolkit {major + 1}.{minor} and set the environment variable CUDACXX to its nvcc" in message
    )
    assert "or set FORCE_CUDA=0 to build without CUDA" in message

    toolkit = tmp_path / "nvcc"
    toolkit.write_text(f'#!/bin/sh\nexec {shutil.which("nvcc")} "$@"\n')
    toolkit.chmod(0o755)
    matching = python_with_cuda(tmp_path / "matching", f"{major}.{minor + 1}")
    configured = configure(build, matching, CUDACXX=str(toolkit), TORCH_CUDA_ARCH_LIST="9.0")
    assert configured.returncode == 0, configured.stderr
    assert f"nvcc ({toolkit}) is of CUDA {major}.{minor}" in configured.stdout
    assert f"PyTorch of CUDA {major}.{minor + 1}" in configured.stdout
    assert "built for CUDA: 90-real" in configured.stdout

    configured = configure(tmp_path / "cpu", other, FORCE_CUDA="0")
    assert configured.returncode == 0 and "CUDA" not in configured.stdout, configured.stderr


@pytest.mark.timeout(900)
def test_the_cuda_build_compiles_and_loads_without_a_gpu(tmp_path: Path) -> None:
    """Build for Jetson Orin and Hopper, without spilled registers; load with a CPU build of PyTorch, and run there."""
    configured = configure(tmp_path, FORCE_CUDA="1", TORCH_CUDA_ARCH_LIST="8.7 9.0", CUDAFLAGS="-Xptxas=-v")
    assert "built for CUDA: 87-real;90-real" in configured.stdout, configured.stdout + configured.stderr
    built = subprocess.run(["cmake", "--build", tmp_path, "--parallel"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", built.stdout + built.stderr)
    assert len(spills) > 30 and set(spills) == {("0", "0")}, built.stdout + built.stderr

    library = tmp_path / "libnetwarp_ops.so"
    script = f"""
import torch
torch.ops.load_library({str(library)!r})
operators = ("warp", "warp_combine", "warp_backward_features", "warp_backward_flow", "warp_combine_backward_weights",
             "resize_argmax")
for operator in operators:
    for device in ("CPU", "CUDA"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"netwarp_ros::{{operator}}", device), (operator, device)
for operator in ("dis_pyramid", "dis_flow"):
    for device, expected in (("CPU", False), ("CUDA", True)):
        found = torch._C._dispatch_has_kernel_for_dispatch_key(f"netwarp_ros::{{operator}}", device)
        assert found == expected, (operator, device)
features = torch.arange(12.0).view(1, 1, 3, 4)
assert torch.equal(torch.ops.netwarp_ros.warp(features, torch.zeros(1, 2, 3, 4)), features)
"""
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr
    if cuobjdump := shutil.which("cuobjdump"):
        contents = subprocess.run([cuobjdump, "--list-elf", library], capture_output=True, text=True, check=True).stdout
        assert "sm_87" in contents and "sm_90" in contents


def test_gpus_must_be_given_as_numbers(tmp_path: Path) -> None:
    configured = configure(tmp_path, FORCE_CUDA="1", TORCH_CUDA_ARCH_LIST="Hopper")
    assert configured.returncode != 0
    assert "TORCH_CUDA_ARCH_LIST has 'Hopper'" in configured.stderr
