# SPDX-License-Identifier: Apache-2.0
"""Time DIS flow on a GPU, beside OpenCV's on this machine's CPU: ``python tools/gpu_flow.py cuda OUT.json``.

On the GPU, pyramid and flow are one CUDA graph, which is replayed; the frame is there already. OpenCV gets grey frames.
Both start from the flow of the pair before. `tools/gpu_check.sh` runs it.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import torch

from netwarp_ros.evaluation.provenance import environment
from netwarp_ros.flow import PRESETS, DisFlow, TensorDis
from netwarp_ros.ops import compiled
from netwarp_ros.street import Street, StreetFrame

SIZES = ((480, 360), (1024, 512), (2048, 1024))
REPEATS = 30


def median_ms(timed: Callable[[], float]) -> float:
    """Return the median of several runs, after three that do not count."""
    return statistics.median([timed() for _ in range(REPEATS + 3)][3:])


def on_the_cpu(call: Callable[[], object]) -> Callable[[], float]:
    """Return what times a call."""

    def timed() -> float:
        begun = perf_counter()
        call()
        return 1e3 * (perf_counter() - begun)

    return timed


def on_the_gpu(call: Callable[[], object]) -> Callable[[], float]:
    """Record a call as a CUDA graph, and return what times its replay."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        call()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def timed() -> float:
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    return timed


def measure(drawn: list[StreetFrame], preset: str, device: torch.device) -> dict[str, Any]:
    """Time a preset of DIS on the last of three frames.

    Raises:
        RuntimeError: If the operator library has no CUDA kernels.
    """
    if device.type == "cuda" and "cuda" not in compiled.DIS_DEVICES:
        raise RuntimeError("the operator library has no CUDA kernels: nothing to time")
    images = [frame.image for frame in drawn]
    height, width = images[0].shape[:2]
    greys = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in images]
    opencv, ours = DisFlow(preset), TensorDis(preset, device, level=1)
    start = opencv(greys[1], greys[0])
    frames = [torch.from_numpy(image).to(device).permute(2, 0, 1)[None].flip(1) for image in images]
    pyramids = [ours.pyramid(frame) for frame in frames]
    along = ours.flow(pyramids[1], pyramids[0], (height, width))

    def flow() -> torch.Tensor:
        return ours.flow(ours.pyramid(frames[2]), pyramids[1], (height, width), along)

    found, expected = flow()[0].cpu().numpy(), drawn[2]
    error = np.linalg.norm(2 * cv2.resize(found.transpose(1, 2, 0), (width, height)) - expected.flow, axis=2)
    return {
        "size": (width, height),
        "preset": preset,
        "error_px": float(error[expected.valid & (expected.label > 0)].mean()),
        "ms": median_ms(on_the_gpu(flow) if device.type == "cuda" else on_the_cpu(flow)),
        "opencv_ms": median_ms(on_the_cpu(lambda: opencv(greys[2], greys[1], start))),
    }


def main(device: str, file: Path) -> None:
    """Time all presets at all sizes, and write what was measured so far after each."""
    content: dict[str, Any] = {"environment": environment(torch.device(device)), "results": []}
    for size in SIZES:
        street = Street(*size, seed=0, rate=15)
        drawn = [street.frame(index) for index in range(3)]
        for preset in PRESETS:
            content["results"].append(measure(drawn, preset, torch.device(device)))
            print(content["results"][-1], flush=True)
            file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
