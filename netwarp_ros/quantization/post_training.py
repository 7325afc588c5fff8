# SPDX-License-Identifier: Apache-2.0
"""The step graphs of a model in int8, by NNCF's post-training quantization."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch

from netwarp_ros.engines.engine import Normalisation
from netwarp_ros.engines.graphs import StepGraph
from netwarp_ros.engines.int8 import Int8Graphs, StepIR
from netwarp_ros.engines.openvino import convert, import_openvino, serialise
from netwarp_ros.models import Model
from netwarp_ros.quantization.calibration import Sample
from netwarp_ros.resources import cut


def import_nncf() -> Any:
    """Import NNCF, and let it report errors alone.

    Raises:
        ValueError: If it is not installed.
    """
    import_openvino()
    try:
        import nncf
    except ImportError as error:
        raise ValueError(f"quantizing needs NNCF ({error}): pip install netwarp_ros[quantize]") from error
    import logging

    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


def versions() -> dict[str, str]:
    """Return the versions of the libraries that make the graphs."""
    return {name: metadata.version(name) for name in ("nncf", "openvino", "torch")}


def quantize(model: Model, samples: Sequence[Sample]) -> Int8Graphs:
    """Quantize the step graphs of a model to int8.

    Weights are int8 by output channel, and activations uint8 or int8 by tensor, but blends stay in float32: their
    result is the memory, where an error would stay for many frames. Of the 8 bits of a weight, 7 are used: on a CPU
    without VNNI, a sum of two products has 16 bits and would overflow, and masks would depend on the CPU.

    Args:
        model: The model.
        samples: What the ranges of the activations are measured on.

    Raises:
        ValueError: If NNCF is not installed.
    """
    nncf = import_nncf()
    normalisation = Normalisation.of(model.spec, torch.device("cpu"))
    scale, shift = (values.numpy().transpose(0, 2, 3, 1) for values in normalisation)

    def normalised(sample: Sample) -> list[np.ndarray]:
        return [sample[0] * scale + shift, *sample[1:]]

    taken = model.spec.input_size
    height, width = taken.padded_frame(model.spec.input_height)
    # For frames of any size: sizes > 1 that differ, and a batch > 1, for the export takes others as constants.
    frame = torch.zeros(1, height, width, 3) if taken.fixed else torch.zeros(2, height, width + taken.multiple, 3)
    first = StepGraph(model.network, normalisation)
    with torch.inference_mode():
        _, *warped = first(frame)
    graphs, layers = [(StepGraph(model.network, normalisation), [frame])], first.layers
    if layers:
        gates = [z.new_ones(*z.shape[:3], 1) for z in warped] if model.network.gate is not None else []
        graphs.append((StepGraph(model.network, normalisation, layers), [frame, *warped, *gates]))
    quantized = []
    for graph, inputs in graphs:
        fitting = [sample[: len(inputs)] for sample in samples if len(sample) >= len(inputs)]
        exported = _exported(graph, inputs, model, dynamic=taken.fixed is None)
        quantized.append(_quantize(nncf, exported, nncf.Dataset(fitting, normalised), len(fitting)))
    return Int8Graphs(quantized[0], quantized[1] if layers else None, layers, f"{model.name} in int8")


def _exported(graph: StepGraph, inputs: Sequence[torch.Tensor], model: Model, *, dynamic: bool) -> Any:
    """Return a graph as OpenVINO's model; ``dynamic``: for frames of any size.

    Raises:
        ValueError: If it cannot be exported.
    """
    try:
        return convert(graph, inputs, dynamic=dynamic)
    except Exception as error:  # compilers, and what they call, share no base class of errors
        sizes = "of any size" if dynamic else "of its size"
        raise ValueError(
            f"{model.name} cannot be quantized: its graph cannot be exported for frames {sizes} ({cut(str(error))})"
        ) from error


def _quantize(nncf: Any, exported: Any, calibration: Any, count: int) -> StepIR:
    """Quantize OpenVINO's model of a graph, given a dataset of as many samples."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):  # NNCF shows its progress
        warnings.simplefilter("ignore")
        quantized = nncf.quantize(
            exported,
            calibration,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=count,
            fast_bias_correction=False,
            ignored_scope=nncf.IgnoredScope(names=_blends(exported)),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )
    for path in (["conversion_parameters"], ["nncf"]):  # settings, which may name files of this machine
        if quantized.has_rt_info(path):
            quantized.set_rt_info("", path)
    return serialise(quantized)


def _blends(model: Any) -> list[str]:
    """Return the names of the operations between the warped representations and the next layer: products and a sum.

    Those of the gates are among them: differences, and sums that only products follow.
    """
    names, parameters = set[str](), model.get_parameters()[1:]
    pending = list(parameters)
    while pending:
        for port in pending.pop().output(0).get_target_inputs():
            node = port.get_node()
            kind, users = node.get_type_name(), node.output(0).get_target_inputs()
            if kind in ("Transpose", "Multiply", "Subtract", "Add"):
                names.add(node.get_friendly_name())
                if kind != "Add" or all(user.get_node().get_type_name() == "Multiply" for user in users):
                    pending.append(node)
    return sorted(names)
