# SPDX-License-Identifier: Apache-2.0
"""Is a batch of frames from several cameras faster than the same frames one by one?

``python studies/batching.py`` prints the ratios in docs/benchmarks.md. Batch and single frames alternate, so that other
load on the machine slows both down alike; the median ratio of all rounds is printed.
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
def main(rounds: Annotated[int, typer.Option(help="Rounds for each batch.", min=1)] = 20) -> None:
    """Time each shipped host on batches of frames, and on the same frames one by one, at its input height."""
    print("| model | cameras | one by one, ms a frame | together | ratio |\n|---|---|---|---|---|")
    for name in shipped_models():
        segmenter = Segmenter(name, engine="torch")
        if segmenter.uses_netwarp:
            continue
        host, height = segmenter.network.host, segmenter.input_height
        for cameras in (2, 4):
            frames = torch.randn(cameras, 3, height, height * 4 // 3, dtype=next(host.parameters()).dtype)
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
            one_by_one, batch = (1e3 * statistics.median(times) / cameras for times in (alone, together))
            print(f"| {name} | {cameras} | {one_by_one:.1f} | {batch:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    typer.run(main)
