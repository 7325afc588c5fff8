# SPDX-License-Identifier: Apache-2.0
"""The warp operator beside what it replaces: a copy of the same tensor, `grid_sample`, and compiled `grid_sample`.

All of them run in one process and take turns, so that whatever disturbs the machine disturbs them alike; of each, the
median counts. Every one allocates its result. The grid that `grid_sample` wants is made beforehand and not timed. On
CUDA it has the type of the features, as it demands: in half precision its coordinates are not exact. On the CPU
`grid_sample` gets and gives float32, between two conversions: in bfloat16 it returns NaN, and its gradient is written
outside of its memory (PyTorch 2.13).

A large result costs more to allocate than to compute: on the CPU, the C library returns it to the system and gets it
back in pages that must be cleared. So there are two states of the memory. On the CPU, ``fresh`` is as PyTorch comes and
``kept`` tells the C library (glibc) to keep what is freed. On CUDA, ``cold`` writes over the second-level cache before
every run, and ``warm`` does not.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from netwarp_ros import ops

COPY, GRID_SAMPLE = "copy", "grid_sample"


@dataclass(frozen=True)
class Case:
    """What is warped.

    Attributes:
        name: Where in a network such features occur.
        shape: ``(B, C, H, W)``.
        dtype: Type of the features.
        layout: ``"contiguous"`` or ``"channels_last"``.
        flow_noise: Noise on the flow, in pixels; 0.05 is that of a good flow, and 5 leaves no neighbours together.
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
    """Return the paper's shape, with good and with bad flow, and those of the shipped models at 480x360."""
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    paper = (1, 1024, 128, 128)
    layouts = ("contiguous", "channels_last")
    return (
        [Case("paper", paper, dtype, layout) for dtype in (torch.float32, half) for layout in layouts]
        + [Case("paper, scattered", paper, torch.float32, layout, flow_noise=5.0) for layout in layouts]
        + [
            Case(name, shape, dtype, "channels_last")
            for name, shape in (("up8", (1, 128, 45, 60)), ("up4", (1, 64, 90, 120)), ("up2", (1, 32, 180, 240)))
            for dtype in (torch.float32, half)
        ]
    )


@dataclass(frozen=True)
class Result:
    """One implementation on one case.

    Attributes:
        case: What was warped.
        direction: ``"forward"``, or ``"backward"`` for the gradients of all inputs.
        memory: State of the memory, ``"fresh"``, ``"kept"``, ``"cold"`` or ``"warm"``.
        implementation: What was timed.
        time_ms: Median of all runs.
        bytes: What must be read and written at least.
        vs_copy: Its time divided by that of the copy.
        vs_grid_sample: How many times faster it is than what it replaces; None for the copy, which replaces nothing.
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
        cases: What to warp.
        device: Where.
        with_compiled: Also time `grid_sample` under ``torch.compile``, which compiles for up to a minute per case.
        seconds: How long a case may take in each state and direction; at least five rounds are run.

    Yields:
        The results, state by state and case by case.
    """
    states = ("cold", "warm") if device.type == "cuda" else ("fresh", "kept")
    # Compiled graphs are for one size each, which is the fastest that there is; PyTorch limits how many there may be.
    with torch._dynamo.config.patch(recompile_limit=max(8, len(cases))):
        graph = torch.compile(_sample_and_blend, dynamic=False) if with_compiled else None
        setups = [_Setup(case, device, graph) for case in cases]
        for state in states:  # what was kept once is never fresh again, so that all cases go through a state together
            before_each = _prepare_memory(state, device)
            for setup in setups:
                yield from _results(setup.case, "forward", state, setup.forward(), before_each, seconds, device)
                yield from _results(setup.case, "backward", state, setup.backward(), before_each, seconds, device)


class _Setup:
    """The tensors of a case, and what is done with them: for each implementation a call, and the maps it moves."""

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
    """A camera that moves ahead and turns: 3 % nearer, 1 degree about its axis, 2 pixels aside, and noise."""
    batch, _, height, width = case.shape
    x = torch.arange(width) - (width - 1) / 2
    y = (torch.arange(height) - (height - 1) / 2).unsqueeze(1)
    flow = torch.stack((2 - 0.03 * x - 0.017 * y, 0.017 * x - 0.03 * y))
    return flow + case.flow_noise * torch.randn(batch, *flow.shape, generator=source)


def _grid(flow: Tensor) -> Tensor:
    """The same places as ``flow`` as `grid_sample` wants them: from -1 at the first pixel's centre to 1 at the last."""
    _, _, height, width = flow.shape
    x = torch.arange(width, device=flow.device) + flow[:, 0]
    y = torch.arange(height, device=flow.device).unsqueeze(1) + flow[:, 1]
    return torch.stack((2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1), dim=-1)


def _results(
    case: Case,
    direction: str,
    state: str,
    calls: dict[str, tuple[Callable[[], object], int]],
    before_each: Callable[[], None],
    seconds: float,
    device: torch.device,
) -> Iterator[Result]:
    times = _times({name: call for name, (call, _) in calls.items()}, before_each, seconds, device)
    for name, (_, moved) in calls.items():
        replaced = GRID_SAMPLE if name in ("warp", GRID_SAMPLE) else "grid_sample + mul + add"
        yield Result(
            case,
            direction,
            state,
            name,
            times[name],
            moved * case.bytes,
            vs_copy=times[name] / times[COPY],
            vs_grid_sample=None if name == COPY else times[replaced] / times[name],
        )


def _times(
    calls: dict[str, Callable[[], object]], before_each: Callable[[], None], seconds: float, device: torch.device
) -> dict[str, float]:
    """Return the median time of each call in ms, where all take turns."""
    timed = _time_cuda if device.type == "cuda" else _time_cpu
    for call in calls.values():
        for _ in range(3):
            call()
    runs: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 5 or time.perf_counter() < end:
        for name, call in calls.items():
            before_each()
            runs[name].append(timed(call))
        rounds += 1
    return {name: statistics.median(taken) for name, taken in runs.items()}


def _time_cpu(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def _time_cuda(call: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _prepare_memory(state: str, device: torch.device) -> Callable[[], None]:
    """Bring the memory into a state, and return what must be called before every run to keep it there."""
    if state == "cold":
        cache = torch.empty(256 * 2**20, dtype=torch.int8, device=device)

        def overwrite() -> None:
            cache.zero_()

        return overwrite
    if state in ("fresh", "kept"):
        # Blocks of M_MMAP_THRESHOLD bytes and more go back to the system when they are freed. glibc raises it by itself
        # as far as 32 MiB, and M_TRIM_THRESHOLD to twice that; the numbers of both are from its malloc.h.
        trim_threshold, mmap_threshold = -1, -3
        limit = 2**25 if state == "fresh" else 2**30
        library = ctypes.CDLL(None)
        library.mallopt(mmap_threshold, limit)
        library.mallopt(trim_threshold, 2 * limit - 1)
    return lambda: None
