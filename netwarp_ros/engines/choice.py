# SPDX-License-Identifier: Apache-2.0
"""Which engine runs a model: the one that was asked for, or the fastest that works here."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from netwarp_ros.engines.bfloat16 import cpu_computes_bfloat16
from netwarp_ros.engines.engine import Engine, EngineError, Normalisation
from netwarp_ros.engines.folding import fold_batch_norms
from netwarp_ros.engines.pytorch import COMPILE_MODES, CUDA_GRAPHS, CompiledTorchEngine, TorchEngine
from netwarp_ros.models.insertion import example_frame
from netwarp_ros.models.others.onnx_host import OnnxHost
from netwarp_ros.models.video_cnn import Memory, Size, VideoCNN
from netwarp_ros.models.weights import Model
from netwarp_ros.resources import cut

ENGINES = ("auto", "torch", "cudagraphs", "openvino", "onnxruntime", "tensorrt")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INT8 = "int8"

AUTO = {"cpu": ("openvino", "torch"), "cuda": ("cudagraphs", "torch")}
"""The engines that ``auto`` tries on a device, the fastest first."""

TOLERANCE = {"float32": 0.01, "bfloat16": 0.05, "float16": 0.05, INT8: 1.0}
"""Fraction of the pixels of noise whose class may differ from PyTorch's: sums are rounded in another order. More means
that an engine computes something else. int8 need only run: its ranges are those of camera images, on which `netwarp
quantize` compares it."""

_PLACE = re.compile(r"(Exception from|Check '.*' failed at) .*:")
"""A place in OpenVINO's source."""


@dataclass(frozen=True)
class EngineOptions:
    """What a user may choose.

    Attributes:
        engine: One of `ENGINES`. ``auto``: OpenVINO on the CPU, PyTorch replayed as CUDA graphs on CUDA; PyTorch if
            that does not work.
        device: A torch device: ``cpu``, ``cuda``, ``cuda:1``.
        precision: Of the host: ``float32``, ``bfloat16``, ``float16`` (CUDA only), ``int8`` (OpenVINO only), or
            ``auto``: float16 on CUDA, bfloat16 on a CPU with instructions for it (AVX512_BF16), else float32.
            Coordinates and combination weights stay in float32.
        compile: One of `COMPILE_MODES`, for PyTorch.
        threads: Threads of an engine on the CPU; 0: one on each core.
        engine_cache: Folder for what engines make of a model; None: nothing is kept.

    Raises:
        ValueError: If a value is not allowed.
    """

    engine: str = "auto"
    device: str = "cpu"
    precision: str = "auto"
    compile: str = "none"
    threads: int = 0
    engine_cache: Path | None = None

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("engine", self.engine, ENGINES),
            ("precision", self.precision, ("auto", *PRECISIONS, INT8)),
            ("compile", self.compile, COMPILE_MODES),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}: choose one of {', '.join(choices)}")
        if self.threads < 0:
            raise ValueError(f"threads is {self.threads}: give a number of threads, or 0 for one on each core")
        if self.compile != "none" and self.engine not in ("auto", "torch"):
            raise ValueError(f"compile is {self.compile!r}, but engine {self.engine}: only engine torch is compiled")


def open_engine(network: VideoCNN, model: Model, height: int, options: EngineOptions) -> tuple[Engine, str]:
    """Return the engine for a network, and why it is not the one wanted; empty if it is.

    Args:
        network: The network, or its host alone. It belongs to the engine from now on, and its host may be converted.
        model: The model that it is of.
        height: Height of the frames that the engine is tried on.
        options: What was chosen.

    Raises:
        ValueError: If the device or precision is not available here.
        EngineError: If an engine was chosen by name, and it is missing or does not work.
    """
    device = torch_device(options.device)
    if isinstance(network.host, OnnxHost):
        options = _options_of_onnx(options, device)
    network.eval().to(device)
    normalisation = Normalisation.of(model.spec, device)
    candidates, problem = _candidates(options, device), ""
    for name, mode in candidates:
        try:
            engine = _make(name, mode, network, model, normalisation, options, device)
            if not isinstance(engine, TorchEngine):
                _verify(engine, network, model.spec.input_size.padded_frame(height))
            return engine, problem
        except Exception as error:  # compilers, and what they call, share no base class of errors
            reason = _reason(error)
            if (name, mode) == candidates[-1]:
                if isinstance(error, ValueError):
                    raise
                raise EngineError(f"engine {name}: {reason}") from error
            problem = problem or cut(reason, 400)
    raise AssertionError("there is no candidate")


def _options_of_onnx(options: EngineOptions, device: torch.device) -> EngineOptions:
    """Return the options that an ONNX file's graph is run with: OpenVINO runs it inside of the host.

    Raises:
        ValueError: If something else is asked for.
    """
    for name, value, choices in (
        ("engine", options.engine, ("auto", "torch")),
        ("precision", options.precision, ("auto", "float32")),
        ("compile", options.compile, ("none",)),
        ("device", device.type, ("cpu",)),
    ):
        if value not in choices:
            raise EngineError(
                f"{name} is {value!r}, but the model is an ONNX file, which engine torch lets OpenVINO run on the CPU "
                f"in float32: choose {' or '.join(choices)}"
            )
    return replace(options, engine="torch", precision="float32")


def _reason(error: Exception) -> str:
    """Return the first line of an error that says something; OpenVINO's begin with places in its source."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line and not _PLACE.fullmatch(line)), type(error).__name__)


def _candidates(options: EngineOptions, device: torch.device) -> list[tuple[str, str]]:
    """Return the engines to try, the best first, each with a compile mode."""
    if options.engine != "auto":
        names: tuple[str, ...] = (options.engine,)
    elif options.precision == INT8:
        names = ("openvino",)
    else:
        names = AUTO[device.type] if options.compile == "none" else ("torch",)
    modes = COMPILE_MODES[COMPILE_MODES.index(options.compile) :: -1]
    return [(name, mode) for name in names for mode in (modes if name == "torch" else ("none",))]


def _make(
    name: str,
    mode: str,
    network: VideoCNN,
    model: Model,
    normalisation: Normalisation,
    options: EngineOptions,
    device: torch.device,
) -> Engine:
    """Make an engine. Its module is imported here, so that a process loads only the one it uses."""
    precision = _precision(options, device)
    if name in ("openvino", "onnxruntime") and device.type != "cpu":
        raise EngineError(f"engine {name}: the device is {device}, it needs cpu")
    if name == "cudagraphs" and device.type != "cuda":
        raise EngineError(f"engine {name}: the device is {device}, it needs cuda")
    if mode == CUDA_GRAPHS and device.type != "cuda":
        raise EngineError(f"compile {mode}: the device is {device}, and CUDA graphs need CUDA")
    if name == "openvino":
        from netwarp_ros.engines.int8 import load_int8
        from netwarp_ros.engines.openvino import OpenVINOEngine

        int8 = load_int8(model) if precision == INT8 else None
        return OpenVINOEngine(network, normalisation, precision, options.threads, int8, options.engine_cache)
    if name == "onnxruntime":
        from netwarp_ros.engines.onnx import OnnxRuntimeEngine

        return OnnxRuntimeEngine(network, normalisation, precision, options.threads, options.engine_cache)
    if name != "tensorrt":  # it folds them itself
        _fold(network.host, model.spec.input_size.example)
    network.host.to(dtype=PRECISIONS[precision], memory_format=torch.channels_last)  # type: ignore[call-overload]
    if name == "tensorrt":
        from netwarp_ros.engines.onnx import TensorRTEngine

        return TensorRTEngine(network, normalisation, device, options.engine_cache)
    engine = (TorchEngine if mode == "none" else CompiledTorchEngine)(network, normalisation, device)
    if name == "cudagraphs" or mode == CUDA_GRAPHS:
        from netwarp_ros.engines.cuda_graphs import CUDAGraphEngine

        return CUDAGraphEngine(engine)
    return engine


def _fold(host: nn.Module, size: Size) -> None:
    """Fold the batch norms of a host that is in float32, seen on a frame of this size."""
    weight = next(host.parameters(), None)
    if weight is None or weight.dtype != torch.float32:
        return
    noise = example_frame(host, size)
    with suppress(Exception):  # of a network of any kind
        fold_batch_norms(host, lambda: host(noise))


@torch.inference_mode()
def _verify(engine: Engine, network: VideoCNN, size: Size) -> None:
    """Compare an engine with PyTorch on a few frames of this size: smooth noise that moves.

    Raises:
        EngineError: If too many pixels have another class.
    """
    reference = TorchEngine(network, engine.normalisation, engine.device)
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    image = cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)
    flow = torch.zeros(1, 2, *image.shape[:2], device=engine.device)
    flow[:, 0] = -2
    differing = 0.0
    memory: Memory | None = None
    memory_in_torch: Memory | None = None
    for step in range(3):
        pixels = torch.from_numpy(np.roll(image, 2 * step, axis=1)).to(engine.device)
        frame = pixels.permute(2, 0, 1).unsqueeze(0)
        scores, memory = engine(frame, flow, memory)
        expected, memory_in_torch = reference(frame, flow, memory_in_torch)
        differing = max(differing, (scores.argmax(1) != expected.argmax(1)).float().mean().item())
    if differing > TOLERANCE[engine.precision]:
        raise EngineError(f"engine {engine.name}: it gives other masks than PyTorch in {differing:.1%} of the pixels")


def torch_device(name: str) -> torch.device:
    """Return a device by its name.

    Raises:
        ValueError: If the name is not a device, or it is not available here.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}: give cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}: give cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device is {name!r}, but PyTorch sees {count} CUDA devices here: use cpu, or fix the driver")
    return device


def _precision(options: EngineOptions, device: torch.device) -> str:
    """Return the precision in effect."""
    wanted = options.precision
    if wanted == "float16" and device.type == "cpu":
        raise ValueError("precision is 'float16', which CPUs compute slowly: choose bfloat16, float32 or auto")
    in_openvino = device.type == "cpu" and options.engine in ("auto", "openvino") and options.compile == "none"
    if wanted == INT8 and not in_openvino:
        raise ValueError("precision is 'int8', which only engine openvino has, on the CPU")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "float16"
    return "bfloat16" if options.engine != "onnxruntime" and cpu_computes_bfloat16() else "float32"
