# SPDX-License-Identifier: Apache-2.0
"""Read a network from a directory as the Hugging Face hub has it, such as a download or what `save_pretrained` wrote.

Such a directory may come from anybody. So ``config.json`` is read and checked before transformers sees it
(`check_config`); weights are read without unpickling objects, and handed to transformers only once the network is known
to be no larger than they are; and no file outside the directory is opened, except through the links of the hub's own
cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from netwarp_ros.classes import MAX_CLASSES
from netwarp_ros.models.checkpoints import DamagedFileError, load_tensors
from netwarp_ros.models.insertion import evaluating, example_frame
from netwarp_ros.models.limits import at_most
from netwarp_ros.models.others.load_result import LoadResult, listed
from netwarp_ros.models.others.preprocessing import Preprocessing, parse_preprocessing
from netwarp_ros.models.others.transformers_hosts import (
    build_transformers_host,
    check_architecture,
    check_config,
    header_config,
    network_from_tensors,
)
from netwarp_ros.models.outputs import class_scores
from netwarp_ros.models.spec import MAX_FIXED_PIXELS, WeightsError
from netwarp_ros.models.video_cnn import Size
from netwarp_ros.models.weights import open_safetensors
from netwarp_ros.resources import MAX_JSON, cut, parse_json, quote

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""The files that hold the weights, in the order that they are looked for."""

MAX_SHARDS = 100
"""Most files that an index may name."""

_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\.(safetensors|bin)")
_SLACK = 2**24  # values of buffers that a network may have and that are not in its file


@dataclass(frozen=True)
class TransformersDirectory:
    """What the JSON files of a directory say.

    Attributes:
        path: The directory.
        architecture: One of `netwarp_ros.models.others.transformers_hosts.architectures`.
        config: The configuration that goes into a model file, see `header_config`.
        labels: Names of the classes, by id.
        preprocessing: How images are prepared; None if there is no ``preprocessor_config.json``.
    """

    path: Path
    architecture: str
    config: Mapping[str, Any]
    labels: tuple[str, ...]
    preprocessing: Preprocessing | None

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Sizes ``(height, width)`` that the files name: one that the network takes if it takes no other."""
        named = [self.config, self.config.get("backbone_config")]
        sizes = [
            _size(config["image_size"]) for config in named if isinstance(config, Mapping) and "image_size" in config
        ]
        sizes.append(self.preprocessing.size if self.preprocessing else None)
        return tuple(size for size in sizes if size is not None)


def is_transformers_directory(path: Path) -> bool:
    """Return whether a path is a directory with a ``config.json``."""
    return (path / CONFIG).is_file()


def read_directory(path: Path) -> TransformersDirectory:
    """Read the JSON files of a directory.

    Raises:
        WeightsError: A file is missing, leads out of the directory, or its content is refused.
    """
    if not path.is_dir():
        raise WeightsError(f"no directory {path}")
    if not is_transformers_directory(path):
        raise WeightsError(f"{path} has no {CONFIG}: give a directory of the Hugging Face hub, or a file of weights")
    raw = _read_json(path, CONFIG)
    try:
        check_config(raw, str(path / CONFIG))
        architecture = _architecture(raw)
        return TransformersDirectory(
            path,
            architecture,
            header_config(architecture, raw),
            _labels(raw),
            parse_preprocessing(_read_json(path, PREPROCESSOR)) if (path / PREPROCESSOR).exists() else None,
        )
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(_with_source(path, str(error))) from error


def load_network(directory: TransformersDirectory) -> tuple[nn.Module, LoadResult]:
    """Build the network of a directory and load its weights.

    Returns:
        The network in float32, in evaluation mode. It takes RGB: if the weights expect BGR, its first convolution is
        changed. And which tensors were loaded; all of the network's were.

    Raises:
        WeightsError: There are no weights, they cannot be read without unpickling objects, or they do not fit.
    """
    files = _weights_files(directory.path)
    tensors = {
        key: tensor for name, file in files.items() for key, tensor in _read_tensors(directory.path / name, file)
    }
    size = sum(file.stat().st_size for file in files.values())
    num_classes = len(directory.labels)
    arguments = (directory.architecture, num_classes, directory.config)
    try:
        # A small file can describe a network of any size. On the meta device it takes no memory.
        with torch.device("meta"), at_most(parameters=4 * len(tensors) + 100, modules=40 * len(tensors) + 1000):
            blueprint = build_transformers_host(*arguments)
        _check_size(blueprint, size)
        trained, report = network_from_tensors(*arguments, tensors)
        result = _load_result(trained, report)
        _check_finite(trained)
        with torch.random.fork_rng(devices=()):  # all random weights are replaced: draw no numbers for them
            host = build_transformers_host(*arguments).eval()
        host.load_state_dict(trained.state_dict())
    except (ValueError, RuntimeError) as error:
        raise WeightsError(_with_source(directory.path, str(error))) from error
    swap = directory.preprocessing is not None and directory.preprocessing.bgr
    if swap:
        _swap_input_channels(host)
    _check_same(host, trained, directory, swap=swap)
    return host, result


def _read_json(path: Path, name: str) -> Mapping[str, Any]:
    file = _inside(path, name)
    with file.open("rb") as opened:
        data = opened.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise WeightsError(f"{path / name} has more than {MAX_JSON} bytes: no such file of a network is that large")
    try:
        content: Mapping[str, Any] = parse_json(dict[str, Any], data.decode(), str(path / name))
    except ValueError as error:  # UnicodeDecodeError is one
        raise WeightsError(_with_source(path / name, cut(str(error), 400))) from error
    return content


def _inside(directory: Path, name: str) -> Path:
    """Return a file of a directory, with links followed.

    A link may lead to another place in the directory. In the hub's cache, files of ``snapshots/X`` are links into
    ``blobs`` beside ``snapshots``. A link to anywhere else could make this command read a file of the user's.
    """
    file = directory / name
    try:
        home, real = directory.resolve(strict=True), file.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError is a circle of links
        raise WeightsError(f"{directory} has no readable {name}") from error
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if not any(real.is_relative_to(folder) for folder in allowed):
        raise WeightsError(f"{file} is a link out of the directory: copy the file that it leads to in its place")
    if not real.is_file():
        raise WeightsError(f"{file} is not a file")
    return real


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1:
        raise ValueError(f"architectures is {quote(names)}: give a list with the name of the network, for example "
                         "[\"SegformerForSemanticSegmentation\"]")  # fmt: skip
    return check_architecture(names[0])


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes by id."""
    labels = config.get("id2label")
    if labels is None:
        count = config.get("num_labels", 2)  # transformers leaves out both for two classes
        if not isinstance(count, int) or not 1 <= count <= MAX_CLASSES:
            raise ValueError(f"num_labels is {quote(count, 80)}: give 1 to {MAX_CLASSES}")
        return tuple(f"class {number}" for number in range(count))
    if not isinstance(labels, Mapping):
        raise ValueError(f"id2label is a {type(labels).__name__}: it must map the ids of classes to their names")
    if not 1 <= len(labels) <= MAX_CLASSES:
        raise ValueError(f"id2label has {len(labels)} classes: a model has 1 to {MAX_CLASSES}")
    names = [labels.get(str(number)) for number in range(len(labels))]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"id2label has the keys {cut(', '.join(map(str, labels)), 80)}: number the classes from 0")
    return tuple(map(str, names))


def _weights_files(path: Path) -> dict[str, Path]:
    """Return the files that hold the weights, by their names in the directory."""
    name = next((name for name in WEIGHTS if (path / name).exists() or (path / name).is_symlink()), None)
    if name is None:
        raise WeightsError(f"{path} has no weights: it needs {', '.join(WEIGHTS)}")
    if not name.endswith(".json"):
        return {name: _inside(path, name)}
    names = _read_json(path, name).get("weight_map")
    shards = dict.fromkeys(names.values()) if isinstance(names, Mapping) and _are_texts(names.values()) else {}
    if not 1 <= len(shards) <= MAX_SHARDS:
        raise WeightsError(f"{path / name} names {len(shards)} files in its weight_map: 1 to {MAX_SHARDS} are possible")
    for shard in shards:
        if not _SHARD.fullmatch(shard):
            raise WeightsError(
                f"{path / name} names the file {quote(shard, 100)}: only files of its directory are read"
            )
    return {shard: _inside(path, shard) for shard in shards}


def _are_texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _read_tensors(shown: Path, file: Path) -> Iterator[tuple[str, Tensor]]:
    """Read the tensors of a file, whose name may be a hash in the hub's cache; errors show another."""
    if shown.suffix == ".safetensors":
        try:
            with open_safetensors(file) as opened:
                for name in opened.keys():  # noqa: SIM118
                    yield name, opened.get_tensor(name)
        except (SafetensorError, WeightsError) as error:
            raise WeightsError(str(error).replace(str(file), str(shown))) from error
        return
    try:
        content = load_tensors(file)
    except DamagedFileError as error:
        raise WeightsError(f"{str(error).replace(str(file), str(shown))}: give a model.safetensors instead") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{shown} holds a {type(content).__name__}, not a state dict")
    for name, tensor in content.items():
        if isinstance(name, str) and isinstance(tensor, Tensor):
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise WeightsError(f"{shown}: {cut(name, 100)} claims {tuple(tensor.shape)}, but has fewer values")
            yield name, tensor


def _check_size(network: nn.Module, file_bytes: int) -> None:
    """Check that a network is no larger than its file, in which a value takes a byte or more."""
    stored = set(network.state_dict())
    values = sum(value.numel() for value in network.state_dict().values())
    other = sum(value.numel() for name, value in network.named_buffers() if name not in stored)
    if values > file_bytes or other > file_bytes + _SLACK:
        raise ValueError(
            f"{CONFIG} describes a network of {values + other} values, but its weights have {file_bytes} bytes"
        )


def _load_result(network: nn.Module, report: Mapping[str, Any]) -> LoadResult:
    """Return which tensors were loaded.

    Raises:
        ValueError: Not all of the network's were.
    """
    mismatched = [
        f"{name} {tuple(ours)}, in the file {tuple(theirs)}" for name, theirs, ours in report["mismatched_keys"]
    ]
    another = {entry[0] for entry in report["mismatched_keys"]}
    missing = sorted(name for name in set(report["missing_keys"]) - another if not name.endswith("num_batches_tracked"))
    loaded = tuple(name for name in network.state_dict() if name not in another and name not in missing)
    result = LoadResult(loaded, tuple(sorted(mismatched)), tuple(missing), tuple(sorted(report["unexpected_keys"])))
    if missing or mismatched:
        problems = [listed(result.mismatched, "of another shape in the file"), listed(result.missing, "missing in it")]
        raise ValueError(
            f"the weights do not fit {CONFIG}: {'; '.join(filter(None, problems))}. If the last layers are among them, "
            "the checkpoint was not trained for these classes"
        )
    return result


def _check_finite(network: nn.Module) -> None:
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{name} has values that are not finite")


def _swap_input_channels(host: nn.Module) -> None:
    """Make a network that takes BGR take RGB."""
    first = next((m for m in host.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3), None)
    if first is None:
        raise WeightsError(f"{type(host).__name__} takes BGR, and has no convolution of an image to swap its channels")
    with torch.no_grad():
        first.weight.copy_(first.weight.flip(1))


def _check_same(host: nn.Module, trained: nn.Module, directory: TransformersDirectory, *, swap: bool) -> None:
    """Check that a network, built anew from the header of the model file, scores as the one that was loaded.

    A size that neither takes proves nothing; `netwarp_ros.models.others.input_sizes` finds one.
    """
    for size in ((128, 128), *directory.sizes):
        if size[0] * size[1] > MAX_FIXED_PIXELS:
            continue
        frame = example_frame(host, size)
        try:
            with evaluating(trained):
                expected = class_scores(trained(frame.flip(1) if swap else frame))
        except Exception:  # noqa: S112 - networks raise errors of any type for sizes that they do not take
            continue
        what = f"{directory.path}: {directory.architecture}, built from what a model file holds,"
        try:
            with evaluating(host):
                scores = class_scores(host(frame))
        except Exception as error:
            raise WeightsError(
                f"{what} cannot be run at {size[1]}x{size[0]}, which the directory's network takes: "
                f"{type(error).__name__}: {cut(str(error))}"
            ) from error
        if scores.shape != expected.shape or not torch.allclose(scores, expected, rtol=1e-3, atol=1e-4):
            raise WeightsError(
                f"{what} gives other scores than the directory's network: this network cannot be converted"
            )
        return


def _size(image_size: Any) -> Size | None:
    """Return a size in a configuration: one number, or a height and a width."""
    sides: Sequence[Any] = image_size if isinstance(image_size, list | tuple) else (image_size, image_size)
    if len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides):
        return sides[0], sides[1]
    return None


def _with_source(path: Path, message: str) -> str:
    return message if str(path) in message else f"{path}: {message}"
