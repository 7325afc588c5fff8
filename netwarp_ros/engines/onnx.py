# SPDX-License-Identifier: Apache-2.0
"""ONNX files of the graphs, and the engines that read ONNX: ONNX Runtime on CPUs, TensorRT on NVIDIA GPUs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from netwarp_ros.engines.cache import Parts
from netwarp_ros.engines.engine import EngineError, Normalisation
from netwarp_ros.engines.graph_engine import CPUGraphEngine, GraphEngine, RunGraph
from netwarp_ros.engines.graphs import export, forgetting_sources
from netwarp_ros.engines.pytorch import host_precision
from netwarp_ros.models.video_cnn import VideoCNN

OPSET = 18
"""Version of ONNX's operators: ONNX Runtime 1.14 and TensorRT 8.6 know it. It has no GridSample that differs from ours,
because no graph has one."""


@forgetting_sources()
def to_onnx(graph: nn.Module, inputs: Sequence[Tensor], names: tuple[Sequence[str], Sequence[str]] = ((), ())) -> bytes:
    """Return a graph as an ONNX file, for inputs of these shapes and types.

    Args:
        graph: The graph.
        inputs: Examples of its inputs.
        names: Names of the inputs and of the outputs; without them, PyTorch names them.

    Raises:
        EngineError: If the packages that write ONNX are missing.
    """
    try:
        import onnxscript  # noqa: F401 - PyTorch's exporter needs it, and says so less clearly
    except ImportError as error:
        raise EngineError(f"ONNX cannot be written ({error}): pip install netwarp_ros[onnx]") from error
    exported = export(graph, inputs)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        program = torch.onnx.export(
            exported, dynamo=True, opset_version=OPSET, verbose=False, optimize=True,
            input_names=list(names[0]), output_names=list(names[1]),
        )  # fmt: skip
    assert program is not None
    return program.model_proto.SerializeToString()


class OnnxRuntimeEngine(CPUGraphEngine):
    """ONNX Runtime on the CPU, in float32.

    Args:
        network: The network, float32, on the CPU.
        normalisation: That of the frames.
        precision: ``float32``.
        threads: Number of threads; 0 for one on each core.
        cache: Folder for the graphs.
    """

    name = "onnxruntime"

    def __init__(
        self,
        network: VideoCNN,
        normalisation: Normalisation,
        precision: str,
        threads: int,
        cache: Path | None = None,
    ) -> None:
        super().__init__(network, normalisation, torch.device("cpu"), cache)
        try:
            import onnxruntime
        except ImportError as error:
            raise EngineError(
                f"engine onnxruntime: it cannot be imported ({error}): pip install netwarp_ros[onnx]"
            ) from error
        if precision != "float32":
            raise EngineError(f"engine onnxruntime: precision is {precision}, it has float32")
        self.precision, self._runtime = precision, onnxruntime
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.log_severity_level = 3
        # Threads that spin would take the cores from OpenCV's and PyTorch's between two graphs.
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def compile(self, graph: nn.Module, inputs: Sequence[Tensor]) -> RunGraph:
        parts = self._cache.get("onnx", graph, inputs, lambda: {"onnx": to_onnx(graph, inputs)})
        session = self._runtime.InferenceSession(parts["onnx"], self._options, providers=["CPUExecutionProvider"])
        names = [port.name for port in session.get_inputs()]

        def run(*maps: Tensor) -> list[Tensor]:
            feeds = {name: features.numpy() for name, features in zip(names, maps, strict=True)}
            return [torch.from_numpy(result) for result in session.run(None, feeds)]

        return run


class TensorRTEngine(GraphEngine):
    """TensorRT on an NVIDIA GPU, by way of ONNX. It has not been run on a GPU yet.

    The ONNX file has the type of the host, and TensorRT keeps it (a "strongly typed" network): half precision is what
    PyTorch would compute in half precision, and Λ stays in float32.

    Args:
        network: The network, on the GPU, in the type that it computes in.
        normalisation: That of the frames.
        device: The GPU.
        cache: Folder for TensorRT's plans, which take minutes to build.
    """

    name = "tensorrt"

    def __init__(
        self, network: VideoCNN, normalisation: Normalisation, device: torch.device, cache: Path | None = None
    ) -> None:
        super().__init__(network, normalisation, device, cache)
        try:
            import tensorrt
        except ImportError as error:
            raise EngineError(f"engine tensorrt: it cannot be imported ({error}): pip install tensorrt") from error
        if device.type != "cuda":
            raise EngineError(f"engine tensorrt: the device is {device}, it needs cuda")
        self.precision, self._tensorrt = host_precision(network), tensorrt
        self._logger = tensorrt.Logger(tensorrt.Logger.ERROR)

    def compile(self, graph: nn.Module, inputs: Sequence[Tensor]) -> RunGraph:
        with torch.inference_mode():  # once, uncompiled, to learn the shapes and types of the results
            examples = graph(*inputs)
        names, results = (
            [f"{side}{index}" for index in range(len(maps))] for side, maps in (("in", inputs), ("out", examples))
        )
        maker = f"{self.name} {self._tensorrt.__version__} {torch.cuda.get_device_name(self.device)}"
        parts = self._cache.get(maker, graph, inputs, lambda: self._build(to_onnx(graph, inputs, (names, results))))
        engine = self._tensorrt.Runtime(self._logger).deserialize_cuda_engine(parts["plan"])
        context = engine.create_execution_context()

        def run(*maps: Tensor) -> list[Tensor]:
            outputs = [torch.empty_like(example, memory_format=torch.contiguous_format) for example in examples]
            for name, features in zip((*names, *results), (*maps, *outputs), strict=True):
                context.set_tensor_address(name, features.data_ptr())
            if not context.execute_async_v3(torch.cuda.current_stream(self.device).cuda_stream):
                raise EngineError("engine tensorrt: a graph could not be run; its log has the reason")
            return outputs

        return run

    def _build(self, onnx: bytes) -> Parts:
        """Build the plan of an ONNX file."""
        tensorrt = self._tensorrt
        builder = tensorrt.Builder(self._logger)
        network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = tensorrt.OnnxParser(network, self._logger)
        if not parser.parse(onnx):
            problems = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
            raise EngineError(f"engine tensorrt: it cannot read the graph: {problems}")
        config = builder.create_builder_config()
        config.clear_flag(tensorrt.BuilderFlag.TF32)  # float32 is float32, see netwarp_ros.models.float32
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError("engine tensorrt: it cannot build the graph; its log has the reason")
        return {"plan": bytes(plan)}
