# SPDX-License-Identifier: Apache-2.0
"""Whether several cameras' frames are faster through the network together than one after the other.

``python studies/batching.py`` prints the ratios that docs/benchmarks.md has. The batch and the single frames take
turns, so that whatever disturbs the machine disturbs both; of all rounds, the median ratio counts.
"""

from __future__ import annotations

import statistics
from time import perf_counter
from typing import Annotated

import torch
import typer

from netwarp_ros.models import shipped_models
from netwarp_ros.segmenter import Segmenter


@torch.inference_mode()
def main(rounds: Annotated[int, typer.Option(help="Of each batch.", min=1)] = 20) -> None:
    """Time each shipped host on batches at its input height, beside the same frames one by one."""
    print("| model | cameras | one by one, ms a frame | together | ratio |\n|---|---|---|---|---|")
    for name in shipped_models():
        segmenter = Segmenter(name)
        if segmenter.uses_netwarp:
            continue
        host, height = segmenter.network.host, segmenter.input_height
        for cameras in (2, 4):
            frames = torch.randn(cameras, 3, height, height * 4 // 3, dtype=segmenter.dtype)
            frames = frames.to(memory_format=torch.channels_last)
            host(frames), host(frames[:1])
            alone, together = [], []
            for _ in range(rounds):
                start = perf_counter()
                for frame in frames.split(1):
                    host(frame)
                middle = perf_counter()
                host(frames)
                alone.append(middle - start)
                together.append(perf_counter() - middle)
            ratio = statistics.median(b / a for a, b in zip(alone, together, strict=True))
            one, all_ = (1e3 * statistics.median(times) / cameras for times in (alone, together))
            print(f"| {name} | {cameras} | {one:.1f} | {all_:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    typer.run(main)
