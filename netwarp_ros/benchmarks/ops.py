# SPDX-License-Identifier: Apache-2.0
"""The warp operator timed beside a copy of the same tensor, `grid_sample`, and compiled `grid_sample`.

All implementations run in one process and alternate, so that other load on the machine slows them down alike. The
median of each is reported. On one CPU thread (``OMP_NUM_THREADS=1``), CPU time is measured: other programs add little
to it. Each allocates its result. The grid of `grid_sample` is computed beforehand and not timed.

In half precision, the grid must have the type of the features on CUDA, so its coordinates are not exact. On the CPU,
features are converted to float32 and the result back, because `grid_sample` returns NaN in bfloat16, and its gradient
writes outside its memory (PyTorch 2.13).

Allocating a large result takes longer than computing it: the C library returns freed memory to the system, and new
pages must be cleared. So each is timed in two states of the memory. On the CPU, ``fresh`` is PyTorch's default, and
``kept`` tells glibc to keep freed memory. On CUDA, ``cold`` fills the L2 cache with other data before each run, by
reading, so that no line has to be written back during the run; ``warm`` repeats the call.

On CUDA, the time of the kernels is measured, not that of Python: the calls are recorded as a CUDA graph, and the GPU is
busy while the replay is launched.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from netwarp_ros import ops

COPY, GRID_SAMPLE = "copy", "grid_sample"


@dataclass(frozen=True)
class Case:
    """Features to warp.

    Attributes:
        name: The paper, or the layer of a shipped model that has such features.
        shape: ``(B, C, H, W)``.
        dtype: Type of the features.
        layout: ``"contiguous"`` or ``"channels_last"``.
        flow_noise: Standard deviation of the noise on the flow, in pixels: 0.05 as in a good flow; at 5, neighbouring
            pixels read memory far apart.
    """

    name: str
    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    layout: str
    flow_noise: float = 0.05

    @property
    def bytes(self) -> int:
        """Size of one feature map."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def standard_cases(device: torch.device) -> list[Case]:
    """Return the paper's shape, with little and with much noise on the flow, a small one, and those of shipped models.

    The images are 640x512 for the small one and 480x360 for the shipped models.
    """
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    paper = (1, 1024, 128, 128)
    layouts = ("contiguous", "channels_last")
    return (
        [Case("paper", paper, dtype, layout) for dtype in (torch.float32, half) for layout in layouts]
        + [Case("paper, scattered", paper, torch.float32, layout, flow_noise=5.0) for layout in layouts]
        + [Case("small", (1, 128, 64, 80), torch.float32, layout) for layout in layouts]
        + [
            Case(name, shape, dtype, "channels_last")
            for name, shape in (("up8", (1, 128, 45, 60)), ("up4", (1, 64, 90, 120)), ("up2", (1, 32, 180, 240)))
            for dtype in (torch.float32, half)
        ]
    )


@dataclass(frozen=True)
class Result:
    """Time of one implementation on one case.

    Attributes:
        case: The features.
        direction: ``"forward"``, or ``"backward"`` for the gradients of all inputs.
        memory: State of the memory: ``"fresh"``, ``"kept"``, ``"cold"`` or ``"warm"``.
        implementation: Name of the implementation.
        time_ms: Median of all runs.
        bytes: Least number of bytes to read and write.
        vs_copy: Time divided by the time of the copy.
        vs_grid_sample: Time of `grid_sample` (with multiplication and addition for `warp_combine`) divided by this
            time; None for the copy.
    """

    case: Case
    direction: str
    memory: str
    implementation: str
    time_ms: float
    bytes: int
    vs_copy: float
    vs_grid_sample: float | None

    def to_json(self) -> dict[str, Any]:
        return {
            "case": self.case.name,
            "shape": list(self.case.shape),
            "dtype": str(self.case.dtype).removeprefix("torch."),
            "layout": self.case.layout,
            "direction": self.direction,
            "memory": self.memory,
            "implementation": self.implementation,
            "time_ms": self.time_ms,
            "bytes": self.bytes,
            "gb_s": self.bytes / self.time_ms / 1e6,
            "vs_copy": self.vs_copy,
            "vs_grid_sample": self.vs_grid_sample,
        }


def run(
    cases: Sequence[Case], device: torch.device, *, with_compiled: bool = True, seconds: float = 1.0
) -> Iterator[Result]:
    """Time all implementations on every case.

    Args:
        cases: Features to warp.
        device: Device to run on.
        with_compiled: Also time `grid_sample` under ``torch.compile``, which compiles for up to a minute per case.
        seconds: Duration for each case, direction and state of the memory; at least five rounds are run.

    Yields:
        The results: all cases in the first state of the memory, then all in the second.
    """
    states = ("cold", "warm") if device.type == "cuda" else ("fresh", "kept")
    # A graph compiled for a fixed size is the fastest; PyTorch limits the number of such graphs.
    with torch._dynamo.config.patch(recompile_limit=max(8, len(cases))):
        graph = torch.compile(_sample_and_blend, dynamic=False) if with_compiled else None
        setups = [_Setup(case, device, graph) for case in cases]
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        for state in states:  # memory that glibc has kept is never fresh again, so all cases run fresh first
            with _on(stream):
                before_each = _prepare_memory(state, device)
            for setup in setups:
                for direction in ("forward", "backward"):
                    with _on(stream):
                        results = _results(setup, direction, state, before_each, seconds, device)
                    yield from results


class _Setup:
    """The tensors of a case, and the calls to time.

    `forward` and `backward` return for each implementation a call, and the number of feature maps that it must move.
    """

    def __init__(self, case: Case, device: torch.device, graph: Callable[..., Tensor] | None) -> None:
        self.case, self.graph = case, graph
        source = torch.Generator().manual_seed(0)
        memory_format = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format

        def features() -> Tensor:
            values = torch.randn(case.shape, generator=source)
            return values.to(device, case.dtype).contiguous(memory_format=memory_format)

        self.present, self.previous, self.grad = features(), features(), features()
        self.flow = _flow(case, source).to(device)
        self.grid = _grid(self.flow).to(case.dtype if device.type == "cuda" else torch.float32)
        self.w1, self.w2 = torch.rand(2, case.shape[1], generator=source).to(device)

    def forward(self) -> dict[str, tuple[Callable[[], object], int]]:
        weights = [w.to(self.present.dtype).view(1, -1, 1, 1) for w in (self.w1, self.w2)]
        maps = (self.present, self.previous, self.grid, *weights)
        calls: dict[str, tuple[Callable[[], object], int]] = {
            COPY: (self.previous.clone, 2),
            "warp": (lambda: ops.warp(self.previous, self.flow), 2),
            GRID_SAMPLE: (lambda: _sample(self.previous, self.grid), 2),
            "warp_combine": (lambda: ops.warp_combine(self.present, self.previous, self.flow, self.w1, self.w2), 3),
            "grid_sample + mul + add": (lambda: _sample_and_blend(*maps), 3),
        }
        if graph := self.graph:
            calls["grid_sample + mul + add, compiled"] = (lambda: graph(*maps), 3)
        return {name: (torch.inference_mode()(call), moved) for name, (call, moved) in calls.items()}

    def backward(self) -> dict[str, tuple[Callable[[], object], int]]:
        def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], object]:
            leaves = [tensor.detach().requires_grad_() for tensor in inputs]
            output = function(*leaves)
            return lambda: torch.autograd.grad(output, leaves, self.grad, retain_graph=True)

        weights = [w.to(self.present.dtype).view(1, -1, 1, 1) for w in (self.w1, self.w2)]
        return {
            COPY: (self.previous.clone, 2),
            "warp": (gradients(ops.warp, self.previous, self.flow), 3),
            GRID_SAMPLE: (gradients(_sample, self.previous, self.grid), 3),
            "warp_combine": (
                gradients(ops.warp_combine, self.present, self.previous, self.flow, self.w1, self.w2),
                5,
            ),
            "grid_sample + mul + add": (
                gradients(_sample_and_blend, self.present, self.previous, self.grid, *weights),
                5,
            ),
        }


def _sample(features: Tensor, grid: Tensor) -> Tensor:
    sampled = F.grid_sample(features.to(grid.dtype), grid, mode="bilinear", padding_mode="border", align_corners=True)
    return sampled.to(features.dtype)


def _sample_and_blend(present: Tensor, previous: Tensor, grid: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    return w1 * present + w2 * _sample(previous, grid)


def _flow(case: Case, source: torch.Generator) -> Tensor:
    """Return the flow of a moving camera: 3 % zoom, 1 degree of roll, a shift by 2 pixels, and noise."""
    batch, _, height, width = case.shape
    x = torch.arange(width) - (width - 1) / 2
    y = (torch.arange(height) - (height - 1) / 2).unsqueeze(1)
    flow = torch.stack((2 - 0.03 * x - 0.017 * y, 0.017 * x - 0.03 * y))
    return flow + case.flow_noise * torch.randn(batch, *flow.shape, generator=source)


def _grid(flow: Tensor) -> Tensor:
    """Convert a flow to the grid of `grid_sample`: -1 is the center of the first pixel, 1 that of the last."""
    _, _, height, width = flow.shape
    x = torch.arange(width, device=flow.device) + flow[:, 0]
    y = torch.arange(height, device=flow.device).unsqueeze(1) + flow[:, 1]
    return torch.stack((2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1), dim=-1)


def _on(stream: torch.cuda.Stream | None) -> AbstractContextManager[Any]:
    """Run on a stream of the device to measure. Gradients are computed on the stream of the forward pass."""
    return torch.cuda.stream(stream) if stream else nullcontext()


def _results(
    setup: _Setup, direction: str, state: str, before_each: Callable[[], None], seconds: float, device: torch.device
) -> list[Result]:
    calls, case = setup.forward() if direction == "forward" else setup.backward(), setup.case
    repeats = _WARM_REPEATS if state == "warm" else 1
    times = _times({name: call for name, (call, _) in calls.items()}, before_each, repeats, seconds, device)
    results = []
    for name, (_, moved) in calls.items():
        replaced = GRID_SAMPLE if name in ("warp", GRID_SAMPLE) else "grid_sample + mul + add"
        vs_grid_sample = None if name == COPY else times[replaced] / times[name]
        vs_copy = times[name] / times[COPY]
        results.append(Result(case, direction, state, name, times[name], moved * case.bytes, vs_copy, vs_grid_sample))
    return results


def _times(
    calls: dict[str, Callable[[], object]],
    before_each: Callable[[], None],
    repeats: int,
    seconds: float,
    device: torch.device,
) -> dict[str, float]:
    """Time all calls alternately; return the median of each in ms."""
    for call in calls.values():
        for _ in range(3):
            call()
    timers = {
        name: _time_cuda(call, before_each, repeats) if device.type == "cuda" else _time_cpu(call, before_each)
        for name, call in calls.items()
    }
    runs: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 5 or time.perf_counter() < end:
        for name, timer in timers.items():
            runs[name].append(timer())
        rounds += 1
    return {name: statistics.median(taken) for name, taken in runs.items()}


def _time_cpu(call: Callable[[], object], before_each: Callable[[], None]) -> Callable[[], float]:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

    def timer() -> float:
        before_each()
        start = clock()
        call()
        return 1e3 * (clock() - start)

    return timer


def _time_cuda(call: Callable[[], object], before_each: Callable[[], None], repeats: int) -> Callable[[], float]:
    """Record a call as a CUDA graph on the current stream; return a function that times its replay."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        for _ in range(repeats):
            call()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def timer() -> float:
        before_each()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / repeats

    return timer


_WARM_REPEATS = 20
_LAUNCH_CYCLES = 200_000  # about 0.1 ms: the GPU is busy for longer than the CPU needs to launch a replay


def _prepare_memory(state: str, device: torch.device) -> Callable[[], None]:
    """Bring the memory into a state; return a function that restores the state before each run."""
    if state == "cold":
        other = torch.ones(2**26, device=device)  # 256 MiB, several times the largest L2 cache

        def fill_cache() -> None:
            other.amax()

        return fill_cache
    if state == "warm":
        return lambda: torch.cuda._sleep(_LAUNCH_CYCLES)
    # glibc returns freed blocks to the system from M_MMAP_THRESHOLD bytes on. By default it raises this threshold up to
    # 32 MiB, and M_TRIM_THRESHOLD to twice as much. The numbers of the two are those of malloc.h.
    trim_threshold, mmap_threshold = -1, -3
    limit = 2**25 if state == "fresh" else 2**30
    library = ctypes.CDLL(None)
    library.mallopt(mmap_threshold, limit)
    library.mallopt(trim_threshold, 2 * limit - 1)
    return lambda: None
