# SPDX-License-Identifier: Apache-2.0
"""int8: graphs are made, written, checked before OpenVINO sees them, and give nearly the masks of float32.

How far the masks of shipped models change is checked on the synthetic street; docs/models.md has scores on real video.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import commands
import cv2
import numpy as np
import pytest
import torch
from commands import run, small_model, write_images, write_labels
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from netwarp_ros.engines import EngineError
from netwarp_ros.engines.int8 import Int8Graphs, StepIR, load_int8, read_int8_spec, save_int8, share_constants
from netwarp_ros.engines.openvino import import_openvino, serialise
from netwarp_ros.models import (
    DEFAULT_MODEL,
    Inference,
    InputSize,
    NetWarpSpec,
    WeightsError,
    build,
    load_model,
    save_model,
    shipped_models,
)
from netwarp_ros.models.weights import INT8_HEADER, MAX_HEADER_BYTES, find_weights, int8_file
from netwarp_ros.quantization import calibration, cost, post_training
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.resources import sha256
from netwarp_ros.segmenter import Segmenter, Stream
from netwarp_ros.street import Street

SPEC = replace(commands.SPEC, netwarp=NetWarpSpec(layers=("features",), flow_cnn=False, remember="after"))
"""Without Λ, whose export takes longer than all else."""

SHIPPED = [DEFAULT_MODEL, "swiftnet-lite0-netwarp-camvid", "ddrnet23slim-netwarp-camvid"]

_NET = b'<?xml version="1.0"?><net><data offset="0" size="4" />'
GRAPHS = Int8Graphs(StepIR(_NET, b"same"), StepIR(_NET + b"<more/>", b"same"), ("features",), "")
"""Graphs that OpenVINO cannot read: what is checked before it sees them needs no others."""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = small_model(tmp_path / "models" / "small.safetensors", monkeypatch)
    return save_model(file, build(SPEC), SPEC)


@pytest.fixture
def file(model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of int8 graphs beside the model, in a process where OpenVINO must not read a graph."""

    def read_model(*_arguments: Any) -> None:
        pytest.fail("OpenVINO was given a graph that is not valid")

    monkeypatch.setattr(import_openvino().Core, "read_model", read_model)
    save_int8(int8_file(model), GRAPHS, sha256(model), "3 frames", {"changed": 0.5}, {"nncf": "3"})
    return int8_file(model)


def rewrite(
    file: Path,
    change: Callable[[dict[str, Any]], object] = lambda spec: None,
    tensors: dict[str, Tensor] | None = None,
) -> None:
    """Change the spec in the header of a file, and its tensors; None removes one."""
    with safe_open(file, framework="pt") as opened:
        spec = json.loads(opened.metadata()[INT8_HEADER])
    change(spec)
    held = {**load_file(file), **(tensors or {})}
    save_file(
        {name: value for name, value in held.items() if value is not None},
        file,
        metadata={INT8_HEADER: spec if isinstance(spec, str) else json.dumps(spec)},
    )


def bytes_of(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def described(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_graphs_are_read_as_they_were_written(file: Path, model: Path) -> None:
    assert load_int8(load_model(model)) == replace(GRAPHS, source=str(file))
    spec = read_int8_spec(file)
    assert spec is not None
    assert (spec.layers, spec.calibration, spec.report) == (("features",), "3 frames", {"changed": 0.5})
    assert [path.name for path in file.parent.iterdir() if ".part-" in path.name] == []


def test_graphs_share_their_constants() -> None:
    def net(*offsets: int) -> bytes:
        return b"".join(b'<data offset="%d" size="4" />' % offset for offset in offsets)

    xmls, binary = share_constants([StepIR(net(0, 4), b"one_two_"), StepIR(net(4, 0, 8), b"sixxtwo_one_")])
    assert xmls == [net(0, 64), net(64, 128, 0)]
    assert binary == b"one_".ljust(64, b"\0") + b"two_".ljust(64, b"\0") + b"sixx"


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "other bytes": (
        lambda file: rewrite(file, tensors={"constants.bin": bytes_of(b"stop")}),
        "constants.bin has another SHA-256 than its header says: the file is damaged",
    ),
    "other size": (
        lambda file: rewrite(file, tensors={"constants.bin": bytes_of(b"longer")}),
        r"constants.bin is \[6\] U8, its header says \[4\] U8",
    ),
    "other type": (
        lambda file: rewrite(file, tensors={"constants.bin": torch.zeros(4)}),
        r"constants.bin is \[4\] F32, its header says \[4\] U8",
    ),
    "other shape": (
        lambda file: rewrite(file, tensors={"constants.bin": bytes_of(b"same").view(2, 2)}),
        r"constants.bin is \[2, 2\] U8, its header says \[4\] U8",
    ),
    "missing tensor": (
        lambda file: rewrite(file, tensors={"constants.bin": None}),  # type: ignore[dict-item]
        "it holds the tensors first.xml, step.xml, not constants.bin, first.xml, step.xml",
    ),
    "further tensor": (
        lambda file: rewrite(file, tensors={"code": bytes_of(b"import os")}),
        "it holds the tensors code, constants.bin",
    ),
    "tensor that is not described": (
        lambda file: rewrite(file, lambda spec: spec["tensors"].pop("step.xml")),
        "its header describes the tensors constants.bin, first.xml, not",
    ),
    "layers of an image CNN": (
        lambda file: rewrite(file, lambda spec: spec.update(layers=[])),
        "its header describes the tensors .*, not constants.bin, first.xml$",
    ),
    "too large": (
        lambda file: rewrite(file, lambda spec: spec["tensors"]["step.xml"].update(bytes=2**25)),
        "step.xml has 33554432 bytes, at most 16777216 are read",
    ),
    "larger than anything": (
        lambda file: rewrite(file, lambda spec: spec["tensors"]["constants.bin"].update(bytes=2**40)),
        "tensors.constants.bin.bytes is 1099511627776",
    ),
    "no hash": (
        lambda file: rewrite(file, lambda spec: spec["tensors"]["constants.bin"].update(sha256="")),
        "tensors.constants.bin.sha256",
    ),
    "unknown key": (lambda file: rewrite(file, lambda spec: spec.update(library="x.so")), "unknown key library"),
    "missing key": (lambda file: rewrite(file, lambda spec: spec.pop("weights")), "weights is missing"),
    "other weights": (
        lambda file: rewrite(file, lambda spec: spec.update(weights="0" * 64)),
        "was made from other weights than those of .*small.safetensors: make it again with `netwarp quantize",
    ),
    "not a graph": (
        lambda file: rewrite(
            file, lambda spec: spec["tensors"].update({"first.xml": described(b"\x08\x09onnx")}),
            {"first.xml": bytes_of(b"\x08\x09onnx")},
        ),
        "first.xml is not a graph in OpenVINO's XML",
    ),
    "no header": (
        lambda file: save_file(load_file(file), file),
        "has no 'netwarp_ros_int8' entry in its header: write it with `netwarp quantize`",
    ),
    "header that is not JSON": (
        lambda file: save_file(load_file(file), file, metadata={INT8_HEADER: "{"}),
        "is not valid JSON",
    ),
    "header that is too long": (
        lambda file: save_file(load_file(file), file, metadata={INT8_HEADER: " " * MAX_HEADER_BYTES}),
        r"has a header of \d+ bytes; at most 1048576 are read",
    ),
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:-1]), "is not a readable safetensors file"),
    "pickle": (lambda file: file.write_bytes(pickle.dumps({"a": 1})), "is not a readable safetensors file"),
    "empty": (lambda file: file.write_bytes(b""), "is not a readable safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize(("tamper", "message"), TAMPERED.values(), ids=TAMPERED.keys())
def test_nothing_reaches_openvino_that_is_not_as_the_header_says(
    file: Path, model: Path, tamper: Callable[[Path], object], message: str
) -> None:
    tamper(file)
    with pytest.raises(WeightsError, match=message):
        Segmenter(model, precision="int8")


def test_int8_is_refused_after_the_weights_were_changed(file: Path, model: Path) -> None:
    torch.manual_seed(1)
    save_model(model, build(SPEC), SPEC)
    with pytest.raises(WeightsError, match="was made from other weights than those of"):
        Segmenter(model, precision="int8")


def test_graph_that_openvino_cannot_read_is_an_error_of_the_engine(model: Path) -> None:
    save_int8(int8_file(model), GRAPHS, sha256(model), "", {}, {})
    with pytest.raises(EngineError, match=r"small-int8.safetensors cannot run frames \[1, 48, 64, 3\]"):
        Segmenter(model, precision="int8")


def test_graphs_of_other_layers_are_refused(file: Path, model: Path) -> None:
    rewrite(file, lambda spec: spec.update(layers=["classifier"]))
    with pytest.raises(EngineError, match=r"has the layers \['classifier'\], this network \['features'\]"):
        Segmenter(model, precision="int8")


def step_ir(result: Any, *inputs: Any) -> StepIR:
    """Return a graph that OpenVINO can read: a result, plus a constant."""
    openvino = import_openvino()
    total = openvino.opset13.add(openvino.opset13.convert(result, "f32"), np.float32([1, 2, 3]))
    return serialise(openvino.Model([total], list(inputs)))


def test_graphs_that_are_no_step_graphs_are_refused(model: Path) -> None:
    opset = import_openvino().opset13
    frame, maps = opset.parameter([-1, -1, -1, 3]), opset.parameter([-1, -1, -1, 3], dtype=np.int32)
    branch, parts = opset.if_op(opset.constant(True)), [opset.parameter([-1, -1, -1, 3]) for _ in range(2)]
    bodies = [import_openvino().Model([opset.relu(part)], [part]) for part in parts]
    branch.set_then_body(bodies[0])
    branch.set_else_body(bodies[1])
    branch.set_input(frame.output(0), *parts)
    branched = branch.set_output(*(body.get_results()[0] for body in bodies))
    for ir, message in (
        (step_ir(opset.relu(maps), maps), "it does not take 1 maps of float32"),
        (step_ir(branched, frame), "no step graph has {'If'}"),
    ):
        graphs = Int8Graphs(ir, ir, ("features",), "")
        save_int8(int8_file(model), graphs, sha256(model), "", {}, {})
        with pytest.raises(EngineError, match=message):
            Segmenter(model, precision="int8")
    step = step_ir(opset.relu(frame), frame)
    save_int8(int8_file(model), Int8Graphs(step, step, ("features",), ""), sha256(model), "", {}, {})
    with pytest.raises(EngineError, match=r"gives maps \[\[1, 48, 64, 3\]\] for frames \[1, 48, 64, 3\], not"):
        Segmenter(model, precision="int8")


def test_missing_file_is_named_with_the_command_that_makes_it(model: Path) -> None:
    with pytest.raises(EngineError, match=r"there is no .*small-int8.safetensors: make it with `netwarp quantize"):
        Segmenter(model, precision="int8")
    with pytest.raises(EngineError, match="model small does not come from a file"):
        Segmenter(replace(load_model(model), file=None), precision="int8")


def test_file_of_graphs_is_no_model(file: Path) -> None:
    with pytest.raises(WeightsError, match="holds the int8 graphs of a model, not a model: give small.safetensors"):
        load_model(file)
    assert not [name for name in shipped_models() if name.endswith("-int8")]


# The command


def quantized(model: Path, images: Path, *options: object) -> int:
    return run("quantize", model, "--images", images, "--frames", 2, "--threads", 1, *options)


def differing(first: Segmenter, second: Segmenter, images: list[np.ndarray]) -> float:
    """Return the greatest fraction of pixels that differ in a frame of a stream."""
    streams, worst = (first.stream(), second.stream()), 0.0
    for index, image in enumerate(images):
        masks = [stream.segment(image, index * 66_000_000 + 1).mask for stream in streams]
        worst = max(worst, float(np.mean(masks[0] != masks[1])))
    return worst


def noise(height: int, width: int) -> list[np.ndarray]:
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8), (0, 0), 2)
    return [np.roll(image, 2 * index, axis=1) for index in range(3)]


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command take no samples and make no graphs. int8 lowers the mean IoU by 0.6, the consistency by 0.4."""
    scores = cost.Cost(3, 3, 70.0, 69.4, 80.0, 79.6, changed=1.0, ms_float32=20.0, ms_int8=10.0)
    monkeypatch.setattr(calibration, "record_samples", lambda *_arguments: [()])
    monkeypatch.setattr(calibration, "segmenter_with", lambda *_arguments: None)
    monkeypatch.setattr(post_training, "quantize", lambda *_arguments: GRAPHS)
    monkeypatch.setattr(cost, "measure_cost", lambda *_arguments: scores)


def test_command_makes_graphs_that_run_at_other_sizes(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images")
    labels = write_labels(tmp_path / "labels", model, images)
    assert quantized(model, images, "--labels", labels, "--max-drop", 100) == 0
    printed = capfd.readouterr().out
    assert all(text in printed for text in ("3 frames, 3 labelled", "mean IoU", "ms per frame", "int8 graphs in"))

    spec = read_int8_spec(int8_file(model))
    assert spec is not None
    assert (spec.weights, spec.layers, spec.calibration) == (sha256(model), ("features",), "2 frames of images")
    assert spec.report["frames"] == 3 and 0 <= spec.report["changed"] < 20 and "miou_int8" in spec.report
    assert set(spec.versions) == {"nncf", "openvino", "torch"}
    assert str(tmp_path).encode() not in int8_file(model).read_bytes()

    windows = Inference(window=40, scales=(0.5, 1.0), flip=True)
    options: list[dict[str, Any]] = [{}, {"input_height": 61}, {"host_only": True}, {"inference": windows}]
    for option in options:
        int8 = Segmenter(model, precision="int8", threads=1, **option)
        assert (int8.engine.name, int8.precision, int8.engine_problem) == ("openvino", "int8", "")
        float32 = Segmenter(model, engine="torch", precision="float32", **option)
        for size in ((48, 64), (48, 97)):
            assert differing(float32, int8, noise(*size)) < 0.2


def test_a_gate_is_what_it_is_in_float32(tmp_path: Path, model: Path) -> None:
    spec = replace(SPEC, netwarp=replace(SPEC.netwarp, blend="gated"))
    gated = build(spec)
    with torch.no_grad():  # with the initial weights the memory would change nothing, and the gate would be open
        for name, parameter in gated.named_parameters():
            if name.endswith("w2"):
                parameter.copy_(torch.linspace(-3, 3, parameter.numel()))
            elif name == "gate.conv2.bias":
                parameter.fill_(3.0)
            elif name == "gate.conv2.weight":
                parameter.copy_(0.1 * torch.randn_like(parameter))
            elif "classifier" in name:
                parameter.copy_(torch.randn_like(parameter))
    save_model(model, gated, spec)
    images = noise(48, 64)
    assert quantized(model, write_images(tmp_path / "images"), "--max-drop", 100) == 0
    float32 = Segmenter(model, engine="torch", precision="float32")
    assert differing(float32, Segmenter(model, precision="int8", threads=1), images) < 0.05
    opened = load_model(model)
    torch.nn.init.constant_(opened.network.get_parameter("gate.conv2.bias"), -99.0)
    assert differing(float32, Segmenter(opened, engine="torch", precision="float32"), images) > 0.2


def test_image_cnn_has_the_graph_of_a_first_frame_alone(tmp_path: Path, model: Path) -> None:
    spec = replace(SPEC, netwarp=None)
    save_model(model, build(spec), spec)
    images = write_images(tmp_path / "images")
    assert quantized(model, images, "--max-drop", 100) == 0
    described = read_int8_spec(int8_file(model))
    assert described is not None
    assert set(described.tensors) == {"first.xml", "constants.bin"} and "miou_int8" not in described.report
    int8 = Segmenter(model, precision="int8", threads=1)
    assert differing(Segmenter(model, engine="torch", precision="float32"), int8, noise(48, 64)) < 0.2


def test_network_of_one_size_has_graphs_for_this_size(tmp_path: Path, model: Path) -> None:
    spec = replace(SPEC, netwarp=None, input_size=InputSize(fixed=(48, 80)))
    save_model(model, build(spec), spec)
    assert quantized(model, write_images(tmp_path / "images"), "--max-drop", 100) == 0
    int8 = Segmenter(model, precision="int8", threads=1)
    assert differing(Segmenter(model, engine="torch", precision="float32"), int8, noise(48, 64)) < 0.2


@pytest.mark.usefixtures("light")
def test_command_refuses_what_drops_too_far(tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images")
    assert quantized(model, images) == 1
    assert "because int8 lowers mean IoU from 70.00 to 69.40, by more than 0.5: give" in capfd.readouterr().err
    assert quantized(model, images, "--max-drop", 0.3) == 1
    assert "mean IoU from 70.00 to 69.40 and temporal consistency from 80.00 to 79.60" in capfd.readouterr().err
    assert not int8_file(model).exists()
    other = tmp_path / "new" / "other.safetensors"
    assert quantized(model, images, "--max-drop", 0.7, "-o", other) == 0
    assert other.exists() and not int8_file(model).exists()
    assert f"--precision int8 looks for them at {int8_file(model)}" in capfd.readouterr().out


@pytest.mark.usefixtures("light")
def test_command_replaces_its_own_file(tmp_path: Path, model: Path) -> None:
    images, others = write_images(tmp_path / "images"), write_images(tmp_path / "again")
    for calibration_images in (images, others):
        assert quantized(model, images, "--calibration", calibration_images, "--max-drop", 1) == 0
    spec = read_int8_spec(int8_file(model))
    assert spec is not None and spec.calibration == "1 frames of again"


def test_samples_are_spread_over_the_recording_and_limited(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(20):
        cv2.imwrite(str(folder / f"{index:02}.png"), np.full((48, 64, 3), index, np.uint8))
    frames = open_frames(folder)
    segmented = []
    segment = Stream.segment
    monkeypatch.setattr(Stream, "segment", lambda *args: segmented.append(args[1][0, 0, 0]) or segment(*args))
    limits: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", limits.append)
    samples = calibration.record_samples(load_model(model), frames, 3, threads=1)
    assert limits == [1]
    assert [sample[0][0, 0, 0, 0] for sample in samples] == [1, 10, 19]  # the first frame has no memory
    assert [len(sample) for sample in samples] == [2, 2, 2]
    assert segmented == [0, 1, *range(6, 11), *range(15, 20)]
    monkeypatch.setattr(calibration, "MAX_SAMPLE_BYTES", 4 * samples[1][0].nbytes + 4 * samples[1][1].nbytes)
    samples = calibration.record_samples(load_model(model), frames, 20, threads=1)
    assert [sample[0][0, 0, 0, 0] for sample in samples] == [1, 9, 17]


def test_command_needs_nncf(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    assert quantized(model, write_images(tmp_path / "images")) == 2
    assert "quantizing needs NNCF (" in (error := capfd.readouterr().err)
    assert error.endswith("): pip install netwarp_ros[quantize]\n")


def test_command_does_not_replace_a_foreign_file(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert quantized(model, tmp_path, "-o", model) == 2
    assert "exists already, and this command did not write it" in capfd.readouterr().err
    assert quantized(model, tmp_path, "-o", tmp_path / "int8.bin") == 2
    assert "does not end in .safetensors" in capfd.readouterr().err


def test_openvino_and_nncf_send_and_write_nothing(tmp_path: Path) -> None:
    """Their telemetry is off: no file in the home directory, no connection, not even when they are imported."""
    program = """
import socket
def refuse(*arguments, **options):
    raise SystemExit("a connection was opened")
socket.socket.connect = refuse
import socket, sys
from netwarp_ros.quantization.post_training import import_nncf, import_openvino
import_nncf(), import_openvino().convert_model
assert sys.modules["openvino_telemetry"] is None
"""
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert not (tmp_path / "intel").exists()


# The shipped files


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_int8_gives_the_masks_of_float32(name: str) -> None:
    assert name in shipped_models()
    file = int8_file(find_weights(name))
    assert file.stat().st_size <= 12e6
    spec = read_int8_spec(file)
    assert spec is not None
    for score in ("miou", "tc"):
        assert spec.report[f"{score}_float32"] - spec.report[f"{score}_int8"] <= 0.5
    street = Street(320, 240, seed=5)
    images = [street.frame(index).image for index in range(3)]
    float32 = Segmenter(name, engine="torch", precision="float32", input_height=240)
    assert differing(float32, Segmenter(name, precision="int8", input_height=240), images) < 0.03
