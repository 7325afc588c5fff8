# SPDX-License-Identifier: Apache-2.0
"""The parameters of the segment node. `Thresholds` in ``diagnostics.py`` are those of its diagnostics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from netwarp_ros.classes import ClassSet
from netwarp_ros.engines import COMPILE_MODES, ENGINES, INT8, PRECISIONS, EngineOptions
from netwarp_ros.flow.dis import PRESETS
from netwarp_ros.models import DEFAULT_MODEL
from netwarp_ros.models.spec import MAX_INPUT_HEIGHT
from netwarp_ros.node.images import MASK_ENCODINGS
from netwarp_ros.node.parameters import KEYFRAMES, MASK_SIZE, NAMES, SIZE, TOPIC, Spec, parameter
from netwarp_ros.segmenter import FLOW_DEVICES, MAX_GAP, MAX_INPUT_WIDTH


@dataclass(frozen=True)
class SegmentParameters:
    """Parameters of the node; see `CameraParameters`, and `Thresholds` for those of its diagnostics."""

    cameras: tuple[str, ...] = parameter(
        ("camera",), "Names of the cameras, with which their topics begin.", form=TOPIC
    )
    transport: str = parameter(
        "raw",
        "Topic of the images: <camera>/image_raw, or <camera>/image_raw/compressed.",
        choices=("raw", "compressed"),
    )
    model: str = parameter(
        DEFAULT_MODEL, "Name of a shipped model (see `netwarp models`), or path of a .safetensors file."
    )
    engine: str = parameter(
        "auto", "What runs the network; auto is the fastest that is installed and made for the device.", choices=ENGINES
    )
    device: str = parameter("cpu", "PyTorch device: cpu, cuda or cuda:N.")
    precision: str = parameter(
        "auto",
        "Precision of the network; auto is the fastest in floating point that the device has instructions for. int8 "
        "needs a model that was made by `netwarp quantize`.",
        choices=("auto", *PRECISIONS, INT8),
    )
    compile: str = parameter(
        "none",
        "Mode of torch.compile, for engine torch. Compiling takes a minute when the node is configured; "
        "reduce-overhead replays CUDA graphs.",
        choices=COMPILE_MODES,
    )
    threads: int = parameter(
        0, "Threads of the engine, PyTorch and OpenCV on the CPU; 0: one on each core.", limits=(0, 1024)
    )
    engine_cache: str = parameter(
        "", "Folder in which the engine keeps what it made of the model, to be configured faster; empty: none."
    )
    flow_preset: str = parameter("ultrafast", "Preset of the DIS optical flow.", choices=tuple(PRESETS), live=True)
    flow_device: str = parameter(
        "auto",
        "Where the flow is estimated. cpu: by OpenCV. cuda: by our operator. auto: where the network is.",
        choices=FLOW_DEVICES,
    )
    input_height: int = parameter(
        0, "Height in pixels to which images are scaled for the network; 0: as trained.", limits=(0, MAX_INPUT_HEIGHT)
    )
    max_input_width: int = parameter(
        MAX_INPUT_WIDTH,
        "An image that would then be wider than this, in pixels, keeps its own size, or is scaled to this width.",
        limits=(32, 16384),
    )
    max_gap: float = parameter(
        MAX_GAP,
        "The memory is reset if two images are more than this many seconds apart.",
        limits=(0.001, 3600.0),
        live=True,
    )
    image_sizes: tuple[str, ...] = parameter(
        ("640x480",),
        "Widths and heights of the cameras' images. While configuring, the node runs the network on each, so that the "
        "first image does not have to wait for it.",
        form=SIZE,
    )
    host_only: bool = parameter(False, "Run the image CNN on each frame by itself, without memory and flow.")
    keyframes: str = parameter(
        "none",
        "Frames that the network runs on; on the others, its scores are moved along the flow. none: every frame. "
        "adaptive: when too much has not been seen before. A number N from 2 to 100: every N-th frame.",
        form=KEYFRAMES,
    )
    label_map: str = parameter(
        "",
        "Label map that turns the model's classes into those of the masks: the name of a shipped one, or path of a "
        ".yaml file; empty: none.",
    )
    mask_size: str = parameter(
        "image",
        "Size of the masks: image, network (as the network sees the image), or WIDTHxHEIGHT.",
        form=MASK_SIZE,
    )
    mask_encoding: str = parameter(
        "mono8",
        "Encoding of the masks. mono8: class ids, void is 255. 16SC1: class ids, void is -1. mono8_rle: mono8 with the "
        "run lengths that Autoware reads as data.",
        choices=MASK_ENCODINGS,
    )
    temperature: float = parameter(
        1.0, "Scores are divided by this before the softmax that gives the confidence.", limits=(0.01, 100.0), live=True
    )
    overlay_alpha: float = parameter(0.5, "Weight of the colors in the overlay.", limits=(0.0, 1.0), live=True)


@dataclass(frozen=True)
class CameraParameters:
    """Parameters of each camera, with its name and a full stop before their names: ``front.transport``."""

    transport: str = parameter("", "As transport, of this camera; empty: that.", choices=("", "raw", "compressed"))
    ego_mask: str = parameter(
        "", "Path of a PNG, of any size, that is not black where this camera sees its own robot; empty: none."
    )


MASKS = "masks."
"""Prefix of the binary masks: ``masks.people`` lists the classes of topic ``<camera>/segmentation/people``."""

THRESHOLDS = "thresholds."
"""Prefix of the least confidence of each class of the masks: ``thresholds.car``."""


def mask_specs(names: Iterable[str]) -> list[Spec]:
    """Return the parameters of binary masks of these names."""
    text = "Names of the classes whose pixels are 255 on <camera>/segmentation/{}, all others 0."
    return [Spec(f"{MASKS}{name}", (), text.format(name), form=NAMES) for name in names]


def threshold_specs(classes: ClassSet) -> list[Spec]:
    """Return the parameters of the classes' thresholds."""
    text = "Pixels of this class that are less confident than this become void."
    return [Spec(f"{THRESHOLDS}{name}", 0.0, text, limits=(0.0, 1.0), live=True) for name in classes.names]


def engine_arguments(settings: SegmentParameters) -> dict[str, Any]:
    """Return the parameters of the engine as `Segmenter` takes them."""
    arguments = {field.name: getattr(settings, field.name) for field in fields(EngineOptions)}
    return {**arguments, "engine_cache": settings.engine_cache or None}
