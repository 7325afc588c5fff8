# SPDX-License-Identifier: Apache-2.0
"""An image CNN turned into a video CNN: NetWarp modules behind chosen layers of any `torch.nn.Module`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netwarp_ros.models.flow_cnn import FlowCNN
from netwarp_ros.models.netwarp import Concatenation, NetWarp, resize_flow

FlowGrid = Literal["image", "features", "first"]
Remember = Literal["before", "after"]
Blend = Literal["netwarp", "concatenation"]
Flow = Tensor | Callable[[], Tensor]
"""A flow, or a function that estimates it once the first insertion layer has run (on a GPU: while it is computed)."""


Size = tuple[int, int]
"""Height and width."""


class Layer(NamedTuple):
    """What must be known of a layer to insert behind it.

    Attributes:
        channels: Of its output.
        edited: Whether the host goes on in place, such as by ``ReLU(inplace=True)``, when it is not in training.
    """

    channels: int
    edited: bool


class Memory(NamedTuple):
    """What the next call needs of this one: a value, owned by the caller.

    Attributes:
        shape: ``(B, 3, H, W)``, of the frame.
        frames: The frame as the network saw it, ``(B, 3, h, w)`` float32, on each grid that Λ works on, by its size.
        representations: The ``(B, C, h, w)`` output of each layer that a NetWarp module follows, by its name.
    """

    shape: tuple[int, ...]
    frames: dict[Size, Tensor]
    representations: dict[str, Tensor]

    def detach(self) -> Memory:
        """Return the same memory cut off from the graph, where no gradient shall go further back."""
        frames = {size: frame.detach() for size, frame in self.frames.items()}
        return Memory(self.shape, frames, {name: z.detach() for name, z in self.representations.items()})

    def clone(self) -> Memory:
        """Return a copy whose representations nobody else writes to."""
        return self._replace(representations={name: z.clone() for name, z in self.representations.items()})


@dataclass
class _Call:
    """The state of one forward pass: what was given, what shall be remembered, and Λ(F) by the size of its grid."""

    frame: Tensor
    flow: Flow | None
    memory: Memory | None
    frames: dict[Size, Tensor] = field(default_factory=dict)
    representations: dict[str, Tensor] = field(default_factory=dict)
    flows: dict[Size, Tensor] = field(default_factory=dict)


class VideoCNN(nn.Module):
    """A host network with NetWarp modules behind some of its layers; made by `augment`.

    ``output, memory = video_cnn(frame, flow, memory)``. Memory is a value: several cameras are several memories, and
    ``None`` starts anew. Gradients go through it, so the paper's two-frame training is two calls. The host is hooked,
    not changed: its parameters keep their names, and called by itself it is the image CNN it was.

    One forward pass at a time: to run several threads, give each a copy.

    Args:
        host: The image CNN.
        layers: What to insert behind, by the name of the submodule.
        flow_cnn: Whether Λ transforms the flow. One Λ is shared by all layers.
        flow_grid: Where Λ works: on the ``"image"`` grid, as in the paper; on the grid of the ``"features"`` at each
            layer, as in the authors' release, which costs less by the square of the stride; or on the grid of the
            ``"first"`` layer that runs, whose result is resized for the others.
        remember: Whether the next frame sees a layer's representation from ``"before"`` the blend, as in the paper, or
            from ``"after"`` it (a recursive filter). With ``"before"``, frame t-2 cannot reach frame t by way of one
            insertion layer. Where a layer lies behind another, what it gave at t-1 was computed from the other's blend
            of t-1 and t-2, so each further layer in series lets one more frame through.
        blend: What follows a layer: `NetWarp`, or `Concatenation` to hold it against.
    """

    def __init__(
        self,
        host: nn.Module,
        layers: Mapping[str, Layer],
        *,
        flow_cnn: bool = True,
        flow_grid: FlowGrid = "image",
        remember: Remember = "before",
        blend: Blend = "netwarp",
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("flow_grid", flow_grid, get_args(FlowGrid)),
            ("remember", remember, get_args(Remember)),
            ("blend", blend, get_args(Blend)),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}: choose one of {', '.join(map(repr, choices))}")
        self.host = host
        self.layers = tuple(layers)
        self.flow_cnn = FlowCNN() if flow_cnn and layers else None
        self.flow_grid = flow_grid
        self.remember = remember
        module = NetWarp if blend == "netwarp" else Concatenation
        self.netwarps = nn.ModuleList(module(layer.channels) for layer in layers.values())
        self._edited = [layer.edited for layer in layers.values()]
        self._call: _Call | None = None
        for index, name in enumerate(self.layers):
            find_layer(host, name).register_forward_hook(partial(self._insert, index))

    def forward(
        self, frame: Tensor, flow: Flow | None = None, memory: Memory | None = None, **host_arguments: Any
    ) -> tuple[Any, Memory]:
        """Run the network on one frame of each stream of the batch.

        Args:
            frame: ``(B, 3, H, W)``, as the host takes it.
            flow: ``(B, 2, H, W)`` float32, reverse flow in pixels of the frame, or a function that returns it; not used
                when ``memory`` is None.
            memory: What the previous call on these streams returned, or None for a first frame.
            host_arguments: For the host, beside the frame, such as ``auxiliary=True`` in training.

        Returns:
            The host's output (for the hosts of this package logits ``(B, K, h, w)``), and the memory for the next
            call.

        Raises:
            ValueError: If frame, flow and memory do not fit together.
            RuntimeError: If an insertion layer was not run exactly once.
        """
        self._check(frame, flow, memory)
        if isinstance(flow, Tensor) and memory is not None:
            _check_flow(flow, frame)
        call = self._call = _Call(frame, flow, memory)
        try:
            output = self.host(frame, **host_arguments)
        finally:
            self._call = None
        missing = [name for name in self.layers if name not in call.representations]
        if missing:
            raise RuntimeError(f"the host did not run its layers {missing} in this pass: choose others to insert at")
        return output, Memory(tuple(frame.shape), call.frames, call.representations)

    def _check(self, frame: Tensor, flow: Flow | None, memory: Memory | None) -> None:
        if frame.ndim != 4:
            raise ValueError(f"frame is {tuple(frame.shape)}: give (B, C, H, W)")
        if memory is None:
            return
        if memory.shape != tuple(frame.shape):
            raise ValueError(
                f"frame is {tuple(frame.shape)}, memory is of {memory.shape}: where the size changes, start anew with "
                "memory=None"
            )
        if flow is None:
            raise ValueError("memory needs a flow from this frame to the previous one: give flow, or memory=None")
        if set(memory.representations) != set(self.layers):
            raise ValueError(
                f"memory is of layers {sorted(memory.representations)}, this network has {sorted(self.layers)}: "
                "start anew with memory=None"
            )

    @torch.compiler.disable
    def _insert(self, index: int, _module: nn.Module, _inputs: Any, z: Tensor) -> Tensor | None:
        """Follow an insertion layer: remember its representation and return the blend."""
        call, name = self._call, self.layers[index]
        if call is None:
            return None
        if name in call.representations:
            raise RuntimeError(f"layer {name!r} ran twice in one pass of the host: choose one that runs once")
        grid = self._grid(call, z)
        if self.flow_cnn is not None and grid not in call.frames:
            call.frames[grid] = _resize_frame(call.frame, grid)
        if call.memory is None:
            blend = z
        else:
            blend = self.netwarps[index](z, call.memory.representations[name], self._flow_at(call, _size(z), grid))
        remembered = z if self.remember == "before" else blend
        call.representations[name] = remembered
        # What is remembered must be out of the reach of a host that goes on in place; dropout does in training alone.
        within_reach = remembered is blend and (self._edited[index] or self.training)
        return blend.clone() if within_reach else blend

    def _grid(self, call: _Call, z: Tensor) -> Size:
        """Return the size of the grid that Λ works on for a layer that gives ``z``."""
        if self.flow_grid == "image":
            return _size(call.frame)
        if self.flow_grid == "first":
            return _size(next(iter(call.representations.values()), z))
        return _size(z)

    def _flow_at(self, call: _Call, size: Size, grid: Size) -> Tensor:
        """Return Λ(F), which works on one grid, on another; each is computed once in a pass."""
        if grid not in call.flows:
            call.flows[grid] = self._transform(call, grid)
        if size not in call.flows:
            call.flows[size] = resize_flow(call.flows[grid], size)
        return call.flows[size]

    def _transform(self, call: _Call, grid: Size) -> Tensor:
        """Apply Λ on a grid, in float32 whatever the precision of the host: half precision would blur coordinates."""
        assert call.flow is not None and call.memory is not None
        if not isinstance(call.flow, Tensor):
            call.flow = call.flow()
            _check_flow(call.flow, call.frame)
        flow = resize_flow(call.flow, grid)
        if self.flow_cnn is None:
            return flow
        with torch.autocast(flow.device.type, enabled=False):
            return self.flow_cnn(flow, call.memory.frames[grid], call.frames[grid])


def _check_flow(flow: Tensor, frame: Tensor) -> None:
    expected = (frame.shape[0], 2, *frame.shape[2:])
    if tuple(flow.shape) != expected:
        raise ValueError(f"flow is {tuple(flow.shape)}, expected {expected}")
    if flow.dtype != torch.float32:
        raise ValueError(f"flow is {flow.dtype}, expected torch.float32: use flow.float()")


def _size(tensor: Tensor) -> Size:
    return tensor.shape[-2], tensor.shape[-1]


def _resize_frame(frame: Tensor, size: Size) -> Tensor:
    resized = frame if _size(frame) == size else F.interpolate(frame, size=size, mode="area")
    return resized.float()


def find_layer(host: nn.Module, name: str) -> nn.Module:
    """Return a submodule by its name.

    Raises:
        ValueError: If there is none; the message suggests the nearest names.
    """
    modules = dict(host.named_modules())
    if not name or name not in modules:
        near = difflib.get_close_matches(name, modules, n=3, cutoff=0.4) or [key for key in modules if key][:5]
        raise ValueError(f"{type(host).__name__} has no layer {name!r}: did you mean {', '.join(map(repr, near))}?")
    return modules[name]


def augment(
    host: nn.Module,
    layers: Sequence[str],
    *,
    flow_cnn: bool = True,
    flow_grid: FlowGrid = "image",
    remember: Remember = "before",
    blend: Blend = "netwarp",
    example: Tensor | None = None,
) -> VideoCNN:
    """Turn an image CNN into a video CNN by inserting NetWarp behind some of its layers.

    The host is run once on ``example``, in evaluation mode and without gradients, to learn the layers' channels and
    whether it goes on in place. At the start the video CNN equals its host bit for bit (w1 = 1, w2 = 0).

    Args:
        host: Any module that takes a frame ``(B, 3, H, W)``. It is used as it is, not copied.
        layers: Names of submodules, as in ``host.named_modules()``, each giving a tensor ``(B, C, h, w)``.
        flow_cnn: See `VideoCNN`.
        flow_grid: See `VideoCNN`.
        remember: See `VideoCNN`.
        blend: See `VideoCNN`.
        example: A frame the host can be run on; by default zeros ``(1, 3, 128, 128)`` of the host's type and device.

    Raises:
        ValueError: If a layer is unknown, named twice, not run exactly once, or does not give ``(B, C, h, w)``.

    Example:
        >>> host = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 11, 1))
        >>> video_cnn = augment(host, ["0"])
        >>> frame, flow = torch.rand(1, 3, 24, 32), torch.zeros(1, 2, 24, 32)
        >>> logits, memory = video_cnn(frame)
        >>> logits, memory = video_cnn(frame, flow, memory)
        >>> logits.shape
        torch.Size([1, 11, 24, 32])
    """
    if isinstance(layers, str):
        raise ValueError(f"layers is the string {layers!r}: give a list of names, such as [{layers!r}]")
    if not layers or len(set(layers)) != len(layers):
        raise ValueError(f"layers is {list(layers)}: name at least one layer, and each once")
    if example is None:
        weight = next(host.parameters(), torch.empty(0))
        example = torch.zeros(1, 3, 128, 128, dtype=weight.dtype, device=weight.device)
    found = _probe(host, layers, example)
    options: dict[str, Any] = {"flow_cnn": flow_cnn, "flow_grid": flow_grid, "remember": remember, "blend": blend}
    return VideoCNN(host, found, **options).to(example.device)


def _probe(host: nn.Module, layers: Sequence[str], example: Tensor) -> dict[str, Layer]:
    outputs: dict[str, list[tuple[Any, int]]] = {name: [] for name in layers}

    def record(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs[name].append((output, getattr(output, "_version", 0)))

    handles = [find_layer(host, name).register_forward_hook(partial(record, name)) for name in layers]
    modes = {module: module.training for module in host.modules()}
    try:
        host.eval()
        with torch.inference_mode(False), torch.no_grad():
            host(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode

    for name, seen in outputs.items():
        if len(seen) != 1:
            raise ValueError(f"layer {name!r} ran {len(seen)} times in one pass of the host: choose one that runs once")
        output, _ = seen[0]
        if not isinstance(output, Tensor) or output.ndim != 4:
            kind = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"layer {name!r} gives {kind}: choose one that gives a tensor (B, C, h, w)")
    # A tensor counts the edits of its storage, for the sake of autograd.
    return {name: Layer(z.shape[1], z._version > version) for name, ((z, version),) in outputs.items()}
