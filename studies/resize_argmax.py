# SPDX-License-Identifier: Apache-2.0
"""How much faster is `resize_argmax` than `interpolate` and `argmax` on the CPU?

``python studies/resize_argmax.py`` prints the times in docs/operator.md, for the instruction set in use:
``ATEN_CPU_CAPABILITY=avx2`` limits it. The implementations take turns. The least time of each is printed, because other
load on the machine only adds to it.
"""

from __future__ import annotations

from time import perf_counter
from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from netwarp_ros.evaluation.provenance import environment
from netwarp_ros.ops import compiled, resize_argmax

CASES = [
    ((1, 11, 180, 240), (360, 480)),
    ((1, 11, 90, 120), (360, 480)),
    ((1, 19, 256, 512), (1024, 2048)),
]


def _planes(scores: Tensor, size: tuple[int, int]) -> Tensor:
    scores = F.interpolate(scores.contiguous(), size, mode="bilinear", align_corners=False)
    return scores.argmax(dim=1).to(torch.uint8)


def _pixels(scores: Tensor, size: tuple[int, int]) -> Tensor:
    scores = scores.contiguous(memory_format=torch.channels_last)
    return F.interpolate(scores, size, mode="bilinear", align_corners=False).max(dim=1).indices.to(torch.uint8)


WAYS = {
    "interpolate + argmax, contiguous": _planes,
    "interpolate + max, channels-last": _pixels,
    "resize_argmax": resize_argmax,
}


@torch.inference_mode()
def main(rounds: Annotated[int, typer.Option(help="Rounds for each case.", min=1)] = 60) -> None:
    """Time each way on float32 scores, contiguous and channels-last."""
    assert "cpu" in compiled.DEVICES, "the operator is not built: `make setup`"
    print(", ".join(f"{key}: {value}" for key, value in environment(torch.device("cpu")).items()), end="; ms\n\n")
    print("| scores | size | layout | ", " | ".join(WAYS), " |\n|---|---|---|", "---:|" * len(WAYS), sep="")
    for shape, size in CASES:
        for layout in (torch.contiguous_format, torch.channels_last):
            scores = torch.randn(shape).contiguous(memory_format=layout)
            times: dict[str, list[float]] = {way: [] for way in WAYS}
            for round_ in range(-3, rounds):  # the first three are not counted
                for way, run in WAYS.items():
                    start = perf_counter()
                    run(scores, size)
                    if round_ >= 0:
                        times[way].append(1e3 * (perf_counter() - start))
            cells = " | ".join(f"{min(taken):.2f}" for taken in times.values())
            name = "channels-last" if layout == torch.channels_last else "contiguous"
            print(f"| {shape} | {size[0]}×{size[1]} | {name} | {cells} |")


if __name__ == "__main__":
    typer.run(main)
