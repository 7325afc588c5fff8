# SPDX-License-Identifier: Apache-2.0
"""PyTorch: uncompiled, which runs everywhere and starts at once; and compiled by `torch.compile`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from netwarp_ros.engines.engine import Engine, Normalisation
from netwarp_ros.engines.graph_engine import GraphEngine, RunGraph
from netwarp_ros.engines.graphs import export
from netwarp_ros.models.float32 import full_float32
from netwarp_ros.models.outputs import class_scores
from netwarp_ros.models.video_cnn import Flow, Memory, VideoCNN

CUDA_GRAPHS = "reduce-overhead"
COMPILE_MODES = ("none", "default", CUDA_GRAPHS)
"""No compilation; by `torch.compile`; or that, and frames are replayed as CUDA graphs."""


class TorchEngine(Engine):
    """The network as PyTorch runs it, operation by operation.

    Args:
        network: The network; its host is in the type that it computes in, and channels-last.
        normalisation: That of the frames.
        device: Where the network is.
    """

    flow_comes_first = False

    def __init__(self, network: VideoCNN, normalisation: Normalisation, device: torch.device) -> None:
        self.name, self.precision, self.device = "torch", host_precision(network), device
        self.normalisation, self.network = normalisation, network
        self._dtype = getattr(torch, self.precision)

    @full_float32()
    def __call__(self, frame: Tensor, flow: Flow | None = None, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        normalised = self.normalisation(frame).to(self._dtype, memory_format=torch.channels_last)
        output, memory = self.network(normalised, flow, memory)
        return class_scores(output), memory

    def constants(self, frame: Tensor) -> object:
        """Return what frames of this shape read besides inputs and weights: nothing."""
        return None


class CompiledTorchEngine(GraphEngine):
    """The graphs compiled by `torch.compile`, each as a whole. This takes half a minute for each shape of frame.

    Args:
        network: See `TorchEngine`.
        normalisation: That of the frames.
        device: Where the network is.
    """

    name = "torch, compiled"
    flow_comes_first = True

    def __init__(self, network: VideoCNN, normalisation: Normalisation, device: torch.device) -> None:
        super().__init__(network, normalisation, device)
        self.precision = host_precision(network)

    @full_float32()
    def __call__(self, frame: Tensor, flow: Flow | None = None, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        return super().__call__(frame, flow, memory)

    def compile(self, graph: nn.Module, inputs: Sequence[Tensor]) -> RunGraph:
        compiled: RunGraph = torch.compile(export(graph, inputs).module(), fullgraph=True, dynamic=False)
        return compiled

    def constants(self, frame: Tensor) -> object:
        """Return what frames of this shape read besides inputs and weights: their graphs hold constants."""
        return self.graphs(frame)


def host_precision(network: VideoCNN) -> str:
    """Return the name of the type that a host computes in."""
    weight = next(network.host.parameters(), torch.empty(0))
    return str(weight.dtype).removeprefix("torch.")
