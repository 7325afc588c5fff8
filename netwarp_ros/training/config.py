# SPDX-License-Identifier: Apache-2.0
"""The keys of a training's YAML file, their types, ranges and defaults; docs/training.md shows them as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from netwarp_ros.models import NetWarpSpec
from netwarp_ros.resources import Checked, quote, read_yaml

Count = Annotated[int, Field(strict=True, ge=1, le=10**9)]
UpTo1024 = Annotated[int, Field(strict=True, ge=1, le=1024)]
UpTo10000 = Annotated[int, Field(strict=True, ge=1, le=10_000)]
Whole = Annotated[int, Field(strict=True, ge=0)]
UpTo64 = Annotated[int, Field(strict=True, ge=0, le=64)]
Pixels = Annotated[int, Field(strict=True, ge=32, le=8192)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1)]
UpTo10 = Annotated[float, Field(strict=True, ge=0, le=10)]
UpTo100 = Annotated[float, Field(strict=True, ge=0, le=100)]
Zoom = Annotated[float, Field(strict=True, ge=0.1, le=8)]
RateFactor = Annotated[float, Field(strict=True, ge=0, le=1000)]


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The model to train: ``host`` with random weights, or the model ``initial``.

    Attributes:
        host: A key of `netwarp_ros.models.hosts.HOSTS`.
        initial: Name or file of a model to start from. A video CNN keeps its NetWarp.
        netwarp: NetWarp to insert into an image CNN; None leaves the model as it is. Into a video CNN only the gate can
            be inserted: ``blend`` is ``gated`` and all else as it is there.
        train_host: False freezes the host, its norm statistics included, so that only NetWarp is trained.
    """

    host: str | None = None
    initial: str | None = None
    netwarp: NetWarpSpec | None = None
    train_host: StrictBool = True

    def __post_init__(self) -> None:
        if (self.host is None) == (self.initial is None):
            raise ValueError("give either host, for random weights, or initial, a model to start from")


@dataclass(frozen=True, kw_only=True)
class SourceConfig(Checked):
    """Keys of every source of data.

    Attributes:
        per_batch: Clips of this source in each batch. Not used for validation.
        stills: Use each labelled frame as a single image; clips longer than one frame are made by synthetic motion.
        names: Patterns of frame names to use, such as ``0016E5_*``; an empty list uses all.
        leave_out: Patterns of frame names to leave out. A clip that contains such a frame is left out too.
    """

    per_batch: UpTo1024 = 1
    stills: StrictBool = False
    names: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CamVidConfig(SourceConfig):
    """`netwarp_ros.datasets.camvid.CamVid`. Paths of all sources are relative to the working directory."""

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
    """`netwarp_ros.datasets.folder.ImageFolder`. ``classes`` is the name or the file of a class set."""

    kind: Literal["folder"] = "folder"
    images: str
    labels: str
    classes: str


@dataclass(frozen=True, kw_only=True)
class BagConfig(SourceConfig):
    """`netwarp_ros.datasets.bag.BagDataset`. ``classes`` is the name or the file of a class set."""

    kind: Literal["bag"] = "bag"
    path: str
    image_topic: str
    label_topic: str
    classes: str


@dataclass(frozen=True, kw_only=True)
class StreetConfig(SourceConfig):
    """`netwarp_ros.datasets.street.StreetDataset` at the crop's size.

    Attributes:
        seeds: Number of streets; each has its own seed.
        first_seed: Seed of the first street. Seeds below the default are kept for evaluation.
        frames: Labelled frames of each street.
        rate: Frames per second.
    """

    kind: Literal["street"] = "street"
    seeds: UpTo10000 = 24
    first_seed: Whole = 1000
    frames: UpTo10000 = 10
    rate: Annotated[float, Field(strict=True, ge=1, le=240)] = 10.0


def _check_kind(source: Any) -> Any:
    kinds = [config.kind for config in (CamVidConfig, CityscapesConfig, FolderConfig, BagConfig, StreetConfig)]
    if not isinstance(source, SourceConfig) and (not isinstance(source, Mapping) or source.get("kind") not in kinds):
        allowed = {"kinds": ", ".join(kinds)}
        raise PydanticCustomError("source_kind", "must be a mapping whose kind is one of {kinds}", allowed)
    return source


Source = Annotated[
    CamVidConfig | CityscapesConfig | FolderConfig | BagConfig | StreetConfig,
    Field(discriminator="kind"),
    BeforeValidator(_check_kind),
]


@dataclass(frozen=True)
class ClipConfig(Checked):
    """How many adjacent frames the network is trained on at a time.

    Attributes:
        length: Frames of a clip, T. 1 trains an image CNN, 2 is the paper's training of NetWarp (Sec. 3.2); more frames
            propagate the gradient through a longer memory.
        loss_on: Frames that count in the loss: the ``last``, ``all-but-first`` (the first has no memory), or ``all``.
            Frames without labels never count.
        flow: Preset of the DIS flow.
        detach_every: Detach the memory from the gradient after this many frames; 0: never.
        checkpointing: Recompute each frame's activations in the backward pass instead of keeping them. This needs the
            memory of one frame instead of T, and a third more time.
    """

    length: Annotated[int, Field(strict=True, ge=1, le=64)] = 1
    loss_on: Literal["last", "all-but-first", "all"] = "last"
    flow: Literal["ultrafast", "fast", "medium"] = "ultrafast"
    detach_every: UpTo64 = 0
    checkpointing: StrictBool = False

    def __post_init__(self) -> None:
        if self.length == 1 and self.loss_on == "all-but-first":
            raise ValueError("loss_on is all-but-first, but length is 1: give a length of at least 2, or loss_on: last")


@dataclass(frozen=True)
class AugmentConfig(Checked):
    """The arguments of `netwarp_ros.datasets.augmentation.Augmentation`."""

    height: Pixels = 360
    width: Pixels = 480
    min_scale: Zoom = 0.7
    max_scale: Zoom = 2.0
    colour: Fraction = 0.6
    blur: Fraction = 0.2
    exposure: Fraction = 0.0
    noise: Annotated[float, Field(strict=True, ge=0, le=255)] = 0.0

    def __post_init__(self) -> None:
        if self.min_scale > self.max_scale:
            raise ValueError(f"min_scale is {self.min_scale}, must be at most max_scale, which is {self.max_scale}")


@dataclass(frozen=True)
class PasteConfig(Checked):
    """Copy-paste of rare classes between single images, see `netwarp_ros.datasets.pasting`.

    Attributes:
        probability: Probability that an image gets objects of another one of its source.
        classes: Names of the classes that are pasted.
    """

    probability: Fraction = 0.0
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.probability) != bool(self.classes):
            raise ValueError("probability and classes of what is pasted belong together: give both or neither")


@dataclass(frozen=True)
class LossConfig(Checked):
    """The terms of the loss.

    Attributes:
        class_balance: Class weights are (median frequency / frequency) to this power; 0 gives all pixels one weight.
        lovasz: Weight of the Lovász-softmax loss, relative to cross-entropy.
        auxiliary: Weight of the cross-entropy of the auxiliary head, for hosts that can have one.
        consistency: Weight of the squared difference of the probabilities of a frame and of the frame before it, along
            the exact motion of stills and streets, and along a DIS flow that agrees with its reverse in videos.
        distillation: Weight of the divergence from the probabilities that the host gives when it sees the frame at two
            scales and mirrored, see `netwarp_ros.training.views`.
    """

    class_balance: Fraction = 0.4
    lovasz: UpTo10 = 0.5
    auxiliary: UpTo10 = 0.4
    consistency: UpTo100 = 0.0
    distillation: UpTo10 = 0.0


@dataclass(frozen=True)
class OptimiserConfig(Checked):
    """The optimiser, and the schedule of its learning rate.

    Attributes:
        kind: ``adam`` is the paper's; ``adamw`` decays weights apart from the gradient.
        steps: Length of the training in optimiser steps.
        rate: Highest learning rate.
        warm_up: Steps in which the rate rises from zero.
        decay_from: Fraction of the training after which the rate falls to zero.
        power: Exponent of that fall: 1 is linear; 0.9 with ``decay_from`` 0 is the "poly" schedule of PSPNet.
        weight_decay: Weight decay of convolution kernels; norms, biases, w1 and w2 have none.
        backbone_rate: Factor on the rate of the host's submodule ``backbone``.
        netwarp_rate: Factor on the rate of w1 and w2.
        flow_cnn_rate: Factor on the rate of Λ. A rate that suits w1 and w2 can ruin Λ.
        gate_rate: Factor on the rate of the gate.
        clip: Largest norm of the gradient, to which larger gradients are scaled; 0: no limit.
        average: Decay per step of the moving average of the weights. The trained model is this average.
    """

    kind: Literal["adamw", "adam"] = "adamw"
    steps: Count = 6000
    rate: Fraction = 2e-3
    warm_up: Whole = 300
    decay_from: Fraction = 0.4
    power: UpTo10 = 1.0
    weight_decay: Fraction = 0.02
    backbone_rate: RateFactor = 1.0
    netwarp_rate: RateFactor = 1.0
    flow_cnn_rate: RateFactor = 1.0
    gate_rate: RateFactor = 1.0
    clip: Annotated[float, Field(strict=True, ge=0)] = 5.0
    average: Fraction = 0.998


@dataclass(frozen=True)
class TrainingConfig(Checked):
    """A training.

    Attributes:
        model: The model to train.
        data: Sources of the training data.
        validation: Sources of the data that mean IoU is measured on during the training.
        clip: How many adjacent frames the network is trained on at a time.
        augment: Random changes to the frames.
        paste: Copy-paste of rare classes.
        loss: The terms of the loss.
        optimiser: The optimiser, and the schedule of its learning rate.
        output: Folder for checkpoints, scalars and the trained weights.
        seed: Seed of every random choice.
        device: Device to train on.
        precision: ``bfloat16`` and ``float16`` (CUDA only) are autocast; the weights stay in float32.
        workers: Processes that load and augment data, for each training process; 0 loads in the training process.
        checkpoint_every: Steps between two checkpoints.
        evaluate_every: Steps between two evaluations on the validation data.
    """

    model: ModelConfig
    data: Annotated[tuple[Source, ...], Field(min_length=1)]
    validation: tuple[Source, ...] = ()
    clip: ClipConfig = field(default_factory=ClipConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    paste: PasteConfig = field(default_factory=PasteConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    output: str = "out/training"
    seed: Whole = 0
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    workers: UpTo64 = 1
    checkpoint_every: Count = 200
    evaluate_every: Count = 1000

    def __post_init__(self) -> None:
        if self.precision == "float16" and self.device == "cpu":
            raise ValueError("precision is float16, which CPUs compute slowly: give bfloat16 or float32")
        if self.paste.probability and self.clip.length > 1:
            raise ValueError(f"paste is for single images, but clip.length is {self.clip.length}: leave paste out")
        if self.loss.consistency and self.clip.length == 1:
            raise ValueError("loss.consistency compares successive frames, but clip.length is 1: give at least 2")
        if self.loss.distillation and self.model.train_host:
            raise ValueError("loss.distillation learns from the host, which must stay: give model.train_host: false")

    @property
    def batch(self) -> int:
        """Clips in a batch."""
        return sum(source.per_batch for source in self.data)


FREE_KEYS = ("output", "device", "workers", "checkpoint_every", "evaluate_every", "validation")
"""Keys that may change when a training is resumed. They do not change the batches or the steps."""


def difference(one: Any, other: Any, key: str = "") -> str | None:
    """Describe the first difference between two configurations, given as `dataclasses.asdict` returns them.

    Returns:
        Such as ``"optimiser.rate is 0.01 instead of 0.02"``; None if nothing but `FREE_KEYS` differs.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        pairs: Iterator[tuple[Any, Any, Any]] = ((k, one.get(k), other.get(k)) for k in {**one, **other})
    elif isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)) and len(one) == len(other):
        pairs = ((f"[{index}]", *pair) for index, pair in enumerate(zip(one, other, strict=True)))
    else:
        return None if one == other else f"{key} is {quote(one)} instead of {quote(other)}"
    for name, a, b in pairs:
        if key or name not in FREE_KEYS:
            full = f"{key}{name}" if name.startswith("[") or not key else f"{key}.{name}"
            if text := difference(a, b, full):
                return text
    return None


def load_config(path: str | Path) -> TrainingConfig:
    """Read a training's YAML file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The content is not valid; see `netwarp_ros.resources.read_yaml`.
    """
    return read_yaml(TrainingConfig, path)
