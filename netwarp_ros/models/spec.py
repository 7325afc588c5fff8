# SPDX-License-Identifier: Apache-2.0
"""The spec of a model: all that is needed to build its network and to prepare its input.

The header of a weights file holds it as JSON. Such a file may come from anybody, so every value is bounded.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from math import ceil
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, StrictBool, StrictFloat, StrictInt, Tag
from pydantic.dataclasses import dataclass

from netwarp_ros.classes import ClassSet, load_classes
from netwarp_ros.models.layer_outputs import LayerOutput
from netwarp_ros.models.video_cnn import Blend, FlowGrid, Remember, Size
from netwarp_ros.resources import Checked, quote

MAX_INPUT_HEIGHT = 4320
"""Greatest height in pixels that images are scaled to for the network: that of 8K video."""

MAX_FIXED_PIXELS = 2**22
"""Most pixels of the frames of a network that takes one size only: it is tried on such frames when it is loaded."""

MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
"""A name of a model or a class set of this package; no path matches."""

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)

Name = Annotated[str, Field(max_length=200)]
HostArgument = Annotated[StrictInt, Field(ge=0, le=4096)] | StrictBool
Mean = Annotated[StrictFloat, Field(ge=0, le=1)]
Deviation = Annotated[StrictFloat, Field(ge=0.001, le=10)]
Side = Annotated[StrictInt, Field(ge=1, le=MAX_INPUT_HEIGHT)]


Layers = Annotated[
    Annotated[tuple[Name, ...], Field(max_length=100), Tag("list")]
    | Annotated[Mapping[Name, LayerOutput], Field(max_length=100), Tag("mapping")],
    Discriminator(lambda layers: "mapping" if isinstance(layers, Mapping) else "list"),
]
"""Names of insertion layers; as a mapping, with what cannot be seen of their outputs."""


class WeightsError(ValueError):
    """A weights file is missing, is not valid, or does not fit the network that its header names."""


@dataclass(frozen=True)
class InputSize(Checked):
    """Which sizes a network takes. Images are scaled to fit, and padded on the right and below.

    Attributes:
        multiple: Height and width must be multiples of this, at most 128.
        fixed: ``(height, width)``, if the network takes no other size.
    """

    multiple: Annotated[StrictInt, Field(ge=1, le=128)] = 1
    fixed: tuple[Side, Side] | None = None

    def __post_init__(self) -> None:
        if self.fixed is not None and self.fixed[0] * self.fixed[1] > MAX_FIXED_PIXELS:
            size = f"{self.fixed[1]}x{self.fixed[0]}"
            raise ValueError(f"fixed is {size}: a network of one size may take {MAX_FIXED_PIXELS} pixels at most")

    def __str__(self) -> str:
        if self.fixed is not None:
            return f"images of {self.fixed[1]}x{self.fixed[0]} only"
        return "images of any size" if self.multiple == 1 else f"images whose sides are multiples of {self.multiple}"

    def padded(self, size: Size) -> Size:
        """Return the size ``(height, width)`` that a frame is padded to.

        Raises:
            ValueError: If the frame is larger than the fixed size.
        """
        if self.fixed is None:
            return ceil(size[0] / self.multiple) * self.multiple, ceil(size[1] / self.multiple) * self.multiple
        if size[0] > self.fixed[0] or size[1] > self.fixed[1]:
            raise ValueError(
                f"the frame is {size[1]}x{size[0]}, the network takes {self.fixed[1]}x{self.fixed[0]} only"
            )
        return self.fixed

    def padded_frame(self, height: int) -> Size:
        """Return the padded size of a frame of this height and 4:3; the fixed size if there is one."""
        return self.fixed or self.padded((height, height * 4 // 3))

    @property
    def example(self) -> Size:
        """A small size that the network takes, or its fixed size: networks are tried on it."""
        return self.fixed or self.padded((96, 160))


@dataclass(frozen=True)
class NetWarpSpec(Checked):
    """Where and how NetWarp is inserted: the arguments of `netwarp_ros.models.augment`."""

    layers: Layers
    flow_cnn: StrictBool = True
    flow_grid: FlowGrid = "image"
    remember: Remember = "before"
    blend: Blend = "netwarp"


def _load_named(classes: Any) -> Any:
    """Load a class set that is given by name, not by path: a header from elsewhere must not choose a file to read."""
    if not isinstance(classes, str):
        return classes
    if not MODEL_NAME.fullmatch(classes):
        raise ValueError(f"{quote(classes)} is not the name of a class set of this package")
    try:
        return load_classes(classes)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error


@dataclass(frozen=True)
class ModelSpec(Checked):
    """All that is needed to build a network and to prepare its input.

    Attributes:
        host: The image CNN: a name that `netwarp_ros.models.building.build_host` knows.
        classes: The class set that the network was trained on.
        host_arguments: Keyword arguments of the host, including ``num_classes``.
        host_config: Configuration of a host by transformers, as its ``config.json`` has it.
        netwarp: Where NetWarp is inserted; None for an image CNN.
        mean: Mean of the RGB values, in [0, 1], that frames are normalised with.
        std: Standard deviation of the RGB values.
        input_height: Height in pixels that the network was trained at; by default, images are scaled to it.
        input_size: Which sizes the network takes.
        notes: For the model card: data, recipe, scores. At most 32 texts of 2000 characters.
    """

    host: Name
    classes: Annotated[ClassSet, BeforeValidator(_load_named)]
    host_arguments: Annotated[Mapping[Name, HostArgument], Field(max_length=32)]
    netwarp: NetWarpSpec | None = None
    mean: tuple[Mean, Mean, Mean] = _IMAGENET_MEAN
    std: tuple[Deviation, Deviation, Deviation] = _IMAGENET_STD
    input_height: Side = 360
    notes: Annotated[Mapping[Name, Annotated[str, Field(max_length=2000)]], Field(max_length=32)] = dataclasses.field(
        default_factory=dict
    )
    host_config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    input_size: InputSize = InputSize()
