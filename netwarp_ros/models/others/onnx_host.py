# SPDX-License-Identifier: Apache-2.0
"""A host that is the graph of an ONNX file. The file is a tensor of the model, and OpenVINO runs it on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from netwarp_ros.models.others.onnx_file import MAX_BYTES
from netwarp_ros.models.others.onnx_graph import OnnxGraph, RunFrame
from netwarp_ros.models.spec import ModelSpec
from netwarp_ros.models.video_cnn import Size, map_size

ONNX = "onnx"
"""The name of the host in a spec."""

MAX_SIZES = 16
"""Sizes of frames for which a compiled graph is kept; when there are more, the first one is dropped."""


class OnnxHost(nn.Module):
    """An image CNN whose layers are those of an ONNX file. It has no parameters, and cannot be trained.

    The graph is compiled for each size of frame when it first occurs, with PyTorch's number of threads, and computes in
    float32. Frames of a batch are run one by one. Threads may share a host. A copy compiles its graph anew.

    Args:
        num_classes: K, the number of classes.
        bgr: Whether the graph takes blue first; by default, it takes red first.
        config: ``bytes``: the size of the ONNX file.

    Attributes:
        graph: The file, ``(N,)`` uint8. It is empty memory until it is loaded or assigned.

    Raises:
        ValueError: The size is missing, or not one of a file that is read.
    """

    graph: Tensor

    def __init__(self, num_classes: int, *, bgr: bool = False, config: Mapping[str, Any]) -> None:
        super().__init__()
        size = config.get("bytes")
        if set(config) != {"bytes"} or type(size) is not int or not 1 <= size <= MAX_BYTES:
            raise ValueError(f"host_config must have the size of the ONNX file as bytes, from 1 to {MAX_BYTES}")
        self.num_classes, self.bgr = num_classes, bgr
        self.register_buffer("graph", torch.empty(size, dtype=torch.uint8))
        self._compiled: dict[object, tuple[Tensor, RunFrame]] = {}  # with the file, whose id must stay its own

    @classmethod
    def of(cls, content: bytes, num_classes: int, *, bgr: bool = False) -> OnnxHost:
        """Return the host with a file's content."""
        host = cls(num_classes, bgr=bgr, config={"bytes": len(content)})
        host.graph = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return host

    def forward(self, frame: Tensor) -> Tensor:
        """Return the class scores of frames.

        Args:
            frame: ``(B, 3, H, W)`` RGB, normalised, on the CPU.

        Returns:
            ``(B, K, h, w)`` float32. If the graph gives class ids, 1 for that class and 0 for the others.

        Raises:
            ValueError: The file is refused or cannot be run at this size (see `OnnxGraph`); or it gives a class id that
                there is not.
        """
        run = self.compiled(map_size(frame))
        frames = (frame.flip(1) if self.bgr else frame).float()
        scores = [run(each) for each in frames.split(1)]
        return scores[0] if len(scores) == 1 else torch.cat(scores)

    def compiled(self, size: Size) -> RunFrame:
        """Return the graph, compiled for frames of a size ``(height, width)``; errors as in `forward`."""
        threads, file = torch.get_num_threads(), self.graph
        version = None if file.is_inference() else file._version  # counts the modifications in place
        key = (id(file), version, size, threads)
        if key not in self._compiled:
            graph = OnnxGraph(file.numpy().tobytes(), self.num_classes)
            self._compiled[key] = file, graph.compile(size, threads)
            if len(self._compiled) > MAX_SIZES:
                del self._compiled[next(iter(self._compiled))]
        return self._compiled[key][1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": {}}


def refuse_onnx(spec: ModelSpec, name: str, action: str) -> None:
    """Refuse a model whose host is the graph of an ONNX file where the layers of a network are needed.

    Args:
        spec: The model's spec.
        name: Its name or file.
        action: What cannot be done, such as "NetWarp cannot be inserted".

    Raises:
        ValueError: It is one.
    """
    if spec.host == ONNX:
        raise ValueError(
            f"{name} is an ONNX file's graph, which has no layers of PyTorch: {action}. Convert the network's own "
            "weights instead, see docs/models.md"
        )
