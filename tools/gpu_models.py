# SPDX-License-Identifier: Apache-2.0
"""Time the shipped video CNNs and PSPNet-101 on a GPU, beside their hosts: ``python tools/gpu_models.py GPU OUT.json``.

An engine that does not work is an error here: no figures of another one stand in for it.

`tools/gpu_check.sh` runs it. The file is written again after each configuration, so that a time limit loses only the
rest. The most telling configurations come first.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from netwarp_ros.benchmarks.model import measure_overhead
from netwarp_ros.classes import load_classes
from netwarp_ros.evaluation.provenance import environment
from netwarp_ros.models import DEFAULT_MODEL, Model, ModelSpec, NetWarpSpec, build, load_model
from netwarp_ros.street import Street

MODELS = (DEFAULT_MODEL, "ddrnet23slim-netwarp-camvid")
SIZES = ((480, 360), (1024, 512), (2048, 1024))
PSPNET = "pspnet101, random weights"
FRAMES, PASSES = 6, 10


def configurations() -> Iterator[dict[str, Any]]:
    """Yield models, sizes of image, engines, modes of compilation, and whether Λ transforms the flow."""

    def all_sizes(engine: str, compile_mode: str = "none", *, flow_cnn: bool = True) -> Iterator[dict[str, Any]]:
        for size in SIZES:
            for model in MODELS:
                yield {"model": model, "size": size, "engine": engine, "compile": compile_mode, "flow_cnn": flow_cnn}

    yield from all_sizes("cudagraphs")
    yield from all_sizes("torch")
    for precision in ("float16", "float32"):
        pspnet = {"model": PSPNET, "size": (713, 713), "compile": "none", "flow_cnn": True, "precision": precision}
        yield {**pspnet, "engine": "cudagraphs"}
        yield {**pspnet, "engine": "torch"}
    yield from all_sizes("cudagraphs", flow_cnn=False)
    yield from all_sizes("torch", "reduce-overhead")
    yield from all_sizes("torch", "default")


def load(name: str, size: tuple[int, int]) -> Model:
    """Return a shipped model, or the paper's PSPNet-101 with NetWarp behind conv4_23 and conv5_4 (Sec. 4)."""
    if name != PSPNET:
        return load_model(name)
    netwarp = NetWarpSpec(layers=("conv4_23", "conv5_4"))
    spec = ModelSpec("pspnet101", load_classes("cityscapes"), {"num_classes": 19}, netwarp, input_height=size[1])
    return Model(build(spec), spec, name)


def main(device: str, file: Path) -> None:
    """Time all configurations on a device, and write what was measured so far after each."""
    content: dict[str, Any] = {"environment": environment(torch.device(device)), "results": []}
    images = {}
    for configuration in configurations():
        size, start = configuration["size"], time.perf_counter()
        if size not in images:
            street = Street(width=size[0], height=size[1], seed=0, rate=15)
            images[size] = [street.frame(index).image for index in range(FRAMES)]
        torch.compiler.reset()  # or PyTorch stops compiling for new sizes after eight of them
        options = {"device": device, "input_height": size[1]}
        options |= {name: configuration[name] for name in ("engine", "compile")}
        try:
            model = load(configuration["model"], size)
            if not configuration["flow_cnn"]:
                model.network.flow_cnn = None
            options["precision"] = configuration.get("precision", "auto")
            result = measure_overhead(images[size], model, passes=PASSES, **options).to_json()
            if problem := result["engine_problem"]:  # another one stood in for it
                result["error"] = problem
        except Exception as error:  # one configuration that fails leaves the others
            result = {"error": f"{type(error).__name__}: {error}"[:300]}
        result["seconds"] = time.perf_counter() - start
        content["results"].append({**result, **configuration})
        print(content["results"][-1], flush=True)
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
