# SPDX-License-Identifier: Apache-2.0
"""Insert NetWarp into any image CNN, and prove by a probe that the rest of the network sees the blend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from netwarp_ros.models.layer_outputs import LayerOutput, find_map
from netwarp_ros.models.outputs import class_scores
from netwarp_ros.models.video_cnn import (
    Blend,
    FlowGrid,
    InsertionLayer,
    Remember,
    Size,
    VideoCNN,
    find_layer,
    map_size,
)


def augment(
    host: nn.Module,
    layers: Sequence[str] | Mapping[str, LayerOutput],
    *,
    flow_cnn: bool = True,
    flow_grid: FlowGrid = "image",
    remember: Remember = "before",
    blend: Blend = "netwarp",
    example: Tensor | None = None,
) -> VideoCNN:
    """Turn an image CNN into a video CNN by inserting NetWarp behind some of its layers.

    The host is run on ``example``, in evaluation mode and without gradients. The first run finds the map in each
    layer's output, its number of channels, and whether it is modified in place. Further runs prove the insertion: for
    each layer, the map is disturbed, and the class scores must follow, while nothing may read the map from before.
    Initially the video CNN equals its host bit for bit (w1 = 1, w2 = 0).

    Args:
        host: Any module that takes a frame ``(B, 3, H, W)``. It is not copied.
        layers: Names of submodules, as in ``host.named_modules()``, whose output is a map ``(B, C, h, w)``, or tokens
            ``(B, N, C)``, or a tuple or dict with one of these. As a mapping, it also tells what cannot be seen of the
            outputs.
        flow_cnn: See `VideoCNN`.
        flow_grid: See `VideoCNN`.
        remember: See `VideoCNN`.
        blend: See `VideoCNN`.
        example: A frame that the host can be run on; by default noise of the size `EXAMPLE`, see `example_frame`.

    Raises:
        ValueError: If a layer is unknown, named twice, not run exactly once, or has another output; or if the class
            scores do not follow the blend, or the host also reads the layer's output from before it.

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
        example = example_frame(host)
    told = layers if isinstance(layers, Mapping) else dict.fromkeys(layers, LayerOutput())
    with evaluating(host):
        insertion_layers, output = _inspect_layers(host, told, example)
        options: dict[str, Any] = {"flow_cnn": flow_cnn, "flow_grid": flow_grid, "remember": remember, "blend": blend}
        video_cnn = VideoCNN(host, insertion_layers, **options).to(example.device)
        if example.device.type != "meta":
            try:
                _probe(video_cnn, example, _scores(output))
            except BaseException:
                video_cnn.remove()
                raise
    return video_cnn


EXAMPLE: Size = (96, 160)
"""A size that most networks take. It is no square, so that height and width cannot be mixed up unseen."""


def example_frame(host: nn.Module, size: Size = EXAMPLE) -> Tensor:
    """Return smooth noise ``(1, 3, *size)`` of the host's type and device, always the same.

    It has large and small parts, as an image has: of noise alone, deep layers see little.
    """
    weight = next(host.parameters(), torch.empty(0))
    if weight.device.type == "meta":
        return torch.empty(1, 3, *size, dtype=weight.dtype, device="meta")
    generator = torch.Generator().manual_seed(0)
    frame = torch.zeros(1, 3, *size, device="cpu")
    for cells in (4, 16, 64):
        noise = torch.randn(1, 3, cells, cells, generator=generator, device="cpu")
        frame += nn.functional.interpolate(noise, size=size, mode="bilinear") / cells**0.5
    return frame.to(weight.device, weight.dtype if weight.is_floating_point() else torch.float32)


@contextmanager
def evaluating(host: nn.Module) -> Iterator[None]:
    """Run a host in evaluation mode and without gradients; the modes of its modules are restored."""
    modes = {module: module.training for module in host.modules()}
    host.eval()
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def watching(module: nn.Module, watch: Callable[[Any, Any], None]) -> Iterator[None]:
    """Call ``watch(inputs, output)`` each time that a module has run, before any hook of others."""
    replaced = module.__dict__.get("forward")
    forward = module.forward

    def watched(*inputs: Any, **named_inputs: Any) -> Any:
        output = forward(*inputs, **named_inputs)
        watch((inputs, named_inputs), output)
        return output

    module.forward = watched
    try:
        yield
    finally:
        if replaced is None:
            del module.forward
        else:
            module.forward = replaced


def _inspect_layers(
    host: nn.Module, layers: Mapping[str, LayerOutput], example: Tensor
) -> tuple[dict[str, InsertionLayer], Any]:
    """Run the host once and look at the outputs of the layers; return the host's output, too."""
    outputs: dict[str, list[tuple[Any, list[int]]]] = {name: [] for name in layers}
    with ExitStack() as stack:
        for name, runs in outputs.items():

            def record(_inputs: Any, output: Any, runs: list[tuple[Any, list[int]]] = runs) -> None:
                # For autograd, PyTorch counts the in-place modifications of a tensor in its _version.
                runs.append((output, [tensor._version for tensor in tensors_in(output)]))

            stack.enter_context(watching(find_layer(host, name), record))
        result = host(example)

    found = {}
    for name, runs in outputs.items():
        if len(runs) != 1:
            raise ValueError(f"layer {name!r} ran {len(runs)} times in one pass of the host: choose one that runs once")
        ((output, versions),) = runs
        try:
            place = find_map(output, map_size(example), layers[name])
        except ValueError as error:
            raise ValueError(f"layer {name!r} {error}") from None
        modified = any(tensor._version > version for tensor, version in zip(tensors_in(output), versions, strict=True))
        found[name] = InsertionLayer(place.take(output, map_size(example)).shape[1], modified, place)
    return found, result


def _probe(video_cnn: VideoCNN, example: Tensor, scores: list[Tensor]) -> None:
    """Disturb the map of each layer, and check that the class scores follow and nothing reads the map from before.

    Args:
        video_cnn: The network.
        example: A frame.
        scores: What `_scores` returns for the host's output for that frame.

    Raises:
        ValueError: It is not so. The message names the layer.
    """
    noise = torch.Generator().manual_seed(1)
    for index, name in enumerate(video_cnn.layers):
        spy = _Spy()

        def disturb(layer: int, z: Tensor, index: int = index, spy: _Spy = spy) -> Tensor:
            if layer != index:
                return z
            spy.before = z
            scale = z.float().std(correction=0).nan_to_num() + 0.1
            return z + scale * torch.randn(z.shape, generator=noise).to(z)

        with watching(find_layer(video_cnn.host, name), spy.arm), spy:
            disturbed, _ = video_cnn.run_host(example, disturb)
            spy.check(disturbed)
        if spy.readers:
            raise ValueError(
                f"layer {name!r}: the host also reads its output from before the blend (in {spy.readers[0]}), as code "
                "that records what a part of this layer gives does: choose that part, or another layer"
            )
        if _equal(_scores(disturbed), scores) and not _equal(_scores(video_cnn.run_host(-example)[0]), scores):
            raise ValueError(
                f"layer {name!r}: the class scores do not depend on its output, so NetWarp would have no effect: "
                "choose a layer that they are computed from"
            )


class _Spy(TorchFunctionMode):
    """Sees which functions of PyTorch read a layer's map from before the blend, or a copy of it, after the layer ran.

    Attributes:
        before: The map.
        readers: Names of the functions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.before: Tensor | None = None
        self.readers: list[str] = []
        self._armed = False
        self._marks: Tensor | None = None
        self._sorted: Tensor | None = None

    def arm(self, inputs: Any, _output: Any) -> None:
        """Begin to watch, once the layer has run. If it returns its input, nothing is watched: others may read that."""
        self._armed = not any(map(self._is_before, tensors_in(inputs)))

    def check(self, values: Any, reader: str = "its output") -> None:
        """Note the reader if the map is among some values."""
        if self._armed:
            self._armed = False  # what is called here is not the host's
            self.readers += [reader for tensor in tensors_in(values) if self._is_before(tensor)]
            self._armed = True

    def _is_before(self, tensor: Tensor) -> bool:
        """Tell whether a tensor has values of the map in memory, or is a copy of it."""
        before = self.before
        assert before is not None
        if tensor.untyped_storage().data_ptr() != before.untyped_storage().data_ptr():
            return self._is_copy(tensor)
        if self._marks is None:
            self._marks = torch.zeros(before.untyped_storage().nbytes() // before.element_size(), dtype=torch.bool)
            _elements(self._marks, before).fill_(True)
        return tensor.dtype != before.dtype or bool(_elements(self._marks, tensor).any())

    def _is_copy(self, tensor: Tensor) -> bool:
        """Tell whether a tensor has the same values, in any order."""
        before = self.before
        assert before is not None
        if tensor.numel() != before.numel() or tensor.dtype != before.dtype or before.numel() < 16:
            return False
        if not torch.equal(tensor.amax(), before.amax()) or not torch.equal(tensor.amin(), before.amin()):
            return False
        if self._sorted is None:
            self._sorted = before.flatten().sort().values
        return torch.equal(tensor.flatten().sort().values, self._sorted) and not _is_constant(before)

    def __torch_function__(
        self, function: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        # What gives no tensor is a question for the shape or the like, unless it writes or hands out the values.
        reads = tensors_in(result) or function in (Tensor.__setitem__, Tensor.numpy, Tensor.__array__, Tensor.tolist)
        if reads:
            self.check((args, kwargs), getattr(function, "__name__", str(function)))
        return result


def _elements(marks: Tensor, tensor: Tensor) -> Tensor:
    """Return the marks of a tensor's elements, given those of all elements of its storage."""
    return marks.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists, mappings and dataclasses."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, Mapping):
        return [tensor for value in values.values() for tensor in tensors_in(value)]
    if isinstance(values, tuple | list):
        return [tensor for value in values for tensor in tensors_in(value)]
    if is_dataclass(values) and not isinstance(values, type):
        return [tensor for field in fields(values) for tensor in tensors_in(getattr(values, field.name))]
    return []


def _scores(output: Any) -> list[Tensor]:
    """Return the class scores, or all tensors of an output that has none."""
    try:
        return [class_scores(output)]
    except ValueError:
        return tensors_in(output)


def _equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


def _is_constant(tensor: Tensor) -> bool:
    return bool(tensor.amax() == tensor.amin())
