# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of csrc/ and the host code that launches them, run on the CPU. No GPU is needed.

cuda_emulation/emulation.h says what is checked. The tests of the operators are in cuda_emulation/cases.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_emulation import build

HERE = Path(build.__file__).parent

pytestmark = [
    pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not())),
    pytest.mark.timeout(600),
]


CHECKS = {"races": build.RACES, "memory": build.MEMORY}


@pytest.fixture(scope="module")
def races(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, built to find races."""
    return build.build(tmp_path_factory.mktemp("races"), build.RACES)


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, built to find accesses that are out of bounds or not aligned."""
    return build.build(tmp_path_factory.mktemp("memory"), build.MEMORY)


def run_cases(library: Path, checks: str, select: str) -> tuple[int, str]:
    """Run the selected cases of cases.py until one fails, and return the exit status and the output."""
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    if checks == "memory":
        environment |= {"LD_PRELOAD": " ".join(build.sanitizer_libraries()), "ASAN_OPTIONS": "detect_leaks=0"}
    # -s: a sanitizer that finds something ends the process at once, and pytest would not print what it captured.
    options = ["-q", "-s", "-x", "-p", "no:cacheprovider", "-k", select]
    run = subprocess.run(
        [sys.executable, HERE / "run.py", library, *options, HERE / "cases.py"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout


# The cases of "four" pixels a thread are for a GPU: those of "tiles" reach the same kernels with fewer pixels.


def test_kernels_are_right_and_have_no_races(races: Path) -> None:
    status, output = run_cases(races, "races", "not four")
    assert status == 0 and "skipped" not in output, output


def test_kernels_keep_to_their_memory(memory: Path) -> None:
    slow = ("float64", "bfloat16", "depend", "limits", "many_pixels", "opcheck")
    status, output = run_cases(memory, "memory", " and ".join(f"not {name}" for name in slow))
    assert status == 0 and "skipped" not in output, output


def test_a_warp_that_handles_many_pixels_is_right(races: Path, tmp_path: Path) -> None:
    """With the real number of warps, this would need maps too large for the emulation."""
    fewer_warps = ("backward.cu", "kManyWarps = 1 << 13", "kManyWarps = 1 << 6")
    library = build.build(tmp_path / "changed", build.RACES, races.parent, fewer_warps)
    status, output = run_cases(library, "races", "many_pixels")
    assert status == 0, output


ADDITION = "image + corners.offset[corner] + c, corners.weight[corner] * grad"
FAULTS = {
    "a step left out of the sum over lanes": (
        ("backward.cu", "lanes = kWarp / 2;", "lanes = kWarp / 4;"),
        ("races", "float64 and packs", "AssertionError: flow"),
    ),
    "additions that are not atomic": (
        ("backward.cu", f"atomicAdd({ADDITION})", "*({}) += {}".format(*ADDITION.split(", "))),
        ("races", "depend", r"race: thread \d+ of block \d+ reads what thread \d+ of block \d+ writes"),
    ),
    "pixels after the last one": (
        ("backward.cu", "if (pixel >= batch * height * width) return;", ""),
        ("memory", "depend", "AddressSanitizer: heap-buffer-overflow"),
    ),
    "columns after the last one": (
        ("forward.cu", "min(first_x + column, width - 1)", "first_x + column"),
        ("memory", "tiles", "AddressSanitizer: heap-buffer-overflow"),
    ),
    "DIS: a step left out of the sum over lanes": (
        ("dis.cu", "apart = kPatch / 2;", "apart = kPatch / 4;"),
        ("races", "dis_equals", "AssertionError: flow differs"),
    ),
    "DIS: results for patches after the last one": (
        ("dis.cu", "if (lane == 0 && place < count)", "if (lane == 0)"),
        ("memory", "dis_equals", "AddressSanitizer: heap-buffer-overflow"),
    ),
    "DIS: no barrier between the halves of a sweep": (
        (
            "dis_refine.cu",
            "change[row][column] = {u, v};\n      }\n      __syncthreads();",
            "change[row][column] = {u, v};\n      }",
        ),
        ("races", "dis_equals", r"race: thread \d+ of block \d+ reads what thread \d+ of block \d+ writes"),
    ),
    "DIS: tiles that do not reach far enough": (
        ("dis_refine.cu", "kTileHeight = 16, kHalo = 2 * kSweeps;", "kTileHeight = 20, kHalo = 2 * kSweeps - 2;"),
        ("races", "dis_equals", "AssertionError: flow differs"),
    ),
}
"""Changes of csrc/cuda: file, text and replacement; the checks and cases that find it, and what they say."""


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(request: pytest.FixtureRequest, tmp_path: Path, fault: str) -> None:
    change, (checks, select, message) = FAULTS[fault]
    base = request.getfixturevalue(checks).parent
    library = build.build(tmp_path / "changed", CHECKS[checks], base, change)
    status, output = run_cases(library, checks, select)
    assert status != 0 and re.search(message, output), output


THREAD = r"thread \d+ of block \d+"
SIZES = "the sizes of the grid or of its blocks are not allowed"
RULES = {
    "warp_functions": "48",
    "shared_memory": "96",
    "shared_memory_without_barrier": f"{THREAD} reads shared memory that nothing has written",
    "shared_memory_of_another_block": f"{THREAD} reads shared memory that nothing has written",
    "ended_before_barrier": "48",
    "barriers_in_two_branches": f"{THREAD} waits at __syncthreads .*, but {THREAD} waits at __syncthreads .*",
    "swap_after_syncwarp": "48",
    "swap_after_ballot": f"race: {THREAD} reads what {THREAD} writes",
    "atomic_additions": "6",
    "atomic_and_plain_additions": f"race: {THREAD} (reads|writes) what {THREAD} writes",
    "same_place_in_two_blocks": f"race: {THREAD} writes what {THREAD} writes",
    "lane_that_ended": f"{THREAD} waits at __shfl_sync .*, but lane 5 of its mask has ended or does not exist",
    "lane_that_waits_elsewhere": f"{THREAD} waits at __shfl_sync .*, but thread 5 of block 0 waits at __syncthreads .*",
    "lane_that_does_not_exist": f"{THREAD} waits at __ballot_sync .*, but lane 16 of its mask .* does not exist",
    "mask_without_own_lane": f"{THREAD} waits at __syncwarp .*, but its mask does not name its lane",
    "largest_block": "1024",
    "too_large_block": SIZES,
    "empty_grid": SIZES,
    "too_high_grid": SIZES,
    "too_wide_grid": SIZES,
}
"""What rules.cu prints for each kernel: how many results are right, or what the emulation found."""


def test_rules_of_cuda_are_checked_in_any_order_of_the_threads(races: Path, tmp_path: Path) -> None:
    rules = build.compile([*build.RACES, HERE / "rules.cu"], tmp_path)
    build.gcc(rules, races.with_name("emulation.cpp.o"), "-o", tmp_path / "rules")
    for order in ("forward", "reversed", "1"):
        environment = {**os.environ, "EMULATION_ORDER": order}
        run = subprocess.run([tmp_path / "rules"], env=environment, capture_output=True, text=True, check=True)
        for line, (rule, expected) in zip(run.stdout.splitlines(), RULES.items(), strict=True):
            assert re.fullmatch(f"{rule}: (CUDA emulation: )?{expected}", line), f"{order}: {line}"
