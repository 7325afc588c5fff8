# SPDX-License-Identifier: Apache-2.0
"""What all engines that run graphs have in common: which graphs there are, and how they make a frame."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from netwarp_ros import ops
from netwarp_ros.engines.cache import GraphCache
from netwarp_ros.engines.engine import Engine, Normalisation
from netwarp_ros.engines.graphs import FlowCNNGraph, FlowGraph, FrameGraphs, to_pixels, to_planes
from netwarp_ros.engines.latest import Latest
from netwarp_ros.models.video_cnn import Flow, Memory, Size, VideoCNN, computed_flow, map_size

RunGraph = Callable[..., Sequence[Tensor]]
"""A compiled graph. It takes and returns dense maps ``(B, h, w, C)``; what it returns is new memory each time."""


class GraphEngine(Engine, ABC):
    """An engine that runs the graphs of `netwarp_ros.engines.graphs`, and our warp operator between them.

    The graphs are compiled for each shape of frame when it first occurs.

    Args:
        network: The network, in evaluation mode, in the type and on the device that the graphs are exported with.
        normalisation: That of the frames.
        device: Where frames and memory are.
        cache: Folder for what the engine makes of the graphs.
    """

    name: str
    precision: str

    def __init__(
        self, network: VideoCNN, normalisation: Normalisation, device: torch.device, cache: Path | None = None
    ) -> None:
        self.network, self.normalisation, self.device = network, normalisation, device
        self._cache = GraphCache(cache)
        self._shapes: Latest[CompiledGraphs] = Latest()

    @abstractmethod
    def compile(self, graph: nn.Module, inputs: Sequence[Tensor]) -> RunGraph:
        """Compile a graph for inputs of these shapes and types.

        Raises:
            EngineError: If that is not possible.
        """

    def compile_flow(self, graph: FlowGraph, inputs: Sequence[Tensor]) -> RunGraph:
        """Compile the flow graph; as a whole, unless an engine knows better."""
        return self.compile(graph, inputs)

    def __call__(self, frame: Tensor, flow: Flow | None = None, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        self.network.check(frame, flow, memory)
        graphs = self.graphs(frame)
        (pixels,) = to_pixels(frame.contiguous(memory_format=torch.channels_last))
        if memory is None or not graphs.sizes:  # a host alone blends nothing
            maps = graphs.flow(*graphs.no_flows, pixels, *graphs.no_frames) if graphs.grids else ()
            scores, *representations = graphs.first(pixels)
        else:
            motion = self.network.flow_on_grids(computed_flow(flow, frame), graphs.size, graphs.sizes, self.device)
            on_grids = to_pixels(*(along.contiguous(memory_format=torch.channels_last) for along in motion.values()))
            previous = to_pixels(*(memory.frames[grid] for grid in graphs.grids))
            maps = graphs.flow(*on_grids, pixels, *previous) if previous else graphs.flow(*on_grids)
            count, along = len(graphs.sizes), maps[len(graphs.grids) :]
            warped = [
                ops.warp(memory.representations[name], flow)
                for name, flow in zip(graphs.sizes, map(to_planes, along[:count]), strict=True)
            ]
            scores, *representations = graphs.step(pixels, *to_pixels(*warped), *along[count:])
        return to_planes(scores), Memory(
            tuple(frame.shape),
            {grid: to_planes(small) for grid, small in zip(graphs.grids, maps, strict=False)},
            {name: to_planes(z) for name, z in zip(graphs.sizes, representations, strict=True)},
        )

    def graphs(self, frame: Tensor) -> CompiledGraphs:
        """Return the graphs for frames of this shape and type."""
        return self._shapes.get((*frame.shape, frame.dtype), lambda: CompiledGraphs(self, frame))


class CPUGraphEngine(GraphEngine):
    """A `GraphEngine` on the CPU: the runtime computes Λ, and PyTorch the averages and scalings around it.

    PyTorch does them in 0.4 ms on a frame of 480x360. As parts of a graph they take 2 ms: runtimes have no fast kernels
    for maps of two or three channels.
    """

    def compile_flow(self, graph: FlowGraph, inputs: Sequence[Tensor]) -> RunGraph:
        compiled: dict[Size, RunGraph] = {}
        if (flow_cnn := graph.network.flow_cnn) is not None:
            for grid, frame in zip(graph.grids, inputs[len(graph.grids) + 1 :], strict=True):
                flow = frame.new_zeros((*frame.shape[:3], 2))
                compiled[grid] = self.compile(FlowCNNGraph(flow_cnn), [flow, frame, frame])

        def transform(*maps: Tensor) -> Tensor:
            dense = (features.contiguous(memory_format=torch.channels_last) for features in maps)
            (result,) = compiled[map_size(maps[0])](*to_pixels(*dense))
            return to_planes(result)

        return lambda *maps: graph.run(maps, transform if compiled else None)


class CompiledGraphs(FrameGraphs):
    """The graphs for frames of one shape, compiled when they are first needed: a host alone needs one.

    Args:
        engine: The engine that compiles them.
        frame: A frame ``(B, 3, H, W)`` of this shape and type.
    """

    def __init__(self, engine: GraphEngine, frame: Tensor) -> None:
        self._engine = engine
        (pixels,) = to_pixels(torch.zeros_like(frame, memory_format=torch.channels_last))
        super().__init__(engine.network, engine.normalisation, pixels)

    @cached_property
    def first(self) -> RunGraph:
        return self._engine.compile(*self.first_graph())

    @cached_property
    def flow(self) -> RunGraph:
        return self._engine.compile_flow(*self.flow_graph())

    @cached_property
    def step(self) -> RunGraph:
        return self._engine.compile(*self.step_graph())
