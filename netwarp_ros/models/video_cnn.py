# SPDX-License-Identifier: Apache-2.0
"""Turn an image CNN into a video CNN by inserting NetWarp modules behind chosen layers of any `torch.nn.Module`.

`augment` looks at the layers and makes a `VideoCNN`. The `VideoCNN` registers a forward hook on each of them,
`VideoCNN._netwarp_hook`: this is where NetWarp is inserted.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from netwarp_ros.models.flow_cnn import FlowCNN
from netwarp_ros.models.netwarp import Concatenation, NetWarp, resize_flow

FlowGrid = Literal["image", "features", "first"]
Remember = Literal["before", "after"]
Blend = Literal["netwarp", "concatenation"]
Flow = Tensor | Callable[[], Tensor]
"""A flow, or a function that returns it; called once the first insertion layer has run (on a GPU: was launched)."""

Size = tuple[int, int]
"""Height and width."""


class InsertionLayer(NamedTuple):
    """A layer of the host that NetWarp is inserted behind.

    Attributes:
        channels: Number of channels of its output.
        modified_in_place: Whether the host, in evaluation mode, modifies that output in place afterwards, such as by
            ``ReLU(inplace=True)``.
    """

    channels: int
    modified_in_place: bool


class Memory(NamedTuple):
    """What a call passes on to the next call. It is a value that the caller owns.

    Attributes:
        shape: ``(B, 3, H, W)``, shape of the frame.
        frames: The normalised frame, ``(B, 3, h, w)`` float32, on each grid that Λ works on. Keys: size of the grid.
        representations: Output ``(B, C, h, w)`` of each insertion layer. Keys: name of the layer.
    """

    shape: tuple[int, ...]
    frames: dict[Size, Tensor]
    representations: dict[str, Tensor]

    def detach(self) -> Memory:
        """Return the memory detached from the autograd graph, so that no gradient goes further back."""
        frames = {size: frame.detach() for size, frame in self.frames.items()}
        return Memory(self.shape, frames, {name: z.detach() for name, z in self.representations.items()})

    def clone(self) -> Memory:
        """Return a memory with copies of the representations."""
        return self._replace(representations={name: z.clone() for name, z in self.representations.items()})


@dataclass
class _ForwardPass:
    """The state of one forward pass: its inputs, the next memory (frames, representations), and Λ(F) by grid size."""

    frame: Tensor
    flow: Flow | None
    memory: Memory | None
    frames: dict[Size, Tensor] = field(default_factory=dict)
    representations: dict[str, Tensor] = field(default_factory=dict)
    flows: dict[Size, Tensor] = field(default_factory=dict)


_FORWARD_PASSES: ContextVar[Mapping[VideoCNN, _ForwardPass]] = ContextVar(
    "_FORWARD_PASSES", default=MappingProxyType({})
)
"""The forward passes that are running in this thread, by their network: a host may contain another video CNN."""


class VideoCNN(nn.Module):
    """A host with NetWarp modules behind some of its layers. Use `augment` to make one.

    ``output, memory = video_cnn(frame, flow, memory)``. Memory is a value: each camera has its own, and ``None`` resets
    it. Gradients go through it, so the paper's two-frame training is two calls. The host is hooked, not changed: its
    parameters keep their names, and called by itself it still is the image CNN.

    Threads may share a network, each with memories of its own: the state of a forward pass belongs to the thread that
    made the call, and the host must run its insertion layers in that thread.

    Args:
        host: The image CNN.
        layers: The insertion layers, by the name of the submodule. With none, the network is the host alone.
        flow_cnn: Whether Λ transforms the flow. One Λ is shared by all layers.
        flow_grid: The grid that Λ works on. ``"image"``: the frame's, as in the paper. ``"features"``: that of each
            layer's output, as in the authors' release; this divides the work by the square of the stride.
            ``"first"``: that of the first insertion layer that runs; the result is resized for the others.
        remember: Which representation the memory holds: that from ``"before"`` the blend, as in the paper, or from
            ``"after"`` it (a recursive filter). With ``"before"`` and one insertion layer, frame t-2 has no effect on
            frame t. With two layers in series it has: the second layer's output at t-1 depends on the first one's blend
            of t-1 and t-2. Each further layer in series adds one frame.
        blend: What follows an insertion layer: ``"netwarp"`` (`NetWarp`), or ``"concatenation"`` (`Concatenation`).

    Raises:
        ValueError: If an option has another value, or the host has no such layer.
    """

    def __init__(
        self,
        host: nn.Module,
        layers: Mapping[str, InsertionLayer],
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
        blend_module = NetWarp if blend == "netwarp" else Concatenation
        self.netwarps = nn.ModuleList(blend_module(layer.channels) for layer in layers.values())
        self._modified_in_place = [layer.modified_in_place for layer in layers.values()]
        self._hooks: list[RemovableHandle] = []
        self._insert(VideoCNN._netwarp_hook)

    def _insert(self, hook: Callable[..., Tensor | None]) -> None:
        """Register a hook behind each insertion layer, in place of the present ones."""
        for present in self._hooks:
            present.remove()
        self._hooks = [
            find_layer(self.host, name).register_forward_hook(partial(hook, self, index))
            for index, name in enumerate(self.layers)
        ]

    def compile_host(self, **options: Any) -> Callable[..., Any]:
        """Return the host compiled by `torch.compile`: pass it to `forward`. The network itself does not change.

        NetWarp runs uncompiled between the compiled parts of the host, because it calls the flow's function.

        Args:
            options: Those of `torch.compile`.
        """
        # Not a decorator of the hook: `disable` imports torch._dynamo, which takes as long as importing PyTorch itself.
        self._insert(torch.compiler.disable(VideoCNN._netwarp_hook))
        return torch.compile(self.host, **options)

    def forward(
        self,
        frame: Tensor,
        flow: Flow | None = None,
        memory: Memory | None = None,
        *,
        host: Callable[..., Any] | None = None,
        **host_arguments: Any,
    ) -> tuple[Any, Memory]:
        """Run the network on one frame of each stream of the batch.

        Args:
            frame: ``(B, 3, H, W)``, normalised as the host expects.
            flow: ``(B, 2, H, W)`` float32, reverse flow in pixels of the frame, or a function that returns it. Not used
                when ``memory`` is None.
            memory: The memory that the previous call on these streams returned, or None for a first frame.
            host: The host as `compile_host` returned it; by default it runs uncompiled.
            host_arguments: Further arguments of the host, such as ``auxiliary=True`` in training.

        Returns:
            The host's output (logits ``(B, K, h, w)`` from the hosts of this package), and the memory for the next
            call.

        Raises:
            ValueError: If the shapes or types of frame, flow and memory do not match.
            RuntimeError: If the host did not run an insertion layer, or ran one twice.
        """
        self._check(frame, flow, memory)
        if isinstance(flow, Tensor) and memory is not None:
            _check_flow(flow, frame)
        run = _ForwardPass(frame, flow, memory)
        token = _FORWARD_PASSES.set({**_FORWARD_PASSES.get(), self: run})
        try:
            output = (self.host if host is None else host)(frame, **host_arguments)
        finally:
            _FORWARD_PASSES.reset(token)
        missing = [name for name in self.layers if name not in run.representations]
        if missing:
            raise RuntimeError(f"the host did not run its layers {missing} in this pass: choose others to insert at")
        return output, Memory(tuple(frame.shape), run.frames, run.representations)

    def _check(self, frame: Tensor, flow: Flow | None, memory: Memory | None) -> None:
        if frame.ndim != 4:
            raise ValueError(f"frame is {tuple(frame.shape)}: give (B, C, H, W)")
        if memory is None:
            return
        if memory.shape != tuple(frame.shape):
            raise ValueError(
                f"frame is {tuple(frame.shape)}, memory is of {memory.shape}: when the size changes, reset it with "
                "memory=None"
            )
        if flow is None:
            raise ValueError("memory needs a flow from this frame to the previous one: give flow, or memory=None")
        if set(memory.representations) != set(self.layers):
            raise ValueError(
                f"memory is of layers {sorted(memory.representations)}, this network has {sorted(self.layers)}: "
                "reset it with memory=None"
            )

    def _netwarp_hook(self, index: int, _module: nn.Module, _inputs: Any, z: Tensor) -> Tensor | None:
        """Replace the output z_t of an insertion layer by its blend with the memory; remember z_t or the blend."""
        run, name = _FORWARD_PASSES.get().get(self), self.layers[index]
        if run is None:  # the host was called by itself
            return None
        if name in run.representations:
            raise RuntimeError(f"layer {name!r} ran twice in one pass of the host: choose one that runs once")
        grid = self._flow_cnn_grid(run, z)
        if self.flow_cnn is not None and grid not in run.frames:
            run.frames[grid] = _resize_frame(run.frame, grid)
        if run.memory is None:
            blend = z
        else:
            blend = self.netwarps[index](z, run.memory.representations[name], self._flow_at(run, _size(z), grid))
        remembered = z if self.remember == "before" else blend
        run.representations[name] = remembered
        # The host may modify this tensor in place later (in training, dropout may too), so pass it a copy.
        shared = remembered is blend and (self._modified_in_place[index] or self.training)
        return blend.clone() if shared else blend

    def _flow_cnn_grid(self, run: _ForwardPass, z: Tensor) -> Size:
        """Return the size of the grid that Λ works on for an insertion layer with output ``z``."""
        if self.flow_grid == "image":
            return _size(run.frame)
        if self.flow_grid == "first":
            return _size(next(iter(run.representations.values()), z))
        return _size(z)

    def _flow_at(self, run: _ForwardPass, size: Size, grid: Size) -> Tensor:
        """Return Λ(F), computed on ``grid``, resized to ``size``. Both steps run once per size and forward pass."""
        if grid not in run.flows:
            run.flows[grid] = self._transform_flow(run, grid)
        if size not in run.flows:
            run.flows[size] = resize_flow(run.flows[grid], size)
        return run.flows[size]

    def _transform_flow(self, run: _ForwardPass, grid: Size) -> Tensor:
        """Compute Λ(F) on a grid, always in float32: half precision would lose fractions of a pixel."""
        assert run.flow is not None and run.memory is not None
        if not isinstance(run.flow, Tensor):
            run.flow = run.flow()
            _check_flow(run.flow, run.frame)
        flow = resize_flow(run.flow, grid)
        if self.flow_cnn is None:
            return flow
        with torch.autocast(flow.device.type, enabled=False):
            return self.flow_cnn(flow, run.memory.frames[grid], run.frames[grid])


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
        ValueError: If the host has no submodule of this name. The message suggests similar names.
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

    The host is run once on ``example``, in evaluation mode and without gradients, to find the number of channels of
    each layer and whether its output is modified in place. Initially the video CNN equals its host bit for bit (w1 = 1,
    w2 = 0).

    Args:
        host: Any module that takes a frame ``(B, 3, H, W)``. It is not copied.
        layers: Names of submodules, as in ``host.named_modules()``, whose output is a tensor ``(B, C, h, w)``.
        flow_cnn: See `VideoCNN`.
        flow_grid: See `VideoCNN`.
        remember: See `VideoCNN`.
        blend: See `VideoCNN`.
        example: A frame the host can be run on; by default zeros ``(1, 3, 128, 128)`` of the host's type and device.

    Raises:
        ValueError: If a layer is unknown, named twice, not run exactly once, or has another output.

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
    insertion_layers = _inspect_layers(host, layers, example)
    options: dict[str, Any] = {"flow_cnn": flow_cnn, "flow_grid": flow_grid, "remember": remember, "blend": blend}
    return VideoCNN(host, insertion_layers, **options).to(example.device)


def _inspect_layers(host: nn.Module, layers: Sequence[str], example: Tensor) -> dict[str, InsertionLayer]:
    """Run the host once and look at the outputs of the layers."""
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

    for name, runs in outputs.items():
        if len(runs) != 1:
            raise ValueError(f"layer {name!r} ran {len(runs)} times in one pass of the host: choose one that runs once")
        output, _ = runs[0]
        if not isinstance(output, Tensor) or output.ndim != 4:
            kind = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"layer {name!r} gives {kind}: choose one that gives a tensor (B, C, h, w)")
    # For autograd, PyTorch counts the in-place modifications of a tensor in its _version.
    return {name: InsertionLayer(z.shape[1], z._version > version) for name, ((z, version),) in outputs.items()}
