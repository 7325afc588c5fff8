# SPDX-License-Identifier: Apache-2.0
"""ONNX files that are refused, and why: those of anybody, and those of networks that cannot be run."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx_files import NUM_CLASSES, as_onnx, classes, onnx_file, tiny_host, write

from netwarp_ros.models import ModelSpec, VideoCNN, WeightsError, load_model, save_model
from netwarp_ros.models.others.conversion import Overrides
from netwarp_ros.models.others.onnx_conversion import convert_onnx
from netwarp_ros.models.others.onnx_file import OnnxError, check_onnx
from netwarp_ros.models.others.onnx_graph import OnnxGraph
from netwarp_ros.models.others.onnx_host import OnnxHost

FIXED = (1, 3, 48, 64)
IDENTITY = helper.make_node("Relu", ["frame"], ["scores"])


def external(location: str) -> onnx.ModelProto:
    """Return a file whose first tensor is in another file."""
    file = as_onnx(tiny_host())
    tensor = file.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, location, offset=0, length=len(tensor.raw_data))
    tensor.ClearField("raw_data")
    return file


def with_attribute(**attribute: Any) -> onnx.ModelProto:
    file = as_onnx(tiny_host())
    file.graph.node[0].attribute.add(name="x", **attribute)
    return file


def with_part(change: Callable[[onnx.ModelProto], Any]) -> onnx.ModelProto:
    file = as_onnx(tiny_host())
    change(file)
    return file


def two_inputs(file: onnx.ModelProto) -> None:
    """Let the weights of the first convolution be an input."""
    del file.graph.initializer[0]
    file.graph.input.append(helper.make_tensor_value_info("w0", TensorProto.FLOAT, (8, 3, 3, 3)))


GRAPH = onnx.GraphProto(name="inner")
OUTSIDE = onnx.TensorProto(data_location=TensorProto.EXTERNAL)
HOSTILE: list[tuple[str, Any, str]] = [
    ("text", b"hello, this is text\n" * 20, "is not one, or it is "),
    ("empty", b"", "is not one: it has no graph"),
    ("xml", b'<?xml version="1.0"?><net name="x" version="11"></net>', "is not one, or it is damaged"),
    ("cut off", as_onnx(tiny_host()).SerializeToString()[:1000], "is not one, or it is cut off"),
    ("long number", b"\x08" + b"\xff" * 11, "is not one, or it is damaged"),
    ("number at the end", b"\x08\xff", "is not one, or it is cut off"),
    ("hidden field", b"\xba\x80\x80\x80\x10\x00", "is not one, or it is damaged"),
    ("many fields", b"\x08\x01" * 1_000_001, "has more than 1000000 fields"),
    ("passwd", external("../../etc/passwd"), "has tensors in other files: save it as one file"),
    ("address", external("*/_ORT_MEM_ADDR_/*"), "has tensors in other files"),
    ("attribute", with_attribute(t=OUTSIDE), "has tensors in other files"),
    ("attributes", with_attribute(tensors=[OUTSIDE]), "has tensors in other files"),
    ("loop", with_attribute(g=GRAPH), r"has control flow \(If, Loop, Scan\)"),
    ("loops", with_attribute(graphs=[GRAPH]), r"has control flow \(If, Loop, Scan\)"),
    ("sparse", with_attribute(sparse_tensor=onnx.SparseTensorProto()), "has sparse tensors"),
    ("sparses", with_attribute(sparse_tensors=[onnx.SparseTensorProto()]), "has sparse tensors"),
    ("constant", with_part(lambda file: file.graph.sparse_initializer.add()), "has sparse tensors"),
    ("functions", with_part(lambda file: file.functions.add(name="f")), "has functions of its own"),
    ("training", with_part(lambda file: file.training_info.add()), "has a training graph"),
    (
        "custom",
        onnx_file([helper.make_node("Steal", ["frame"], ["scores"], domain="evil")], {}, domains=["evil"]),
        "has the operation 'Steal' of 'evil', which is not one of ONNX's own",
    ),
    (
        "unknown",
        onnx_file([helper.make_node("Steal", ["frame"], ["scores"])], {}),
        "cannot be read by OpenVINO: it has no operation Steal",
    ),
    ("no input", onnx_file([helper.make_node("Relu", ["nothing"], ["scores"])], {}), "cannot be read by OpenVINO: "),
    ("large", onnx_file([IDENTITY], {}, (1, 3, 100_000, 100_000)), "takes frames of 100000x100000, and 4320 is the"),
    (
        "half fixed",
        onnx_file([IDENTITY], {}, (1, 3, 48, "width")),
        "takes .*: export it with height and width both fixed, or both dynamic",
    ),
    ("batch", as_onnx(tiny_host(), (4, 3, 48, 64)), r"takes frame \(4, 3, 48, 64\) f32, a batch of 4"),
    ("grey", onnx_file([IDENTITY], {}, (1, 1, 48, 64)), r"takes frame \(1, 1, 48, 64\) f32, not frames \(1, 3, H, W\)"),
    ("any", onnx_file([IDENTITY], {}, ("a", "b", "c", "d")), r"takes frame \(\?, \?, \?, \?\) f32, not frames"),
    ("flat", onnx_file([IDENTITY], {}, (1, 3)), r"takes frame \(1, 3\) f32, not frames"),
    (
        "bytes",
        onnx_file([helper.make_node("Cast", ["frame"], ["scores"], to=1)], {}, types=(TensorProto.UINT8, 1)),
        r"takes frame \(1, 3, \?, \?\) u8, not float32",
    ),
    (
        "two inputs",
        with_part(two_inputs),
        r"has 2 inputs \(frame \(1, 3, \?, \?\) f32, w0 \(8, 3, 3, 3\) f32\)",
    ),
    ("classes", onnx_file([IDENTITY], {}), r"gives scores \(1, 3, \?, \?\) f32, but neither scores \(1, 5, h, w\) or"),
    (
        "huge map",
        onnx_file(
            [
                helper.make_node("Tile", ["frame", "times"], ["a"]),
                helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[1, 1], strides=[3000, 3000]),
                helper.make_node("Conv", ["b", "w"], ["scores"]),
            ],
            {"times": np.array([1, 1, 3000, 3000]), "w": np.ones((5, 3, 1, 1), np.float32)},
            FIXED,
        ),
        r"has the operation Tile a, whose result has 82944000000 values for a frame of 64x48; at most 67108864",
    ),
]


@pytest.mark.parametrize(("name", "file", "message"), HOSTILE, ids=[name for name, _, _ in HOSTILE])
def test_files_that_are_refused(name: str, file: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, file)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(WeightsError, match=f"{re.escape(str(path))}: the ONNX file {message}") as error:
        convert_onnx(path, Overrides(classes()))
    assert "\n" not in str(error.value) and len(str(error.value)) < 900
    assert time.perf_counter() - began < 10  # a second on an idle machine
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # in KiB


def test_a_model_file_with_a_hostile_graph_is_refused(tmp_path: Path) -> None:
    """What `convert` refuses may be put into a model file by hand."""
    content = external("../../etc/passwd").SerializeToString()
    spec = ModelSpec("onnx", classes(), {"num_classes": NUM_CLASSES}, host_config={"bytes": len(content)})
    path = save_model(tmp_path / "m.safetensors", VideoCNN(OnnxHost.of(content, NUM_CLASSES), {}), spec)
    with pytest.raises(WeightsError, match="cannot run onnx: the ONNX file has tensors in other files"):
        load_model(path)


@pytest.mark.parametrize("config", [{}, {"bytes": 0}, {"bytes": 2**40}, {"bytes": True}, {"bytes": 9, "x": 1}])
def test_a_header_that_does_not_say_the_size_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    spec = ModelSpec("onnx", classes(), {"num_classes": NUM_CLASSES}, host_config=config)
    path = save_model(tmp_path / "m.safetensors", VideoCNN(OnnxHost.of(b"x", NUM_CLASSES), {}), spec)
    with pytest.raises(WeightsError, match="cannot build onnx: host_config must have the size of the ONNX file"):
        load_model(path)


def test_a_header_with_another_size_is_refused(tmp_path: Path) -> None:
    spec = ModelSpec("onnx", classes(), {"num_classes": NUM_CLASSES}, host_config={"bytes": 2**30})
    path = save_model(tmp_path / "m.safetensors", VideoCNN(OnnxHost.of(b"x", NUM_CLASSES), {}), spec)
    with pytest.raises(WeightsError, match=r"host.graph \(1,\) instead of \(1073741824,\)"):
        load_model(path)


def test_a_frame_of_another_size_than_the_graphs_is_an_error() -> None:
    host = OnnxHost.of(as_onnx(tiny_host(), FIXED).SerializeToString(), NUM_CLASSES)
    with pytest.raises(OnnxError, match="takes frames of 64x48 only, and this one is 56x40"):
        host(torch.rand(1, 3, 40, 56))


def test_a_result_whose_size_depends_on_the_image_is_refused() -> None:
    nodes = [
        helper.make_node("Conv", ["frame", "w"], ["a"]),
        helper.make_node("NonZero", ["frame"], ["b"]),
        helper.make_node("Cast", ["b"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["c"], ["d"], keepdims=0),
        helper.make_node("Add", ["a", "d"], ["scores"]),
    ]
    file = onnx_file(nodes, {"w": np.ones((5, 3, 1, 1), np.float32)}, FIXED)
    with pytest.raises(OnnxError, match="has the operation .*, whose result has a size that depends on the"):
        OnnxGraph(file.SerializeToString(), NUM_CLASSES).compile((48, 64), 1)


def test_a_map_may_have_a_gigabyte_whatever_the_frame() -> None:
    frame = (1, 3, 1024, 1024)
    nodes = [
        helper.make_node("Conv", ["frame", "w"], ["a"]),
        helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[1, 1], strides=[512, 512]),
        helper.make_node("Conv", ["b", "v"], ["scores"]),
    ]
    weights = {"w": np.ones((257, 3, 1, 1), np.float32), "v": np.ones((5, 257, 1, 1), np.float32)}
    file = onnx_file(nodes, weights, frame)
    message = "has the operation .*, whose result has 269484032 values for a frame of 1024x1024; at most 268435456 are"
    with pytest.raises(OnnxError, match=message):
        OnnxGraph(file.SerializeToString(), NUM_CLASSES).compile((1024, 1024), 1)


def test_the_field_numbers_are_those_of_onnx() -> None:
    from netwarp_ros.models.others.onnx_file import _PARTS

    messages = {
        "model": onnx.ModelProto, "graph": onnx.GraphProto, "node": onnx.NodeProto, "attribute": onnx.AttributeProto,
        "tensor": onnx.TensorProto,
    }  # fmt: skip
    nested = {"GraphProto": "graph", "NodeProto": "node", "AttributeProto": "attribute", "TensorProto": "tensor"}
    harmless = {
        "StringStringEntryProto", "OperatorSetIdProto", "ValueInfoProto", "TensorAnnotation", "TypeProto", "Segment",
        "DeviceConfigurationProto", "NodeDeviceConfigurationProto",
    }  # fmt: skip
    for name, message in messages.items():
        for field in message.DESCRIPTOR.fields:
            if field.message_type is None or field.number in _PARTS[name].refused:
                continue
            kind = field.message_type.name
            assert kind in harmless or _PARTS[name].parts[field.number] == nested[kind], f"{name}.{field.name}"
    numbers = onnx.NodeProto.DESCRIPTOR.fields_by_name
    assert (numbers["op_type"].number, numbers["domain"].number) == (4, 7)
    assert onnx.TensorProto.DESCRIPTOR.fields_by_name["data_location"].number == 14


def test_damaged_bytes_never_end_otherwise() -> None:
    content = as_onnx(tiny_host()).SerializeToString()
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        for place in generator.integers(0, len(damaged), 3):
            damaged[place] = generator.integers(256)
        try:
            check_onnx(bytes(damaged))
            OnnxGraph(bytes(damaged), NUM_CLASSES)
        except OnnxError:
            pass
