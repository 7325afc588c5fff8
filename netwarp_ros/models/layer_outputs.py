# SPDX-License-Identifier: Apache-2.0
"""The map ``(B, C, h, w)`` in the output of a layer, which may be tokens, or stand in a tuple or a dict."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, StrictInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from netwarp_ros.models.outputs import named_members
from netwarp_ros.models.resampling import Size
from netwarp_ros.resources import Checked, quote

Cells = Annotated[StrictInt, Field(ge=1, le=4096)]
Member = Annotated[StrictInt, Field(ge=0, le=1000)] | Annotated[str, Field(max_length=100)]
Layout = Literal["map", "pixels", "tokens"]
"""``(B, C, h, w)``, ``(B, h, w, C)`` or ``(B, N, C)``."""

_STRIDES = (1, 2, 4, 8, 16, 32, 64, 7, 14, 28)  # of two that fit, the former is meant: patches of 14 are rare
_CLASS_TOKENS = (0, 1, 5)  # before those of the grid: none, a class token, or one and the four registers of DINOv2


@dataclass(frozen=True)
class LayerOutput(Checked):
    """What the user says about a layer's output, where it cannot be seen.

    Attributes:
        member: Index in a tuple, or key in a dict, of the tensor to blend.
        layout: ``"map"`` for ``(B, C, h, w)``, ``"pixels"`` for ``(B, h, w, C)``.
        tokens: The grid ``(h, w)`` that tokens ``(B, N, C)`` are of, row by row. Tokens before those of the grid, such
            as a class token, are not blended.
    """

    member: Member | None = None
    layout: Literal["map", "pixels"] | None = None
    tokens: tuple[Cells, Cells] | None = None


class MapPlace(NamedTuple):
    """Where the map is in the output of a layer.

    Attributes:
        member: Index or key in the output; None if the output is the tensor.
        layout: How the tensor holds the map.
        class_tokens: Number of tokens before those of the grid.
        stride: Pixels of the frame for each token. 0: the grid is ``grid``, for frames of any size.
        grid: The grid that was told.
    """

    member: int | str | None = None
    layout: Layout = "map"
    class_tokens: int = 0
    stride: int = 0
    grid: Size = (0, 0)

    def take(self, output: Any, frame: Size) -> Tensor:
        """Return the map ``(B, C, h, w)`` in an output; it shares the output's memory.

        Args:
            output: What the layer returned.
            frame: Size of the frame.

        Raises:
            RuntimeError: If there are more or fewer tokens than the grid has cells.
        """
        tensor = self._tensor(output)
        if self.layout == "map":
            return tensor
        if self.layout == "tokens":
            tensor = tensor[:, self.class_tokens :].unflatten(1, self._grid(tensor.shape[1], frame))
        return tensor.permute(0, 3, 1, 2)

    def put(self, output: Any, features: Tensor) -> Any:
        """Return the output with another map ``(B, C, h, w)`` in place of its own."""
        if self.layout != "map":
            features = features.permute(0, 2, 3, 1)
        if self.layout == "tokens":
            features = features.flatten(1, 2)
            if self.class_tokens:
                features = torch.cat((self._tensor(output)[:, : self.class_tokens], features), dim=1)
        return features if self.member is None else _with_member(output, self.member, features)

    def _tensor(self, output: Any) -> Tensor:
        tensor: Tensor = output if self.member is None else _members(output)[self.member]
        return tensor

    def _grid(self, tokens: int, frame: Size) -> Size:
        cells = tokens - self.class_tokens
        grids = [self.grid] if self.stride == 0 else _grids(frame, self.stride)
        for height, width in grids:
            if height * width == cells:
                return height, width
        raise RuntimeError(f"the layer gives {tokens} tokens for a frame of {frame}, which is no grid of {grids}")


def find_map(output: Any, frame: Size, told: LayerOutput | None = None) -> MapPlace:
    """Find the map in the output of a layer.

    Args:
        output: What the layer returned.
        frame: Size of the frame.
        told: What is known about the output.

    Raises:
        ValueError: If there is none, or it cannot be told which of several it is, or what grid its tokens are of. The
            message begins with what the layer gives, and says what to tell.
    """
    told = told or LayerOutput()
    if isinstance(output, Tensor):
        if told.member is not None:
            raise ValueError(f"gives a tensor, which has no member {quote(told.member)}")
        return _place(output, None, frame, told)
    members = _members(output)
    if told.member is not None:
        if not isinstance(members.get(told.member), Tensor):
            raise ValueError(f"gives {_described(output)}, which has no tensor {quote(told.member)}")
        return _place(members[told.member], told.member, frame, told)
    tensors = {key: value for key, value in members.items() if isinstance(value, Tensor) and value.ndim in (3, 4)}
    if not tensors:
        raise ValueError(f"gives {_described(output)}: choose one that gives a map (B, C, h, w), or tokens (B, N, C)")
    if len(tensors) > 1:
        raise ValueError(
            f"gives {_described(output)}: tell which tensor to blend, as in layers: {{NAME: {{member: "
            f"{next(iter(tensors))!r}}}}}"
        )
    ((key, tensor),) = tensors.items()
    return _place(tensor, key, frame, told)


def _place(tensor: Tensor, member: int | str | None, frame: Size, told: LayerOutput) -> MapPlace:
    if tensor.ndim == 4:
        if told.layout is not None:
            return MapPlace(member, told.layout)
        as_map, as_pixels = _is_grid(tensor.shape[2:], frame), _is_grid(tensor.shape[1:3], frame)
        if as_map and as_pixels:
            raise ValueError(
                f"gives {tuple(tensor.shape)}, which may be (B, C, h, w) or (B, h, w, C): tell it, as in layers: "
                "{NAME: {layout: map}} or {layout: pixels}"
            )
        return MapPlace(member, "pixels" if as_pixels else "map")
    shape = tuple(tensor.shape)
    if tensor.ndim != 3:
        raise ValueError(f"gives {shape}: choose one that gives a map (B, C, h, w), or tokens (B, N, C)")
    if told.tokens is not None:
        class_tokens = shape[1] - told.tokens[0] * told.tokens[1]
        if class_tokens < 0:
            raise ValueError(f"gives {shape}, fewer tokens than the cells of its grid {told.tokens}")
        return MapPlace(member, "tokens", class_tokens, grid=told.tokens)
    for class_tokens in _CLASS_TOKENS:
        for stride in _STRIDES:
            if any(height * width == shape[1] - class_tokens for height, width in _grids(frame, stride)):
                return MapPlace(member, "tokens", class_tokens, stride)
    raise ValueError(
        f"gives {shape}, which is no grid of tokens (B, N, C) of a frame of {frame}: tell the grid, as in layers: "
        "{NAME: {tokens: [h, w]}}"
    )


def _grids(frame: Size, stride: int) -> list[Size]:
    """Return the grids of a stride: a cell that is cut by the frame's edge may count or not."""
    return [(-(-frame[0] // stride), -(-frame[1] // stride)), (frame[0] // stride, frame[1] // stride)]


def _is_grid(size: tuple[int, ...], frame: Size) -> bool:
    return any(tuple(size) == grid for stride in _STRIDES for grid in _grids(frame, stride))


def _members(output: Any) -> Mapping[Any, Any]:
    if isinstance(output, tuple | list):
        return dict(enumerate(output))
    if (members := named_members(output)) is not None:
        return members
    raise ValueError(f"gives a {type(output).__name__}: choose one that gives a map (B, C, h, w), or tokens (B, N, C)")


def _with_member(output: Any, member: int | str, tensor: Tensor) -> Any:
    """Return a copy of a tuple, list, mapping or dataclass with another member."""
    if isinstance(output, tuple | list):
        values = [tensor if index == member else value for index, value in enumerate(output)]
        return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
    if isinstance(output, Mapping):
        changed = copy.copy(output)
        changed[member] = tensor  # type: ignore[index]
        return changed
    return dataclasses.replace(output, **{str(member): tensor})


def _described(output: Any) -> str:
    def parts() -> Iterator[str]:
        for key, value in _members(output).items():
            yield f"{key}: {tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}"

    return f"a {type(output).__name__} ({', '.join(parts())})"
