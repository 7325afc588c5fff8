# SPDX-License-Identifier: Apache-2.0
"""Build the network of a spec: its host, which may be one of this package or by others, with NetWarp inserted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from netwarp_ros.models.hosts import HOSTS
from netwarp_ros.models.insertion import augment, evaluating, example_frame
from netwarp_ros.models.others.onnx_host import ONNX, OnnxHost, refuse_onnx
from netwarp_ros.models.outputs import class_scores
from netwarp_ros.models.spec import ModelSpec, WeightsError
from netwarp_ros.models.video_cnn import VideoCNN
from netwarp_ros.resources import cut, quote

TRANSFORMERS = "transformers:"
"""What the name of a host begins with if transformers builds it; the architecture follows."""

MAX_PROBED = 2**24
"""Most pixels that the host of a file is tried on for its insertion layers, in all."""


def build(spec: ModelSpec) -> VideoCNN:
    """Build the network of a spec, with random weights, on the current default device.

    Raises:
        WeightsError: The spec names an unknown host, its arguments do not fit, or its classes are not the host's.
    """
    return insert_netwarp(build_host(spec), spec)


def build_host(spec: ModelSpec) -> nn.Module:
    """Build the host of a spec, with random weights, on the current default device.

    A name is looked for in this order: `netwarp_ros.models.hosts.HOSTS`; ``transformers:ARCHITECTURE``; ``onnx``;
    the entry points ``netwarp_ros.hosts`` of the packages that are installed.

    Raises:
        WeightsError: The spec names an unknown host, or its arguments do not fit.
    """
    make = _maker(spec)
    try:
        return make(**spec.host_arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"cannot build {spec.host}: {cut(str(error), 400)}") from error


def build_on_meta(spec: ModelSpec) -> nn.Module:
    """Build a host without memory for its weights, where that is sure to work: to compare its shapes with a file's.

    The code of an installed package may do with its weights what the meta device cannot; its host is built in memory.

    Raises:
        WeightsError: See `build_host`.
    """
    if spec.host in HOSTS or spec.host == ONNX or spec.host.startswith(TRANSFORMERS):
        with torch.device("meta"):
            return build_host(spec)
    return build_host(spec)


def _maker(spec: ModelSpec) -> Callable[..., nn.Module]:
    if spec.host in HOSTS:
        return HOSTS[spec.host]
    if spec.host.startswith(TRANSFORMERS):
        from netwarp_ros.models.others.transformers_hosts import build_transformers_host

        return partial(build_transformers_host, spec.host.removeprefix(TRANSFORMERS), config=spec.host_config)
    if spec.host == ONNX:
        return partial(OnnxHost, config=spec.host_config)
    from netwarp_ros.models.others.entry_points import entry_point_names, find_entry_point

    if (found := find_entry_point(spec.host)) is not None:
        return found
    known = ", ".join([*sorted(HOSTS), *entry_point_names()])
    raise WeightsError(
        f"unknown host {quote(spec.host)}: there are {known}; {TRANSFORMERS}ARCHITECTURE; and the hosts of packages "
        "that declare an entry point netwarp_ros.hosts, if they are installed"
    )


def insert_netwarp(host: nn.Module, spec: ModelSpec) -> VideoCNN:
    """Insert NetWarp into the host of a spec, and check that the host tells apart as many classes as the spec has.

    Raises:
        WeightsError: NetWarp cannot be inserted at the layers of the spec, or the numbers of classes differ.
    """
    size = spec.input_size.example
    if spec.netwarp and size[0] * size[1] * len(spec.netwarp.layers) > MAX_PROBED:
        raise WeightsError(
            f"NetWarp is behind {len(spec.netwarp.layers)} layers of a network that takes {spec.input_size}: give "
            "fewer, as each is tried when the network is built"
        )
    example = example_frame(host, size)
    try:
        _check_scores(host, spec, example)
        if spec.netwarp is None:
            return VideoCNN(host, {})
        refuse_onnx(spec, "the host", "NetWarp cannot be inserted")
        arguments = {field.name: getattr(spec.netwarp, field.name) for field in dataclasses.fields(spec.netwarp)}
        return augment(host, arguments.pop("layers"), **arguments, example=example)
    except Exception as error:  # the code of others may raise errors of any type
        action = "run" if spec.netwarp is None else "insert NetWarp into"
        raise WeightsError(f"cannot {action} {spec.host}: {cut(str(error), 400)}") from error


def _check_scores(host: nn.Module, spec: ModelSpec, example: Tensor) -> None:
    """Run the host once, and compare its class scores with the classes of the spec.

    Raises:
        ValueError: They differ in number, or there is one class only.
    """
    with evaluating(host):
        scores = class_scores(host(example))
    if scores.shape[1] == 1:
        raise ValueError("the host gives one score: let it give one for each of two classes, such as (0, its logit)")
    if scores.shape[1] != len(spec.classes):
        raise ValueError(
            f"the host gives {scores.shape[1]} scores, but {spec.classes.name} has {len(spec.classes)} classes: give "
            "the classes that it was trained on"
        )
