# SPDX-License-Identifier: Apache-2.0
"""ONNX files as others write them, made of a small network in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from netwarp_ros.classes import ClassSet
from netwarp_ros.resources import parse

Shape = tuple[int | str, ...]

NUM_CLASSES = 5
ANY_SIZE: Shape = (1, 3, "height", "width")
SCORES: Shape = (1, NUM_CLASSES, "h", "w")


def tiny_host() -> nn.Module:
    """Return a host of stride 2 whose masks have all classes."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, NUM_CLASSES, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), second).eval()


def onnx_file(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    frame: Shape = ANY_SIZE,
    scores: Shape = SCORES,
    *,
    types: tuple[int, int] = (TensorProto.FLOAT, TensorProto.FLOAT),
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """Return an ONNX file whose input is ``frame`` and whose output is ``scores``."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("frame", types[0], frame)],
        [helper.make_tensor_value_info("scores", types[1], scores)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    operations = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=operations, ir_version=8)


def as_onnx(
    host: nn.Module,
    frame: Shape = ANY_SIZE,
    *,
    channels_last: bool = False,
    ids: bool = False,
    half: bool = False,
) -> onnx.ModelProto:
    """Return `tiny_host` as an ONNX file.

    Args:
        host: The network.
        frame: Shape of the input.
        channels_last: Whether input and output are ``(1, H, W, C)``.
        ids: Whether the output is the class of the greatest score, ``(1, h, w)`` int64.
        half: Whether it computes in float16.
    """
    kind = np.float16 if half else np.float32
    names = {"0.weight": "w0", "0.bias": "b0", "2.weight": "w2", "2.bias": "b2"}
    constants = {names[name]: value.numpy().astype(kind) for name, value in host.state_dict().items()}
    pads: dict[str, Any] = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["planes" if channels_last else "frame", "w0", "b0"], ["a"], strides=[2, 2], **pads),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2", "b2"], ["c" if ids or channels_last else "scores"], **pads),
    ]
    scores: Shape = (1, NUM_CLASSES, "h", "w")
    if channels_last:
        nodes.insert(0, helper.make_node("Transpose", ["frame"], ["planes"], perm=[0, 3, 1, 2]))
        scores = (1, "h", "w", NUM_CLASSES)
    if ids:
        scores = (1, "h", "w")
        nodes.append(helper.make_node("ArgMax", ["c"], ["scores"], axis=1, keepdims=0))
    elif channels_last:
        nodes.append(helper.make_node("Transpose", ["c"], ["scores"], perm=[0, 2, 3, 1]))
    number = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    return onnx_file(nodes, constants, frame, scores, types=(number, TensorProto.INT64 if ids else number))


def classes(count: int = NUM_CLASSES) -> ClassSet:
    return parse(ClassSet, {"name": "few", "classes": [{"name": f"c{number}"} for number in range(count)]}, "classes")


def write(folder: Path, file: Any, name: str = "net.onnx") -> Path:
    path = folder / name
    path.write_bytes(file if isinstance(file, bytes) else file.SerializeToString())
    return path
