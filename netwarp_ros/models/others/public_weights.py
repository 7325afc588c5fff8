# SPDX-License-Identifier: Apache-2.0
"""Load the weights of public networks into the hosts of this package, as `netwarp convert` does.

For each host, a table maps the layers of a public network to the submodules here (`docs/models.md` shows the tables).
The tensors of a layer (``weight``, ``bias``, ``running_mean``, ``running_var``) have the same names everywhere;
``num_batches_tracked`` is skipped, as nothing here reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from netwarp_ros.models.checkpoints import DamagedFileError, load_tensors
from netwarp_ros.models.hosts import DDRNet23Slim, PSPNet101
from netwarp_ros.models.hosts.swiftnet import InvertedBottleneck, SwiftNet
from netwarp_ros.models.hosts.vgg import DilatedVGG16
from netwarp_ros.models.others.load_result import LoadResult
from netwarp_ros.models.spec import WeightsError
from netwarp_ros.models.weights import open_safetensors
from netwarp_ros.resources import cut

_WRAPPERS = ("state_dict", "model")  # keys under which checkpoints keep the weights
_PREFIXES = ("module.", "model.")  # added by DataParallel, and by Lightning modules
_CONV_NORM = (("conv", 0), ("bn", 1))  # the two modules of `netwarp_ros.models.hosts.blocks.conv_norm`

_PSPNET_SOURCES = (
    "hszhao/semseg's PSPNet (layer0.0.weight, layer1.0.conv1.weight, ppm.features.0.1.weight, cls.0.weight, "
    "aux.0.weight) and of torchvision's ResNet (conv1.weight, bn1.weight, layer1.0.conv1.weight). The PSPNets of "
    "mmsegmentation and segmentation_models_pytorch are other networks"
)
_VGG_SOURCES = (
    "the Caffe releases (conv1_1.weight, fc6.weight, final.weight, ctx_conv1_1.weight) and of torchvision's VGG-16 "
    "(features.0.weight, classifier.0.weight)"
)
_EFFICIENTNET_SOURCES = (
    "EfficientNet-Lite in efficientnet_lite_pytorch (_conv_stem.weight, _blocks.0._bn1.weight) and in timm "
    "(conv_stem.weight, blocks.0.0.conv_dw.weight)"
)
_DDRNET_SOURCES = (
    "DDRNet-23-slim by its authors (conv1.0.weight, layer3_.0.conv1.weight) and in mmsegmentation "
    "(backbone.stem.0.conv.weight, backbone.spatial_branch_layers.0.0.conv1.conv.weight)"
)
_TIMM_BLOCK = (("pw", "expand"), ("dw", "depthwise"), ("pwl", "project"))
_VGG_FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # torchvision's convolutions: features.N


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
            with open_safetensors(path) as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is not a readable safetensors file: {cut(str(error))}") from error
    try:
        return load_tensors(path)
    except DamagedFileError as error:
        raise WeightsError(f"{error}: save the network's state_dict()") from error


def load_public_weights(host: nn.Module, checkpoint: Mapping[str, Any], *, bgr: bool = False) -> LoadResult:
    """Load the weights of a public network into a host of this package, as far as names and shapes match.

    If the checkpoint has all names of the host itself, they are used. Fully connected layers become convolutions: a
    matrix ``(4096, 25088)`` is a kernel ``(4096, 512, 7, 7)``. The tensors of a normalisation are loaded only if its
    convolution is. A bias of that convolution, which no host here has, is subtracted from the normalisation's mean. All
    other tensors of the host stay as they were.

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
    tensors = {_without_prefix(key): value for key, value in _unwrap(checkpoint).items()}
    if targets.keys() <= tensors.keys():
        layer_names = {layer: layer for layer in (name.rpartition(".")[0] for name in targets)}
    matches: dict[str, tuple[str, Tensor]] = {}
    mismatched: dict[str, str] = {}
    biases: dict[str, tuple[str, Tensor]] = {}
    unused = []
    for key, value in tensors.items():
        layer, _, part = key.rpartition(".")
        name = f"{layer_names[layer]}.{part}" if layer in layer_names else ""
        if (mean := _mean_after(name)) in targets and name not in targets:
            biases[mean] = (key, value)
        elif name not in targets or name in matches:
            unused.append(key)
        elif (reshaped := _reshaped(value, targets[name].shape)) is None:
            ours, theirs = tuple(targets[name].shape), tuple(value.shape)
            mismatched[name] = f"{name} {ours}, in the file {key} {theirs}"
        else:
            matches[name] = (key, reshaped.flip(1) if bgr and name == first_kernel else reshaped)
    for name in list(matches):
        if (kernel := _kernel_before(name)) in targets and kernel not in matches:
            unused.append(matches.pop(name)[0])
    for mean, (key, bias) in biases.items():
        if mean in matches and matches[mean][1].shape == bias.shape:
            matches[mean] = (matches[mean][0], matches[mean][1] - bias)
        else:
            unused.append(key)
    missing = [name for name in targets if name not in matches and name not in mismatched]
    result = LoadResult(tuple(matches), tuple(mismatched.values()), tuple(missing), tuple(unused))
    if not matches:
        raise WeightsError(
            f"no tensor of the file fits {type(host).__name__}, which takes weights under the names of {sources}; "
            f"{result}"
        )
    host.load_state_dict({name: value for name, (_, value) in matches.items()}, strict=False)
    return result


def load_own_weights(host: nn.Module, checkpoint: Mapping[str, Any]) -> LoadResult:
    """Load weights into a host by others, all of them, under the host's own names.

    Args:
        host: Its weights are changed.
        checkpoint: A state dict, or a dict that holds one under ``state_dict`` or ``model``. A prefix ``module.`` or
            ``model.`` that all its names have is removed if they do not fit.

    Raises:
        WeightsError: If a tensor of the host is missing in the checkpoint or has another shape there.
    """
    targets = {name: value for name, value in host.state_dict().items() if not _is_batch_count(name)}
    tensors = _unwrap(checkpoint)
    while not targets.keys() <= tensors.keys():
        shared = next((prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in tensors)), None)
        if shared is None:
            break
        tensors = {key.removeprefix(shared): value for key, value in tensors.items()}
    mismatched = {
        name: f"{name} {tuple(value.shape)}, in the file {tuple(tensors[name].shape)}"
        for name, value in targets.items()
        if name in tensors and tensors[name].shape != value.shape
    }
    loaded = tuple(name for name in targets if name in tensors and name not in mismatched)
    result = LoadResult(
        loaded,
        tuple(mismatched.values()),
        tuple(name for name in targets if name not in tensors),
        tuple(key for key in tensors if key not in targets),
    )
    if result.missing or result.mismatched:
        raise WeightsError(f"the file does not fit {type(host).__name__}, whose own names it must have: {result}")
    host.load_state_dict({name: tensors[name] for name in loaded}, strict=False)
    return result


def _layer_names(host: nn.Module) -> tuple[dict[str, str], str]:
    """Return a table from public layer names to the host's submodules, and a description of the public networks."""
    if isinstance(host, PSPNet101):
        return _resnet_names(host.depths) | _pspnet_names(), _PSPNET_SOURCES
    if isinstance(host, DilatedVGG16):
        return _vgg_names(host), _VGG_SOURCES
    if isinstance(host, SwiftNet):
        return _efficientnet_names(host), _EFFICIENTNET_SOURCES
    if isinstance(host, DDRNet23Slim):
        return _ddrnet_names(), _DDRNET_SOURCES
    raise WeightsError(
        f"no public weights are known for {type(host).__name__}: choose a PSPNet, PlayData, Dilation, SwiftNet or "
        "DDRNet host"
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


def _efficientnet_names(host: SwiftNet) -> dict[str, str]:
    """Return the table for EfficientNet in timm and efficientnet_lite_pytorch, which numbers blocks across stages."""
    table = {"_conv_stem": "backbone.stem.0", "_bn0": "backbone.stem.1"}
    table |= {"conv_stem": "backbone.stem.0", "bn1": "backbone.stem.1"}
    blocks = [name for name, module in host.named_modules() if isinstance(module, InvertedBottleneck)]
    for index, ours in enumerate(blocks):
        for number, part in enumerate(("expand", "depthwise", "project")):
            table[f"_blocks.{index}._{part}_conv"] = f"{ours}.{part}.0"
            table[f"_blocks.{index}._bn{number}"] = f"{ours}.{part}.1"
        first = index == 0  # it has no expansion, and timm gives its projection the name that expansions have elsewhere
        parts = (("dw", "depthwise"), ("pw", "project")) if first else _TIMM_BLOCK
        theirs = ours.replace("backbone.stages", "blocks")
        for number, (short, part) in enumerate(parts, start=1):
            table[f"{theirs}.conv_{short}"] = f"{ours}.{part}.0"
            table[f"{theirs}.bn{number}"] = f"{ours}.{part}.1"
    return table


def _ddrnet_names() -> dict[str, str]:
    """Return the table for DDRNet-23-slim, by its authors and in mmsegmentation, as far as the host equals it.

    The host departs from it in stage 4 of the low-resolution branch and after, and in the head.
    """
    stages = (  # the authors' name, mmsegmentation's, the host's, blocks, convolutions of a block
        ("layer1", "backbone.stem.2", "layer1", 2, 2),
        ("layer2", "backbone.stem.4", "layer2", 2, 2),
        ("layer3", "backbone.context_branch_layers.0", "low3", 2, 2),
        ("layer3_", "backbone.spatial_branch_layers.0", "high3", 2, 2),
        ("layer4_", "backbone.spatial_branch_layers.1", "high4", 2, 2),
        ("layer5_", "backbone.spatial_branch_layers.2", "high5", 1, 3),
    )
    table = {}
    for authors, mmseg, ours, blocks, convolutions in stages:
        for block in range(blocks):
            here = f"{ours}.{2 * block}" if blocks > 1 else ours
            for kind, index in _CONV_NORM:
                for number in range(convolutions):
                    place = f"{here}.body.{2 * number}.{index}"
                    table[f"{authors}.{block}.{kind}{number + 1}"] = place
                    table[f"{mmseg}.{block}.conv{number + 1}.{kind}"] = place
                for theirs in (authors, mmseg):
                    table[f"{theirs}.{block}.downsample.{index}"] = f"{here}.shortcut.{index}"
    for kind, index in _CONV_NORM:
        for number in range(2):
            table[f"conv1.{3 * number + index}"] = f"stem.{2 * number}.{index}"
            table[f"backbone.stem.{number}.{kind}"] = f"stem.{2 * number}.{index}"
        table |= {f"down3.{index}": f"high_to_low3.{index}", f"backbone.down_1.{kind}": f"high_to_low3.{index}"}
        table |= {f"compression3.{index}": f"low_to_high3.{index}"}
        table |= {f"backbone.compression_1.{kind}": f"low_to_high3.{index}"}
    return table


def _unwrap(checkpoint: Any) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint, without counts of batches."""
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
    return {key: value for key, value in tensors.items() if not _is_batch_count(key)}


def _without_prefix(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = key.partition(".")[2]
    return key


def _is_batch_count(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _kernel_before(name: str) -> str:
    """Return the name that the kernel before a normalisation has. For any other tensor, no kernel has this name."""
    return f"{name.rpartition('.')[0].removesuffix('.1')}.0.weight"


def _mean_after(name: str) -> str:
    """Return the name that the mean of a normalisation has after a convolution, given that of its bias; else empty."""
    return f"{name.removesuffix('.0.bias')}.1.running_mean" if name.endswith(".0.bias") else ""


def _reshaped(value: Tensor, shape: torch.Size) -> Tensor | None:
    """Return a tensor in a shape, reshaping the matrix of a fully connected layer; None if it does not fit."""
    if value.shape == shape:
        return value
    if value.ndim == 2 and len(shape) == 4 and value.shape[0] == shape[0] and value.numel() == shape.numel():
        return value.reshape(shape)
    return None
