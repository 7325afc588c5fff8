# SPDX-License-Identifier: Apache-2.0
"""Count what DIS has to do on a GPU for one frame: ``python studies/flow_counts.py`` prints the table of docs/flow.md.

The instructions of a warp in each kernel are read off the code for sm_90 (CUDA 13.0, by ``nvdisasm``): see `PER_WARP`.
"""

from __future__ import annotations

from math import ceil

from netwarp_ros.flow.tensor_dis import SEARCHES
from netwarp_ros.ops.dis import Search, last_level, pyramid_pixels

SIZES = ((360, 480), (512, 1024), (1024, 2048))
PER_WARP = {"shrink": 304, "first round": 3480, "round": 2440, "warp_frame": 296, "linearise": 1192, "enlarge": 336}
STEP_OF_FIRST, STEP = 299, 306  # of a step of descent after the second, in the first round and in others
DENSIFY, PER_PATCH = 300, 205  # in all, and for each patch over a pixel
SWEEP, TILE, WARPS_OF_TILE = 1160, (16, 32), 15
PER_MICROSECOND = 132 * 4 * 1755  # instructions of warps that an H100 issues at most
BYTES_PER_MICROSECOND = 3.35e6


def count(size: tuple[int, int], search: Search) -> tuple[int, int, int, float, float]:
    """Return launches, patches, comparisons, instructions of warps, and bytes."""
    last, coarsest, first = last_level(size), search.coarsest(size), search.first
    launches, patches = last - first + 2, 0  # the pyramid, and the grid of the result
    instructions = sum(PER_WARP["shrink"] * ceil((size[0] >> i) * (size[1] >> i) / 32) for i in range(first, last + 1))
    for level in range(coarsest, search.finest - 1, -1):
        rows, columns = (side >> level for side in size)
        places = (1 + (rows - 8) // search.stride) * (1 + (columns - 8) // search.stride)
        pixel_warps, patch_warps = ceil(rows * columns / 32), 2 * ceil(places / 8)
        rounds = PER_WARP["first round"] + (search.steps - 2) * STEP_OF_FIRST
        rounds += (search.rounds - 1) * (PER_WARP["round"] + (search.steps - 2) * STEP)
        instructions += patch_warps * rounds + pixel_warps * (DENSIFY + PER_PATCH * ceil(8 / search.stride) ** 2)
        launches, patches = launches + search.rounds + 1, patches + places
        if search.refinements:
            tiles = ceil(rows / TILE[0]) * ceil(columns / TILE[1])
            iteration = pixel_warps * PER_WARP["linearise"] + tiles * WARPS_OF_TILE * SWEEP
            instructions += pixel_warps * PER_WARP["warp_frame"] + search.refinements * iteration
            launches += 1 + 2 * search.refinements
    result = (size[0] // 2) * (size[1] // 2)
    instructions += ceil(result / 32) * PER_WARP["enlarge"]
    comparisons = patches * (search.rounds * (4 + search.steps) + 1)
    moved = 3 * size[0] * size[1] + 2 * pyramid_pixels(size, first) + 16 * result  # the start is read, the flow written
    return launches, patches, comparisons, instructions, moved


def main() -> None:
    """Print the table."""
    print("| DIS | launches | patches | comparisons | instructions | bound | bytes |\n|---|" + 6 * "---:|")
    for size in SIZES:
        for preset, search in SEARCHES.items():
            launches, patches, comparisons, instructions, moved = count(size, search)
            bound = max(instructions / PER_MICROSECOND, moved / BYTES_PER_MICROSECOND)
            print(
                f"| {preset}, {size[1]}×{size[0]} | {launches} | {patches:,} | {comparisons:,} | "
                f"{instructions / 1e6:.1f} M | {bound:.0f} µs | {moved / 1e6:.1f} MB |"
            )


if __name__ == "__main__":
    main()
