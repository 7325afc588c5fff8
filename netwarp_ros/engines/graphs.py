# SPDX-License-Identifier: Apache-2.0
"""A frame of a video CNN as plain graphs, without Python, for compilers and inference runtimes.

All warps depend on the memory and the flow, none on the present features. So a frame is: the flow graph, which
transforms the flow; our warp operator on each representation of the memory; and the step graph, the host with a blend
at each insertion layer. A first frame has no memory: its step graph is the host alone. No graph contains a warp, for
runtimes sample along a flow in other ways than ours (docs/architecture.md).

All maps go in and out as ``(B, h, w, C)``, which is how cameras, OpenCV and our operator on the CPU have them.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from netwarp_ros.engines.engine import Normalisation
from netwarp_ros.models.flow_cnn import FlowCNN
from netwarp_ros.models.netwarp import EPSILON
from netwarp_ros.models.outputs import class_scores
from netwarp_ros.models.video_cnn import Size, VideoCNN


class FrameGraph(nn.Module):
    """What the graphs have in common: the network, and the normalisation of the frame."""

    def __init__(self, network: VideoCNN, normalisation: Normalisation) -> None:
        super().__init__()
        self.network = network
        self.scale, self.shift = (nn.Buffer(values, persistent=False) for values in normalisation)

    @property
    def normalisation(self) -> Normalisation:
        """The normalisation of the frame."""
        return Normalisation(self.scale, self.shift)


class FlowGraph(FrameGraph):
    """Flow, frame, and the previous frame on the grids of Λ → the frame on these grids, and a flow for each layer.

    If the network has a gate, a gate for each layer follows. The flow is either one map of any size, or one on each of
    `VideoCNN.flow_grids`. Without Λ and a gate, it is all that the graph takes. For a first frame, all but the frame
    are zeros, and only the frame on the grids is of use.

    Args:
        network: The network.
        normalisation: That of the frame.
        frame: Size of the frame.
        sizes: Size of each insertion layer's output, in the order that the layers run in.
        on_grids: Whether it takes the flow on each grid.
    """

    def __init__(
        self,
        network: VideoCNN,
        normalisation: Normalisation,
        frame: Size,
        sizes: Mapping[str, Size],
        *,
        on_grids: bool,
    ) -> None:
        super().__init__(network, normalisation)
        self.frame, self.sizes = frame, sizes
        self.grids = network.flow_cnn_grids(frame, sizes)
        self._flow_grids = network.flow_grids(frame, sizes) if on_grids else ()

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        return self.run(maps)

    def run(
        self, maps: Sequence[Tensor], flow_cnn: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """Run the graph; ``flow_cnn`` computes Λ, by default in PyTorch."""
        count = len(self._flow_grids) or 1
        given, frames = list(map(to_planes, maps[:count])), maps[count:]
        present: dict[Size, Tensor] = {}
        if self.grids:  # the average of normalised pixels is the normalised average, and cheaper
            frame = to_planes(frames[0])
            averages = self.network.frames_for_flow(frame, self.sizes)
            normalise = self.normalisation.of_pixels
            present = averages if frame.is_floating_point() else {g: normalise(a) for g, a in averages.items()}
        previous = dict(zip(self.grids, map(to_planes, frames[1:]), strict=True))
        motion = dict(zip(self._flow_grids, given, strict=True)) if self._flow_grids else given[0]
        on_grids = self.network.flow_on_grids(motion, self.frame, self.sizes)
        flows, gates = self.network.transform_flow(on_grids, self.frame, present, previous, self.sizes, flow_cnn)
        return to_pixels(*present.values(), *(flows[name] + EPSILON for name in self.sizes), *gates.values())


class FlowCNNGraph(nn.Module):
    """Λ alone: flow, previous frame and frame on a grid → the transformed flow."""

    def __init__(self, flow_cnn: FlowCNN) -> None:
        super().__init__()
        self.flow_cnn = flow_cnn

    def forward(self, flow: Tensor, previous: Tensor, frame: Tensor) -> tuple[Tensor, ...]:
        return to_pixels(self.flow_cnn(*map(to_planes, (flow, previous, frame))))


class StepGraph(FrameGraph):
    """Frame, and warped representations → scores, and the representations for the memory.

    If the network has a gate, that of each layer follows the warped representations. Without these it is the graph of a
    first frame.

    Attributes:
        layers: Names of the representations, in their order: that in which the layers run. Known once it has run.
    """

    def __init__(self, network: VideoCNN, normalisation: Normalisation, layers: Sequence[str] = ()) -> None:
        super().__init__(network, normalisation)
        self.layers = tuple(layers)

    def forward(self, frame: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
        planes = self.normalisation(to_planes(frame))
        weight = next(self.network.host.parameters(), planes)
        count = len(self.layers)
        warped, gates = (
            dict(zip(self.layers, map(to_planes, part), strict=False)) for part in (maps[:count], maps[count:])
        )
        output, representations = self.network.step(planes.to(weight.dtype), warped or None, gates)
        self.layers = tuple(representations)
        return to_pixels(class_scores(output), *representations.values())


class FrameGraphs:
    """The graphs for frames of one shape, each with examples of its inputs.

    Args:
        network: The network.
        normalisation: That of the frames.
        frame: A frame ``(B, H, W, 3)`` of this shape and type. The host is run on it once, to learn the shapes.

    Attributes:
        frame: The frame.
        size: Its size.
        sizes: Size of each insertion layer's output, in the order that the layers run in.
        grids: The grids of Λ.
        no_flows: A flow of zeros on each of `VideoCNN.flow_grids`.
        no_frames: A frame of zeros on each grid of Λ.
    """

    def __init__(self, network: VideoCNN, normalisation: Normalisation, frame: Tensor) -> None:
        self._network, self._normalisation, self.frame = network, normalisation, frame
        graph, _ = self.first_graph()
        with torch.inference_mode():
            _, *self._representations = graph(frame)
        self.size: Size = (frame.shape[1], frame.shape[2])
        self.sizes: dict[str, Size] = {
            name: (z.shape[1], z.shape[2]) for name, z in zip(graph.layers, self._representations, strict=True)
        }
        self.grids = network.flow_cnn_grids(self.size, self.sizes)
        self.no_flows = [self.no_map(grid, 2) for grid in network.flow_grids(self.size, self.sizes)]
        self.no_frames = [self.no_map(grid, 3) for grid in self.grids]

    def no_map(self, size: Size, channels: int) -> Tensor:
        """Return zeros ``(B, h, w, channels)``."""
        return torch.zeros(self.frame.shape[0], *size, channels, device=self.frame.device)

    def first_graph(self) -> tuple[StepGraph, list[Tensor]]:
        """Return the step graph of a first frame."""
        return StepGraph(self._network, self._normalisation), [self.frame]

    def flow_graph(self, flow: Size | None = None) -> tuple[FlowGraph, list[Tensor]]:
        """Return the flow graph, for a flow of this size; without a size, for a flow on each grid."""
        graph = FlowGraph(self._network, self._normalisation, self.size, self.sizes, on_grids=flow is None)
        flows = self.no_flows if flow is None else [self.no_map(flow, 2)]
        return graph, [*flows, *([self.frame, *self.no_frames] if self.grids else [])]

    def step_graph(self) -> tuple[StepGraph, list[Tensor]]:
        """Return the step graph of further frames."""
        graph = StepGraph(self._network, self._normalisation, tuple(self.sizes))
        gates = [self.no_map(size, 1) for size in self.sizes.values()] if self._network.gate is not None else []
        return graph, [self.frame, *self._representations, *gates]


def to_planes(pixels: Tensor) -> Tensor:
    """View ``(B, h, w, C)`` as ``(B, C, h, w)``."""
    return pixels.permute(0, 3, 1, 2)


def to_pixels(*maps: Tensor) -> tuple[Tensor, ...]:
    """View maps ``(B, C, h, w)`` as ``(B, h, w, C)``; a view is dense if the map is channels-last."""
    return tuple(features.permute(0, 2, 3, 1) for features in maps)


@contextmanager
def forgetting_sources() -> Iterator[None]:
    """Context manager and decorator for the conversion of a graph that is not run by PyTorch.

    PyTorch writes Python code for a graph each time that it changes it, and keeps all code for tracebacks until the
    process ends: 4 MB for the graphs of one frame shape. This forgets what was written meanwhile.
    """
    sources: dict[str, str] = getattr(getattr(fx.graph_module, "_loader", None), "eval_cache", {})
    before = set(sources)
    try:
        yield
    finally:
        for name in set(sources) - before:
            del sources[name]
            linecache.cache.pop(name, None)


def export(graph: nn.Module, inputs: Sequence[Tensor], *, dynamic: bool = False) -> torch.export.ExportedProgram:
    """Export a graph with its weights by `torch.export`.

    Args:
        graph: The graph.
        inputs: Inputs of the shapes and types that it is exported for.
        dynamic: Whether batch, height and width of all inputs may differ from those of ``inputs``, each of which must
            be > 1; for a `StepGraph`.
    """
    shapes: dict[str, Any] | None = None
    if dynamic:
        sizes = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
        assert isinstance(graph, StepGraph) and inputs[0].shape[0] > 1  # a batch of 1 would be taken as a constant
        shapes = {"frame": sizes, **({"maps": tuple(sizes for _ in inputs[1:])} if inputs[1:] else {})}
    with torch.inference_mode(False), torch.no_grad():
        examples = tuple(torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in inputs)
        return torch.export.export(graph.eval(), examples, dynamic_shapes=shapes, strict=False)
