# SPDX-License-Identifier: Apache-2.0
"""``netwarp export``: what it writes gives the product's masks without the product, and is as the JSON file says."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnx
import openvino
import pytest
import torch
from commands import SPEC, run
from recorded import write_film
from torch import Tensor, nn

from netwarp_ros.engines import exported
from netwarp_ros.flow import dis
from netwarp_ros.models import NetWarpSpec, build, save_model
from netwarp_ros.models.hosts import HOSTS
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.segmenter import MAX_GAP, Segmenter

MOST_DIFFERING = 1e-4
"""Fraction of the pixels that may have another class."""


class Body(nn.Module):
    """Two layers of the same size whose names differ only in what no identifier may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.late = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, frame: Tensor) -> Tensor:
        return self.late(self.early(frame).tanh()).tanh()


class SplitHost(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = Body()
        self.body_late = nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.classifier = nn.Conv2d(8, num_classes, 1)

    def forward(self, frame: Tensor) -> Tensor:
        return self.classifier(self.body_late(self.body(frame)).tanh())


NETWARPS = {
    "Λ on the grid of the first layer": NetWarpSpec(
        layers=("body.early", "body.late", "body_late"), flow_grid="first", remember="after"
    ),
    "Λ on every grid": NetWarpSpec(layers=("body_late", "body.late"), flow_grid="features", blend="concatenation"),
    "no Λ": NetWarpSpec(layers=("body.late", "body.early"), flow_cnn=False),
    "a gate": NetWarpSpec(layers=("body.late", "body_late"), flow_grid="first", remember="after", blend="gated"),
}


CASES = list(zip(NETWARPS, ("onnx", "openvino", "onnx", "openvino"), strict=True))


class Export(NamedTuple):
    """A model file, and what was exported of it."""

    model: Path
    folder: Path
    format: str

    @property
    def description(self) -> dict[str, Any]:
        return json.loads((self.folder / "model.json").read_text())


def write_model(path: Path, netwarp: NetWarpSpec) -> Path:
    """Write a model whose blends and flow CNN have random weights."""
    torch.manual_seed(0)
    spec = replace(SPEC, host="split", netwarp=netwarp)
    network = build(spec).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.startswith("host."):
                parameter += 0.1 * torch.randn_like(parameter)
    return save_model(path, network, spec)


@pytest.fixture(scope="module", autouse=True)
def split_host() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(HOSTS, "split", SplitHost)
        yield


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[1]}, {case[0]}")
def an_export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Export:
    (netwarp, format), folder = request.param, tmp_path_factory.mktemp("exported")
    model = write_model(folder / "split.safetensors", NETWARPS[netwarp])
    assert run("export", model, "--format", format, "-o", folder / "out") == 0
    return Export(model, folder / "out", format)


@pytest.fixture(scope="module")
def host_export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    folder = tmp_path_factory.mktemp("host")
    model = write_model(folder / "split.safetensors", NETWARPS["no Λ"])
    assert run("export", model, "--host-only", "-o", folder / "out") == 0
    return Export(model, folder / "out", "onnx")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of a texture that moves fast; from the seventh on they have another size, and it moves back."""
    folder = tmp_path_factory.mktemp("clip")
    texture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (128, 192, 3), np.uint8), (0, 0), 2)
    texture = cv2.normalize(texture, texture, 0, 255, cv2.NORM_MINMAX)
    for index in range(11):
        height, width, column = (48, 64, 9 * index) if index < 6 else (66, 88, 99 - 9 * index)
        moved = np.roll(texture, (index, column), axis=(0, 1))[:height, :width]
        cv2.imwrite(str(folder / f"frame_{index}.png"), moved)
    return folder


def product_masks(export: Export, source: Path, **options: Any) -> dict[str, np.ndarray]:
    stream = Segmenter(export.model, engine="torch", precision="float32", **options).stream()
    return {frame.name: stream.segment(frame.image, frame.stamp_ns).mask for frame in open_frames(source)}


def run_masks(export: Export, source: Path, out: Path) -> dict[str, np.ndarray]:
    """Run the exported program in a process that tells which modules it has loaded."""
    program = (
        "import runpy, sys\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-c", program, str(export.folder / "run.py"), str(source), str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    assert not {"netwarp_ros", "torch", "onnx"} & set(ended.stdout.split())
    return {path.stem: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in out.iterdir()}


def differing(masks: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> float:
    """Return the fraction of pixels that have another class."""
    assert masks.keys() == others.keys()
    differing = sum(int((masks[name] != others[name]).sum()) for name in masks)
    return differing / sum(mask.size for mask in masks.values())


def test_the_exported_program_gives_the_masks_of_the_product(an_export: Export, clip: Path, tmp_path: Path) -> None:
    expected = product_masks(an_export, clip)
    assert differing(run_masks(an_export, clip, tmp_path / "masks"), expected) <= MOST_DIFFERING
    assert differing(product_masks(an_export, clip, host_only=True), expected) > 100 * MOST_DIFFERING
    assert (
        differing(product_masks(an_export, clip, flow=lambda *_: np.zeros((48, 64, 2), np.float32)), expected) > 0.002
    )


def test_the_host_alone_is_one_graph(host_export: Export, clip: Path, tmp_path: Path) -> None:
    assert {path.name for path in host_export.folder.iterdir()} == {"first.onnx", "model.json", "run.py"}
    assert host_export.description["layers"] == host_export.description["grids"] == []
    masks = run_masks(host_export, clip, tmp_path / "masks")
    assert differing(masks, product_masks(host_export, clip, host_only=True)) <= MOST_DIFFERING


def test_a_video_is_segmented_frame_by_frame(host_export: Export, tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mkv", [0, 40, 80], "mjpeg", strict="unofficial")
    assert sorted(run_masks(host_export, film, tmp_path / "masks")) == ["000000", "000001", "000002"]


def onnx_ports(ports: Any) -> list[tuple[str, list[int], str]]:
    types = {onnx.TensorProto.UINT8: "uint8", onnx.TensorProto.FLOAT: "float32"}
    kinds = [(port.name, port.type.tensor_type) for port in ports]
    return [(name, [side.dim_value for side in kind.shape.dim], types[kind.elem_type]) for name, kind in kinds]


def openvino_ports(ports: Any) -> list[tuple[str, list[int], str]]:
    return [(port.any_name, list(port.shape), port.element_type.to_dtype().name) for port in ports]


def read_graph(file: Path) -> tuple[list[Any], list[Any], set[str]]:
    """Return inputs and outputs of a graph (name, shape, type), and the kinds of its operations."""
    if file.suffix == ".onnx":
        onnx.checker.check_model(str(file), full_check=True)
        model = onnx.load(file)
        assert not model.functions and [opset.domain for opset in model.opset_import if opset.domain] == []
        kinds = {node.op_type for node in model.graph.node}
        return onnx_ports(model.graph.input), onnx_ports(model.graph.output), kinds
    network = openvino.Core().read_model(file)
    kinds = {operation.get_type_name() for operation in network.get_ops()}
    return openvino_ports(network.inputs), openvino_ports(network.outputs), kinds


def test_the_json_describes_the_inputs_and_outputs_of_the_graphs(an_export: Export) -> None:
    described = an_export.description
    assert list(described["graphs"]) == ["first", "flow", "step"]
    for name, graph in described["graphs"].items():
        inputs, outputs, kinds = read_graph(an_export.folder / graph["file"])
        assert kinds and not {kind for kind in kinds if "sample" in kind.lower()}
        for ports, found in ((graph["inputs"], inputs), (graph["outputs"], outputs)):
            assert [(port["name"], port["shape"], port["type"]) for port in ports] == found, name
            assert all(port["name"].isidentifier() and port["meaning"] for port in ports)


def test_the_json_says_which_maps_belong_together(an_export: Export) -> None:
    """Every map that goes into a graph comes from the images, or out of a graph, by way of a layer or a grid."""
    described = an_export.description
    inputs, outputs = (
        {name: {port["name"] for port in graph[key]} for name, graph in described["graphs"].items()}
        for key in ("inputs", "outputs")
    )
    maps = {key: {layer[key] for layer in described["layers"]} for key in ("memory", "flow", "warped")}
    grids = {key: {grid[key] for grid in described["grids"]} for key in ("frame", "previous")}
    assert inputs["first"] == {"frame"}
    gates = {layer["gate"] for layer in described["layers"] if "gate" in layer}
    assert described["format"] == (2 if gates else 1)
    assert inputs["step"] == {"frame"} | maps["warped"] | gates
    assert outputs["first"] == outputs["step"] == {"scores"} | maps["memory"]
    assert inputs["flow"] == ({"flow", "frame"} if grids["frame"] else {"flow"}) | grids["previous"]
    assert outputs["flow"] == grids["frame"] | maps["flow"] | gates
    assert len(maps["memory"]) == len(described["layers"])


def test_layers_stand_in_the_order_that_they_run_in_and_have_names_of_their_own(an_export: Export) -> None:
    layers = {layer["name"]: layer["memory"] for layer in an_export.description["layers"]}
    assert list(layers) == [name for name in ("body.early", "body.late", "body_late") if name in layers]
    assert layers["body.late"] == "memory_body_late"
    assert layers.get("body_late", "memory_body_late_2") == "memory_body_late_2"


def test_the_json_says_what_the_product_does(host_export: Export) -> None:
    described = host_export.description
    assert getattr(cv2, described["flow"]["preset"]) == dis.PRESETS[Segmenter(host_export.model).flow.preset]
    assert described["memory"]["max_gap_s"] == MAX_GAP
    assert exported.MIN_SIDE == dis.MIN_SIDE
    assert (described["input"]["height"], described["input"]["width"]) == (48, 64)
    classes = SPEC.classes.classes
    assert [(entry["name"], tuple(entry["color"])) for entry in described["model"]["classes"]] == [
        (entry.name, entry.color) for entry in classes
    ]
    assert described["model"]["weights_sha256"] == hashlib.sha256(host_export.model.read_bytes()).hexdigest()


@pytest.mark.parametrize(("format", "runtime"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_the_program_imports_numpy_opencv_and_the_runtime_only(format: str, runtime: str) -> None:
    tree = ast.parse(exported.run_program(format))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in names if name.split(".")[0] not in sys.stdlib_module_names} == {"cv2", "numpy", runtime}


def test_names_become_identifiers_and_stay_different() -> None:
    assert exported.identifiers(["a.b", "a_b", "a-b", "up8", "ä"]) == ["a_b", "a_b_2", "a_b_3", "up8", "_"]


@pytest.fixture
def folder(host_export: Export, tmp_path: Path) -> Path:
    return Path(shutil.copytree(host_export.folder, tmp_path / "out"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_export_replaces_an_unchanged_one(host_export: Export, folder: Path) -> None:
    assert run("export", host_export.model, "-o", folder, "--host-only", "--format", "openvino", "--height", 64) == 0
    assert set(contents(folder)) == {"first.xml", "first.bin", "model.json", "run.py"}
    assert json.loads((folder / "model.json").read_text())["input"]["width"] == 85


@pytest.mark.parametrize("name", ["thesis.txt", "run.py", "first.onnx", "model.json"])
def test_other_contents_of_the_folder_are_refused_and_stay(
    host_export: Export, folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / name).write_text("years of work, written by netwarp export")
    before = contents(folder)
    assert run("export", host_export.model, "-o", folder, "--host-only") == 2
    # Without its model.json, the whole folder is foreign.
    named = folder / ("first.onnx" if name == "model.json" else name)
    assert f"{named} exists already, and is no unchanged file of an export" in capsys.readouterr().err
    assert contents(folder) == before


def test_what_appears_while_the_export_is_made_is_not_replaced(
    host_export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def write(*_: Any) -> dict[str, Any]:
        (out / "run.py").write_text("years of work")
        return {"model": {}}

    monkeypatch.setattr(exported.Exporter, "write", write)
    assert run("export", host_export.model, "-o", out) == 2
    assert contents(out) == {"run.py": b"years of work"}


def test_a_file_in_the_place_of_the_folder_is_refused(host_export: Export, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("years of work")
    assert run("export", host_export.model, "-o", tmp_path / "out") == 2
    assert (tmp_path / "out").read_text() == "years of work"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "tflite"], "format is 'tflite': choose one of onnx, openvino"),
        (["--height", 31], "height is 31: give 32 to 4320 pixels, or 0 for the default"),
        (["--height", -1], "height is -1: give 32"),
        (["--width", 5000], "width is 5000: give 32 to 4096 pixels"),
        (["--precision", "int8"], "precision is 'int8', but graphs are exported in float32: quantize them"),
        (["--precision", "float16"], "precision is 'float16': graphs are exported in float32"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    host_export: Export, tmp_path: Path, arguments: list[object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", host_export.model, "-o", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("format", "missing", "message"),
    [("onnx", "onnxscript", "pip install netwarp_ros[onnx]"), ("openvino", "openvino", "pip install openvino")],
)
def test_missing_packages_are_named(
    host_export: Export,
    tmp_path: Path,
    format: str,
    missing: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert run("export", host_export.model, "-o", tmp_path / "out", "--format", format) == 2
    shown = capsys.readouterr().err
    assert missing in shown and message in shown
