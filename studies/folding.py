# SPDX-License-Identifier: Apache-2.0
"""What folding the batch norms saves: a model's host in PyTorch, with and without, in turns.

``python studies/folding.py [MODEL ...]``. Behind ``ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2`` in float32 only.
"""

from __future__ import annotations

import copy
import statistics
import sys

import torch
from torch import nn

from netwarp_ros.benchmarks.model import median_ratio
from netwarp_ros.engines.bfloat16 import cpu_computes_bfloat16
from netwarp_ros.engines.folding import fold_batch_norms
from netwarp_ros.models import DEFAULT_MODEL, load_model
from netwarp_ros.timing import timed

MODELS = (DEFAULT_MODEL, "ddrnet23slim-netwarp-camvid")
ROUNDS = 60


@torch.inference_mode()
def main(models: list[str]) -> None:
    """Print the times of each host in each precision."""
    precisions = [torch.float32, torch.bfloat16] if cpu_computes_bfloat16() else [torch.float32]
    for name in models:
        host = load_model(name).network.eval().host
        folded = copy.deepcopy(host)
        noise = torch.randn(1, 3, 128, 128)
        count = fold_batch_norms(folded, lambda: folded(noise))  # noqa: B023
        norms = sum(isinstance(module, nn.BatchNorm2d) for module in host.modules())
        for precision in precisions:
            hosts = [
                one.to(dtype=precision, memory_format=torch.channels_last)  # type: ignore[call-overload]
                for one in (host, folded)
            ]
            frame = torch.rand(1, 3, 360, 480).to(precision, memory_format=torch.channels_last)
            times: list[list[float]] = [[], []]
            for index in range(ROUNDS):
                for one, taken in zip(hosts, times, strict=True):
                    lap: dict[str, float] = {}
                    with timed(lap, "host"):
                        one(frame)
                    if index >= ROUNDS // 6:
                        taken.append(lap["host"])
            before, after = map(statistics.median, times)
            print(
                f"{name}, {str(precision).removeprefix('torch.')}: {count} of {norms} folded; {before:.1f} ms, "
                f"folded {after:.1f} ms, ratio {median_ratio(*times):.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:] or list(MODELS))
