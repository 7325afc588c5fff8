# SPDX-License-Identifier: Apache-2.0
"""What a training's YAML file may say, checked key by key."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml


def _within(low: float, high: float = float("inf"), *, default: Any) -> Any:
    """A field that `load_config` holds to [low, high]."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class DataConfig:
    """What to train on.

    Attributes:
        camvid: Root of the CamVid stills, holding ``images`` and ``labels``; relative to the working directory.
        street_per_batch: Frames of the synthetic street in each batch, beside the `OptimiserConfig.batch` stills.
        street_seeds: Number of streets, each of its own seed, counted from 1000; lower seeds are left for judging.
        street_frames: Frames taken from each street.
    """

    camvid: str
    street_per_batch: int = _within(0, default=0)
    street_seeds: int = _within(1, default=24)
    street_frames: int = _within(1, default=10)


@dataclass(frozen=True)
class AugmentConfig:
    """The arguments of `netwarp_ros.data.augment.Augmentation`."""

    height: int = _within(32, default=360)
    width: int = _within(32, default=480)
    min_scale: float = _within(0.1, 1.0, default=0.7)
    max_scale: float = _within(1.0, 8.0, default=2.0)
    colour: float = _within(0.0, 1.0, default=0.6)
    blur: float = _within(0.0, 1.0, default=0.2)


@dataclass(frozen=True)
class LossConfig:
    """What is minimised.

    Attributes:
        class_balance: Class weights are (median frequency / frequency) to this power; 0 weighs all pixels alike.
        lovasz: Weight of the Lovász-softmax loss beside cross-entropy.
        auxiliary: Weight of the auxiliary head's cross-entropy.
    """

    class_balance: float = _within(0.0, 1.0, default=0.4)
    lovasz: float = _within(0.0, 10.0, default=0.5)
    auxiliary: float = _within(0.0, 10.0, default=0.4)


@dataclass(frozen=True)
class OptimiserConfig:
    """How it is minimised, by AdamW.

    Attributes:
        steps: Length of the training in optimiser steps.
        batch: Stills per step.
        rate: Highest learning rate.
        warm_up: Steps in which the rate rises from zero.
        decay_from: Part of the training after which the rate falls linearly to zero. Since it is flat before that, a
            training resumed in its flat part may be given another number of steps.
        weight_decay: Of convolution weights; norms and biases have none.
        clip: Largest norm of the gradient.
        average: Decay per step of the moving average of the weights, which is what is kept in the end.
    """

    steps: int = _within(1, default=6000)
    batch: int = _within(1, default=6)
    rate: float = _within(0.0, 1.0, default=2e-3)
    warm_up: int = _within(0, default=300)
    decay_from: float = _within(0.0, 1.0, default=0.4)
    weight_decay: float = _within(0.0, 1.0, default=0.02)
    clip: float = _within(0.0, default=5.0)
    average: float = _within(0.0, 1.0, default=0.998)


@dataclass(frozen=True)
class TrainingConfig:
    """A whole training.

    Attributes:
        data: What to train on.
        augment: Random changes to it.
        loss: What is minimised.
        optimiser: How.
        output: Folder for checkpoints and the trained weights.
        seed: Seed of every random choice.
        device: Where to train.
        precision: ``bfloat16`` is autocast; the weights stay in float32.
        workers: Processes that load and augment; 0 does it in the training's own.
        checkpoint_every: Steps between two checkpoints.
        evaluate_every: Steps between two calls of `netwarp_ros.training.train`'s evaluation callback.
    """

    data: DataConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    output: str = "out/training"
    seed: int = _within(0, default=0)
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    workers: int = _within(0, 64, default=1)
    checkpoint_every: int = _within(1, default=200)
    evaluate_every: int = _within(1, default=1000)


@dataclass(frozen=True)
class NetWarpConfig:
    """Where NetWarp goes; see `netwarp_ros.models.VideoCNN` for what is not explained here.

    Attributes:
        host: Name or file of the trained image CNN.
        layers: Names of the host's submodules to insert behind.
        flow_cnn: Whether there is a FlowCNN.
        flow_grid: Where it works.
        remember: What is remembered.
        flow_preset: Preset of the DIS flow.
        clip_length: Frames of a clip. Two are the paper's; the loss is on all frames but the first.
    """

    host: str
    layers: tuple[str, ...]
    flow_cnn: bool = True
    flow_grid: Literal["image", "features"] = "features"
    remember: Literal["before", "after"] = "before"
    flow_preset: Literal["ultrafast", "fast", "medium"] = "fast"
    clip_length: int = _within(2, 64, default=2)


@dataclass(frozen=True)
class VideoTrainingConfig:
    """A whole training of NetWarp, behind a host that stays as it is; keys are those of `TrainingConfig`."""

    netwarp: NetWarpConfig
    data: DataConfig
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    output: str = "out/training"
    seed: int = _within(0, default=0)
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    workers: int = _within(0, 64, default=1)


def load_config(path: str | Path) -> TrainingConfig | VideoTrainingConfig:
    """Read a training's YAML file: of NetWarp where it has a section ``netwarp``, else of an image CNN.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a mapping, a missing or unknown key, or a value of the wrong type or out of its range; the
            message names the key and what it may be.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    is_video = isinstance(content, Mapping) and "netwarp" in content
    return _build(VideoTrainingConfig if is_video else TrainingConfig, content, section="")


def _build(kind: Any, content: Any, section: str) -> Any:
    prefix = f"{section}." if section else ""
    hints = typing.get_type_hints(kind)
    if not isinstance(content, Mapping):
        raise ValueError(f"{section or 'the configuration'} is {content!r}, must be a mapping with {', '.join(hints)}")
    for key in content:
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known are {', '.join(hints)}"
            raise ValueError(f"unknown key {prefix}{key}; {hint}")
    values = {}
    for spec in dataclasses.fields(kind):
        key, hint = prefix + spec.name, hints[spec.name]
        if spec.name not in content:
            if spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
                raise ValueError(f"{key} is missing and has no default")
        elif dataclasses.is_dataclass(hint):
            values[spec.name] = _build(hint, content[spec.name], section=key)
        else:
            values[spec.name] = _check(key, content[spec.name], hint, **spec.metadata)
    return kind(**values)


def _check(key: str, value: Any, hint: Any, low: float = 0, high: float = float("inf")) -> Any:
    if hint == tuple[str, ...]:
        if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
            raise ValueError(f"{key} is {value!r}, must be a list of names, such as [fusion]")
        return tuple(value)
    choices = typing.get_args(hint)
    if choices:
        if value not in choices:
            raise ValueError(f"{key} is {value!r}, must be one of {', '.join(choices)}")
        return value
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        cure = "; YAML reads 1e-3 as text, write 1.0e-3" if hint is float and isinstance(value, str) else ""
        raise ValueError(f"{key} is {value!r}, must be of type {hint.__name__}{cure}")
    if hint in (int, float) and not low <= value <= high:
        bounds = f"at least {low}" if high == float("inf") else f"from {low} to {high}"
        raise ValueError(f"{key} is {value}, must be {bounds}")
    return value
