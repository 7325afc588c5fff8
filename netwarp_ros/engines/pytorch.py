# SPDX-License-Identifier: Apache-2.0
"""PyTorch: uncompiled, which runs everywhere and starts at once; and compiled by `torch.compile`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from netwarp_ros.engines.engine import EngineError, Normalisation
from netwarp_ros.engines.graph_engine import GraphEngine, RunGraph
from netwarp_ros.engines.graphs import export
from netwarp_ros.models.video_cnn import Flow, Memory, VideoCNN

CUDA_GRAPHS = "reduce-overhead"
COMPILE_MODES = ("none", "default", CUDA_GRAPHS)
"""No compilation, or a mode of `torch.compile`; the last one replays the graphs as CUDA graphs."""


class TorchEngine:
    """The network as PyTorch runs it, operation by operation.

    Args:
        network: The network; its host is in the type that it computes in, and channels-last.
        normalisation: That of the frames.
        device: Where the network is.
    """

    def __init__(self, network: VideoCNN, normalisation: Normalisation, device: torch.device) -> None:
        self.name, self.precision, self.device = "torch", host_precision(network), device
        self.normalisation, self._network = normalisation, network
        self._dtype = getattr(torch, self.precision)

    def __call__(self, frame: Tensor, flow: Flow | None = None, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        normalised = self.normalisation(frame).to(self._dtype, memory_format=torch.channels_last)
        return self._network(normalised, flow, memory)


class CompiledTorchEngine(GraphEngine):
    """The graphs compiled by `torch.compile`, each as a whole. This takes half a minute for each shape of frame.

    Args:
        network: See `TorchEngine`.
        normalisation: That of the frames.
        device: Where the network is.
        mode: One of `COMPILE_MODES`, except ``none``.

    Raises:
        EngineError: If the mode needs CUDA, and the device is another.
    """

    def __init__(self, network: VideoCNN, normalisation: Normalisation, device: torch.device, mode: str) -> None:
        super().__init__(network, normalisation, device)
        if mode == CUDA_GRAPHS and device.type != "cuda":
            raise EngineError(f"compile {CUDA_GRAPHS}: the device is {device}, and CUDA graphs need CUDA")
        self.name, self.precision, self._mode = f"torch, compiled ({mode})", host_precision(network), mode

    def compile(self, graph: nn.Module, inputs: Sequence[Tensor]) -> RunGraph:
        compiled = torch.compile(export(graph, inputs).module(), fullgraph=True, dynamic=False, mode=self._mode)
        if self._mode != CUDA_GRAPHS:
            return compiled

        def replay(*maps: Tensor) -> list[Tensor]:
            torch.compiler.cudagraph_mark_step_begin()
            return [result.clone() for result in compiled(*maps)]  # the next replay overwrites the results of this one

        return replay


def host_precision(network: VideoCNN) -> str:
    """Return the name of the type that a host computes in."""
    weight = next(network.host.parameters(), torch.empty(0))
    return str(weight.dtype).removeprefix("torch.")
