# SPDX-License-Identifier: Apache-2.0
"""Weights from elsewhere: state dicts of public networks, brought to the names and shapes of this package's hosts.

A table gives, for each layer of a public network, the submodule here; `docs/models.md` shows them. What a layer holds
(``weight``, ``bias``, ``running_mean``, ``running_var``) is called the same everywhere. Counts of batches
(``num_batches_tracked``), which nothing here reads, are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from netwarp_ros.models.hosts import PSPNet101, SwiftNetLite0
from netwarp_ros.models.hosts.swiftnet import InvertedBottleneck
from netwarp_ros.models.hosts.vgg import DilatedVGG16
from netwarp_ros.models.weights import WeightsError

_WRAPPERS = ("state_dict", "model")  # keys under which checkpoints keep the weights
_PREFIXES = ("module.", "model.")  # DataParallel's, and that of a network that is a member of another
_PARTS = (("conv", 0), ("bn", 1))  # of `netwarp_ros.models.hosts.blocks.conv_norm`
_SHOWN = 6  # names of each kind that a report gives

_PSPNET_SOURCES = (
    "hszhao/semseg's PSPNet (layer0.0.weight, layer1.0.conv1.weight, ppm.features.0.1.weight, cls.0.weight, "
    "aux.0.weight) and of torchvision's ResNet (conv1.weight, bn1.weight, layer1.0.conv1.weight)"
)
_VGG_SOURCES = (
    "the Caffe releases (conv1_1.weight, fc6.weight, final.weight, ctx_conv1_1.weight) and of torchvision's VGG-16 "
    "(features.0.weight, classifier.0.weight)"
)
_EFFICIENTNET_SOURCES = "efficientnet_lite_pytorch's EfficientNet-Lite0 (_conv_stem.weight, _blocks.0._bn1.weight)"
_VGG_FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # torchvision's convolutions: features.N


@dataclass(frozen=True)
class LoadedWeights:
    """What became of the tensors of a network and of a file.

    Attributes:
        matched: Tensors of the network that were loaded.
        other_shape: Tensors of the network that the file has in another shape, with both names and shapes.
        missing: Tensors of the network that the file has nothing for; they and those before stay as they were.
        left_over: Tensors of the file that the network has no place for.
    """

    matched: tuple[str, ...]
    other_shape: tuple[str, ...]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]

    def __str__(self) -> str:
        total = len(self.matched) + len(self.other_shape) + len(self.missing)
        lines = [f"{len(self.matched)} of the network's {total} tensors loaded"]
        for what, names in (
            ("of another shape in the file", self.other_shape),
            ("missing", self.missing),
            ("left over in the file", self.left_over),
        ):
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                lines.append(f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{more}")
        return "\n".join(lines)


def read_checkpoint(path: str | Path) -> Any:
    """Read a ``.safetensors`` file, or what ``torch.save`` wrote if it holds no more than tensors and plain values.

    Raises:
        WeightsError: If there is no such file or it cannot be read; nothing is unpickled that could run code.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights file {path}: give a .safetensors file or one that torch.save wrote")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error of its own for what it cannot or will not read
        raise WeightsError(
            f"{path} cannot be read as weights alone, without unpickling: save the network's state_dict() ({error})"
        ) from error


def load_foreign(host: nn.Module, checkpoint: Mapping[str, Any], *, bgr: bool = False) -> LoadedWeights:
    """Load what fits of a public network's weights into a host of this package.

    Fully connected layers become convolutions: a matrix ``(4096, 25088)`` is a kernel ``(4096, 512, 7, 7)``. What does
    not fit stays as it was in the host, and a normalisation with the convolution that it belongs to.

    Args:
        host: Is changed.
        checkpoint: A state dict, bare or under ``state_dict`` or ``model``, its names as they are or behind
            ``module.`` or ``model.``.
        bgr: Whether the weights are of a network that takes BGR: the first convolution is turned round.

    Returns:
        What was loaded and what was not.

    Raises:
        WeightsError: If no table is known for this host, or nothing fits.
    """
    table, sources = _names(host)
    wanted = {name: value for name, value in host.state_dict().items() if not _is_count(name)}
    first = next(name for name, value in wanted.items() if value.ndim == 4)
    fitting: dict[str, tuple[str, Tensor]] = {}
    other_shape: dict[str, str] = {}
    left_over = []
    for key, value in _unwrap(checkpoint).items():
        layer, _, part = key.rpartition(".")
        name = f"{table[layer]}.{part}" if layer in table else ""
        if name not in wanted or name in fitting:
            left_over.append(key)
        elif (reshaped := _fit(value, wanted[name].shape)) is None:
            ours, theirs = tuple(wanted[name].shape), tuple(value.shape)
            other_shape[name] = f"{name} {ours}, in the file {key} {theirs}"
        else:
            fitting[name] = (key, reshaped.flip(1) if bgr and name == first else reshaped)
    for name in list(fitting):
        if (kernel := _convolution_of(name)) in wanted and kernel not in fitting:
            left_over.append(fitting.pop(name)[0])
    missing = [name for name in wanted if name not in fitting and name not in other_shape]
    report = LoadedWeights(tuple(fitting), tuple(other_shape.values()), tuple(missing), tuple(left_over))
    if not fitting:
        raise WeightsError(f"nothing fits {type(host).__name__}, which knows the names of {sources}; {report}")
    host.load_state_dict({name: value for name, (_, value) in fitting.items()}, strict=False)
    return report


def _names(host: nn.Module) -> tuple[dict[str, str], str]:
    """Return the submodule of a host for each layer of the public networks, and what these are called."""
    if isinstance(host, PSPNet101):
        return _resnet_names(host.depths) | _pspnet_names(), _PSPNET_SOURCES
    if isinstance(host, DilatedVGG16):
        return _vgg_names(host), _VGG_SOURCES
    if isinstance(host, SwiftNetLite0):
        return _efficientnet_names(host), _EFFICIENTNET_SOURCES
    raise WeightsError(
        f"no public names are known for {type(host).__name__}: only PSPNet, PlayData, Dilation and SwiftNet take "
        "weights from elsewhere"
    )


def _resnet_names(depths: Sequence[int]) -> dict[str, str]:
    """Torchvision's and semseg's ResNet; the latter has a stem of three convolutions."""
    table = {f"{kind}{number}": f"stem.{2 * (number - 1)}.{index}" for number in (1, 2, 3) for kind, index in _PARTS}
    for stage, depth in enumerate(depths, start=1):
        for block in range(depth):
            theirs, ours = f"layer{stage}.{block}", f"conv{stage + 1}_{block + 1}"
            for kind, index in _PARTS:
                for number in (1, 2, 3):
                    table[f"{theirs}.{kind}{number}"] = f"{ours}.body.{2 * (number - 1)}.{index}"
                table[f"{theirs}.downsample.{index}"] = f"{ours}.shortcut.{index}"
    return table


def _pspnet_names() -> dict[str, str]:
    """Semseg's PSPNet but for the stages, which are ResNet's."""
    table = {f"layer0.{3 * number + index}": f"stem.{2 * number}.{index}" for number in range(3) for index in (0, 1)}
    table |= {f"ppm.features.{grid}.{index + 1}": f"pyramid.{grid}.{index}" for grid in range(4) for index in (0, 1)}
    table |= {"cls.0": "conv5_4.0", "cls.1": "conv5_4.1", "cls.4": "classifier"}
    return table | {"aux.0": "auxiliary.0.0", "aux.1": "auxiliary.0.1", "aux.4": "auxiliary.3"}


def _vgg_names(host: DilatedVGG16) -> dict[str, str]:
    """The Caffe releases, whose names are those here but for the classifier, and torchvision's VGG-16."""
    ours = [name for name, module in host.named_modules() if isinstance(module, nn.Conv2d)]
    table = {name: name for name in ours} | {name.replace("ctx_", "ct_"): name for name in ours}
    table |= {"final": "fc8", "fc-final": "fc8"}
    table |= {f"features.{index}": name for index, name in zip(_VGG_FEATURES, ours, strict=False)}
    return table | {"classifier.0": "fc6", "classifier.3": "fc7"}


def _efficientnet_names(host: SwiftNetLite0) -> dict[str, str]:
    """efficientnet_lite_pytorch's EfficientNet, which counts its blocks through all stages."""
    table = {"_conv_stem": "backbone.stem.0", "_bn0": "backbone.stem.1"}
    blocks = [name for name, module in host.named_modules() if isinstance(module, InvertedBottleneck)]
    for index, ours in enumerate(blocks):
        for number, part in enumerate(("expand", "depthwise", "project")):
            table[f"_blocks.{index}._{part}_conv"] = f"{ours}.{part}.0"
            table[f"_blocks.{index}._bn{number}"] = f"{ours}.{part}.1"
    return table


def _unwrap(checkpoint: Any) -> dict[str, Tensor]:
    while isinstance(checkpoint, Mapping):
        inner = next((checkpoint[key] for key in _WRAPPERS if isinstance(checkpoint.get(key), Mapping)), None)
        if inner is None:
            break
        checkpoint = inner
    tensors = dict(checkpoint) if isinstance(checkpoint, Mapping) else {}
    tensors = {key: value for key, value in tensors.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(
            f"a {type(checkpoint).__name__} without tensors is no state dict: give one, bare or under "
            f"{' or '.join(_WRAPPERS)}"
        )
    return {_strip(key): value for key, value in tensors.items() if not _is_count(key)}


def _strip(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = key.partition(".")[2]
    return key


def _is_count(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _convolution_of(name: str) -> str:
    """Return the kernel that a tensor of a normalisation goes with, which may not exist."""
    return f"{name.rpartition('.')[0].removesuffix('.1')}.0.weight"


def _fit(value: Tensor, shape: torch.Size) -> Tensor | None:
    """Return a tensor in a shape if it has that shape or is the matrix of a fully connected layer that fits it."""
    if value.shape == shape:
        return value
    if value.ndim == 2 and len(shape) == 4 and value.shape[0] == shape[0] and value.numel() == shape.numel():
        return value.reshape(shape)
    return None
