# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs: what the CPU launches for a frame is recorded once; later frames need two launches instead of hundreds.

If the GPU estimates the flow (`FlowOnDevice`), a frame is one graph: flow, Λ, blends, host, classes. Otherwise it has
two. The first one holds what comes before the first insertion layer; the GPU runs it while the CPU estimates the flow,
which the second one needs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from netwarp_ros.engines.engine import Engine, FlowOnDevice
from netwarp_ros.engines.latest import Latest
from netwarp_ros.models.video_cnn import Flow, GridFlows, Memory, VideoCNN, computed_flow, map_size, map_sizes
from netwarp_ros.ops import resize_argmax

T = TypeVar("T")

Cut = Callable[[], None]
"""Ends a graph and begins the next one."""

_WARM_UP = 3
"""How often a frame is run before it is recorded: libraries allocate and choose kernels in the first runs."""


class TorchFrames(Engine, Protocol):
    """An engine whose frames can be recorded: it does all its work on the current stream, and never waits for it.

    Attributes:
        network: The network.
        flow_comes_first: Whether it needs the flow before it runs anything.
    """

    network: VideoCNN
    flow_comes_first: bool

    def constants(self, frame: Tensor) -> object:
        """Return what frames of this shape read besides their inputs and the network's weights."""
        ...


class CUDAGraphEngine(Engine):
    """Replays the frames of another engine, recorded for each shape of frame when it first occurs.

    Args:
        engine: That engine, on a GPU.
    """

    def __init__(self, engine: TorchFrames) -> None:
        self.name, self.precision, self.device = f"{engine.name}, CUDA graphs", engine.precision, engine.device
        self.normalisation, self._engine = engine.normalisation, engine
        self._recorder = Recorder(engine.device)
        self._recordings: Latest[dict[Hashable, _Recording]] = Latest()  # of each shape of frame

    @torch.inference_mode()
    def __call__(self, frame: Tensor, flow: Flow | None = None, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        scores, _, memory = self._replay(frame, flow, memory)
        return scores.clone(), memory

    @torch.inference_mode()
    def segment(self, frame: Tensor, flow: Flow | None = None, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        _, classes, memory = self._replay(frame, flow, memory)
        return classes.clone(), memory

    def _replay(self, frame: Tensor, flow: Flow | None, memory: Memory | None) -> tuple[Tensor, Tensor, Memory]:
        """Return scores and classes, which the next replay writes to again, and the memory."""
        network = self._engine.network
        network.check(frame, flow, memory)
        if not network.layers:  # a host alone blends nothing
            memory = None
        moving = flow if isinstance(flow, FlowOnDevice) and memory is not None else None
        recordings = self._recordings.get((*frame.shape, frame.dtype), dict)
        key = memory is None, moving and (moving.key, *(tuple(each.shape) for each in moving.before))
        if key not in recordings:
            recordings[key] = _Recording(self._engine, self._recorder, frame, memory, moving)
        return recordings[key].replay(frame, flow, memory)


class _Recording:
    """A recorded frame, with or without memory. All tensors of a graph have fixed places: inputs are copied to theirs.

    Args:
        engine: What computes the frame.
        recorder: Records it.
        frame: A frame of this shape.
        memory: A memory for it, or None for a first frame.
        moving: Its flow, if that is recorded with it.
    """

    def __init__(
        self,
        engine: TorchFrames,
        recorder: Recorder,
        frame: Tensor,
        memory: Memory | None,
        moving: FlowOnDevice | None,
    ) -> None:
        self._network, self._device, self._moves = engine.network, engine.device, moving is not None
        self._frame = torch.zeros_like(frame)
        self._memory = None if memory is None else _new_memory(memory, torch.zeros_like)
        self._sizes = {} if memory is None else map_sizes(memory.representations)
        self._flows: GridFlows = {}
        self._before = () if moving is None else tuple(torch.zeros_like(each) for each in moving.before)
        if memory is not None and moving is None:
            grids = self._network.flow_grids(map_size(frame), self._sizes)
            self._flows = {grid: frame.new_zeros((frame.shape[0], 2, *grid), dtype=torch.float32) for grid in grids}

        def run(cut: Cut) -> tuple[Tensor, Tensor, Memory, tuple[Tensor, ...]]:
            kept: tuple[Tensor, ...] = ()

            def flows() -> Tensor | GridFlows:
                nonlocal kept
                if moving is not None:
                    estimated, kept = moving.compute(self._frame, self._before)
                    return estimated
                if not engine.flow_comes_first:
                    cut()
                return self._flows

            scores, memory = engine(self._frame, flows, self._memory)
            return scores, resize_argmax(scores, map_size(frame)), memory, kept

        graphs, (self._scores, self._classes, self._next, self._kept) = recorder.record(run)
        self._constants = engine.constants(frame)  # lives as long as the graphs, which read it
        self._before_flow, self._behind_flow = graphs[:-1], graphs[-1]

    def replay(self, frame: Tensor, flow: Flow | None, memory: Memory | None) -> tuple[Tensor, Tensor, Memory]:
        """Compute a frame: scores and classes, which the next replay writes to again, and a memory that is new."""
        self._frame.copy_(frame)
        if memory is not None and self._memory is not None:
            _copy(memory.frames, self._memory.frames)
            _copy(memory.representations, self._memory.representations)
        if self._moves:
            assert isinstance(flow, FlowOnDevice)
            for source, target in zip(flow.before, self._before, strict=True):
                target.copy_(source)
        for graph in self._before_flow:
            graph.replay()
        if self._flows:
            motion = computed_flow(flow, frame)
            _copy(self._network.flow_on_grids(motion, map_size(frame), self._sizes, self._device), self._flows)
        self._behind_flow.replay()
        if self._moves:
            assert isinstance(flow, FlowOnDevice)
            flow.kept = tuple(each.clone() for each in self._kept)
        return self._scores, self._classes, _new_memory(self._next, torch.clone)


class Recorder:
    """Records as CUDA graphs what is launched. The graphs share a pool of memory.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[Cut], T]) -> tuple[list[torch.cuda.CUDAGraph], T]:
        """Record a run.

        Args:
            run: What to record. It may end a graph, and begin the next one, at any place.

        Returns:
            The graphs in their order, and what the recorded run returned; replaying all of them fills its tensors.
        """
        graphs: list[torch.cuda.CUDAGraph] = []

        def begin() -> None:
            graphs.append(torch.cuda.CUDAGraph())
            # The executor's thread may ask for the free memory meanwhile.
            graphs[-1].capture_begin(pool=self._pool, capture_error_mode="thread_local")

        def cut() -> None:
            graphs[-1].capture_end()
            begin()

        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP):
                run(lambda: None)
            self._stream.synchronize()
            torch.cuda.empty_cache()  # what the runs have used is of no use to the graphs, which have their own pool
            begin()
            try:
                result = run(cut)
            except BaseException:
                with suppress(RuntimeError):  # it says that the recording is broken, not why
                    graphs[-1].capture_end()
                raise
            graphs[-1].capture_end()
        current.wait_stream(self._stream)
        return graphs, result


def _new_memory(memory: Memory, make: Callable[[Tensor], Tensor]) -> Memory:
    """Return a memory of other tensors, made of those of a memory."""

    def made(maps: Mapping[T, Tensor]) -> dict[T, Tensor]:
        return {key: make(value) for key, value in maps.items()}

    return Memory(memory.shape, made(memory.frames), made(memory.representations))


def _copy(sources: Mapping[T, Tensor], targets: Mapping[T, Tensor]) -> None:
    for key, target in targets.items():
        target.copy_(sources[key])
