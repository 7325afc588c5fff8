# SPDX-License-Identifier: Apache-2.0
"""Engines: all give PyTorch's scores and memory, and the best one that works is chosen."""

from __future__ import annotations

import builtins
import copy
import linecache
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from test_masks import EGO, network
from test_segmenter import SECOND, images
from torch import Tensor, fx, nn

from netwarp_ros import engines
from netwarp_ros.classes import load_classes
from netwarp_ros.engines import Engine, EngineError, EngineOptions, choice, latest, open_engine
from netwarp_ros.engines.bfloat16 import cpu_computes_bfloat16
from netwarp_ros.engines.engine import Normalisation
from netwarp_ros.engines.graphs import FlowGraph, StepGraph, export
from netwarp_ros.engines.onnx import OnnxRuntimeEngine, to_onnx
from netwarp_ros.engines.openvino import OpenVINOEngine, convert, core
from netwarp_ros.engines.pytorch import CompiledTorchEngine, TorchEngine
from netwarp_ros.models import Inference, Memory, Model, ModelSpec, VideoCNN, augment
from netwarp_ros.models.hosts import DDRNet23Slim
from netwarp_ros.segmenter import MemoryState

SIZE = (37, 52)
SPEC = ModelSpec(
    host="ddrnet23slim", classes=load_classes("camvid"), host_arguments={"num_classes": 5}, input_height=36
)
CPU = torch.device("cpu")
NORMALISATION = Normalisation.of(SPEC, CPU)

pytestmark = pytest.mark.auto_engine


def small_host() -> nn.Module:
    """Return a host that modifies the outputs of both its layers in place."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU6(inplace=True), nn.Conv2d(8, 5, 1),
    ).eval()  # fmt: skip


def video_cnn(host: nn.Module | None = None, layers: Sequence[str] = ("1", "3"), **options: Any) -> VideoCNN:
    """Return a network whose blends and flow CNN do something."""
    network = augment(host or small_host(), list(layers), **options).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "w1" in name or "w2" in name:
                parameter.copy_(torch.linspace(0.2, 0.8, parameter.numel()))
            if "flow_cnn" in name or "combine" in name or "gate.conv2" in name:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return network


def frames(count: int, size: tuple[int, int] = SIZE, batch: int = 1) -> list[Tensor]:
    """Return uint8 frames, channels-last as cameras have them."""
    rng = np.random.default_rng(0)
    return [
        torch.from_numpy(rng.integers(0, 256, (batch, *size, 3), np.uint8)).permute(0, 3, 1, 2) for _ in range(count)
    ]


def flows(count: int, size: tuple[int, int] = SIZE, batch: int = 1) -> list[Tensor]:
    torch.manual_seed(1)
    return [4 * torch.randn(batch, 2, *size) for _ in range(count)]


def run(engine: Engine, sequence: Sequence[Tensor], motion: Sequence[Tensor]) -> list[tuple[Tensor, Memory]]:
    memory, results = None, []
    with torch.inference_mode():
        for frame, flow in zip(sequence, motion, strict=True):
            scores, memory = engine(frame, flow, memory)
            results.append((scores, memory))
    return results


def assert_like_torch(engine: Engine, network: VideoCNN, sequence: list[Tensor], motion: list[Tensor]) -> None:
    results = run(engine, sequence, motion)
    expected = run(TorchEngine(network, NORMALISATION, CPU), sequence, motion)
    for (scores, memory), (wanted, wanted_memory) in zip(results, expected, strict=True):
        torch.testing.assert_close(scores, wanted, rtol=1e-3, atol=1e-3)
        assert memory.shape == wanted_memory.shape
        assert list(memory.frames) == list(wanted_memory.frames)
        assert list(memory.representations) == list(wanted_memory.representations)
        for maps, wanted_maps in ((memory.frames, wanted_memory.frames), (memory[2], wanted_memory[2])):
            for key, value in maps.items():
                torch.testing.assert_close(value, wanted_maps[key], rtol=1e-3, atol=1e-3)


Maker = Callable[[VideoCNN], Engine]
ENGINES: dict[str, Maker] = {
    "openvino": lambda network: OpenVINOEngine(network, NORMALISATION, "float32", 1),
    "onnxruntime": lambda network: OnnxRuntimeEngine(network, NORMALISATION, "float32", 1),
}


@pytest.fixture
def exported_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `torch.compile` run the exported graph without code generation, which takes minutes."""
    monkeypatch.setattr(torch, "compile", partial(_compile_without_code, torch.compile))


def _compile_without_code(compile_graph: Callable[..., Any], module: nn.Module, *, fullgraph: bool, **_: Any) -> Any:
    return compile_graph(module, backend="eager", fullgraph=fullgraph)


OPTIONS: dict[str, dict[str, Any]] = {
    "as in the paper": {},
    "one grid, remember after": {"flow_grid": "first", "remember": "after"},
    "no flow CNN": {"flow_cnn": False, "remember": "after"},
    "concatenation": {"flow_grid": "features", "blend": "concatenation"},
    "gated": {"flow_grid": "first", "remember": "after", "blend": "gated"},
    "gated, no flow CNN": {"flow_grid": "features", "flow_cnn": False, "blend": "gated"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("name", ENGINES)
def test_engine_gives_the_scores_and_memory_of_torch(name: str, options: dict[str, Any]) -> None:
    network = video_cnn(**options)
    assert_like_torch(ENGINES[name](network), network, frames(4), flows(4))


@pytest.mark.usefixtures("exported_is_compiled")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_compiled_graphs_give_the_scores_and_memory_of_torch(options: dict[str, Any]) -> None:
    network = video_cnn(**options)
    assert_like_torch(CompiledTorchEngine(network, NORMALISATION, CPU), network, frames(4), flows(4))


def test_ddrnet_of_odd_size_in_a_batch() -> None:
    torch.manual_seed(0)
    network = video_cnn(DDRNet23Slim(num_classes=5), ["high4", "fusion"], flow_grid="features")
    size = (65, 97)
    assert_like_torch(ENGINES["openvino"](network), network, frames(3, size, 2), flows(3, size, 2))


def test_normalised_frames_are_taken_as_they_are() -> None:
    network = video_cnn()
    sequence = [NORMALISATION(frame) for frame in frames(3)]
    assert_like_torch(ENGINES["openvino"](network), network, sequence, flows(3))


def test_memory_is_a_value() -> None:
    """A second camera, and a memory that is used twice, change nothing."""
    network = video_cnn(remember="after")
    engine, reference = ENGINES["openvino"](network), TorchEngine(network, NORMALISATION, CPU)
    (first, second, third), motion = frames(3), flows(1)[0]
    with torch.inference_mode():
        _, mine = engine(first)
        kept = {name: z.clone() for name, z in mine.representations.items()}
        _, others = engine(second)
        once, _ = engine(third, motion, mine)
        engine(second, motion, others)
        again, _ = engine(third, motion, mine)
        _, expected_memory = reference(first)
        expected, _ = reference(third, motion, expected_memory)
    assert torch.equal(once, again)
    torch.testing.assert_close(once, expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(z, kept[name]) for name, z in mine.representations.items())


def test_host_alone_is_one_graph() -> None:
    host = VideoCNN(video_cnn().host, {})
    assert_like_torch(ENGINES["openvino"](host), host, frames(2), flows(2))


def test_other_sizes_are_compiled_when_they_come_and_the_oldest_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latest, "MAX_SHAPES", 2)
    network = video_cnn()
    engine = ENGINES["openvino"](network)
    for size in ((20, 24), (24, 20), (28, 28), (20, 24)):
        assert_like_torch(engine, network, frames(2, size), flows(2, size))
    assert len(engine._shapes) == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", [{}, {"flow_grid": "features"}, {"flow_cnn": False}])
def test_flow_may_have_a_grid_of_its_own(options: dict[str, Any]) -> None:
    network = video_cnn(**options)
    assert_like_torch(ENGINES["openvino"](network), network, frames(3), flows(3, (18, 26)))


def test_flow_is_computed_only_when_there_is_a_memory() -> None:
    network = video_cnn()
    engine, motion, calls = ENGINES["openvino"](network), flows(1)[0], []

    def flow() -> Tensor:
        calls.append(1)
        return motion

    with torch.inference_mode():
        _, memory = engine(frames(1)[0], flow)
        assert not calls
        engine(frames(1)[0], flow, memory)
        assert calls == [1]
        with pytest.raises(ValueError, match=r"flow is \(2, 2, 37, 52\), expected \(1, 2, h, w\)"):
            engine(frames(1)[0], lambda: torch.zeros(2, 2, 37, 52), memory)
        with pytest.raises(ValueError, match="when the size changes"):
            engine(frames(1, (40, 40))[0], flow, memory)


def test_windows_scales_and_mirrored_views_go_through_an_engine() -> None:
    network, inference = video_cnn(), Inference(window=24, scales=(0.5, 1.0), flip=True, windows_per_pass=3)
    results = []
    for engine in (ENGINES["openvino"](network), TorchEngine(network, NORMALISATION, CPU)):
        memory = None
        with torch.inference_mode():
            for frame, flow in zip(frames(3), flows(3), strict=True):
                probabilities, memory = inference(engine, NORMALISATION(frame), flow, memory)
        results.append(probabilities)
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("blend", ["netwarp", "gated"])
def test_no_graph_has_our_operator_or_grid_sample_and_all_are_free_of_hooks(blend: str) -> None:
    network = video_cnn(blend=blend)
    sizes = {"1": (19, 26), "3": (10, 13)}
    frame = torch.zeros(1, *SIZE, 3, dtype=torch.uint8)
    step = StepGraph(network, NORMALISATION, ["1", "3"])
    warped = [torch.zeros(1, 19, 26, 6), torch.zeros(1, 10, 13, 8)]
    warped += [torch.zeros(1, 19, 26, 1), torch.zeros(1, 10, 13, 1)] if blend == "gated" else []
    flow = FlowGraph(network, NORMALISATION, SIZE, sizes, on_grids=True)
    maps = [torch.zeros(1, *SIZE, 2), torch.zeros(1, *SIZE, 3)]
    for graph, inputs in ((step, [frame, *warped]), (flow, [maps[0], frame, maps[1]])):
        targets = {str(node.target) for node in export(graph, inputs).graph.nodes if node.op == "call_function"}
        assert not any("grid_sampl" in target or "netwarp" in target for target in targets)
        assert b"GridSample" not in to_onnx(graph, inputs)


@pytest.mark.parametrize("write", [to_onnx, convert])
def test_conversions_leave_no_source_code_behind(write: Callable[[nn.Module, list[Tensor]], Any]) -> None:
    class Half(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return pixels / 2

    def kept() -> set[str]:
        return {*fx.graph_module._loader.eval_cache, *(name for name in linecache.cache if "eval_with_key" in name)}

    before = kept()
    torch.export.export(Half(), (torch.zeros(1),)).module()
    exported = kept()
    write(Half(), [torch.zeros(1)])
    assert before < exported == kept()


@pytest.mark.skipif(not cpu_computes_bfloat16(), reason="this CPU, or what it is limited to, has no AVX512_BF16")
def test_bfloat16_of_openvino_is_near_float32() -> None:
    network = video_cnn()
    precise, coarse = (OpenVINOEngine(network, NORMALISATION, name, 0) for name in ("float32", "bfloat16"))
    for (scores, _), (expected, _) in zip(*(run(each, frames(3), flows(3)) for each in (coarse, precise)), strict=True):
        torch.testing.assert_close(scores, expected, rtol=0.1, atol=0.1)


def test_openvino_says_what_keeps_it_from_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    with pytest.raises(EngineError, match="is bfloat16, which ONEDNN_MAX_CPU_ISA=AVX2 rules out: use float32"):
        OpenVINOEngine(video_cnn(), NORMALISATION, "bfloat16", 0)


# Which engine is chosen


def model(network: VideoCNN | None = None) -> Model:
    return Model(network or video_cnn(), SPEC, "test")


def opened(**options: Any) -> tuple[Engine, str]:
    chosen = model()
    return open_engine(copy.deepcopy(chosen.network), chosen, 36, EngineOptions(**options))


def missing(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Let a package be missing."""
    import_module = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name == package:
            raise ModuleNotFoundError(f"No module named {package!r}")
        return import_module(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_openvino_is_the_default_on_the_cpu() -> None:
    engine, problem = opened(precision="float32")
    assert (engine.name, engine.precision, engine.device, problem) == ("openvino", "float32", CPU, "")


def test_missing_engine_is_named_and_auto_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    missing(monkeypatch, "openvino")
    engine, problem = opened(precision="float32")
    assert engine.name == "torch"
    assert problem == ("engine openvino: it cannot be imported (No module named 'openvino'): pip install openvino")
    with pytest.raises(EngineError, match="engine openvino: it cannot be imported"):
        opened(engine="openvino")


@pytest.mark.parametrize(("name", "package"), [("onnxruntime", "onnxruntime"), ("tensorrt", "tensorrt")])
def test_other_missing_engines_are_named(monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    missing(monkeypatch, package)
    with pytest.raises(EngineError, match=f"engine {name}: it cannot be imported .*pip install"):
        opened(engine=name, precision="float32")


def test_engine_that_gives_other_masks_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_graph = OpenVINOEngine.compile

    def inverted(engine: OpenVINOEngine, graph: Any, inputs: Any) -> Any:
        right = compile_graph(engine, graph, inputs)
        return right if isinstance(graph, FlowGraph) else lambda *maps: [-result for result in right(*maps)]

    monkeypatch.setattr(OpenVINOEngine, "compile", inverted)
    engine, problem = opened(precision="float32")
    assert engine.name == "torch" and problem.startswith("engine openvino: it gives other masks than PyTorch in ")
    with pytest.raises(EngineError, match="it gives other masks than PyTorch"):
        opened(engine="openvino", precision="float32")


def test_engine_that_breaks_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> None:
        raise RuntimeError("no such operation\nand more")

    monkeypatch.setattr(OpenVINOEngine, "compile", fail)
    engine, problem = opened(precision="float32")
    assert (engine.name, problem) == ("torch", "no such operation")
    with pytest.raises(EngineError, match="engine openvino: no such operation$"):
        opened(engine="openvino", precision="float32")


def test_fallback_computes_what_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    missing(monkeypatch, "openvino")
    assert_like_torch(opened(precision="float32")[0], video_cnn(), frames(3), flows(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "tvm"}, "engine is 'tvm': choose one of auto, torch, cudagraphs, openvino, onnxruntime, tensorrt"),
        ({"precision": "int4"}, "precision is 'int4': choose one of auto, float32, bfloat16, float16, int8"),
        ({"compile": "fast"}, "compile is 'fast': choose one of none, default, reduce-overhead"),
        ({"threads": -1}, "threads is -1"),
        ({"engine": "openvino", "compile": "default"}, "only engine torch is compiled"),
        ({"device": "tpu"}, "device is 'tpu': give cpu, cuda or cuda:N"),
        ({"precision": "float16"}, "precision is 'float16', which CPUs compute slowly"),
        ({"engine": "torch", "precision": "int8"}, "precision is 'int8', which only engine openvino has"),
        ({"engine": "onnxruntime", "precision": "bfloat16"}, "engine onnxruntime: precision is bfloat16"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened(**options)


def test_reason_of_openvino_is_not_a_place_in_its_source() -> None:
    text = "Exception from src/cpp/core.cpp:117:\nCheck 'x' failed at src/a.cpp:3:\nno bf16 here\n"
    assert choice._reason(RuntimeError(text)) == "no bf16 here"
    assert choice._reason(KeyError()) == "KeyError"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_step_of_a_host_in_half_precision(dtype: torch.dtype) -> None:
    network = video_cnn()
    network.host.to(dtype)
    frame = torch.randn(1, 3, *SIZE, dtype=dtype)
    with torch.no_grad():
        _, representations = network.step(frame, None)
        scores, _ = network.step(frame, representations)
    assert scores.dtype == dtype and scores.isfinite().all()


def test_engines_share_a_core_that_does_not_end() -> None:
    """Cores that end in the order in which they were made leave a stack for signal handlers whose memory is gone."""
    first, second = (ENGINES["openvino"](video_cnn()) for _ in range(2))
    assert isinstance(first, OpenVINOEngine) and isinstance(second, OpenVINOEngine)
    assert first._core is second._core is core()


def test_threads_limit_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OpenVINOEngine(video_cnn(), NORMALISATION, "float32", 1)
    assert engine._options["INFERENCE_NUM_THREADS"] == 1


# torch.compile


def test_graphs_are_compiled_whole_and_not_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(torch, "compile", lambda module, **options: calls.append(options) or module)
    engine, problem = opened(engine="torch", precision="float32", compile="default")
    assert (engine.name, problem) == ("torch, compiled", "")
    assert len(calls) == 3 and all(call["fullgraph"] for call in calls)


def test_graph_that_cannot_be_compiled_runs_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", fail)
    engine, problem = opened(precision="float32", compile="default")
    assert (engine.name, problem) == ("torch", "no C++ compiler")


def test_cuda_graphs_need_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **_options: module)
    engine, problem = opened(precision="float32", compile="reduce-overhead")
    assert engine.name == "torch, compiled"
    assert problem == "compile reduce-overhead: the device is cpu, and CUDA graphs need CUDA"
    with pytest.raises(EngineError, match="engine cudagraphs: the device is cpu, it needs cuda"):
        opened(engine="cudagraphs", precision="float32")


@pytest.mark.parametrize(
    ("variables", "bfloat16"),
    [
        ({}, None),
        ({"ATEN_CPU_CAPABILITY": "avx2"}, False),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, False),
        ({"DNNL_MAX_CPU_ISA": "AVX512_CORE"}, False),
    ],
)
def test_auto_is_bfloat16_only_where_the_cpu_computes_it(variables: dict[str, str], bfloat16: bool | None) -> None:
    code = "from netwarp_ros.engines import bfloat16; print(bfloat16.cpu_computes_bfloat16())"
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("ATEN_CPU", "ONEDNN_", "DNNL_"))}
    printed = subprocess.run([sys.executable, "-c", code], env={**clean, **variables}, capture_output=True, text=True)
    if bfloat16 is None:
        bfloat16 = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    assert printed.stdout.strip() == str(bfloat16), printed.stderr


def test_all_engines_are_listed() -> None:
    assert set(ENGINES) < set(engines.ENGINES) and choice.ENGINES == engines.ENGINES


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_other_engines_leave_out_the_same(engine: str) -> None:
    streams = [network("before", 1, one).stream(ego_mask=EGO) for one in ("torch", engine)]
    for index, image in enumerate(images(4)):
        results = [stream.segment(image, index * SECOND // 10, confidence=True) for stream in streams]
        assert results[1].memory == (MemoryState.KEPT if index else MemoryState.NEW)
        assert np.mean(results[0].mask == results[1].mask) > 0.999
        confidences = [result.confidence for result in results]
        assert confidences[0] is not None and confidences[1] is not None
        assert np.abs(confidences[0].astype(int) - confidences[1]).max() <= 1
