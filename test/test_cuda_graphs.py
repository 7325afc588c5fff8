# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs of frames, without a GPU: a recorder of the operations on the CPU stands in for CUDA's.

As CUDA's does, it records the operations and not the Python around them, and replays them on the same tensors. It
refuses what makes the CPU wait for a GPU, which CUDA refuses while it records. test_cuda.py has the real ones.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, ClassVar

import pytest
import torch
from test_engines import CPU, NORMALISATION, OPTIONS, SIZE, assert_like_torch, flows, frames, opened, video_cnn
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from netwarp_ros.engines import EngineOptions, choice, cuda_graphs, latest
from netwarp_ros.engines.cuda_graphs import CUDAGraphEngine, Cut, Recorder
from netwarp_ros.engines.pytorch import CompiledTorchEngine, TorchEngine
from netwarp_ros.models import Memory, VideoCNN, resampling
from netwarp_ros.ops import compiled

WAITS = ("aten.lift_fresh", "aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten._pin_memory")
"""Operations that copy Python's numbers to a GPU, or values from it, and wait meanwhile."""


class RecordedGraph(TorchDispatchMode):
    """Stands in for `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(
        self, function: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        assert not str(function).startswith(WAITS), f"{function} waits for the GPU"
        result = function(*args, **(kwargs or {}))
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.operations.append((function, args, kwargs or {}, results))
        return result

    def replay(self) -> None:
        for function, args, kwargs, places in self.operations:
            results = (leaf for leaf in tree_leaves(function(*args, **kwargs)) if isinstance(leaf, Tensor))
            for place, result in zip(places, results, strict=True):
                if place.data_ptr() != result.data_ptr():  # not a view, and not in place
                    place.copy_(result)


class CPURecorder:
    """Stands in for `netwarp_ros.engines.cuda_graphs.Recorder`."""

    recorded: ClassVar[list[list[RecordedGraph]]] = []

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record(self, run: Callable[[Cut], Any]) -> tuple[list[RecordedGraph], Any]:
        graphs = [RecordedGraph()]

        def cut() -> None:
            graphs[-1].__exit__(None, None, None)
            graphs.append(RecordedGraph().__enter__())

        run(lambda: None)
        graphs[0].__enter__()
        try:
            result = run(cut)
        finally:
            graphs[-1].__exit__(None, None, None)
        self.recorded.append(graphs)
        return graphs, result


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "Recorder", CPURecorder)
    monkeypatch.setattr(resampling, "_is_for_opencv", lambda maps: False)  # OpenCV's work is not recorded
    monkeypatch.setattr(CPURecorder, "recorded", [])


def engine_of(network: VideoCNN) -> CUDAGraphEngine:
    return CUDAGraphEngine(TorchEngine(network, NORMALISATION, CPU))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_replayed_frames_are_those_of_torch(options: dict[str, Any]) -> None:
    network = video_cnn(**options)
    assert_like_torch(engine_of(network), network, frames(4), flows(4))
    assert [len(graphs) for graphs in CPURecorder.recorded] == [1, 2]


def test_replayed_frames_of_compiled_graphs_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **_options: module)
    network = video_cnn(flow_grid="first")
    engine = CUDAGraphEngine(CompiledTorchEngine(network, NORMALISATION, CPU))
    assert_like_torch(engine, network, frames(4), flows(4))
    assert [len(graphs) for graphs in CPURecorder.recorded] == [1, 1]
    assert engine.name == "torch, compiled, CUDA graphs"


def test_the_layers_before_the_first_insertion_run_before_the_flow_is_asked_for() -> None:
    network = video_cnn(flow_grid="first")
    engine, (first, second), (flow, _) = engine_of(network), frames(2), flows(2)
    _, memory = engine(first)
    engine(second, flow, memory)
    before, behind = CPURecorder.recorded[-1]
    convolutions = [sum("conv" in str(function) for function, *_ in graph.operations) for graph in (before, behind)]
    assert convolutions == [1, 4 + 2]  # Λ has four, and two of the host's three come behind the first insertion
    replayed: list[str] = []

    def asked() -> Tensor:
        replayed.append("flow")
        return flow

    for name, graph in (("before", before), ("behind", behind)):
        replay = graph.replay
        graph.replay = lambda name=name, replay=replay: (replayed.append(name), replay())  # type: ignore[method-assign, misc]
    engine(second, asked, memory)
    assert replayed == ["before", "flow", "behind"]


def test_cameras_share_an_engine_and_keep_their_memories() -> None:
    network = video_cnn()
    engine, plain = engine_of(network), TorchEngine(network, NORMALISATION, CPU)
    images, motion = frames(6), flows(6)
    memories: list[list[Memory | None]] = [[None, None], [None, None]]
    for index, (frame, flow) in enumerate(zip(images, motion, strict=True)):
        for which, one in enumerate((engine, plain)):
            scores, memories[which][index % 2] = one(frame, flow, memories[which][index % 2])
            if which == 0:
                replayed = scores
            else:
                torch.testing.assert_close(replayed, scores)


def test_results_are_not_overwritten_by_later_frames() -> None:
    engine, images, motion = engine_of(video_cnn()), frames(3), flows(3)
    _, memory = engine(images[0])
    scores, kept = engine(images[1], motion[1], memory)
    before = [tensor.clone() for tensor in (scores, *kept.frames.values(), *kept.representations.values())]
    engine(images[2], motion[2], kept)
    for one, other in zip(before, (scores, *kept.frames.values(), *kept.representations.values()), strict=True):
        assert torch.equal(one, other)


def test_each_shape_is_recorded_once_and_only_the_latest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latest, "MAX_SHAPES", 2)
    engine = engine_of(video_cnn())
    sizes = [SIZE, (20, 28), SIZE, (24, 32), SIZE, (20, 28)]
    for size in sizes:
        engine(frames(1, size)[0])
    assert len(CPURecorder.recorded) == 4  # the smallest again: it was used longest ago
    assert len(engine._recordings) == 2


def test_a_frame_with_and_without_memory_are_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latest, "MAX_SHAPES", 1)
    engine, images, motion = engine_of(video_cnn()), frames(3), flows(3)
    for _ in range(2):
        _, memory = engine(images[0])
        engine(images[1], motion[1], memory)
    assert len(CPURecorder.recorded) == 2


def test_flow_of_any_size_gives_the_frame_that_torch_gives() -> None:
    network = video_cnn(flow_grid="first")
    engine, plain = engine_of(network), TorchEngine(network, NORMALISATION, CPU)
    first, second = frames(2)
    _, memory = plain(first)
    for size in (SIZE, (19, 26), (74, 104), (5, 7)):
        (flow,) = flows(1, size)
        torch.testing.assert_close(engine(second, flow, memory)[0], plain(second, flow, memory)[0])


def test_what_waits_for_the_gpu_is_found() -> None:
    """This tests the stand-in."""

    class Waits(nn.Module):
        def forward(self, frame: Tensor) -> Tensor:
            return frame * frame.new_tensor([2.0])

    with pytest.raises(AssertionError, match="waits for the GPU"):
        engine_of(VideoCNN(nn.Sequential(Waits(), nn.Conv2d(3, 5, 1)), {}))(frames(1)[0])


def test_host_alone_ignores_the_memory() -> None:
    network = VideoCNN(nn.Conv2d(3, 5, 1), {})
    assert_like_torch(engine_of(network), network, frames(3), flows(3))
    assert len(CPURecorder.recorded) == 1


@pytest.mark.parametrize(
    ("options", "candidates"),
    [
        ({}, [("cudagraphs", "none"), ("torch", "none")]),
        ({"engine": "torch"}, [("torch", "none")]),
        ({"engine": "cudagraphs"}, [("cudagraphs", "none")]),
        ({"compile": "reduce-overhead"}, [("torch", "reduce-overhead"), ("torch", "default"), ("torch", "none")]),
    ],
)
@pytest.mark.auto_engine
def test_what_is_tried_on_a_gpu(options: dict[str, Any], candidates: list[tuple[str, str]]) -> None:
    assert choice._candidates(EngineOptions(**options), torch.device("cuda")) == candidates


def test_constants_of_compiled_graphs_live_as_long_as_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs of other shapes push those of a recorded one out of the engine that was recorded."""
    monkeypatch.setattr(torch, "compile", lambda module, **_options: module)
    monkeypatch.setattr(latest, "MAX_SHAPES", 1)
    inner = CompiledTorchEngine(video_cnn(flow_grid="first"), NORMALISATION, CPU)
    engine, frame = CUDAGraphEngine(inner), frames(1)[0]
    expected, _ = engine(frame)
    graphs = weakref.ref(inner.graphs(frame))
    inner.graphs(frames(1, (20, 28))[0])
    gc.collect()
    assert graphs() is not None
    assert torch.equal(engine(frame)[0], expected)


# How CUDA is called


class FakeCUDA:
    """Notes how `torch.cuda` is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        calls, names = self.calls, iter("AB")

        class Stream:
            def wait_stream(self, other: object) -> None:
                calls.append("side waits" if other is current else "current waits")

            def synchronize(self) -> None:
                calls.append("synchronize")

        class Graph:
            def __init__(self) -> None:
                self.name = next(names)

            def capture_begin(self, *, pool: str, capture_error_mode: str) -> None:
                calls.append(f"begin {self.name} in {pool}, {capture_error_mode}")

            def capture_end(self) -> None:
                calls.append(f"end {self.name}")
                if fails:
                    raise RuntimeError("the capture is invalid")

        current, fails = Stream(), list[bool]()
        self.fails = fails
        monkeypatch.setattr(torch.cuda, "device", nullcontext)
        monkeypatch.setattr(torch.cuda, "stream", nullcontext)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: current)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty"))


def test_the_recorder_begins_and_ends_graphs_of_one_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCUDA(monkeypatch)

    def run(cut: Cut) -> str:
        cuda.calls.append("run")
        cut()
        return "result"

    graphs, result = Recorder(torch.device("cuda")).record(run)
    assert (len(graphs), result) == (2, "result")
    assert cuda.calls == [
        "side waits", "run", "run", "run", "synchronize", "empty",
        "begin A in pool, thread_local", "run", "end A", "begin B in pool, thread_local", "end B", "current waits",
    ]  # fmt: skip


def test_what_failed_while_recording_is_told_and_not_that_the_recording_is_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda, runs = FakeCUDA(monkeypatch), list[int]()

    def run(cut: Cut) -> None:
        runs.append(1)
        if len(runs) > 3:
            cuda.fails.append(True)
            raise ValueError("this host waits for the GPU")

    with pytest.raises(ValueError, match="this host waits for the GPU"):
        Recorder(torch.device("cuda")).record(run)
    assert cuda.calls[-2:] == ["begin A in pool, thread_local", "end A"]


@pytest.mark.auto_engine
def test_torch_stands_in_for_what_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(choice.AUTO, "cpu", choice.AUTO["cuda"])
    engine, problem = opened(precision="float32")
    assert (engine.name, problem) == ("torch", "engine cudagraphs: the device is cpu, it needs cuda")


# A GPU that is not there


def test_a_frame_on_a_gpu_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's fake tensors claim to be on a GPU, and refuse to meet those on the CPU."""
    monkeypatch.setattr(compiled, "DEVICES", frozenset({"cpu", "cuda"}))
    gpu, network = torch.device("cuda:0"), video_cnn(flow_grid="first")
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            half = name.startswith("host") and value.is_floating_point()
            fake = torch.empty(value.shape, dtype=torch.float16 if half else value.dtype, device=gpu)
            owner, _, last = name.rpartition(".")
            module = network.get_submodule(owner)
            if last in module._parameters:
                module._parameters[last] = nn.Parameter(fake, requires_grad=False)
            else:
                module._buffers[last] = fake
        engine = TorchEngine(network, type(NORMALISATION)(*torch.empty(2, 1, 3, 1, 1, device=gpu)), gpu)
        frame = torch.empty(1, *SIZE, 3, dtype=torch.uint8, device=gpu).permute(0, 3, 1, 2)
        _, memory = engine(frame)
        scores, memory = engine(frame, torch.empty(1, 2, *SIZE, device=gpu), memory)
    assert scores.device == gpu and scores.dtype == torch.float16
    assert {z.device for z in (*memory.frames.values(), *memory.representations.values())} == {gpu}
