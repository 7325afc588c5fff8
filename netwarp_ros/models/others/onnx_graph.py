# SPDX-License-Identifier: Apache-2.0
"""The graph of an ONNX file, run by OpenVINO: which of its inputs takes the frame, and which output has the classes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from netwarp_ros.models.openvino_runtime import core, import_openvino
from netwarp_ros.models.others.onnx_file import OnnxError, check_onnx
from netwarp_ros.models.spec import MAX_INPUT_HEIGHT
from netwarp_ros.models.video_cnn import Size
from netwarp_ros.resources import cut

MAX_VALUES_PER_PIXEL = 1024
"""Most values of a map, for each pixel of the frame; a frame of fewer than 256x256 pixels counts as one of these."""

_FEWEST_PIXELS = 2**16

MAX_VALUES = 2**28
"""Most values of a map, for any frame: 1 GB of float32."""

_PLACES = re.compile(
    r"Exception from .*|(While validating node .*: )?Check .* failed at .*|FrontEnd API failed .*|Summary:|"
    r"Model wasn't fully converted.*|To facilitate the conversion .*|While validating (ONNX )?node .*"
)
"""Lines of OpenVINO's errors that say nothing about the file."""

_MISSING = re.compile(r"No conversion rule found for operations: (.*)")

RunFrame = Callable[[Tensor], Tensor]
"""Takes a frame ``(1, 3, H, W)`` float32, and returns class scores ``(1, K, h, w)`` float32."""


class _Output(NamedTuple):
    """The output that has the classes.

    Attributes:
        number: Which output of the graph it is.
        ids: Whether it has the ids of classes, and not scores.
        axis: The axis of the classes, 1 or 3; in a map of ids it has one element, or it is left out.
    """

    number: int
    ids: bool
    axis: int


class OnnxGraph:
    """The graph of an ONNX file.

    Args:
        content: The whole file.
        num_classes: K, the number of classes.

    Attributes:
        size: ``(height, width)`` of the frames, if the graph takes no other; else None.

    Raises:
        OnnxError: The file is refused (see `check_onnx`), OpenVINO cannot read it, no input can take the frame, or no
            output can have the classes.
    """

    def __init__(self, content: bytes, num_classes: int) -> None:
        check_onnx(content)
        self._num_classes = num_classes
        try:
            self._openvino = import_openvino()
        except ImportError as error:
            raise OnnxError(f"needs OpenVINO: {error}") from error
        try:
            # core.read_model would choose a format by the content, and some formats name other files.
            frontend = self._openvino.frontend.FrontEndManager().load_by_framework("onnx")
            self._model = frontend.convert(frontend.load(io.BytesIO(content)))
        except Exception as error:  # OpenVINO's errors share no base class
            raise OnnxError(f"cannot be read by OpenVINO: {_reason(error)}") from error
        self._channels = self._find_channels()
        self.size = self._find_size()
        self._find_output(self._model)

    def compile(self, size: Size, threads: int) -> RunFrame:
        """Compile the graph for frames of one size, once: it is of no use afterwards.

        Args:
            size: ``(height, width)``.
            threads: Number of threads.

        Raises:
            OnnxError: The graph takes no such frame, has maps that are too large or whose size depends on the frame's
                content, or no output with the classes.
        """
        openvino, model = self._openvino, self._model
        if self.size not in (None, size):
            raise OnnxError(f"takes frames of {self.size[1]}x{self.size[0]} only, and this one is {size[1]}x{size[0]}")
        try:
            model.reshape({0: [1, 3, *size] if self._channels == 1 else [1, *size, 3]})
            _check_maps(model, size)
            output = self._find_output(model)
            for result in [one for number, one in enumerate(model.get_results()) if number != output.number]:
                model.remove_result(result)
            compiled = core().compile_model(self._converted(model, output), "CPU", _options(threads))
        except OnnxError:
            raise
        except Exception as error:
            raise OnnxError(f"cannot run frames of {size[1]}x{size[0]}: {_reason(error)}") from error
        shape, classes = tuple(compiled.output().shape), torch.arange(self._num_classes).view(1, -1, 1, 1)

        def run(frame: Tensor) -> Tensor:
            pixels = frame.detach().permute(0, 2, 3, 1).contiguous().numpy()
            result = torch.empty(shape, dtype=torch.int32 if output.ids else torch.float32)
            request = compiled.create_infer_request()  # for this frame only: threads may share the graph
            request.set_input_tensor(openvino.Tensor(pixels, shared_memory=True))
            request.set_output_tensor(openvino.Tensor(result.numpy(), shared_memory=True))
            request.infer()
            maps = (
                result.unsqueeze(1) if result.ndim == 3 else result if output.axis == 1 else result.permute(0, 3, 1, 2)
            )
            return _one_hot(maps, classes) if output.ids else maps

        return run

    def _find_channels(self) -> int:
        """Return the axis of the input that has the three colors."""
        if len(self._model.inputs) != 1:
            raise OnnxError(f"has {len(self._model.inputs)} inputs ({_listed(self._model.inputs)}), it must have one")
        (port,) = self._model.inputs
        if port.element_type not in (self._openvino.Type.f32, self._openvino.Type.f16):
            raise OnnxError(f"takes {_listed([port])}, not float32: export it to take pixels as floating-point numbers")
        shape = _shape(port)
        axis = next((axis for axis in (1, 3) if len(shape) == 4 and shape[axis] == 3), None)
        if axis is None:
            raise OnnxError(f"takes {_listed([port])}, not frames (1, 3, H, W) or (1, H, W, 3)")
        if shape[0] not in (1, None):
            raise OnnxError(f"takes {_listed([port])}, a batch of {shape[0]}: export it with a batch of 1")
        return axis

    def _find_size(self) -> Size | None:
        """Return the size of the frames, None if any."""
        shape = _shape(self._model.inputs[0])
        height, width = shape[2:] if self._channels == 1 else shape[1:3]
        if height is None and width is None:
            return None
        if height is None or width is None:
            raise OnnxError(
                f"takes {_listed(self._model.inputs)}: export it with height and width both fixed, or both dynamic"
            )
        if max(height, width) > MAX_INPUT_HEIGHT:
            raise OnnxError(f"takes frames of {width}x{height}, and {MAX_INPUT_HEIGHT} is the most for a side")
        return height, width

    def _find_output(self, model: Any) -> _Output:
        """Return the output that has the classes: the first with scores, else the first with ids.

        If both axes of an output could be the classes, the axis of the input's colors is taken.
        """
        axes = (1, 3) if self._channels == 1 else (3, 1)
        for ids, elements in ((False, self._num_classes), (True, 1)):
            for number, port in enumerate(model.outputs):
                shape, kind = _shape(port), port.element_type
                if not (kind.is_integral_number() if ids else kind.is_real()) or shape[:1] not in ((1,), (None,)):
                    continue
                if ids and len(shape) == 3:
                    return _Output(number, ids, 1)
                for axis in axes:
                    if len(shape) == 4 and (shape[axis] == elements or shape[1] is shape[3] is None):
                        return _Output(number, ids, axis)
        raise OnnxError(
            f"gives {_listed(model.outputs)}, but neither scores (1, {self._num_classes}, h, w) or (1, h, w, "
            f"{self._num_classes}) of {self._num_classes} classes nor class ids (1, h, w): give the classes that it "
            "was trained on"
        )

    def _converted(self, model: Any, output: _Output) -> Any:
        """Let a model take ``(1, H, W, 3)`` float32, and give float32 or int32."""
        types = self._openvino.Type
        steps = self._openvino.preprocess.PrePostProcessor(model)
        steps.input().tensor().set_element_type(types.f32).set_layout(self._openvino.Layout("NHWC"))
        steps.input().model().set_layout(self._openvino.Layout("NCHW" if self._channels == 1 else "NHWC"))
        steps.output().tensor().set_element_type(types.i32 if output.ids else types.f32)
        return steps.build()


def _options(threads: int) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
    }


def _check_maps(model: Any, size: Size) -> None:
    """Check that the size of each map is known, and how large it is.

    Raises:
        OnnxError: One is too large, or its size depends on what a frame shows.
    """
    most = min(MAX_VALUES_PER_PIXEL * max(size[0] * size[1], _FEWEST_PIXELS), MAX_VALUES)
    for operation in model.get_ops():
        if operation.get_type_name() == "Constant":
            continue
        for port in operation.outputs():
            name = f"{operation.get_type_name()} {cut(operation.get_friendly_name(), 100)}"
            if not port.partial_shape.is_static:
                raise OnnxError(f"has the operation {name}, whose result has a size that depends on the image")
            count = 1
            for side in port.partial_shape.to_shape():
                count *= side
            if count > most:
                raise OnnxError(
                    f"has the operation {name}, whose result has {count} values for a frame of {size[1]}x{size[0]}; at "
                    f"most {most} are computed"
                )


def _one_hot(ids: Tensor, classes: Tensor) -> Tensor:
    """Return scores ``(1, K, h, w)``: 1 for the class of each id ``(1, 1, h, w)``, else 0."""
    least, greatest = ids.aminmax()
    if least < 0 or greatest >= classes.shape[1]:
        wrong = int(least) if least < 0 else int(greatest)
        raise OnnxError(f"gives the class id {wrong}, and there are {classes.shape[1]} classes: give all its classes")
    return (ids == classes).float()


def _shape(port: Any) -> tuple[int | None, ...]:
    """Return the shape of an input or output; None for a side that is not fixed, four of them if nothing is known."""
    if port.partial_shape.rank.is_dynamic:
        return (None,) * 4
    return tuple(side.get_length() if side.is_static else None for side in port.partial_shape)


def _listed(ports: Sequence[Any]) -> str:
    """Name inputs or outputs, with their shapes and types."""
    named = (f"{cut(_name(port), 100)} {_text(_shape(port))} {port.element_type.to_string()}" for port in ports[:4])
    return ", ".join(named) + (", ..." if len(ports) > 4 else "")


def _name(port: Any) -> str:
    return str(next(iter(port.names), "without a name"))


def _text(shape: Sequence[int | None]) -> str:
    return f"({', '.join('?' if side is None else str(side) for side in shape)})"


def _reason(error: Exception) -> str:
    """Return what an error of OpenVINO says about a file."""
    if missing := _MISSING.search(str(error)):
        return f"it has no operation {cut(missing[1], 100)}"
    lines = (line.strip().removeprefix("-- ") for line in str(error).splitlines())
    said = [line for line in lines if line and not _PLACES.fullmatch(line)]
    return cut("; ".join(said), 300) or type(error).__name__
