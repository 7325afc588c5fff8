# SPDX-License-Identifier: Apache-2.0
"""Build the CUDA operators of csrc/ with g++, as a library that runs them on CPU tensors by emulation.h."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
FLAGS = ("-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-U_FORTIFY_SOURCE")
MEMORY = ("-O0", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all")
RACES = ("-fsanitize=thread",)  # emulation.cpp defines the functions that this calls
LIBRARY = "emulated.so"
Change = tuple[str, str, str]
"""A file in csrc/cuda, a text that it contains once, and another text to put in its place."""


def cuda_headers() -> Path | None:
    """Return the folder of the CUDA toolkit's headers."""
    nvcc = shutil.which("nvcc")
    toolkits = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parent.parent, "/usr/local/cuda", "/usr"]
    folders = [Path(toolkit) / "include" for toolkit in toolkits if toolkit]
    return next((folder for folder in folders if (folder / "cuda_fp16.h").exists()), None)


def sanitizer_libraries() -> list[str]:
    """Return the libraries that Python must load first to use one built with MEMORY; [] if they are not installed."""
    commands = [["g++", f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so")]
    found = [subprocess.run(each, capture_output=True, text=True, check=True).stdout.strip() for each in commands]
    return found if all(Path(path).is_absolute() for path in found) else []


def why_not() -> str | None:
    """Return what is missing to build, or None."""
    if not shutil.which("g++") or not sanitizer_libraries():
        return "no g++ with AddressSanitizer: install g++ and libasan"
    return None if cuda_headers() else "no CUDA headers: install the CUDA toolkit, or set CUDA_HOME"


def rewrite_launches(folder: Path) -> None:
    """Replace ``kernel<<<...>>>(arguments)``, the only text that g++ cannot read."""
    launches = 0
    for path in [*folder.glob("cuda/*.cu"), *folder.glob("cuda/*.cuh")]:
        text, count = re.subn(
            r"(\w+)<<<(.*)>>>\((.*)\);", r"emulation::launch(\1, {\2}, \3);", path.read_text(encoding="utf-8")
        )
        assert "<<<" not in text, f"{path.name} has a launch that build.py cannot read"
        path.write_text(text, encoding="utf-8")
        launches += count
    assert launches > 0, "no launch found in csrc/cuda: adapt rewrite_launches() of build.py"


def build(folder: Path, checks: tuple[str, ...], base: Path | None = None, change: Change | None = None) -> Path:
    """Build the library in a new folder, and return its path.

    Args:
        folder: The folder.
        checks: MEMORY or RACES.
        base: The folder of a build with these checks and without the change: only the changed file is compiled.
        change: What to change in a copy of csrc/.
    """
    shutil.copytree(CSRC, folder / "csrc")
    if change:
        name, old, new = change
        path = folder / "csrc/cuda" / name
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"adapt this change: csrc/cuda/{name} contains {text.count(old)} times: {old}"
        path.write_text(text.replace(old, new), encoding="utf-8")
    rewrite_launches(folder / "csrc")

    everywhere = checks if checks is MEMORY else ()
    installed = Path(torch.__file__).parent
    operators = [*checks, f"-isystem{installed}/include", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA"]
    sources = [folder / "csrc/library.cpp", *folder.glob("csrc/cuda/*.cu")]
    commands = [[*operators, source] for source in sources] + [[*everywhere, "-O2", HERE / "emulation.cpp"]]
    if base:
        shutil.copytree(base, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("csrc", LIBRARY))
        commands = [command for command in commands if command[-1].name == change[0]]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda command: compile(command, folder), commands))
    library = folder / LIBRARY
    libraries = [installed / "lib" / name for name in ("libtorch.so", "libtorch_cpu.so")]
    gcc(*everywhere, "-shared", "-Wl,-Bsymbolic", *folder.glob("*.o"), *libraries, "-o", library)
    return library


def compile(command: Sequence[str | Path], folder: Path) -> Path:
    """Compile the source that a list of options ends with, and return the object file in the folder."""
    *options, source = command
    output = folder / f"{Path(source).name}.o"
    cuda = (f"-idirafter{cuda_headers()}", "-include", HERE / "emulation.h")
    gcc(*FLAGS, *cuda, *options, "-x", "c++", "-c", source, "-o", output)
    return output


def gcc(*arguments: str | Path) -> None:
    run = subprocess.run(["g++", *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
