# SPDX-License-Identifier: Apache-2.0
"""Load the weights of public networks into the hosts of this package, as `netwarp convert` does.

For each host, a table maps the layers of a public network to the submodules here (`docs/models.md` shows the tables).
The tensors of a layer (``weight``, ``bias``, ``running_mean``, ``running_var``) have the same names everywhere;
``num_batches_tracked`` is skipped, as nothing here reads it.
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

from netwarp_ros.models.checkpoints import DamagedFileError, load_tensors
from netwarp_ros.models.hosts import PSPNet101, SwiftNetLite0
from netwarp_ros.models.hosts.swiftnet import InvertedBottleneck
from netwarp_ros.models.hosts.vgg import DilatedVGG16
from netwarp_ros.models.weights import WeightsError
from netwarp_ros.resources import cut

_WRAPPERS = ("state_dict", "model")  # keys under which checkpoints keep the weights
_PREFIXES = ("module.", "model.")  # added by DataParallel, and by Lightning modules
_CONV_NORM = (("conv", 0), ("bn", 1))  # the two modules of `netwarp_ros.models.hosts.blocks.conv_norm`
_NAMES_SHOWN = 6  # names that a line of `LoadResult` lists

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
class LoadResult:
    """Which tensors of a file were loaded into a network.

    Attributes:
        loaded: Names of the network's tensors that were loaded.
        mismatched: The network's tensors that have another shape in the file, with both names and shapes. Not loaded.
        missing: Names of the network's tensors that are not in the file.
        unused: Names of the file's tensors that were not loaded, other than the mismatched.
    """

    loaded: tuple[str, ...]
    mismatched: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.mismatched) + len(self.missing)
        lines = [f"{len(self.loaded)} of the network's {total} tensors loaded"]
        for what, names in (
            ("of another shape in the file", self.mismatched),
            ("missing in the file", self.missing),
            ("unused in the file", self.unused),
        ):
            if names:
                more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
                shown = ", ".join(cut(name, 100) for name in names[:_NAMES_SHOWN])
                lines.append(f"{len(names)} {what}: {shown}{more}")
        return "\n".join(lines)


def read_checkpoint(path: str | Path) -> Any:
    """Read a ``.safetensors`` file, or a file that ``torch.save`` wrote if it holds only tensors and plain values.

    Raises:
        WeightsError: If there is no such file, or it cannot be read without unpickling objects, which could run code.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights file {path}: give a .safetensors file or one that torch.save wrote")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is not a readable safetensors file: {cut(str(error))}") from error
    try:
        return load_tensors(path)
    except DamagedFileError as error:
        raise WeightsError(f"{error}: save the network's state_dict()") from error


def load_public_weights(host: nn.Module, checkpoint: Mapping[str, Any], *, bgr: bool = False) -> LoadResult:
    """Load the weights of a public network into a host of this package, as far as names and shapes match.

    Fully connected layers become convolutions: a matrix ``(4096, 25088)`` is a kernel ``(4096, 512, 7, 7)``. The
    tensors of a normalisation are loaded only if its convolution is. All other tensors of the host stay as they were.

    Args:
        host: Its weights are changed.
        checkpoint: A state dict, or a dict that holds one under ``state_dict`` or ``model``. The names may have the
            prefixes ``module.`` and ``model.``.
        bgr: Whether the weights expect BGR; the input channels of the first convolution are then swapped.

    Raises:
        WeightsError: If there is no table for this host, the checkpoint has no tensors, or none could be loaded.
    """
    layer_names, sources = _layer_names(host)
    targets = {name: value for name, value in host.state_dict().items() if not _is_batch_count(name)}
    first_kernel = next(name for name, value in targets.items() if value.ndim == 4)
    matches: dict[str, tuple[str, Tensor]] = {}
    mismatched: dict[str, str] = {}
    unused = []
    for key, value in _unwrap(checkpoint).items():
        layer, _, part = key.rpartition(".")
        name = f"{layer_names[layer]}.{part}" if layer in layer_names else ""
        if name not in targets or name in matches:
            unused.append(key)
        elif (reshaped := _reshaped(value, targets[name].shape)) is None:
            ours, theirs = tuple(targets[name].shape), tuple(value.shape)
            mismatched[name] = f"{name} {ours}, in the file {key} {theirs}"
        else:
            matches[name] = (key, reshaped.flip(1) if bgr and name == first_kernel else reshaped)
    for name in list(matches):
        if (kernel := _kernel_before(name)) in targets and kernel not in matches:
            unused.append(matches.pop(name)[0])
    missing = [name for name in targets if name not in matches and name not in mismatched]
    result = LoadResult(tuple(matches), tuple(mismatched.values()), tuple(missing), tuple(unused))
    if not matches:
        raise WeightsError(
            f"no tensor of the file fits {type(host).__name__}, which takes weights under the names of {sources}; "
            f"{result}"
        )
    host.load_state_dict({name: value for name, (_, value) in matches.items()}, strict=False)
    return result


def _layer_names(host: nn.Module) -> tuple[dict[str, str], str]:
    """Return a table from public layer names to the host's submodules, and a description of the public networks."""
    if isinstance(host, PSPNet101):
        return _resnet_names(host.depths) | _pspnet_names(), _PSPNET_SOURCES
    if isinstance(host, DilatedVGG16):
        return _vgg_names(host), _VGG_SOURCES
    if isinstance(host, SwiftNetLite0):
        return _efficientnet_names(host), _EFFICIENTNET_SOURCES
    raise WeightsError(
        f"no public weights are known for {type(host).__name__}: choose a PSPNet, PlayData, Dilation or SwiftNet host"
    )


def _resnet_names(depths: Sequence[int]) -> dict[str, str]:
    """Return the table for torchvision's and semseg's ResNet; semseg's stem has three convolutions."""
    table = {
        f"{kind}{number}": f"stem.{2 * (number - 1)}.{index}" for number in (1, 2, 3) for kind, index in _CONV_NORM
    }
    for stage, depth in enumerate(depths, start=1):
        for block in range(depth):
            theirs, ours = f"layer{stage}.{block}", f"conv{stage + 1}_{block + 1}"
            for kind, index in _CONV_NORM:
                for number in (1, 2, 3):
                    table[f"{theirs}.{kind}{number}"] = f"{ours}.body.{2 * (number - 1)}.{index}"
                table[f"{theirs}.downsample.{index}"] = f"{ours}.shortcut.{index}"
    return table


def _pspnet_names() -> dict[str, str]:
    """Return the table for semseg's PSPNet without the ResNet stages."""
    table = {f"layer0.{3 * number + index}": f"stem.{2 * number}.{index}" for number in range(3) for index in (0, 1)}
    table |= {f"ppm.features.{grid}.{index + 1}": f"pyramid.{grid}.{index}" for grid in range(4) for index in (0, 1)}
    table |= {"cls.0": "conv5_4.0", "cls.1": "conv5_4.1", "cls.4": "classifier"}
    return table | {"aux.0": "auxiliary.0.0", "aux.1": "auxiliary.0.1", "aux.4": "auxiliary.3"}


def _vgg_names(host: DilatedVGG16) -> dict[str, str]:
    """Return the table for torchvision's VGG-16 and for the Caffe releases, whose names differ in the classifier."""
    ours = [name for name, module in host.named_modules() if isinstance(module, nn.Conv2d)]
    table = {name: name for name in ours} | {name.replace("ctx_", "ct_"): name for name in ours}
    table |= {"final": "fc8", "fc-final": "fc8"}
    table |= {f"features.{index}": name for index, name in zip(_VGG_FEATURES, ours, strict=False)}
    return table | {"classifier.0": "fc6", "classifier.3": "fc7"}


def _efficientnet_names(host: SwiftNetLite0) -> dict[str, str]:
    """Return the table for efficientnet_lite_pytorch's EfficientNet, which numbers its blocks across all stages."""
    table = {"_conv_stem": "backbone.stem.0", "_bn0": "backbone.stem.1"}
    blocks = [name for name, module in host.named_modules() if isinstance(module, InvertedBottleneck)]
    for index, ours in enumerate(blocks):
        for number, part in enumerate(("expand", "depthwise", "project")):
            table[f"_blocks.{index}._{part}_conv"] = f"{ours}.{part}.0"
            table[f"_blocks.{index}._bn{number}"] = f"{ours}.{part}.1"
    return table


def _unwrap(checkpoint: Any) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint, its names without prefixes."""
    while isinstance(checkpoint, Mapping):
        inner = next((checkpoint[key] for key in _WRAPPERS if isinstance(checkpoint.get(key), Mapping)), None)
        if inner is None:
            break
        checkpoint = inner
    tensors = dict(checkpoint) if isinstance(checkpoint, Mapping) else {}
    tensors = {key: value for key, value in tensors.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(
            f"the checkpoint is a {type(checkpoint).__name__} without tensors: give a state dict, or a dict that holds "
            f"one under {' or '.join(_WRAPPERS)}"
        )
    return {_without_prefix(key): value for key, value in tensors.items() if not _is_batch_count(key)}


def _without_prefix(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = key.partition(".")[2]
    return key


def _is_batch_count(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _kernel_before(name: str) -> str:
    """Return the name that the kernel before a normalisation has. For any other tensor, no kernel has this name."""
    return f"{name.rpartition('.')[0].removesuffix('.1')}.0.weight"


def _reshaped(value: Tensor, shape: torch.Size) -> Tensor | None:
    """Return a tensor in a shape, reshaping the matrix of a fully connected layer; None if it does not fit."""
    if value.shape == shape:
        return value
    if value.ndim == 2 and len(shape) == 4 and value.shape[0] == shape[0] and value.numel() == shape.numel():
        return value.reshape(shape)
    return None
