# SPDX-License-Identifier: Apache-2.0
"""ONNX files as image CNNs: their masks are those of the network that they were made of."""

from __future__ import annotations

import copy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper
from onnx_files import NUM_CLASSES, SCORES, as_onnx, classes, tiny_host, write
from test_segmenter import images
from torch import nn

from netwarp_ros import cli
from netwarp_ros.engines import EngineError, EngineOptions
from netwarp_ros.models import Inference, Model, ModelSpec, VideoCNN, load_model, save_model
from netwarp_ros.models.others.conversion import Overrides
from netwarp_ros.models.others.onnx_conversion import convert_onnx
from netwarp_ros.models.others.onnx_file import OnnxError
from netwarp_ros.models.others.onnx_host import MAX_SIZES, OnnxHost
from netwarp_ros.models.spec import InputSize
from netwarp_ros.quantization.calibration import record_samples
from netwarp_ros.segmenter import Segmenter
from netwarp_ros.training.config import ModelConfig
from netwarp_ros.training.trainer import build_network

FIXED = (1, 3, 48, 64)


def converted(folder: Path, file: Any, **overrides: Any) -> Path:
    """Convert an ONNX file, and return the model's file."""
    bgr = overrides.pop("bgr", False)
    made = convert_onnx(write(folder, file), Overrides(classes(), **{"input_height": 48, **overrides}), bgr=bgr)
    return save_model(folder / "net.safetensors", made.network, made.spec)


def masks(model: Model | Path, sequence: list[np.ndarray], **options: Any) -> list[np.ndarray]:
    segmenter = Segmenter(model, **options)
    assert segmenter.engine_problem == ""
    stream = segmenter.stream()
    return [stream.segment(image, number).mask for number, image in enumerate(sequence)]


def in_pytorch(spec: ModelSpec, host: nn.Module | None = None) -> Model:
    return Model(VideoCNN(host or tiny_host(), {}), spec, "in PyTorch")


@pytest.mark.parametrize(
    ("frame", "options", "size"),
    [
        ((1, 3, "height", "width"), {}, InputSize()),
        (("batch", 3, "height", "width"), {}, InputSize()),
        (FIXED, {}, InputSize(fixed=(48, 64))),
        ((1, "height", "width", 3), {"channels_last": True}, InputSize()),
        ((1, 48, 64, 3), {"channels_last": True}, InputSize(fixed=(48, 64))),
    ],
)
def test_the_masks_are_those_of_the_network(frame: Any, options: Any, size: InputSize, tmp_path: Path) -> None:
    model = load_model(converted(tmp_path, as_onnx(tiny_host(), frame, **options)))
    assert model.spec.input_size == size and model.spec.netwarp is None
    assert (model.spec.host, model.spec.host_arguments) == ("onnx", {"num_classes": NUM_CLASSES})
    sequence = images(2) + images(1, 96, 200)
    expected = masks(in_pytorch(model.spec), sequence, engine="torch", precision="float32")
    assert len(np.unique(expected[0])) > 2
    for mask, other in zip(masks(model, sequence), expected, strict=True):
        assert mask.shape == other.shape and (mask == other).mean() > 0.999


def test_float16_files_are_computed_in_float32(tmp_path: Path) -> None:
    host = tiny_host()
    with torch.no_grad():
        for weight in host.parameters():
            weight.copy_(weight.half())
    model = load_model(converted(tmp_path, as_onnx(host, half=True)))
    frame = torch.rand(1, 3, 40, 56)
    assert torch.allclose(model.network.host(frame), host(frame), atol=2e-3)  # input and output are rounded


def test_bgr_files_get_blue_first(tmp_path: Path) -> None:
    model = load_model(converted(tmp_path, as_onnx(tiny_host()), bgr=True))
    frame = torch.rand(1, 3, 40, 56)
    assert torch.allclose(model.network.host(frame), tiny_host()(frame.flip(1)), atol=1e-5)


def test_class_ids_become_scores(tmp_path: Path) -> None:
    model = load_model(converted(tmp_path, as_onnx(tiny_host(), ids=True)))
    frame = torch.rand(1, 3, 40, 56)
    scores, expected = model.network.host(frame), tiny_host()(frame).argmax(1)
    assert scores.shape == (1, NUM_CLASSES, 20, 28) and torch.equal(scores.argmax(1), expected)
    assert torch.equal(scores.sum(1), torch.ones(1, 20, 28))


@pytest.mark.parametrize("shape", [(1, 1, "h", "w"), (1, "h", "w", 1)])
def test_class_ids_may_have_an_axis_of_one_class(shape: Any) -> None:
    axis = shape.index(1, 1)
    file = as_onnx(tiny_host(), ids=True)
    file.graph.node[-1].output[0] = "ids"
    file.graph.initializer.append(numpy_helper.from_array(np.array([axis]), "axis"))
    file.graph.node.append(helper.make_node("Unsqueeze", ["ids", "axis"], ["scores"]))
    file.graph.output[0].CopyFrom(helper.make_tensor_value_info("scores", TensorProto.INT64, shape))
    host, frame = OnnxHost.of(file.SerializeToString(), NUM_CLASSES), torch.rand(1, 3, 40, 56)
    assert torch.equal(host(frame).argmax(1), tiny_host()(frame).argmax(1))


def test_a_class_id_that_there_is_not_is_an_error() -> None:
    host = OnnxHost.of(as_onnx(tiny_host(), ids=True).SerializeToString(), 2)
    with pytest.raises(OnnxError, match=r"gives the class id [2-4], and there are 2 classes"):
        host(torch.rand(1, 3, 40, 56))


def test_the_first_output_with_scores_of_the_classes_is_taken() -> None:
    file = as_onnx(tiny_host())
    file.graph.node.append(helper.make_node("Neg", ["scores"], ["auxiliary"]))
    scores = file.graph.output.pop()
    file.graph.node.append(helper.make_node("ReduceSum", ["scores"], ["sum"], keepdims=0))
    for name, shape in (("b", (1, 8, "h", "w")), ("sum", ()), ("scores", SCORES), ("auxiliary", SCORES)):
        file.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    assert scores.name == "scores"
    frame = torch.rand(1, 3, 40, 56)
    host = OnnxHost.of(file.SerializeToString(), NUM_CLASSES)
    assert torch.allclose(host(frame), tiny_host()(frame), atol=1e-5)


def test_what_pytorch_exports_is_run(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs onnxscript: pip install netwarp_ros[onnx]")
    from netwarp_ros.engines.onnx import to_onnx

    file = to_onnx(tiny_host(), [torch.zeros(FIXED)])
    model = load_model(converted(tmp_path, file))
    frame = torch.rand(FIXED)
    assert model.spec.input_size.fixed == (48, 64)
    assert torch.allclose(model.network.host(frame), tiny_host()(frame), atol=1e-5)


def test_without_openvino_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    host = OnnxHost.of(as_onnx(tiny_host()).SerializeToString(), NUM_CLASSES)
    with pytest.raises(OnnxError, match="the ONNX file needs OpenVINO: it cannot be imported .*pip install openvino"):
        host(torch.rand(1, 3, 40, 56))


def test_frames_of_a_batch_and_windows_are_run_one_by_one(tmp_path: Path) -> None:
    model = load_model(converted(tmp_path, as_onnx(tiny_host())))
    frames = torch.rand(3, 3, 40, 56)
    assert torch.allclose(model.network.host(frames), tiny_host()(frames), atol=1e-5)
    inference = Inference(32, flip=True)
    (mask,) = masks(model, images(1), inference=inference)
    (other,) = masks(in_pytorch(model.spec), images(1), inference=inference, engine="torch", precision="float32")
    assert (mask == other).mean() > 0.99


def test_two_cameras_of_different_sizes_share_a_model(tmp_path: Path) -> None:
    segmenter = Segmenter(converted(tmp_path, as_onnx(tiny_host())))
    streams = [segmenter.stream(), segmenter.stream()]
    alone = [masks(segmenter.model, images(3, *size)) for size in ((48, 64), (60, 48))]
    for number in range(3):
        for stream, sequence, expected in zip(streams, (images(3), images(3, 60, 48)), alone, strict=True):
            assert np.array_equal(stream.segment(sequence[number], number).mask, expected[number])


def test_copies_and_threads(tmp_path: Path) -> None:
    host = load_model(converted(tmp_path, as_onnx(tiny_host()))).network.host
    assert isinstance(host, OnnxHost)
    frames = [torch.rand(1, 3, 40, 56) for _ in range(8)]
    expected = [host(frame) for frame in frames]
    twin = copy.deepcopy(host)
    assert not twin._compiled and host._compiled
    with ThreadPoolExecutor(4) as pool:
        for network in (host, twin):
            assert all(map(torch.equal, pool.map(network, frames), expected))
    assert all(map(torch.equal, [host(frame) for frame in frames], expected))  # and no result was overwritten


def test_another_file_is_compiled_anew() -> None:
    first, second = tiny_host(), tiny_host()
    nn.init.constant_(second[2].bias, 1.0)
    contents = [as_onnx(host).SerializeToString() for host in (first, second)]
    host, frame = OnnxHost.of(contents[0], NUM_CLASSES), torch.rand(1, 3, 40, 56)
    assert torch.allclose(host(frame), first(frame), atol=1e-5)
    for assign in (True, False):
        for content, network in zip(contents[::-1], (second, first), strict=True):
            host.load_state_dict(OnnxHost.of(content, NUM_CLASSES).state_dict(), assign=assign)
            assert torch.allclose(host(frame), network(frame), atol=1e-5)


def test_only_so_many_sizes_are_kept() -> None:
    host = OnnxHost.of(as_onnx(tiny_host()).SerializeToString(), NUM_CLASSES)
    for side in range(16, 18 + MAX_SIZES):
        host(torch.rand(1, 3, side, 16))
    assert len(host._compiled) == MAX_SIZES


def test_the_engine_is_torch_in_float32_and_nothing_else_is_possible(tmp_path: Path) -> None:
    path = converted(tmp_path, as_onnx(tiny_host()))
    segmenter = Segmenter(path)
    assert (segmenter.engine.name, segmenter.precision, segmenter.engine_problem) == ("torch", "float32", "")
    assert Segmenter(path, engine="torch", precision="float32").precision == "float32"
    for option in (
        {"engine": "openvino"}, {"engine": "onnxruntime"}, {"engine": "tensorrt"}, {"engine": "cudagraphs"},
        {"precision": "bfloat16"}, {"precision": "int8"}, {"precision": "float16"}, {"compile": "default"},
    ):  # fmt: skip
        ((name, value),) = option.items()
        with pytest.raises(EngineError, match=f"{name} is '{value}', but the model is an ONNX file.*: choose "):
            Segmenter(path, **option)  # type: ignore[arg-type]


def test_the_engine_on_cuda_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from netwarp_ros.engines import choice

    model = load_model(converted(tmp_path, as_onnx(tiny_host())))
    monkeypatch.setattr(choice, "torch_device", torch.device)
    with pytest.raises(EngineError, match="device is 'cuda', but the model is an ONNX file"):
        choice.open_engine(model.network, model, 48, EngineOptions(device="cuda"))


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


@pytest.fixture
def class_file(tmp_path: Path) -> Path:
    path = tmp_path / "few.yaml"
    path.write_text(yaml.safe_dump({"name": "few", "classes": [{"name": f"c{n}"} for n in range(NUM_CLASSES)]}))
    return path


def test_the_command_makes_a_model_that_segments(
    tmp_path: Path, class_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx_path, model = write(tmp_path, as_onnx(tiny_host(), FIXED)), tmp_path / "net.safetensors"
    arguments = ["--classes", class_file, "--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25"]
    assert run("convert", onnx_path, *arguments, "-o", model) == 0
    printed = capsys.readouterr().out
    assert "without layers to train" in printed and "the network takes images of 64x48 only" in printed
    spec = load_model(model).spec
    assert (spec.mean, spec.std, spec.input_height) == ((0.5,) * 3, (0.25,) * 3, 48)
    (tmp_path / "images").mkdir()
    for number, image in enumerate(images(2, 96, 128)):
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), image)
    assert run("segment", tmp_path / "images", "--model", model, "-o", tmp_path / "masks") == 0
    expected = masks(in_pytorch(spec), images(2, 96, 128), engine="torch", precision="float32")
    written = sorted((tmp_path / "masks").rglob("*.png"))
    mask = cv2.imread(str(written[0]), cv2.IMREAD_UNCHANGED)
    assert len(written) == 2 and (mask == expected[0]).mean() > 0.999


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["insert", "MODEL", "-o", "out.safetensors"], "NetWarp cannot be inserted"),
        (["insert", "MODEL", "--layers", "a", "-o", "out.safetensors"], "NetWarp cannot be inserted"),
        (["export", "MODEL", "-o", "out"], "it cannot be exported"),
    ],
)
def test_commands_that_need_layers_say_why_not(
    command: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = converted(tmp_path, as_onnx(tiny_host(), FIXED))
    assert run(*(str(path) if word == "MODEL" else word for word in command)) == 2
    error = capsys.readouterr().err
    assert f"is an ONNX file's graph, which has no layers of PyTorch: {message}" in error


def test_it_is_neither_trained_nor_quantized(tmp_path: Path) -> None:
    model = load_model(converted(tmp_path, as_onnx(tiny_host(), FIXED)))
    recipe: Any = SimpleNamespace(model=ModelConfig(initial=str(model.file)))
    with pytest.raises(ValueError, match="which has no layers of PyTorch: it cannot be trained"):
        build_network(recipe, classes(), 48)
    frames: Any = None
    with pytest.raises(ValueError, match="which has no layers of PyTorch: it cannot be quantized"):
        record_samples(model, frames, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["net.onnx"], "net.onnx does not say which classes its network has: give --classes"),
        (["net.onnx", "--classes", "camvid"], "of 11 classes nor class ids"),
        (["net.onnx", "--classes", "few.yaml", "--host", "pspnet50"], "is a network itself: leave out --host"),
        (["net.onnx", "--classes", "few.yaml", "--input-height", "96"], "takes 64x48 only: leave --input-height out"),
        (["absent.onnx", "--classes", "few.yaml"], "absent.onnx cannot be read: No such file"),
    ],
)
def test_convert_names_what_is_wrong_in_one_line(
    arguments: list[str],
    message: str,
    class_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(class_file.parent)
    write(tmp_path, as_onnx(tiny_host(), FIXED))
    assert run("convert", *arguments, "-o", "out.safetensors") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("netwarp: ") and message in last
    assert not Path("out.safetensors").exists()
