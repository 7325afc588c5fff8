# SPDX-License-Identifier: Apache-2.0
"""Make a model of an ONNX file: `netwarp convert net.onnx`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netwarp_ros.models.others.conversion import MODEL_FILE, Overrides, classes_and_sizes
from netwarp_ros.models.others.input_sizes import find_input_size
from netwarp_ros.models.others.onnx_file import MAX_BYTES
from netwarp_ros.models.others.onnx_graph import OnnxGraph
from netwarp_ros.models.others.onnx_host import ONNX, OnnxHost
from netwarp_ros.models.spec import InputSize, ModelSpec, WeightsError
from netwarp_ros.models.video_cnn import VideoCNN
from netwarp_ros.resources import cut, parse


@dataclass(frozen=True)
class OnnxConversion:
    """A model that was made of an ONNX file."""

    network: VideoCNN
    spec: ModelSpec

    def __str__(self) -> str:
        size = f"{self.spec.host_config['bytes'] / 1e6:.1f} MB"
        return f"an ONNX file of {size}, without layers to train or to insert at\n{classes_and_sizes(self.spec)}"


def convert_onnx(path: Path, overrides: Overrides, *, bgr: bool = False) -> OnnxConversion:
    """Convert an ONNX file to a model without NetWarp; see `OnnxHost`.

    Args:
        path: The file.
        overrides: The classes must be among them. By default, frames are normalised with ImageNet's mean and deviation.
        bgr: Whether the network takes blue first.

    Raises:
        WeightsError: There is no such file, it is refused, or it cannot be told what takes the frame, what has the
            classes, or which sizes of frames it takes.
        ValueError: The classes are missing, or the height is not the file's.
    """
    content = _read(path)
    if overrides.classes is None:
        raise ValueError(f"{path} does not say which classes its network has: give --classes")
    num_classes = len(overrides.classes)
    try:
        fixed = OnnxGraph(content, num_classes).size
        host = OnnxHost.of(content, num_classes, bgr=bgr)
        if fixed:
            host.compiled(fixed)
        input_size = InputSize(fixed=fixed) if fixed else find_input_size(host)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    height = overrides.input_height
    if fixed and height not in (None, fixed[0]):
        raise ValueError(
            f"input height is {height}, but the network takes {fixed[1]}x{fixed[0]} only: leave --input-height out"
        )
    spec: dict[str, Any] = {
        "host": ONNX,
        "host_config": {"bytes": len(content)},
        "classes": overrides.classes,
        "host_arguments": {"num_classes": num_classes, **({"bgr": True} if bgr else {})},
        "input_height": fixed[0] if fixed else height or 360,
        "input_size": input_size,
        "notes": {"origin": f"converted from {cut(path.name)}"},
    }
    spec |= {key: value for key in ("mean", "std") if (value := getattr(overrides, key)) is not None}
    return OnnxConversion(VideoCNN(host, {}).eval(), parse(ModelSpec, spec, MODEL_FILE))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise WeightsError(f"{path} has more than {MAX_BYTES} bytes, the most that are read")
    return content
