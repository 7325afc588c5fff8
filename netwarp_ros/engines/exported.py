# SPDX-License-Identifier: Apache-2.0
"""A model as files for programs without PyTorch: the graphs of a frame, and a JSON file that says how to run them.

The graphs are those of `netwarp_ros.engines.graphs`. docs/export.md describes the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netwarp_ros.engines.engine import Normalisation
from netwarp_ros.engines.graphs import FrameGraph, FrameGraphs
from netwarp_ros.engines.onnx import to_onnx
from netwarp_ros.engines.openvino import convert, import_openvino
from netwarp_ros.models.others.onnx_host import refuse_onnx
from netwarp_ros.models.spec import MAX_INPUT_HEIGHT
from netwarp_ros.models.video_cnn import Size, VideoCNN
from netwarp_ros.models.weights import Model

FORMATS = {"onnx": ".onnx", "openvino": ".xml"}
"""Formats of the graphs, and the endings of their files. An ``.xml`` has its weights in a ``.bin`` beside it."""

FORMAT_VERSION, GATED_VERSION = 1, 2
"""Version of the JSON file's format, and that of a network with a gate: it rises when a program that reads version 1
would fail or go wrong."""

MIN_SIDE, MAX_WIDTH = 32, 4096
"""Least height and width, in pixels, below which DIS needs images to be padded; and the greatest width."""

_ONNX_RUNTIME = {
    "import onnxruntime\n": "import openvino\n",
    'onnxruntime.InferenceSession(FOLDER / file, providers=["CPUExecutionProvider"])': (
        'openvino.Core().compile_model(FOLDER / file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})'
    ),
    "session.run(None, maps)": "list(session(maps).values())",
    "ONNX Runtime": "OpenVINO",
}
"""What differs in the program for OpenVINO."""

_INPUT = {
    "layout": "NHWC",
    "type": "uint8",
    "channels": "RGB",
    "scaling": "to exactly this size: cv::INTER_AREA if the image is higher, else cv::INTER_LINEAR",
}
_FRAME = [
    "Scale the image to the size in `input`, and convert it to RGB: `frame`. If `layers` is empty, run `first`; its "
    "scores give the mask, and that is all.",
    "Frame with memory: estimate `flow` to the previous frame, as `flow` says. Run `flow`; each `previous` of `grids` "
    "is the `frame` of the same grid that this graph gave for the previous frame.",
    "For each of `layers`, warp its `memory` of the previous frame along its `flow`, as `warp` says: `warped`.",
    "Run `step` with the frame, the warped maps and, if `layers` have one, the `gate` outputs of `flow`. Keep its "
    "`memory` outputs for the next frame; its scores give the mask.",
    "Frame without memory: run `first` instead of `step`. Run `flow` too, with zeros for the flow and each `previous`: "
    "only the `frame` outputs are of use, for the next frame. If `grids` is empty, `flow` need not be run.",
]
_WARP = {
    "result": "warped(x, y) = memory(x + u, y + v), where (u, v) is the layer's flow at (x, y), for each channel",
    "interpolation": "bilinear, in float32",
    "coordinates": "an integer is the centre of a pixel; do not normalise them",
    "border": "a point outside goes to the nearest pixel of the border: clamp x to 0 … width - 1, y to 0 … height - 1",
    "epsilon": "is in the flow already: add nothing",
}
_FLOW = {
    "direction": "reverse: pixel (x, y) of the present frame is at (x + u, y + v) in the previous one",
    "unit": "pixels of the halved frame; channel 0 is u (to the right), channel 1 is v (down)",
    "estimator": "DIS, cv::DISOpticalFlow: calc(present, previous, flow)",
    "preset": "DISOPTICAL_FLOW_PRESET_ULTRAFAST",
    "images": "the scaled images in grey, 8 bits (cv::COLOR_BGR2GRAY), halved (cv::INTER_AREA, odd sides rounded up)",
    "finest_scale": "setFinestScale(getFinestScale() - 1), for the images are halved already",
    "start": "calc starts at the flow that it is given: give it the flow of the pair of frames before. For the first "
    "pair after a frame without memory, give none, and use a second object that never had a start.",
}
_MEMORY = {
    "drop": "segment a frame without memory if it is the first one, if its time is not later than the last frame's or "
    "more than max_gap_s after it, or if the size, the encoding or the camera changed",
    "max_gap_s": 0.5,
    "cameras": "each camera has a memory, a previous grey image and a previous flow of its own",
}
_MASK = {
    "size": "scale the scores up to the size in `input`: bilinear, half-pixel centres (cv::INTER_LINEAR)",
    "class": "at each pixel, the id of the greatest score; of equal ones, the least id",
    "image": "scale the mask to the image by nearest neighbour (cv::INTER_NEAREST)",
}


class Exporter:
    """Writes a model's graphs and a program that runs them.

    Args:
        model: The model, in float32, on the CPU.
        format: A key of `FORMATS`.
        height: Height of the network's input in pixels; 0 means the height that the model was trained at.
        width: Its width; 0 means 4:3.
        host_only: Leave out NetWarp.

    Raises:
        ValueError: If the format or a size is not allowed.
    """

    def __init__(
        self, model: Model, *, format: str = "onnx", height: int = 0, width: int = 0, host_only: bool = False
    ) -> None:
        if format not in FORMATS:
            raise ValueError(f"format is {format!r}: choose one of {', '.join(FORMATS)}")
        refuse_onnx(model.spec, model.name, "it cannot be exported")
        taken = model.spec.input_size
        default = taken.padded_frame(height or model.spec.input_height)
        height, width = height or default[0], width or default[1]
        for name, value, most in (("height", height, MAX_INPUT_HEIGHT), ("width", width, MAX_WIDTH)):
            if not MIN_SIDE <= value <= most:
                raise ValueError(f"{name} is {value}: give {MIN_SIDE} to {most} pixels, or 0 for the default")
        if taken.fixed not in (None, (height, width)) or taken.padded((height, width)) != (height, width):
            near = taken.padded_frame(height)
            raise ValueError(f"the size is {width}x{height}, and {model.name} takes {taken}: give {near[1]}x{near[0]}")
        self.model, self.format, self.size, self.host_only = model, format, (height, width), host_only

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the files.

        Args:
            folder: Existing folder. A program needs what is returned as a JSON file beside them, ``model.json``.

        Returns:
            How to run the graphs, as plain values.

        Raises:
            EngineError: If a package that writes the format is missing.
        """
        spec, network = self.model.spec, self.model.network.eval()
        if self.host_only:
            network = VideoCNN(network.host, {}).eval()
        graphs = _Graphs(network, Normalisation.of(spec, torch.device("cpu")), self.size)
        described = {name: graphs.write(name, folder, self.format) for name in graphs.names}
        (folder / "run.py").write_text(run_program(self.format), encoding="utf-8")
        classes = enumerate(spec.classes.classes)
        return {
            "format": FORMAT_VERSION if network.gate is None else GATED_VERSION,
            "model": {
                "name": self.model.name,
                "host": spec.host,
                "classes": [{"id": index, "name": entry.name, "color": list(entry.color)} for index, entry in classes],
            },
            "input": {"height": self.size[0], "width": self.size[1], **_INPUT},
            "precision": "float32",
            "graphs": described,
            "layers": graphs.layers,
            "grids": graphs.grids,
            "frame": _FRAME,
            "flow": _FLOW,
            "warp": _WARP,
            "memory": _MEMORY,
            "mask": _MASK,
        }


def run_program(format: str) -> str:
    """Return the program that runs the graphs of a format; for ``onnx`` it is ``exported_run.py`` as it is."""
    program = Path(__file__).with_name("exported_run.py").read_text(encoding="utf-8")
    if format == "openvino":
        for present, wanted in _ONNX_RUNTIME.items():
            assert program.count(present) == 1, present
            program = program.replace(present, wanted)
    return program


class _Graphs:
    """The graphs of a network for frames of one size, with names for their inputs and outputs.

    Args:
        network: The network.
        normalisation: That of the frames.
        size: Height and width of the frames.

    Attributes:
        names: Names of the graphs.
        layers: Of each insertion layer, in the order that they run in: its name, and the names of its maps.
        grids: Of each grid of Λ and the gate, the names of its maps.
    """

    def __init__(self, network: VideoCNN, normalisation: Normalisation, size: Size) -> None:
        self._graphs = FrameGraphs(network, normalisation, torch.zeros(1, *size, 3, dtype=torch.uint8))
        self.names = ("first", "flow", "step") if self._graphs.sizes else ("first",)
        kinds = ("memory", "flow", "warped", *(("gate",) if network.gate is not None else ()))
        self.layers = [
            {"name": name, **{kind: f"{kind}_{safe}" for kind in kinds}}
            for name, safe in zip(self._graphs.sizes, identifiers(self._graphs.sizes), strict=True)
        ]
        by_size = [f"{height}x{width}" for height, width in self._graphs.grids]
        self.grids = [{"frame": f"frame_{grid}", "previous": f"previous_frame_{grid}"} for grid in by_size]

    def write(self, name: str, folder: Path, format: str) -> dict[str, Any]:
        """Write a graph to a folder, and describe it."""
        graph, inputs, meanings = getattr(self, f"_{name}")()
        with torch.inference_mode():
            outputs = graph(*inputs)
        names = list(meanings)[: len(inputs)], list(meanings)[len(inputs) :]
        path = folder / f"{name}{FORMATS[format]}"
        if format == "onnx":
            path.write_bytes(to_onnx(graph, inputs, names))
        else:
            _write_openvino(path, graph, inputs, names)
        return {
            "file": path.name,
            "inputs": _describe(meanings, names[0], inputs),
            "outputs": _describe(meanings, names[1], outputs),
        }

    def _first(self) -> tuple[FrameGraph, list[Tensor], dict[str, str]]:
        return *self._graphs.first_graph(), {"frame": "the frame", **self._step_outputs()}

    def _step(self) -> tuple[FrameGraph, list[Tensor], dict[str, str]]:
        warped = {layer["warped"]: f"{layer['memory']} of the previous frame, warped" for layer in self.layers}
        return *self._graphs.step_graph(), {"frame": "the frame", **warped, **self._gates(), **self._step_outputs()}

    def _step_outputs(self) -> dict[str, str]:
        kept = {layer["memory"]: f"memory of layer {layer['name']}, for the next frame" for layer in self.layers}
        return {"scores": "a score for each class; see mask", **kept}

    def _flow(self) -> tuple[FrameGraph, list[Tensor], dict[str, str]]:
        height, width = self._graphs.size
        return *self._graphs.flow_graph(((height + 1) // 2, (width + 1) // 2)), {
            "flow": "flow to the previous frame, (u, v) in pixels of the halved frame; zeros without memory",
            **({"frame": "the frame"} if self.grids else {}),
            **{grid["previous"]: f"{grid['frame']} of the previous frame; zeros without memory" for grid in self.grids},
            **{grid["frame"]: "the frame, normalised, on this grid; for the next frame" for grid in self.grids},
            **{layer["flow"]: f"where to warp {layer['memory']} from, (u, v) in its pixels" for layer in self.layers},
            **self._gates(),
        }  # fmt: skip

    def _gates(self) -> dict[str, str]:
        gated = [layer for layer in self.layers if "gate" in layer]
        return {layer["gate"]: f"how far to blend {layer['warped']} in, from 0 to 1" for layer in gated}


def identifiers(names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Return a different identifier for each name: ONNX and C allow letters, digits and ``_``."""
    safe: list[str] = []
    for name in names:
        base = re.sub(r"\W", "_", name, flags=re.ASCII)
        candidates = (base if number == 1 else f"{base}_{number}" for number in range(1, len(names) + 1))
        safe.append(next(candidate for candidate in candidates if candidate not in safe))
    return safe


def _describe(meanings: Mapping[str, str], names: Sequence[str], maps: Sequence[Tensor]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "shape": list(example.shape),
            "type": str(example.dtype).removeprefix("torch."),
            "meaning": meanings[name],
        }
        for name, example in zip(names, maps, strict=True)
    ]


def _write_openvino(
    path: Path, graph: FrameGraph, inputs: Sequence[Tensor], names: tuple[Sequence[str], Sequence[str]]
) -> None:
    """Write a graph as OpenVINO's ``.xml``, and its weights, in float32, as the ``.bin`` beside it."""
    network = convert(graph, inputs)
    for ports, port_names in ((network.inputs, names[0]), (network.outputs, names[1])):
        for port, name in zip(ports, port_names, strict=True):
            port.get_tensor().set_names({name})
    import_openvino().save_model(network, path, compress_to_fp16=False)
