# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share: single ones, and groups of them (see `expand_groups`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from netwarp_ros.classes import ClassSet
    from netwarp_ros.evaluation.scoring import Labels
    from netwarp_ros.flow import FlowFolder
    from netwarp_ros.models import Inference
    from netwarp_ros.recordings.ego_masks import EgoMasks
    from netwarp_ros.recordings.frames import FrameSource
    from netwarp_ros.segmenter import Segmenter

CITYSCAPES_RATE = 17.0
"""Frames per second of the recordings that Cityscapes is taken from."""

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME|FILE",
        help="A shipped model or a .safetensors file. By default, the model that `netwarp models` marks as default.",
        show_default=False,
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]
FlowDeviceOption = Annotated[
    str,
    typer.Option(
        "--flow-device",
        help="Where DIS flow is estimated: cpu (by OpenCV), cuda (by our operator), or auto: where the network is.",
    ),
]
ClassesOption = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="NAME|FILE",
        help="What label maps hold: a class set of the package (camvid, …) or a .yaml file. By default, the model's.",
        show_default=False,
    ),
]
ThreadsOption = Annotated[int, typer.Option("--threads", help="Threads on the CPU. 0: one on each core.")]
InputHeightOption = Annotated[
    int, typer.Option("--input-height", help="Height in pixels that images are resized to. 0: as in training.")
]


@dataclass(frozen=True)
class EngineOptions:
    """What runs the network; the fields are those of `netwarp_ros.engines.EngineOptions`."""

    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            help="What runs the network: openvino, cudagraphs, torch, onnxruntime or tensorrt. auto: the fastest that "
            "is installed and made for the device.",
        ),
    ] = "auto"
    device: DeviceOption = "cpu"
    precision: Annotated[
        str, typer.Option("--precision", help="auto, float32, bfloat16, float16, or int8 (see `netwarp quantize`).")
    ] = "auto"
    compile: Annotated[
        str, typer.Option("--compile", help="Mode of torch.compile, for engine torch: none, default, reduce-overhead.")
    ] = "none"
    threads: ThreadsOption = 0
    engine_cache: Annotated[
        Path | None,
        typer.Option(
            "--engine-cache",
            metavar="FOLDER",
            help="Keep here what the engine makes of a model, to start faster the next time.",
            show_default=False,
        ),
    ] = None

    def engine_arguments(self) -> dict[str, Any]:
        """Return these options as `Segmenter` takes them, in plain values."""
        values = {field.name: getattr(self, field.name) for field in fields(EngineOptions)}
        return {**values, "engine_cache": None if self.engine_cache is None else str(self.engine_cache)}


@dataclass(frozen=True)
class ModelOptions(EngineOptions):
    """Which model segments, and how."""

    model: ModelOption = None
    host_only: Annotated[
        bool, typer.Option("--host-only", help="Run the image CNN on each frame alone, without NetWarp.")
    ] = False
    keyframes: Annotated[
        str,
        typer.Option(
            "--keyframes",
            metavar="none|N|adaptive",
            help="Frames that the network runs on: all, every N-th, or when too much is new. On the others, its scores "
            "are moved along the flow.",
        ),
    ] = "none"
    rival: Annotated[
        str,
        typer.Option(
            "--rival",
            metavar="NAME",
            help="Refine the scores of the image CNN alone by densecrf, fso-crf or vpn, instead of NetWarp.",
            show_default=False,
        ),
    ] = ""
    flow: Annotated[
        str,
        typer.Option(
            "--flow",
            metavar="NAME|FOLDER",
            help="Estimator of the flow: ultrafast, fast or medium (DIS), deepflow, or nvidia (its hardware). Or a "
            "folder of .flo files: NAME.flo is the flow from frame NAME to the frame before it.",
        ),
    ] = "ultrafast"
    flow_device: FlowDeviceOption = "auto"
    input_height: InputHeightOption = 0
    max_input_width: Annotated[
        int,
        typer.Option(
            "--max-input-width", help="An image that would then be wider keeps its size, or is resized to this width."
        ),
    ] = 4096
    label_map: Annotated[
        str | None,
        typer.Option(
            "--label-map",
            metavar="NAME|FILE",
            help="Turn the model's classes into others: a label map of the package (nav2, autoware, hydra, "
            "cityscapes_to_camvid) or a .yaml file.",
            show_default=False,
        ),
    ] = None
    ego_mask: Annotated[
        list[str] | None,
        typer.Option(
            "--ego-mask",
            metavar="[CAMERA=]FILE",
            help="A PNG that is not black where a camera sees its own robot: these pixels are left out. Without CAMERA "
            "for every camera that has none of its own. May be given more than once.",
            show_default=False,
        ),
    ] = None

    def weights(self) -> Path:
        """Return the weights file of the model.

        Raises:
            WeightsError: If there is no such model.
        """
        from netwarp_ros.models.weights import DEFAULT_MODEL, find_weights

        return find_weights(DEFAULT_MODEL if self.model is None else self.model)

    def segmenter(self, inference: Inference) -> Segmenter:
        """Load the model.

        Raises:
            ValueError: If an option is not valid.
            OSError: If the weights or the flow cannot be read.
        """
        from netwarp_ros.cli.printing import warn
        from netwarp_ros.flow import open_flow
        from netwarp_ros.segmenter import Segmenter

        segmenter = Segmenter(
            self.weights(),
            flow=open_flow(self.flow)[0],
            flow_device=self.flow_device,
            input_height=self.input_height,
            max_input_width=self.max_input_width,
            host_only=self.host_only,
            rival=self.rival,
            keyframes=self.keyframes,
            inference=inference,
            label_map=self.label_map,
            **self.engine_arguments(),
        )
        if problem := segmenter.engine_problem:
            warn(f"engine {segmenter.engine.name} is in use: {problem}")
        return segmenter

    def flow_folder(self) -> FlowFolder | None:
        """Return the flow in files, or None if the flow is estimated."""
        from netwarp_ros.flow import open_flow

        return open_flow(self.flow)[1]

    def ego_masks(self) -> EgoMasks:
        """Read the ego masks.

        Raises:
            ValueError: If one cannot be read, or there are two for a camera.
        """
        from netwarp_ros.recordings.ego_masks import read_ego_masks

        return read_ego_masks(self.ego_mask or [])

    def settings(self, segmenter: Segmenter) -> dict[str, Any]:
        """Return the settings of the segmenter that was made from these options, for a JSON file.

        Key frames, rival, label map and ego masks are among them only if they are given, and the device of the flow if
        our operator estimates it; of files there is a hash.
        """
        from netwarp_ros.classes import label_map_file
        from netwarp_ros.flow import TensorDis
        from netwarp_ros.resources import sha256

        given: dict[str, Any] = {}
        if self.label_map is not None:
            given["label_map"] = {"name": self.label_map, "sha256": sha256(label_map_file(self.label_map))}
        if isinstance(segmenter.flow, TensorDis):
            given["flow_device"] = str(segmenter.flow.device)
        if segmenter.keyframes.skip:
            given["keyframes"] = self.keyframes
        if self.rival:
            given["rival"] = self.rival
        if self.ego_mask:
            given["ego_masks"] = self.ego_masks().hashes()
        return {
            "model": segmenter.model.name,
            "host_only": self.host_only,
            "flow": self.flow,
            "engine": segmenter.engine.name,
            "device": str(segmenter.device),
            "precision": segmenter.precision,
            "input_height": segmenter.input_height,
            "max_input_width": segmenter.frames.max_width,
            "window": segmenter.inference.window,
            "scales": list(segmenter.inference.scales),
            "flip": segmenter.inference.flip,
            **given,
        }


@dataclass(frozen=True)
class InferenceOptions:
    """Sliding windows, scales and mirrored views of each frame."""

    window: Annotated[
        int,
        typer.Option(
            "--window",
            metavar="N",
            help="Side in pixels of the windows that slide over each frame, in steps of 2/3 of their side. 0: the "
            "whole frame.",
        ),
    ] = 0
    scales: Annotated[
        str,
        typer.Option(
            "--scales", metavar="S,S,...", help="Factors that each frame is resized by; the results are averaged."
        ),
    ] = "1"
    flip: Annotated[bool, typer.Option("--flip", help="Also run each window mirrored.")] = False

    def inference(self) -> Inference:
        """Return these options as the segmenter takes them.

        Raises:
            ValueError: If an option is not valid.
        """
        from netwarp_ros.models import Inference

        try:
            factors = tuple(float(factor) for factor in self.scales.split(","))
        except ValueError:
            raise ValueError(f"scales is {self.scales!r}: give factors > 0, such as 0.5,1,1.5") from None
        return Inference(self.window, scales=factors, flip=self.flip)


@dataclass(frozen=True)
class RecordingOptions:
    """How a recording is read."""

    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            help="Frames per second, instead of the recorded stamps. Default for images: 15.",
            show_default=False,
        ),
    ] = None
    topics: Annotated[
        list[str] | None,
        typer.Option(
            "--topic",
            help="Image topic of a bag that has several; may be given more than once, for several cameras.",
            show_default=False,
        ),
    ] = None


class EvaluationData(NamedTuple):
    """What a model is evaluated on.

    Attributes:
        frames: The recording.
        labels: The label maps; None if there are none.
        instances: The instance maps; None if there are none.
        sizes: Average sizes of objects by class id, in pixels, as `InstanceIoU` takes them; None without instances.
        inputs: Paths of what is read, by name.
    """

    frames: FrameSource
    labels: Labels | None
    instances: Labels | None
    sizes: Mapping[int, float] | None
    inputs: Mapping[str, Path | None]

    def damage(self) -> list[str]:
        """Return notes on what could not be read or matched, once all frames have been read."""
        from netwarp_ros.recordings.bags import BagLabels

        notes = list(self.frames.damage)
        if isinstance(self.labels, BagLabels):
            notes += [*self.labels.damage, *self.labels.unmatched()]
        return notes


@dataclass(frozen=True)
class DataOptions:
    """What a model is evaluated on: a recording with labels or without, or Cityscapes."""

    images: Annotated[
        Path | None, typer.Option("--images", help="A folder of images, a video or a bag.", show_default=False)
    ] = None
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            help="A folder of label maps NAME.png, named like the images, or a bag. Without labels there are "
            "only the scores that need none.",
            show_default=False,
        ),
    ] = None
    label_topics: Annotated[
        list[str] | None,
        typer.Option(
            "--label-topic",
            help="Topic of label maps, in the bag given by --labels or else by --images. Each label map has the "
            "stamp of its image. Give one topic for each --topic, in the same order.",
            show_default=False,
        ),
    ] = None
    cityscapes: Annotated[
        Path | None,
        typer.Option(
            "--cityscapes",
            metavar="ROOT",
            help="Folder of Cityscapes, instead of --images and --labels.",
            show_default=False,
        ),
    ] = None
    split: Annotated[str, typer.Option("--split", help="Split of Cityscapes: train or val.")] = "val"
    clip: Annotated[
        int, typer.Option("--clip", help="Frames of each clip of Cityscapes; the last one is labelled.")
    ] = 2

    def open(self, reading: RecordingOptions, classes: ClassSet | None = None) -> EvaluationData:
        """Open the recording and its labels.

        Args:
            reading: How the recording is read.
            classes: What the label maps hold. None leaves those of folders and bags as they are stored.

        Raises:
            ValueError: If options are missing or do not fit together.
            OSError: If something cannot be read.
        """
        from netwarp_ros.datasets.cityscapes import INSTANCE_SIZES, Cityscapes
        from netwarp_ros.datasets.samples import SampleFrames
        from netwarp_ros.recordings.open import open_frames, open_labels

        if self.cityscapes and not (self.images or self.labels):
            samples = SampleFrames(Cityscapes(self.cityscapes, self.split), self.clip, reading.rate or CITYSCAPES_RATE)
            inputs = {"labels": self.cityscapes / "gtFine" / self.split}
            return EvaluationData(samples, samples.label, samples.instances, INSTANCE_SIZES, inputs)
        if self.images and not self.cityscapes:
            topics = self.label_topics or []
            frames = open_frames(self.images, rate=reading.rate, topics=reading.topics or [], leave_out=topics)
            labels = open_labels(frames, self.images, self.labels, topics, classes)
            return EvaluationData(frames, labels, None, None, {"images": self.images, "labels": self.labels})
        raise ValueError("give --images, with --labels or without, or --cityscapes")
