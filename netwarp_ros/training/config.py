# SPDX-License-Identifier: Apache-2.0
"""What a training's YAML file may say, checked key by key; docs/training.md has it as tables."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from netwarp_ros.models.video_cnn import Blend, FlowGrid, Remember


def _within(low: float, high: float = float("inf"), *, default: Any) -> Any:
    """A field that `load_config` holds to [low, high]."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class NetWarpConfig:
    """Where NetWarp goes; see `netwarp_ros.models.VideoCNN`.

    Attributes:
        layers: Names of the host's submodules to insert behind.
        flow_cnn: Whether there is a FlowCNN, Λ.
        flow_grid: Where it works.
        remember: What is remembered.
        blend: What follows each layer.
    """

    layers: tuple[str, ...]
    flow_cnn: bool = True
    flow_grid: FlowGrid = "image"
    remember: Remember = "before"
    blend: Blend = "netwarp"


@dataclass(frozen=True)
class ModelConfig:
    """What is trained: ``host`` with fresh weights, or the model ``initial``.

    Attributes:
        host: A key of `netwarp_ros.models.weights.HOSTS`.
        initial: Name or file of a model to start from. A video CNN keeps its NetWarp.
        netwarp: NetWarp to insert into an image CNN; None leaves the model as it is.
        train_host: False leaves the host as it is, norm statistics included, so that NetWarp alone is trained.
    """

    host: str | None = None
    initial: str | None = None
    netwarp: NetWarpConfig | None = None
    train_host: bool = True

    def __post_init__(self) -> None:
        if (self.host is None) == (self.initial is None):
            raise ValueError("model: give one of host, whose weights start afresh, and initial, a model to start from")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """What all sources of data have in common.

    Attributes:
        per_batch: Clips of this source in each batch. Has no meaning for validation.
        stills: Take each labelled frame by itself; where clips are longer than one frame, set it in motion.
        names: Patterns of the names of frames to take, such as ``0016E5_*``; none takes all.
        leave_out: Patterns of the names of frames to leave out. A clip that would show one is left out too.
    """

    per_batch: int = _within(1, default=1)
    stills: bool = False
    names: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CamVidConfig(SourceConfig):
    """`netwarp_ros.datasets.camvid.CamVid`; paths are relative to the working directory, here and below."""

    kind: Literal["camvid"] = "camvid"
    root: str
    split: Literal["train", "val", "test"] | None = None


@dataclass(frozen=True, kw_only=True)
class CityscapesConfig(SourceConfig):
    """`netwarp_ros.datasets.cityscapes.Cityscapes`."""

    kind: Literal["cityscapes"] = "cityscapes"
    root: str
    split: Literal["train", "val"] = "train"


@dataclass(frozen=True, kw_only=True)
class FolderConfig(SourceConfig):
    """`netwarp_ros.datasets.folder.ImageFolder`; classes are the name or file of a class set."""

    kind: Literal["folder"] = "folder"
    images: str
    labels: str
    classes: str


@dataclass(frozen=True, kw_only=True)
class BagConfig(SourceConfig):
    """`netwarp_ros.datasets.bag.BagDataset`; classes are the name or file of a class set."""

    kind: Literal["bag"] = "bag"
    path: str
    image_topic: str
    label_topic: str
    classes: str


@dataclass(frozen=True, kw_only=True)
class StreetConfig(SourceConfig):
    """`netwarp_ros.datasets.street.StreetDataset` at the crop's size.

    Attributes:
        seeds: Number of streets, each of a seed of its own.
        first_seed: The first of them; lower ones than the default are left for judging.
        frames: Labelled frames of each street.
        rate: Frames per second.
    """

    kind: Literal["street"] = "street"
    seeds: int = _within(1, default=24)
    first_seed: int = _within(0, default=1000)
    frames: int = _within(1, default=10)
    rate: float = _within(1.0, 240.0, default=10.0)


Source = CamVidConfig | CityscapesConfig | FolderConfig | BagConfig | StreetConfig


@dataclass(frozen=True)
class ClipConfig:
    """How many frames are seen at a time.

    Attributes:
        length: Frames of a clip, T: 1 trains an image CNN, 2 is the paper's training of NetWarp (Sec. 3.2), and more
            unroll further.
        loss_on: Which frames are scored: the ``last``, ``all-but-first``, which has no memory, or ``all``. Frames
            without labels never count.
        flow: Preset of the DIS flow.
        detach_every: After so many frames the gradient goes no further back; 0 lets it go back to the first.
        checkpointing: Compute each frame's activations again for the gradient instead of keeping them, which needs the
            memory of one frame for T, and a third more time.
    """

    length: int = _within(1, 64, default=1)
    loss_on: Literal["last", "all-but-first", "all"] = "last"
    flow: Literal["ultrafast", "fast", "medium"] = "ultrafast"
    detach_every: int = _within(0, 64, default=0)
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.length == 1 and self.loss_on == "all-but-first":
            raise ValueError("clip.loss_on is all-but-first, but clip.length is 1: give at least 2 frames, or last")


@dataclass(frozen=True)
class AugmentConfig:
    """The arguments of `netwarp_ros.datasets.augmentation.Augmentation`."""

    height: int = _within(32, default=360)
    width: int = _within(32, default=480)
    min_scale: float = _within(0.1, 8.0, default=0.7)
    max_scale: float = _within(0.1, 8.0, default=2.0)
    colour: float = _within(0.0, 1.0, default=0.6)
    blur: float = _within(0.0, 1.0, default=0.2)
    exposure: float = _within(0.0, 1.0, default=0.0)
    noise: float = _within(0.0, 255.0, default=0.0)

    def __post_init__(self) -> None:
        if self.min_scale > self.max_scale:
            raise ValueError(
                f"augment.min_scale is {self.min_scale}, must be at most augment.max_scale, which is {self.max_scale}"
            )


@dataclass(frozen=True)
class LossConfig:
    """What is minimised.

    Attributes:
        class_balance: Class weights are (median frequency / frequency) to this power; 0 weighs all pixels alike.
        lovasz: Weight of the Lovász-softmax loss beside cross-entropy.
        auxiliary: Weight of the cross-entropy of the host's auxiliary head, where it can have one.
    """

    class_balance: float = _within(0.0, 1.0, default=0.4)
    lovasz: float = _within(0.0, 10.0, default=0.5)
    auxiliary: float = _within(0.0, 10.0, default=0.4)


@dataclass(frozen=True)
class OptimiserConfig:
    """How it is minimised.

    Attributes:
        kind: ``adam`` is the paper's; ``adamw`` decays weights apart from the gradient.
        steps: Length of the training in optimiser steps.
        rate: Highest learning rate.
        warm_up: Steps in which the rate rises from zero.
        decay_from: Part of the training after which the rate falls to zero.
        power: Of that fall: 1 is linear, 0.9 with ``decay_from`` 0 is the "poly" schedule of PSPNet.
        weight_decay: Of convolution weights; norms, biases, w1 and w2 have none.
        backbone_rate: Factor on the rate of the host's submodule ``backbone``.
        netwarp_rate: Factor on the rate of w1 and w2.
        flow_cnn_rate: Factor on the rate of Λ, which a rate that suits w1 and w2 can ruin.
        clip: Largest norm of the gradient.
        average: Decay per step of the moving average of the weights, which is what is kept in the end.
    """

    kind: Literal["adamw", "adam"] = "adamw"
    steps: int = _within(1, default=6000)
    rate: float = _within(0.0, 1.0, default=2e-3)
    warm_up: int = _within(0, default=300)
    decay_from: float = _within(0.0, 1.0, default=0.4)
    power: float = _within(0.0, 10.0, default=1.0)
    weight_decay: float = _within(0.0, 1.0, default=0.02)
    backbone_rate: float = _within(0.0, 1000.0, default=1.0)
    netwarp_rate: float = _within(0.0, 1000.0, default=1.0)
    flow_cnn_rate: float = _within(0.0, 1000.0, default=1.0)
    clip: float = _within(0.0, default=5.0)
    average: float = _within(0.0, 1.0, default=0.998)


@dataclass(frozen=True)
class TrainingConfig:
    """A whole training.

    Attributes:
        model: What is trained.
        data: What it is trained on.
        validation: What mean IoU is measured on along the way; nothing by default.
        clip: How many frames it sees at a time.
        augment: Random changes to them.
        loss: What is minimised.
        optimiser: How.
        output: Folder for checkpoints, scalars and the trained weights.
        seed: Seed of every random choice.
        device: Where to train.
        precision: ``bfloat16`` and ``float16`` (CUDA only) are autocast; the weights stay in float32.
        workers: Processes that load and augment; 0 does it in the training's own. With `torchrun`, each has as many.
        checkpoint_every: Steps between two checkpoints.
        evaluate_every: Steps between two evaluations on the validation data.
    """

    model: ModelConfig
    data: tuple[Source, ...]
    validation: tuple[Source, ...] = ()
    clip: ClipConfig = field(default_factory=ClipConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    output: str = "out/training"
    seed: int = _within(0, default=0)
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    workers: int = _within(0, 64, default=1)
    checkpoint_every: int = _within(1, default=200)
    evaluate_every: int = _within(1, default=1000)

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data is empty: give at least one source")
        if self.precision == "float16" and self.device == "cpu":
            raise ValueError("precision is float16, which CPUs compute slowly: give bfloat16 or float32")

    @property
    def batch(self) -> int:
        """Clips in a batch."""
        return sum(source.per_batch for source in self.data)


FREE_KEYS = ("output", "device", "workers", "checkpoint_every", "evaluate_every", "validation")
"""Keys that may be another when a training is resumed: the batches and the steps are the same."""


def difference(one: Any, other: Any, key: str = "") -> str | None:
    """Say what differs first between two configurations, as `dataclasses.asdict` gives them; None where nothing does.

    `FREE_KEYS` are passed over.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        pairs: Iterator[tuple[Any, Any, Any]] = ((k, one.get(k), other.get(k)) for k in {**one, **other})
    elif isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)) and len(one) == len(other):
        pairs = ((f"[{index}]", *pair) for index, pair in enumerate(zip(one, other, strict=True)))
    else:
        return None if one == other else f"{key} is {one!r} instead of {other!r}"
    for name, a, b in pairs:
        if key or name not in FREE_KEYS:
            full = f"{key}{name}" if name.startswith("[") or not key else f"{key}.{name}"
            if found := difference(a, b, full):
                return found
    return None


def load_config(path: str | Path) -> TrainingConfig:
    """Read a training's YAML file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a mapping, a missing or unknown key, a value of the wrong type or out of its range, or two that
            do not go together; the message names the key and what it may be.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    return _build(TrainingConfig, content, section="")


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
        key = prefix + spec.name
        if spec.name in content:
            values[spec.name] = _read(key, content[spec.name], hints[spec.name], **spec.metadata)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise ValueError(f"{key} is missing and has no default")
    return kind(**values)


def _read(key: str, value: Any, hint: Any, low: float = 0, high: float = float("inf")) -> Any:
    if hint == tuple[Source, ...]:
        if not isinstance(value, list):
            raise ValueError(f"{key} is {value!r}, must be a list of sources, such as [{{kind: street}}]")
        return tuple(_source(f"{key}[{index}]", entry) for index, entry in enumerate(value))
    if isinstance(hint, types.UnionType):
        (hint,) = (choice for choice in typing.get_args(hint) if choice is not type(None))
        return None if value is None else _read(key, value, hint, low, high)
    return _build(hint, value, key) if dataclasses.is_dataclass(hint) else _check(key, value, hint, low, high)


def _source(key: str, content: Any) -> Any:
    kinds = {kind.kind: kind for kind in typing.get_args(Source)}
    if not isinstance(content, Mapping) or content.get("kind") not in kinds:
        raise ValueError(f"{key} is {content!r}, must be a mapping whose kind is one of {', '.join(kinds)}")
    return _build(kinds[content["kind"]], content, key)


def _check(key: str, value: Any, hint: Any, low: float, high: float) -> Any:
    if hint == tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise ValueError(f"{key} is {value!r}, must be a list of names, such as [fusion]")
        return tuple(value)
    if choices := typing.get_args(hint):
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
