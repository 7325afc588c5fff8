# SPDX-License-Identifier: Apache-2.0
"""The video CNN: an image CNN with NetWarp modules behind chosen layers. `netwarp_ros.models.augment` makes one.

A `VideoCNN` replaces the ``forward`` of each insertion layer by an `_Insertion`: this is where NetWarp is inserted.
`VideoCNN.forward` is a whole frame, and what training differentiates. Engines compute the same in parts:
`VideoCNN.frames_for_flow`, `transform_flow` and `step`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from netwarp_ros.models.flow_cnn import FlowCNN
from netwarp_ros.models.gate import Gate, resize_gate
from netwarp_ros.models.layer_outputs import MapPlace
from netwarp_ros.models.netwarp import Concatenation, NetWarp, resize_flow
from netwarp_ros.models.resampling import Size, average

FlowGrid = Literal["image", "features", "first"]
Remember = Literal["before", "after"]
Blend = Literal["netwarp", "gated", "concatenation"]
GridFlows = Mapping[Size, Tensor]
"""A flow on each grid that Λ works on, in pixels of that grid: what `VideoCNN.flow_on_grids` returns."""
Flow = Tensor | GridFlows | Callable[[], Tensor | GridFlows]
"""A flow, or a function that returns it; called once the first insertion layer has run (on a GPU: was launched)."""


class InsertionLayer(NamedTuple):
    """A layer of the host that NetWarp is inserted behind.

    Attributes:
        channels: Number of channels of its map.
        modified_in_place: Whether the host, in evaluation mode, modifies that map in place afterwards, such as by
            ``ReLU(inplace=True)``.
        place: Where in the layer's output the map is.
    """

    channels: int
    modified_in_place: bool
    place: MapPlace = MapPlace()


class Memory(NamedTuple):
    """What a call passes on to the next call. It is a value that the caller owns.

    Attributes:
        shape: ``(B, 3, H, W)``, shape of the frame.
        frames: The normalised frame, ``(B, 3, h, w)`` float32, on each grid that Λ and the gate work on. Keys: size of
            the grid.
        representations: Output ``(B, C, h, w)`` of each insertion layer. Keys: name of the layer.
    """

    shape: tuple[int, ...]
    frames: dict[Size, Tensor]
    representations: dict[str, Tensor]

    def detach(self) -> Memory:
        """Return the memory detached from the autograd graph, so that no gradient goes further back."""
        frames = {size: frame.detach() for size, frame in self.frames.items()}
        return Memory(self.shape, frames, {name: z.detach() for name, z in self.representations.items()})


class Warping(NamedTuple):
    """How the memory of each insertion layer is warped and blended.

    Attributes:
        flows: ``(B, 2, h, w)`` float32, the transformed flow in pixels of the layer's grid. Keys: name of the layer.
        gates: ``(B, 1, h, w)`` float32, the gate; empty without one. Keys: name of the layer.
    """

    flows: dict[str, Tensor]
    gates: dict[str, Tensor]


Blended = Callable[[int, Tensor], Tensor]
"""Takes the index of an insertion layer and its output z_t, and returns the blend with the memory."""


@dataclass
class _HostPass:
    """One pass of the host.

    Attributes:
        frame: Size of the frame.
        blend: How to blend; None for a first frame.
        representations: What to remember.
    """

    frame: Size
    blend: Blended | None
    representations: dict[str, Tensor] = field(default_factory=dict)


_HOST_PASSES: ContextVar[Mapping[VideoCNN, _HostPass]] = ContextVar("_HOST_PASSES", default=MappingProxyType({}))
"""The passes that are running in this thread, by their network: a host may contain another video CNN."""


class _Insertion:
    """The ``forward`` of an insertion layer, which runs its own forward and blends the output.

    Args:
        network: The video CNN.
        index: Index of the layer.
        forward: The layer's own forward, or the insertion of another video CNN on the same host.
    """

    def __init__(self, network: VideoCNN, index: int, forward: Callable[..., Any]) -> None:
        self.network, self.index, self.forward = network, index, forward

    def __call__(self, *inputs: Any, **named_inputs: Any) -> Any:
        return self.network._blended(self.index, self.forward(*inputs, **named_inputs))


def _insertions(layer: nn.Module) -> Iterator[_Insertion]:
    """Yield the insertions at a layer, the outermost first."""
    forward = layer.__dict__.get("forward")
    while isinstance(forward, _Insertion):
        yield forward
        forward = forward.forward


class VideoCNN(nn.Module):
    """A host with NetWarp modules behind some of its layers. Use `augment` to make one.

    ``output, memory = video_cnn(frame, flow, memory)``. Memory is a value: each camera has its own, and ``None`` resets
    it. Gradients go through it, so the paper's two-frame training is two calls. Of the host, only the
    ``forward`` of its insertion layers is replaced: its modules and parameters keep their names, whatever hooks are
    registered on a layer see the blend, and called by itself it still is the image CNN.

    A host that recomputes layers in the backward pass (gradient checkpointing) must not do so with insertion layers: in
    the backward pass they would not be blended. `netwarp_ros.training` recomputes whole frames, which is fine.

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
        blend: What follows an insertion layer: ``"netwarp"`` (`NetWarp`), ``"gated"`` (the same with a `Gate`, which
            works where Λ does, and which all layers share), or ``"concatenation"`` (`Concatenation`).

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
        self.gate = Gate() if blend == "gated" and layers else None
        self.flow_grid = flow_grid
        self.remember = remember
        blend_module = Concatenation if blend == "concatenation" else NetWarp
        self.netwarps = nn.ModuleList(blend_module(layer.channels) for layer in layers.values())
        self._insertions = tuple(layers.values())
        self.insert()

    def forward(
        self, frame: Tensor, flow: Flow | None = None, memory: Memory | None = None, **host_arguments: Any
    ) -> tuple[Any, Memory]:
        """Run the network on one frame of each stream of the batch.

        Args:
            frame: ``(B, 3, H, W)``, normalised as the host expects.
            flow: ``(B, 2, h, w)`` float32, reverse flow in pixels of its own grid, which usually is the frame's, on the
                frame's device or the CPU; or that flow on the grids of Λ; or a function that returns one of the two.
                Not used when ``memory`` is None.
            memory: The memory that the previous call on these streams returned, or None for a first frame.
            host_arguments: Further arguments of the host, such as ``auxiliary=True`` in training.

        Returns:
            The host's output (logits ``(B, K, h, w)`` from the hosts of this package), and the memory for the next
            call.

        Raises:
            ValueError: If the shapes or types of frame, flow and memory do not match.
            RuntimeError: If the host did not run an insertion layer, or ran one twice.
        """
        self.check(frame, flow, memory)
        if memory is None:
            output, representations = self.run_host(frame, None, host_arguments)
            frames = self.frames_for_flow(frame, map_sizes(representations))
            return output, Memory(tuple(frame.shape), frames, representations)

        sizes = map_sizes(memory.representations)
        frames, warping = self.frames_for_flow(frame, sizes), Warping({}, {})

        def blend(index: int, z: Tensor) -> Tensor:
            nonlocal warping
            if not warping.flows:
                motion = self.flow_on_grids(computed_flow(flow, frame), map_size(frame), sizes, frame.device)
                warping = self.transform_flow(motion, map_size(frame), frames, memory.frames, sizes)
            name = self.layers[index]
            return self.netwarps[index](z, memory.representations[name], warping.flows[name], warping.gates.get(name))

        output, representations = self.run_host(frame, blend, host_arguments)
        return output, Memory(tuple(frame.shape), frames, representations)

    def step(
        self,
        frame: Tensor,
        warped: Mapping[str, Tensor] | None,
        gates: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> tuple[Any, dict[str, Tensor]]:
        """Run the host and blend its layers with representations that are warped already.

        Warping needs the memory and the flow, not the present representations. So a frame of a video CNN can be
        computed in three parts: `transform_flow`, `ops.warp`, and this one, which is a plain graph of the host and a
        few products.

        Args:
            frame: ``(B, 3, H, W)``, normalised as the host expects.
            warped: The warped representation of each insertion layer; None for a first frame.
            gates: What `transform_flow` returned as `Warping.gates`.

        Returns:
            The host's output, and the representations for the memory.
        """

        def blend(index: int, z: Tensor) -> Tensor:
            module, name = self.netwarps[index], self.layers[index]
            assert warped is not None and isinstance(module, NetWarp | Concatenation)
            return module.blend(z, warped[name], gates.get(name))

        return self.run_host(frame, None if warped is None else blend)

    def frames_for_flow(self, frame: Tensor, sizes: Mapping[str, Size]) -> dict[Size, Tensor]:
        """Return the frame, float32, on each grid that Λ and the gate work on: what `Memory.frames` is.

        Args:
            frame: ``(B, 3, H, W)``.
            sizes: Size of each insertion layer's output, in the order that the layers run in.
        """
        return {grid: _resize_frame(frame, grid) for grid in self.flow_cnn_grids(map_size(frame), sizes)}

    def flow_cnn_grids(self, frame: Size, sizes: Mapping[str, Size]) -> tuple[Size, ...]:
        """Return the grids that Λ and the gate work on; none without both. Arguments as for `frames_for_flow`."""
        return () if self.flow_cnn is None and self.gate is None else self.flow_grids(frame, sizes)

    def flow_grids(self, frame: Size, sizes: Mapping[str, Size]) -> tuple[Size, ...]:
        """Return the grids that the flow is first brought to: those that Λ works on, or would without Λ."""
        return tuple(dict.fromkeys(self._flow_cnn_grid(frame, sizes).values()))

    def flow_on_grids(
        self, flow: Tensor | GridFlows, frame: Size, sizes: Mapping[str, Size], device: torch.device | None = None
    ) -> GridFlows:
        """Return a flow on each of `flow_grids`, in pixels of that grid.

        A flow on the CPU is scaled before it is sent to a GPU if that makes it smaller.

        Args:
            flow: ``(B, 2, h, w)`` float32, reverse flow in pixels of its own grid; or what this method returned.
            frame: Size of the frame.
            sizes: Size of each insertion layer's output, in the order that the layers run in.
            device: Where the result is wanted; by default, where the flow is.

        Raises:
            ValueError: If a grid is missing.
        """
        grids = self.flow_grids(frame, sizes)
        if isinstance(flow, Tensor):
            return {grid: _flow_on_grid(flow, grid, device or flow.device) for grid in grids}
        if missing := [grid for grid in grids if grid not in flow]:
            raise ValueError(f"flow is on the grids {list(flow)}, and the network needs {missing}: give one tensor")
        return {grid: flow[grid] for grid in grids}

    def transform_flow(
        self,
        flows: GridFlows,
        frame: Size,
        frames: Mapping[Size, Tensor],
        previous_frames: Mapping[Size, Tensor],
        sizes: Mapping[str, Size],
        flow_cnn: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> Warping:
        """Return Λ(F), or F if there is no Λ, and the gate, on the grid of each insertion layer.

        Λ and the gate always compute in float32, see `FlowCNN.forward`.

        Args:
            flows: What `flow_on_grids` returned for the flow F.
            frame: Size of the frame.
            frames: What `frames_for_flow` returned for the frame.
            previous_frames: The same for the previous frame.
            sizes: Size of each insertion layer's output, in the order that the layers run in.
            flow_cnn: What computes Λ: takes F, the previous and the present frame. By default, PyTorch.
        """
        by_size: dict[Size, Tensor] = {}
        gates: dict[Size, Tensor] = {}
        flow_cnn = flow_cnn or self.flow_cnn
        for name, grid in self._flow_cnn_grid(frame, sizes).items():
            if grid not in by_size:
                by_size[grid] = flow = flows[grid]
                with torch.autocast(flow.device.type, enabled=False):
                    if flow_cnn is not None:
                        by_size[grid] = flow_cnn(flow, previous_frames[grid], frames[grid])
                    if self.gate is not None:
                        gates[grid] = self.gate(by_size[grid], previous_frames[grid], frames[grid])
            if sizes[name] not in by_size:
                by_size[sizes[name]] = resize_flow(by_size[grid], sizes[name])
                if self.gate is not None:
                    gates[sizes[name]] = resize_gate(gates[grid], sizes[name])
        flows_by_layer = {name: by_size[size] for name, size in sizes.items()}
        return Warping(flows_by_layer, {name: gates[size] for name, size in sizes.items()} if gates else {})

    def check(self, frame: Tensor, flow: Flow | None, memory: Memory | None) -> None:
        """Check the arguments of a call.

        Raises:
            ValueError: If the shapes or types of frame, flow and memory do not match.
        """
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
        if isinstance(flow, Tensor):
            _check_flow(flow, frame)
        if set(memory.representations) != set(self.layers):
            raise ValueError(
                f"memory is of layers {sorted(memory.representations)}, this network has {sorted(self.layers)}: "
                "reset it with memory=None"
            )

    def run_host(
        self, frame: Tensor, blend: Blended | None = None, host_arguments: Mapping[str, Any] = MappingProxyType({})
    ) -> tuple[Any, dict[str, Tensor]]:
        """Run the host; return its output and the representations for the memory, in the order the layers ran in."""
        run = _HostPass(map_size(frame), blend)
        token = _HOST_PASSES.set({**_HOST_PASSES.get(), self: run})
        try:
            output = self.host(frame, **host_arguments)
        finally:
            _HOST_PASSES.reset(token)
        missing = [name for name in self.layers if name not in run.representations]
        if missing:
            raise RuntimeError(f"the host did not run its layers {missing} in this pass: choose others to insert at")
        return output, run.representations

    def _blended(self, index: int, output: Any) -> Any:
        """Return the output of an insertion layer with z_t blended with the memory; remember z_t or the blend."""
        run, name = _HOST_PASSES.get().get(self), self.layers[index]
        if run is None:  # the host was called by itself
            return output
        if name in run.representations:
            raise RuntimeError(f"layer {name!r} ran twice in one pass of the host: choose one that runs once")
        layer = self._insertions[index]
        z = layer.place.take(output, run.frame)
        blend = z if run.blend is None else run.blend(index, z)
        remembered = z if self.remember == "before" else blend
        run.representations[name] = remembered
        # The host may modify this tensor in place later (in training, dropout may too), so pass it a copy.
        if remembered is blend and (layer.modified_in_place or self.training):
            blend = blend.clone()
        return output if blend is z else layer.place.put(output, blend)

    def insert(self) -> None:
        """Replace the ``forward`` of each insertion layer, unless this network has done so already.

        To be called again if modules of the host were replaced since, as by ``convert_sync_batchnorm``.
        """
        layers = [find_layer(self.host, name) for name in self.layers]
        for index, layer in enumerate(layers):
            if not any(insertion.network is self for insertion in _insertions(layer)):
                layer.forward = _Insertion(self, index, layer.forward)

    def remove(self) -> None:
        """Undo `insert`: the host is as it was before `augment`. Other video CNNs on the same host stay.

        Raises:
            ValueError: If a layer has been given another ``forward`` since.
        """
        for name in self.layers:
            layer, outer = find_layer(self.host, name), None
            for insertion in _insertions(layer):
                if insertion.network is self:
                    break
                outer = insertion
            else:
                raise ValueError(f"layer {name!r} has another forward than NetWarp gave it: undo that first")
            if outer is not None:
                outer.forward = insertion.forward
            elif getattr(insertion.forward, "__func__", None) is type(layer).forward:
                del layer.forward
            else:
                layer.forward = insertion.forward

    def _flow_cnn_grid(self, frame: Size, sizes: Mapping[str, Size]) -> dict[str, Size]:
        """Return the size of the grid that Λ works on for each insertion layer."""
        if self.flow_grid == "features":
            return dict(sizes)
        return dict.fromkeys(sizes, frame if self.flow_grid == "image" else next(iter(sizes.values()), frame))


def computed_flow(flow: Flow | None, frame: Tensor) -> Tensor | GridFlows:
    """Return the flow, computed by its function if it is one.

    Raises:
        ValueError: If the function returns a flow of another shape or type.
    """
    assert flow is not None
    if callable(flow):
        flow = flow()
        if isinstance(flow, Tensor):
            _check_flow(flow, frame)
    return flow


def _flow_on_grid(flow: Tensor, grid: Size, device: torch.device) -> Tensor:
    """Return a flow on a grid, on a device; it is sent while it is small."""
    height, width = map_size(flow)
    if grid[0] * grid[1] < height * width:
        return to_device(resize_flow(flow, grid), device)
    return resize_flow(to_device(flow, device), grid)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device. From the CPU to a GPU, the transfer runs while the CPU goes on."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _check_flow(flow: Tensor, frame: Tensor) -> None:
    if flow.ndim != 4 or tuple(flow.shape[:2]) != (frame.shape[0], 2):
        raise ValueError(f"flow is {tuple(flow.shape)}, expected ({frame.shape[0]}, 2, h, w) for {tuple(frame.shape)}")
    if flow.dtype != torch.float32:
        raise ValueError(f"flow is {flow.dtype}, expected torch.float32: use flow.float()")


def map_size(features: Tensor) -> Size:
    """Return the size of the grid of ``(B, C, h, w)``."""
    return features.shape[-2], features.shape[-1]


def map_sizes(maps: Mapping[str, Tensor]) -> dict[str, Size]:
    """Return the sizes of the grids of maps."""
    return {name: map_size(features) for name, features in maps.items()}


def _resize_frame(frame: Tensor, size: Size) -> Tensor:
    return frame.float() if map_size(frame) == size else average(frame, size)


def find_layer(host: nn.Module, name: str) -> nn.Module:
    """Return a submodule by its name.

    Raises:
        ValueError: If the host has no submodule of this name. The message suggests similar names.
    """
    try:
        if name:
            return host.get_submodule(name)
    except AttributeError:
        pass
    names = [key for key, _ in host.named_modules() if key]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:5]
    raise ValueError(f"{type(host).__name__} has no layer {name!r}: did you mean {', '.join(map(repr, near))}?")
