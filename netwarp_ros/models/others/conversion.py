# SPDX-License-Identifier: Apache-2.0
"""Make a model of weights by others: a file with the weights of a host, or a directory of the Hugging Face hub."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from netwarp_ros.classes import ClassSet, classes_from_labels
from netwarp_ros.models.building import TRANSFORMERS, build_host
from netwarp_ros.models.hosts import HOSTS
from netwarp_ros.models.insertion import evaluating, example_frame
from netwarp_ros.models.others.entry_points import entry_point_names
from netwarp_ros.models.others.input_sizes import find_input_size
from netwarp_ros.models.others.load_result import LoadResult
from netwarp_ros.models.others.preprocessing import Preprocessing, Triple
from netwarp_ros.models.others.public_weights import load_own_weights, load_public_weights, read_checkpoint
from netwarp_ros.models.others.transformers_files import is_transformers_directory, load_network, read_directory
from netwarp_ros.models.outputs import class_scores
from netwarp_ros.models.spec import InputSize, ModelSpec, WeightsError
from netwarp_ros.models.video_cnn import VideoCNN
from netwarp_ros.resources import cut, parse, quote

MODEL_FILE = "the model file"


@dataclass(frozen=True)
class Overrides:
    """What the user says of a network, in place of what its files say.

    Attributes:
        classes: The class set.
        input_height: Height in pixels that images are scaled to.
        mean: Mean of the RGB values, in [0, 1].
        std: Standard deviation of the RGB values.
    """

    classes: ClassSet | None = None
    input_height: int | None = None
    mean: Triple | None = None
    std: Triple | None = None


@dataclass(frozen=True)
class Conversion:
    """A model that was made of weights by others, and which of their tensors were loaded."""

    network: VideoCNN
    spec: ModelSpec
    result: LoadResult

    def __str__(self) -> str:
        lines = [self.spec.host, str(self.result), classes_and_sizes(self.spec)]
        if self.result.missing or self.result.mismatched:
            lines.append("what was not loaded has random values: train the network before you use it")
        return "\n".join(lines)


def classes_and_sizes(spec: ModelSpec) -> str:
    """Return two lines for a user."""
    return (
        f"{len(spec.classes)} classes, {spec.classes.name}: {cut(', '.join(spec.classes.names))}\n"
        f"input height {spec.input_height}; the network takes {spec.input_size}"
    )


def convert_directory(path: Path, overrides: Overrides) -> Conversion:
    """Convert a directory of the Hugging Face hub; see `netwarp_ros.models.others.transformers_files`.

    Raises:
        WeightsError: A file is missing or refused, or the weights do not fit.
        ValueError: The files do not say how images are prepared, and neither do the overrides.
    """
    directory = read_directory(path)
    name = _name(path)
    classes = overrides.classes or classes_from_labels(name, directory.labels)
    directory = dataclasses.replace(directory, labels=classes.names)
    mean, std = _normalisation(path, directory.preprocessing, overrides)
    host, result = load_network(directory)
    input_size = _input_size(host, directory.sizes)
    height = overrides.input_height
    if height is None and input_size.fixed is not None:
        height = input_size.fixed[0]
    elif height is None and directory.preprocessing is not None:
        height = directory.preprocessing.height
    if height is None:
        raise ValueError(f"{path} does not say which size images have (preprocessor_config.json): give --input-height")
    content: dict[str, Any] = {
        "host": f"{TRANSFORMERS}{directory.architecture}",
        "host_config": directory.config,
        "mean": mean,
        "std": std,
        "notes": {"origin": f"converted from {cut(name)}", "transformers": version("transformers")},
    }
    return _conversion(host, result, classes, content, height, input_size)


def convert_file(path: Path, host_name: str | None, overrides: Overrides, *, bgr: bool = False) -> Conversion:
    """Convert a file with weights of a host of this package or of an installed one.

    Args:
        path: A ``.safetensors`` file, or one of torch.save.
        host_name: The host.
        overrides: The classes must be among them.
        bgr: See `load_public_weights`.

    Raises:
        WeightsError: The host is unknown, the file cannot be read without unpickling objects, or does not fit.
        ValueError: The host or the classes are missing.
    """
    _check_host_name(path, host_name)
    checkpoint = read_checkpoint(path)
    if overrides.classes is None:
        raise ValueError(f"{path} does not say which classes its network has: give --classes")
    height = overrides.input_height
    content: dict[str, Any] = {"host": host_name, "notes": {"origin": f"converted from {cut(path.name)}"}}
    content |= {key: value for key in ("mean", "std") if (value := getattr(overrides, key)) is not None}
    arguments = {"num_classes": len(overrides.classes)}
    host = build_host(
        parse(ModelSpec, {**content, "classes": overrides.classes, "host_arguments": arguments}, MODEL_FILE)
    )
    if host_name in HOSTS:
        result = load_public_weights(host, checkpoint, bgr=bgr)
        return _conversion(host.eval(), result, overrides.classes, content, height or 360, InputSize())
    if bgr:
        raise ValueError(f"--caffe-mean is for this package's own hosts: let {host_name} take RGB")
    result = load_own_weights(host, checkpoint)
    sizes = [(height, height), (height, 2 * height)] if height else []
    input_size = _input_size(host.eval(), sizes)
    height = height or (input_size.fixed[0] if input_size.fixed else 360)
    return _conversion(host, result, overrides.classes, content, height, input_size)


def _conversion(
    host: nn.Module,
    result: LoadResult,
    classes: ClassSet,
    content: dict[str, Any],
    height: int,
    input_size: InputSize,
) -> Conversion:
    if input_size.fixed is not None and height != input_size.fixed[0]:
        raise ValueError(
            f"input height is {height}, but the network takes {input_size.fixed[1]}x{input_size.fixed[0]} only: give "
            f"--input-height {input_size.fixed[0]}, or leave it out"
        )
    content |= {"classes": classes, "host_arguments": {"num_classes": len(classes)}}
    spec = parse(ModelSpec, {**content, "input_height": height, "input_size": input_size}, MODEL_FILE)
    with evaluating(host):
        count = class_scores(host(example_frame(host, input_size.example))).shape[1]
    if count != len(classes):
        raise WeightsError(
            f"the network gives {count} scores, but {classes.name} has {len(classes)} classes: give --classes with "
            f"{count} classes in the order of its scores"
        )
    return Conversion(VideoCNN(host, {}), spec, result)


def _input_size(host: nn.Module, sizes: Any) -> InputSize:
    try:
        return find_input_size(host, sizes)
    except ValueError as error:
        raise WeightsError(f"{error}. For a network that takes one size only, give --input-height") from error


def _normalisation(path: Path, found: Preprocessing | None, overrides: Overrides) -> tuple[Triple, Triple]:
    mean, std = overrides.mean or (found and found.mean), overrides.std or (found and found.std)
    if not mean or not std:
        raise ValueError(
            f"{path} does not say how images are normalised (preprocessor_config.json): give --mean and --std, for "
            "instance --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225"
        )
    return mean, std


def _check_host_name(path: Path, name: str | None) -> None:
    directory = path.parent if str(path.parent) != "." else Path()
    beside = is_transformers_directory(directory)
    if name is not None and name.startswith(TRANSFORMERS):
        where = f"the directory {directory}" if beside else f"a directory with it and {path.name}"
        raise ValueError(f"a host of transformers is described by its config.json: give {where}, without --host")
    if name is None and beside:
        raise ValueError(f"{path} is part of a network of transformers: give its directory, {directory.resolve()}")
    known = ", ".join([*sorted(HOSTS), *entry_point_names()])
    if name is None:
        raise ValueError(f"which network has these weights? Give --host with one of {known}")
    if name not in HOSTS and name not in entry_point_names():
        raise WeightsError(f"unknown host {quote(name)}: give one of {known}")


def _name(path: Path) -> str:
    """Return the name of a network: that of its directory, or in the hub's cache of its repository."""
    home = path.resolve()
    if home.parent.name == "snapshots":
        return home.parent.parent.name.removeprefix("models--")
    return home.name
