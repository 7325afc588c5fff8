# SPDX-License-Identifier: Apache-2.0
"""OpenVINO: the fastest engine on CPUs. It takes the graphs from PyTorch's export, without ONNX."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netwarp_ros.engines.bfloat16 import onednn_limit
from netwarp_ros.engines.engine import EngineError, Normalisation
from netwarp_ros.engines.graph_engine import CPUGraphEngine, RunGraph
from netwarp_ros.engines.graphs import FlowCNNGraph, StepGraph, export, forgetting_sources
from netwarp_ros.engines.int8 import Int8Graphs, StepIR, open_step_graph
from netwarp_ros.models import openvino_runtime
from netwarp_ros.models.openvino_runtime import core
from netwarp_ros.models.video_cnn import VideoCNN

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
"""Types that OpenVINO computes in what is not quantized."""


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry, see `netwarp_ros.models.openvino_runtime`.

    Raises:
        EngineError: If OpenVINO cannot be imported.
    """
    try:
        return openvino_runtime.import_openvino()
    except ImportError as error:
        raise EngineError(f"engine openvino: {error}") from error


@forgetting_sources()
def convert(graph: nn.Module, inputs: Sequence[Tensor], *, dynamic: bool = False) -> Any:
    """Return a graph as OpenVINO's model, for inputs of these shapes and types; ``dynamic`` is that of `export`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PyTorch, about its own export
        model = import_openvino().convert_model(export(graph, inputs, dynamic=dynamic))
    if not dynamic:
        model.reshape({index: list(example.shape) for index, example in enumerate(inputs)})
    return model


def serialise(model: Any) -> StepIR:
    """Return the files of a model of OpenVINO."""
    with tempfile.TemporaryDirectory(prefix="netwarp-") as folder:
        xml, binary = Path(folder) / "graph.xml", Path(folder) / "graph.bin"
        import_openvino().serialize(model, xml, binary)
        return StepIR(xml.read_bytes(), binary.read_bytes())


class OpenVINOEngine(CPUGraphEngine):
    """OpenVINO on the CPU.

    Args:
        network: The network, float32, on the CPU.
        normalisation: That of the frames.
        precision: ``float32``, ``bfloat16``, or ``int8``, in which flow is computed in float32.
        threads: Number of threads; 0 for one on each core that the process may use.
        int8: The int8 graphs of the model; needed by ``int8``.
        cache: Folder for the graphs.
    """

    name = "openvino"

    def __init__(
        self,
        network: VideoCNN,
        normalisation: Normalisation,
        precision: str,
        threads: int,
        int8: Int8Graphs | None = None,
        cache: Path | None = None,
    ) -> None:
        super().__init__(network, normalisation, torch.device("cpu"), cache)
        openvino = import_openvino()
        if precision not in _PRECISIONS:
            raise EngineError(f"engine openvino: precision is {precision}, it has {', '.join(_PRECISIONS)}")
        if precision == "bfloat16" and onednn_limit():
            raise EngineError(f"engine openvino: precision is bfloat16, which {onednn_limit()} rules out: use float32")
        self.precision, self._int8 = precision, int8 if precision == "int8" else None
        self._openvino, self._core = openvino, core()
        self._options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
        if threads:
            self._options["INFERENCE_NUM_THREADS"] = threads

    def compile(self, graph: nn.Module, inputs: Sequence[Tensor]) -> RunGraph:
        # Flow is always computed in float32: half precision would lose fractions of a pixel.
        precision = "float32" if isinstance(graph, FlowCNNGraph) else self.precision
        options = {**self._options, "INFERENCE_PRECISION_HINT": _PRECISIONS[precision]}
        if self._int8 and isinstance(graph, StepGraph):
            model = open_step_graph(self._openvino, self._core, self._int8, graph, inputs)
        else:
            model = self._convert(graph, inputs)
        compiled = self._core.compile_model(model, "CPU", options)
        in_effect = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if in_effect != options["INFERENCE_PRECISION_HINT"]:
            raise EngineError(f"engine openvino: precision is {precision}, but this CPU would compute in {in_effect}")
        request, to_tensor = compiled.create_infer_request(), self._openvino.Tensor
        shapes = [tuple(output.shape) for output in compiled.outputs]

        def run(*maps: Tensor) -> list[Tensor]:
            results = [torch.empty(shape) for shape in shapes]
            for index, features in enumerate(maps):
                request.set_input_tensor(index, to_tensor(features.numpy(), shared_memory=True))
            for index, result in enumerate(results):
                request.set_output_tensor(index, to_tensor(result.numpy(), shared_memory=True))
            request.infer()
            return results

        return run

    def _convert(self, graph: nn.Module, inputs: Sequence[Tensor]) -> Any:
        """Return a graph as OpenVINO's model, from the cache if there is one."""
        if not self._cache.is_in_use:
            return convert(graph, inputs)
        maker = f"{self.name} {self._openvino.__version__}"
        parts = self._cache.get(maker, graph, inputs, lambda: serialise(convert(graph, inputs))._asdict())
        return self._core.read_model(parts["xml"], parts["bin"])
