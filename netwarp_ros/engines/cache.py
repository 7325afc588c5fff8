# SPDX-License-Identifier: Apache-2.0
"""What engines make of graphs, kept in a folder: the next process then loads it, and need not export the network.

Each graph is a safetensors file of bytes. Its name is a hash of all that the graph depends on, so a file is never out
of date, and never has to be changed. Use a folder that others cannot write to: what is in it is run.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from netwarp_ros.engines.engine import EngineError
from netwarp_ros.models.spec import WeightsError
from netwarp_ros.models.weights import open_safetensors, write_safetensors

Parts = Mapping[str, bytes]
"""The files that an engine's graph consists of, by name."""

_HEADER = "netwarp_ros_graph"


class GraphCache:
    """A folder of graphs.

    Attributes:
        is_in_use: Whether there is a folder.

    Args:
        folder: The folder, made if necessary; None: nothing is kept.

    Raises:
        EngineError: If the folder cannot be made.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder, self.is_in_use = folder, folder is not None
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise EngineError(f"engine_cache: {folder} cannot be made: {error}") from error

    def get(self, maker: str, graph: nn.Module, inputs: Sequence[Tensor], make: Callable[[], Parts]) -> Parts:
        """Return what an engine makes of a graph: from the folder, or made and kept.

        Args:
            maker: Name and version of the engine.
            graph: The graph.
            inputs: Examples of its inputs.
            make: Makes it.
        """
        if self._folder is None:
            return make()
        path = self._folder / f"{_key(maker, graph, inputs)}.safetensors"
        parts = _read(path)
        if parts is None:
            parts = make()
            try:
                write_safetensors(path, parts, {_HEADER: _digest(parts)})
            except OSError as error:  # a full disk, or a folder that may only be read
                warnings.warn(f"engine_cache: {path} cannot be written: {error}", RuntimeWarning, stacklevel=2)
        return parts


def _read(path: Path) -> Parts | None:
    """Return what a file holds; None if there is no file, or it is damaged."""
    try:
        with open_safetensors(path) as file:
            parts = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
            return parts if (file.metadata() or {}).get(_HEADER) == _digest(parts) else None
    except WeightsError:
        return None


def _digest(parts: Parts) -> str:
    digest = hashlib.sha256()
    for name in sorted(parts):
        digest.update(f"{name} {len(parts[name])} ".encode())
        digest.update(parts[name])
    return digest.hexdigest()


def _key(maker: str, graph: nn.Module, inputs: Sequence[Tensor]) -> str:
    """Return a hash of all that a graph depends on: versions, code and options of the network, weights, and shapes."""
    digest = hashlib.sha256()
    shapes = [(tuple(tensor.shape), str(tensor.dtype), str(tensor.device)) for tensor in inputs]
    options = {
        f"{name}.{key}": value
        for name, module in graph.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, (str, int, float, tuple, list, dict, type(None))) and not key.startswith("_")
    }
    for fact in (maker, torch.__version__, type(graph).__name__, shapes, sorted(options.items()), str(graph)):
        digest.update(f"{fact}\n".encode())
    for source in _sources(graph):
        digest.update(source.read_bytes())
    for name, value in (*graph.named_parameters(), *graph.named_buffers()):
        digest.update(f"{name} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sources(network: nn.Module) -> Iterator[Path]:
    """Yield the files that define the modules of a network and its graphs, without PyTorch's own, in a fixed order."""
    modules = {type(module).__module__ for module in network.modules()} | {"netwarp_ros.models.netwarp"}
    for name in sorted(modules):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and name.split(".")[0] != "torch":
            yield Path(file)
