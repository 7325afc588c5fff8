# SPDX-License-Identifier: Apache-2.0
"""The int8 graphs of a model, in a file beside its weights: ``MODEL-int8.safetensors`` for ``MODEL.safetensors``.

The file holds the step graphs (`netwarp_ros.engines.graphs.StepGraph`) as OpenVINO's XML, and the constants of both as
one binary, for nearly all are the same; each is a tensor of bytes. Its header holds an `Int8Spec` as JSON: the SHA-256
of the weights that the graphs were made from, and size and SHA-256 of each tensor. OpenVINO sees nothing of a file
until all of this has been checked. Nothing is unpickled, and a graph holds no code: it names operations of OpenVINO.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field, StrictFloat, StrictInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from netwarp_ros.engines.engine import EngineError
from netwarp_ros.engines.graphs import StepGraph
from netwarp_ros.models.spec import Name, WeightsError
from netwarp_ros.models.weights import (
    INT8_HEADER,
    Model,
    int8_file,
    load_model,
    open_safetensors,
    write_safetensors,
)
from netwarp_ros.resources import MAX_JSON, Checked, cut, parse_json, sha256

INT8_MARK = f'"__metadata__":{{"{INT8_HEADER}":'
"""Beginning of the header of every file that `save_int8` writes."""

MAX_BYTES = {"xml": 2**24, "bin": 2**30}
"""Most bytes of a graph's XML and of its constants. The largest host, Dilation-CNN, has 0.1 and 135 MB."""

_XML_START = b'<?xml version="1.0"'
"""How a graph begins. OpenVINO tells formats by their content, and reads some that name other files."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Text = Annotated[str, Field(max_length=2000)]
Number = Annotated[StrictFloat, Field(allow_inf_nan=False)] | StrictInt


_CONSTANT = re.compile(rb'offset="(\d+)" size="(\d+)"')
"""Where a graph says which bytes of its binary are a constant."""

_ALIGNMENT = 64  # bytes


class StepIR(NamedTuple):
    """A step graph in OpenVINO's format. Batch, height and width of its inputs are open; frames are normalised.

    Attributes:
        xml: The operations.
        bin: Their constants.
    """

    xml: bytes
    bin: bytes


@dataclass(frozen=True)
class TensorSpec(Checked):
    """Size in bytes of a tensor, and its SHA-256."""

    bytes: Annotated[StrictInt, Field(ge=1, le=max(MAX_BYTES.values()))]
    sha256: Sha256


@dataclass(frozen=True)
class Int8Spec(Checked):
    """What the header says about the graphs.

    Attributes:
        weights: SHA-256 of the weights file that the graphs were made from.
        layers: The insertion layers, in the order that the host runs them in; empty for an image CNN.
        tensors: The tensors of the file, by name.
        versions: Versions of the libraries that made the graphs.
        calibration: What the ranges of the activations were measured on.
        report: Scores of the model in float32 and int8.
    """

    weights: Sha256
    layers: Annotated[tuple[Name, ...], Field(max_length=100)]
    tensors: Annotated[Mapping[Name, TensorSpec], Field(max_length=4)]
    versions: Annotated[Mapping[Name, Name], Field(max_length=16)]
    calibration: Text
    report: Annotated[Mapping[Name, Number], Field(max_length=64)]


@dataclasses.dataclass(frozen=True)
class Int8Graphs:
    """The int8 graphs of a model.

    Attributes:
        first: The step graph of a first frame.
        step: The step graph of further frames; None for an image CNN.
        layers: See `Int8Spec`.
        source: What they are called in errors: the path of their file.
    """

    first: StepIR
    step: StepIR | None
    layers: tuple[str, ...]
    source: str

    def tensors(self) -> dict[str, bytes]:
        """Return the contents of the file's tensors, by name."""
        graphs = {"first": self.first} if self.step is None else {"first": self.first, "step": self.step}
        xmls, constants = share_constants(list(graphs.values()))
        return {**{f"{name}.xml": xml for name, xml in zip(graphs, xmls, strict=True)}, "constants.bin": constants}


def share_constants(graphs: Sequence[StepIR]) -> tuple[list[bytes], bytes]:
    """Give graphs one binary, in which each constant is once.

    Returns:
        The XML of each graph, and the binary of all.
    """
    offsets: dict[bytes, int] = {}
    binary = bytearray()

    def moved(graph: StepIR) -> bytes:
        def place(constant: re.Match[bytes]) -> bytes:
            begin, size = map(int, constant.groups())
            content = graph.bin[begin : begin + size]
            if content not in offsets:
                binary.extend(bytes(-len(binary) % _ALIGNMENT))
                offsets[content] = len(binary)
                binary.extend(content)
            return b'offset="%d" size="%d"' % (offsets[content], size)

        return _CONSTANT.sub(place, graph.xml)

    return [moved(graph) for graph in graphs], bytes(binary)


def load_int8(model: Model) -> Int8Graphs:
    """Load the int8 graphs of a model from the file beside its weights.

    Raises:
        EngineError: If the model does not come from a file, or has no int8 graphs.
        WeightsError: If the file is not valid, or was made from other weights.
    """
    if model.file is None:
        raise EngineError(
            f"precision is 'int8', but model {model.name} does not come from a file, beside which its int8 graphs "
            "would be: save it, and make them with `netwarp quantize`"
        )
    if not _is_as_loaded(model):
        raise EngineError(
            f"precision is 'int8', but the weights of model {model.name} are not those of {model.file}, which its int8 "
            "graphs were made from: save it, and make them with `netwarp quantize`"
        )
    path = int8_file(model.file)
    if not path.is_file():
        raise EngineError(
            f"precision is 'int8', but there is no {path}: make it with `netwarp quantize {model.file} --images ...`, "
            "or choose another precision"
        )
    if path.stat().st_size > 2 * sum(MAX_BYTES.values()):
        raise WeightsError(f"{path} has {path.stat().st_size} bytes, more than the graphs of a model can have")
    with open_safetensors(path) as file:
        header = (file.metadata() or {}).get(INT8_HEADER)
        if header is None:
            raise WeightsError(f"{path} has no {INT8_HEADER!r} entry in its header: write it with `netwarp quantize`")
        spec = _parse(header, path)
        _check_names(path, spec, file.keys())
        tensors = {name: _read(path, name, expected, file.get_slice(name)) for name, expected in spec.tensors.items()}
    if spec.weights != sha256(model.file):
        raise WeightsError(
            f"{path} was made from other weights than those of {model.file}: make it again with `netwarp quantize "
            f"{model.file} --images ...`"
        )
    first = StepIR(tensors["first.xml"], tensors["constants.bin"])
    step = StepIR(tensors["step.xml"], tensors["constants.bin"]) if spec.layers else None
    return Int8Graphs(first, step, spec.layers, str(path))


def _is_as_loaded(model: Model) -> bool:
    """Whether a network has the weights of its file."""
    assert model.file is not None
    weights, loaded = model.network.state_dict(), load_model(model.file).network.state_dict()
    return weights.keys() == loaded.keys() and all(
        torch.equal(value, weights[name].to(value.device, value.dtype)) for name, value in loaded.items()
    )


def read_int8_spec(path: Path) -> Int8Spec | None:
    """Return what the header of a file of int8 graphs says, unchecked against the graphs; None if there is no file.

    Raises:
        WeightsError: If it is not such a file.
    """
    if not path.is_file():
        return None
    with open_safetensors(path) as file:
        return _parse((file.metadata() or {}).get(INT8_HEADER, ""), path)


def save_int8(
    path: Path,
    graphs: Int8Graphs,
    weights: str,
    calibration: str,
    report: Mapping[str, float],
    versions: Mapping[str, str],
) -> None:
    """Write int8 graphs to a safetensors file. The file is renamed into place, so that it is always complete.

    Args:
        path: File to write.
        graphs: The graphs.
        weights: SHA-256 of the weights file that they were made from.
        calibration: See `Int8Spec`, also for the following two.
        report: Numbers that are finite.
        versions: Versions by library.

    Raises:
        WeightsError: If a graph is larger than `load_int8` reads.
    """
    contents = graphs.tensors()
    for name, content in contents.items():
        if len(content) > MAX_BYTES[name[-3:]]:
            raise WeightsError(f"{path}: {name} has {len(content)} bytes, at most {MAX_BYTES[name[-3:]]} are read")
    described = {name: TensorSpec(len(content), _digest(content)) for name, content in contents.items()}
    spec = Int8Spec(weights, graphs.layers, described, versions, calibration, report)
    header = json.dumps(dataclasses.asdict(spec), allow_nan=False)
    if len(header) > MAX_JSON:
        raise WeightsError(f"{path}: its header has {len(header)} characters, at most {MAX_JSON} are read")
    write_safetensors(path, contents, {INT8_HEADER: header})


def open_step_graph(openvino: Any, core: Any, graphs: Int8Graphs, graph: StepGraph, inputs: Sequence[Tensor]) -> Any:
    """Return an int8 graph as OpenVINO's model, for inputs of these shapes and types.

    Args:
        openvino: The module.
        core: Its core.
        graphs: The graphs of the network, or of the network whose host alone this is.
        graph: The graph in float32, for its normalisation and the shapes of its outputs.
        inputs: Examples of its inputs.

    Raises:
        EngineError: If the graphs are of another network, or cannot run at this size.
    """
    with torch.inference_mode():
        expected = [list(output.shape) for output in graph(*inputs)]
    ir, layers = graphs.first if len(inputs) == 1 else graphs.step, graph.network.layers
    if ir is None or (layers and graph.layers != graphs.layers):
        raise EngineError(f"{graphs.source} has the layers {list(graphs.layers)}, this network {list(graph.layers)}")
    try:
        model = core.read_model(ir.xml, ir.bin)
        _check_model(openvino, model, len(inputs))
        if not layers:  # the host alone needs no memory
            for result in model.get_results()[1:]:
                model.remove_result(result)
        if not inputs[0].is_floating_point():
            model = _with_normalisation(openvino, model, graph)
        model.reshape({index: list(example.shape) for index, example in enumerate(inputs)})
        shapes = [list(output.partial_shape.to_shape()) for output in model.outputs]
    except RuntimeError as error:  # of OpenVINO
        reason = cut(str(error), 400)
        raise EngineError(f"{graphs.source} cannot run frames {list(inputs[0].shape)}: {reason}") from error
    if shapes != expected:
        raise EngineError(f"{graphs.source} gives maps {shapes} for frames {list(inputs[0].shape)}, not {expected}")
    return model


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _parse(header: str, path: Path) -> Int8Spec:
    try:
        return parse_json(Int8Spec, header, f"the header of {path}")
    except ValueError as error:
        raise WeightsError(str(error)) from error


def _check_names(path: Path, spec: Int8Spec, held: Sequence[str]) -> None:
    wanted = {"first.xml", "constants.bin", *(["step.xml"] if spec.layers else [])}
    for what, names in (("its header describes", set(spec.tensors)), ("it holds", set(held))):
        if names != wanted:
            listed = cut(", ".join(sorted(names)))
            raise WeightsError(f"{path}: {what} the tensors {listed}, not {', '.join(sorted(wanted))}")


def _read(path: Path, name: str, expected: TensorSpec, tensor: Any) -> bytes:
    """Copy a tensor out of the file, and check what was copied."""
    kind = name[-3:]
    if expected.bytes > MAX_BYTES[kind]:
        raise WeightsError(f"{path}: {name} has {expected.bytes} bytes, at most {MAX_BYTES[kind]} are read")
    if tensor.get_dtype() != "U8" or tensor.get_shape() != [expected.bytes]:
        raise WeightsError(
            f"{path}: {name} is {tensor.get_shape()} {tensor.get_dtype()}, its header says [{expected.bytes}] U8"
        )
    content: bytes = tensor[:].numpy().tobytes()
    if _digest(content) != expected.sha256:
        raise WeightsError(f"{path}: {name} has another SHA-256 than its header says: the file is damaged")
    if kind == "xml" and not content.startswith(_XML_START):
        raise WeightsError(f"{path}: {name} is not a graph in OpenVINO's XML")
    return content


def _check_model(openvino: Any, model: Any, count: int) -> None:
    """Check that the inputs are as many maps, of float32, and that there are no loops, branches or variables."""
    kinds = [(port.element_type, port.partial_shape.rank) for port in model.inputs]
    if kinds != [(openvino.Type.f32, openvino.Dimension(4))] * count:
        raise RuntimeError(f"it does not take {count} maps of float32")
    kinds_of_operations = {operation.get_type_name() for operation in model.get_ops()}
    if refused := kinds_of_operations & {"Loop", "TensorIterator", "If"} or model.get_sinks():
        raise RuntimeError(f"no step graph has {refused}")


def _with_normalisation(openvino: Any, model: Any, graph: StepGraph) -> Any:
    """Let a graph take uint8 pixels: ``rgb * scale + shift`` is ``(rgb - mean) / std`` in OpenVINO's words."""
    scale, shift = (values.flatten().double() for values in (graph.scale, graph.shift))
    preprocessor, layout = openvino.preprocess.PrePostProcessor(model), openvino.Layout("NHWC")
    frame = preprocessor.input(0)
    frame.tensor().set_element_type(openvino.Type.u8).set_layout(layout)
    frame.model().set_layout(layout)
    steps = frame.preprocess().convert_element_type(openvino.Type.f32)
    steps.mean((-shift / scale).tolist()).scale((1 / scale).tolist())
    return preprocessor.build()
