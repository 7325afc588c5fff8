# SPDX-License-Identifier: Apache-2.0
"""Models on disk: safetensors files whose header says how to build the network.

The header holds a `ModelSpec` as JSON. Loading has four steps, and each can refuse the file: check the spec; build the
host on PyTorch's meta device, which allocates no memory, and compare its shapes with the file's; read the tensors;
insert NetWarp into the host. Nothing is unpickled.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from netwarp_ros.models.building import build_host, build_on_meta, insert_netwarp
from netwarp_ros.models.hosts import HOSTS
from netwarp_ros.models.limits import at_most
from netwarp_ros.models.spec import MODEL_NAME, ModelSpec, WeightsError
from netwarp_ros.models.video_cnn import VideoCNN
from netwarp_ros.resources import MAX_JSON, cut, parse_json, quote

DEFAULT_MODEL = "swiftnet-lite2-netwarp-camvid"
WEIGHTS_FOLDER = Path(__file__).parent.parent / "weights"

MAX_HEADER_BYTES = 2**20
"""Largest header of a weights file that is read: 10,000 tensors, a second's work. PSPNet-101 has 75 kB."""

_HEADER = "netwarp_ros"
INT8_HEADER = "netwarp_ros_int8"
"""The entry in the header of a file of int8 graphs (`netwarp_ros.engines.int8`)."""

_INT8 = "-int8"


@dataclass(frozen=True)
class Model:
    """A network, its spec, its name, and the file that it was loaded from, if it was."""

    network: VideoCNN
    spec: ModelSpec
    name: str
    file: Path | None = None


MODEL_MARK = '"__metadata__":{"netwarp_ros":'
"""Beginning of the header of every file that `save_model` writes."""


def save_model(path: str | Path, network: VideoCNN, spec: ModelSpec, *, dtype: torch.dtype = torch.float16) -> Path:
    """Write a network to a safetensors file. The file is renamed into place, so that it is always complete.

    Args:
        path: File to write; ends in ``.safetensors``.
        network: Its parameters and buffers are written under their own names.
        spec: The spec that `build` makes this network from.
        dtype: Type that convolution kernels and matrices are stored in. Biases and norm statistics are float32.

    Returns:
        The path written.

    Raises:
        WeightsError: The path has another ending, the spec is longer than a header may be, or a value is not finite in
            the type that it is stored in.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path} does not end in .safetensors, the only format of weights files")
    tensors = {
        name: value.detach().to("cpu", dtype if value.ndim > 1 and value.is_floating_point() else value.dtype)
        for name, value in network.state_dict().items()
    }
    _check_finite("the network", tensors)
    header = json.dumps(asdict(spec))
    if len(header) > MAX_JSON:
        raise WeightsError(f"the spec has {len(header)} characters of JSON, at most {MAX_JSON} are read: shorten notes")
    return write_safetensors(path, tensors, {_HEADER: header})


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor | bytes], metadata: Mapping[str, str]) -> Path:
    """Write a safetensors file; bytes become a tensor of uint8. The file is renamed into place when it is complete."""
    maps = {
        # A copy of what is not dense, and of tied weights, which share memory: safetensors would refuse them.
        name: torch.frombuffer(bytearray(value), dtype=torch.uint8)
        if isinstance(value, bytes)
        else value.clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    with tempfile.TemporaryDirectory(prefix=f"{path.name[:100]}.part-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        save_file(maps, temporary, metadata=dict(metadata))
        return temporary.replace(path)


def load_model(name_or_file: str | Path) -> Model:
    """Load a shipped model by its name, or any model from a ``.safetensors`` file.

    Returns:
        The model in evaluation mode, in float32, on the CPU.

    Raises:
        WeightsError: There is no such model, or the file is not valid or does not fit its network.
    """
    path = find_weights(name_or_file)
    spec = read_spec(path)
    with open_safetensors(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        host_shapes = {name: shape for name, shape in shapes.items() if name.startswith("host.")}
        # A header can describe a network of any size. On the meta device it takes no memory, but each layer takes time.
        with at_most(parameters=2 * len(shapes) + 100, modules=20 * len(shapes) + 1000):
            host = build_on_meta(spec)
        _check_shapes(path, VideoCNN(host, {}), host_shapes)
        tensors = {name: file.get_tensor(name) for name in shapes}
    count = spec.host_arguments.get("num_classes", len(spec.classes))
    if count != len(spec.classes):
        raise WeightsError(f"{path}: num_classes is {count}, but {spec.classes.name} has {len(spec.classes)} classes")
    # Copy even tensors of the right type: the file maps them at addresses that are not aligned.
    weights = {
        name: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for name, value in tensors.items()
    }
    _check_values(path, VideoCNN(host, {}), weights)
    with torch.random.fork_rng(devices=()):  # all random weights are replaced: draw no numbers for them
        if spec.host not in HOSTS:  # a host by others may hold tensors that are not in its state dict
            host = build_host(spec)
        host.load_state_dict({name.removeprefix("host."): weights[name] for name in host_shapes}, assign=True)
        # With NetWarp the host is run. On the meta device that would import torch._dynamo, which takes seconds.
        network = insert_netwarp(host, spec)
    _check_shapes(path, network, shapes)
    _check_values(path, network, weights)
    network.load_state_dict(weights, assign=True)
    return Model(network.eval(), spec, path.stem, path)


def read_spec(path: str | Path) -> ModelSpec:
    """Read the spec in the header of a weights file, without its tensors.

    Raises:
        WeightsError: The file is not a safetensors file, or its header has no valid spec.
    """
    path = Path(path)
    with open_safetensors(path) as file:
        entries = file.metadata() or {}
    header = entries.get(_HEADER)
    if header is None and INT8_HEADER in entries:
        name = path.name.removesuffix(f"{_INT8}{path.suffix}")
        raise WeightsError(
            f"{path} holds the int8 graphs of a model, not a model: give {name}.safetensors, or its name, and "
            "precision int8"
        )
    if header is None:
        raise WeightsError(
            f"{path} has no {_HEADER!r} entry in its header: write the file with netwarp_ros.models.save_model, "
            "which records how to build the network"
        )
    try:
        return parse_json(ModelSpec, header, f"the header of {path}")
    except ValueError as error:
        raise WeightsError(str(error)) from error


def find_weights(name_or_file: str | Path) -> Path:
    """Return the path of a shipped model, given its name, or of a weights file.

    Raises:
        WeightsError: There is no such model or file.
    """
    path = Path(name_or_file)
    if path.suffix != ".safetensors":
        name = str(name_or_file)
        if MODEL_NAME.fullmatch(name) and (shipped := WEIGHTS_FOLDER / f"{name}.safetensors").is_file():
            return shipped
        raise WeightsError(
            f"no model named {quote(name)}: give one of {', '.join(shipped_models()) or '(none shipped)'}, or the path "
            "of a .safetensors file"
        )
    if not path.is_file():
        raise WeightsError(
            f"no weights file {path}: give an existing .safetensors file, or a name from `netwarp models`"
        )
    return path


def stored_type(path: Path) -> torch.dtype:
    """Return the type that a weights file stores convolution kernels and matrices in: what `save_model` calls dtype."""
    with open_safetensors(path) as file:
        tensors = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118
    types = {tensor.get_dtype() for tensor in tensors if len(tensor.get_shape()) > 1}
    return torch.float16 if "F16" in types else torch.float32


def shipped_models() -> list[str]:
    """Return the names of the models in this package."""
    return sorted(path.stem for path in WEIGHTS_FOLDER.glob("*.safetensors") if not path.stem.endswith(_INT8))


def int8_file(weights: Path) -> Path:
    """Return the path of the int8 graphs of a model, given that of its weights."""
    return weights.with_name(f"{weights.stem}{_INT8}.safetensors")


def open_safetensors(path: Path) -> Any:
    """Open a safetensors file, after a look at the size of its header.

    Raises:
        WeightsError: It is not a safetensors file, or its header has more than `MAX_HEADER_BYTES`.
    """
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
        if MAX_HEADER_BYTES < header_bytes < path.stat().st_size:
            raise WeightsError(f"{path} has a header of {header_bytes} bytes; at most {MAX_HEADER_BYTES} are read")
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {cut(str(error))}") from error


def _check_shapes(path: Path, network: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    if wanted == shapes:
        return
    missing = sorted(wanted.keys() - shapes.keys())
    foreign = sorted(shapes.keys() - wanted.keys())
    differing = [
        f"{name} {shapes[name]} instead of {wanted[name]}"
        for name in sorted(wanted.keys() & shapes.keys())
        if wanted[name] != shapes[name]
    ]
    text = "; ".join(
        f"{len(names)} {what} ({', '.join(cut(name, 100) for name in names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("not of this network", foreign), ("of another shape", differing))
        if names
    )
    raise WeightsError(f"{path} does not fit the network it names: {text}")


def _check_values(path: Path, network: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Check the tensors of a network, whose shapes fit already: types, and that all values are finite."""
    wanted = network.state_dict()
    for name, value in wanted.items():
        if weights[name].dtype != value.dtype:
            raise WeightsError(f"{path}: {name} has the type {weights[name].dtype}, not {value.dtype}")
    _check_finite(str(path), {name: weights[name] for name in wanted})


def _check_finite(source: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Check that there is no NaN or infinity, which would make one class of every pixel."""
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise WeightsError(f"{source}: {name} has values of {value.dtype} that are not finite")
