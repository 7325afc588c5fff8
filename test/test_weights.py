# SPDX-License-Identifier: Apache-2.0
"""Weights files: a saved model loads again, and the errors of files that are not valid."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from netwarp_ros.classes import ClassEntry, ClassSet, load_classes
from netwarp_ros.models import (
    ModelSpec,
    NetWarpSpec,
    VideoCNN,
    WeightsError,
    build,
    load_model,
    save_model,
    shipped_models,
)
from netwarp_ros.models.weights import MAX_HEADER_BYTES, find_weights, read_spec
from netwarp_ros.resources import MAX_JSON

SPEC = ModelSpec(
    host="ddrnet23slim",
    classes=load_classes("camvid"),
    host_arguments={"num_classes": 11},
    netwarp=NetWarpSpec(layers=("fusion",), flow_grid="features", remember="after"),
    input_height=48,
    notes={"data": "none, random weights"},
)


@pytest.fixture(scope="module")
def network() -> VideoCNN:
    torch.manual_seed(0)
    return build(SPEC).eval()


@pytest.fixture
def file(tmp_path: Path, network: VideoCNN) -> Path:
    return save_model(tmp_path / "model.safetensors", network, SPEC)


def rewrite(file: Path, header: dict[str, str] | None, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    save_file(load_file(file) if tensors is None else tensors, file, metadata=header)
    return file


def header_of(file: Path) -> dict[str, Any]:
    with safe_open(file, framework="pt") as opened:
        header: dict[str, Any] = json.loads(opened.metadata()["netwarp_ros"])
        return header


def test_a_saved_model_loads_again(tmp_path: Path, network: VideoCNN) -> None:
    model = load_model(save_model(tmp_path / "exact.safetensors", network, SPEC, dtype=torch.float32))
    assert model.spec == SPEC and model.name == "exact"
    assert not model.network.training
    assert model.network.remember == "after" and model.network.flow_grid == "features"
    frame, flow = torch.randn(1, 3, 48, 64), torch.randn(1, 2, 48, 64)
    with torch.no_grad():
        _, memory = network(frame)
        expected, _ = network(frame, flow, memory)
        _, memory = model.network(frame)
        logits, _ = model.network(frame, flow, memory)
    assert torch.equal(logits, expected)


def test_kernels_are_stored_in_float16_and_statistics_in_float32(file: Path) -> None:
    tensors = load_file(file)
    assert {value.dtype for value in tensors.values() if value.ndim > 1} == {torch.float16}
    assert tensors["host.stem.0.1.running_var"].dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in load_model(file).network.parameters())


def test_image_cnn_has_no_insertion(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, netwarp=None)
    model = load_model(save_model(tmp_path / "host.safetensors", build(spec), spec))
    assert model.network.layers == ()


def test_class_set_goes_with_the_weights(tmp_path: Path, network: VideoCNN) -> None:
    classes = tuple(ClassEntry(f"thing {index}", (index, 2 * index, 3 * index)) for index in range(11))
    spec = dataclasses.replace(SPEC, classes=ClassSet("things", 255, classes))
    file = save_model(tmp_path / "things.safetensors", network, spec)
    assert header_of(file)["classes"] == {
        "name": "things",
        "void": 255,
        "classes": [{"name": f"thing {i}", "color": [i, 2 * i, 3 * i], "ids": []} for i in range(11)],
        "void_ids": [],
        "void_colors": [],
    }
    read = read_spec(file).classes
    assert (read.name, read.names, read.void) == ("things", tuple(entry.name for entry in classes), 255)
    np.testing.assert_array_equal(read.palette, np.outer(range(11), (1, 2, 3)))


def test_ids_of_label_maps_go_with_the_weights(tmp_path: Path, network: VideoCNN) -> None:
    text = "name: eleven\nvoid: [0, 700]\nvoid_colors: [[1, 1, 1]]\nclasses:\n- {name: a, ids: [255, 7]}\n"
    (tmp_path / "eleven.yaml").write_text(text + "".join(f"- {{name: b{i}, id: {i}}}\n" for i in range(60, 70)))
    classes = load_classes(tmp_path / "eleven.yaml")
    spec = dataclasses.replace(SPEC, classes=classes)
    read = read_spec(save_model(tmp_path / "eleven.safetensors", network, spec)).classes
    assert read == classes and read.void_colors == ((1, 1, 1),)
    np.testing.assert_array_equal(read.palette, classes.palette)
    label = np.uint16([[255, 7, 0, 700, 60, 69]])
    assert read.read(label, "").tolist() == [[0, 0, 255, 255, 1, 10]]


def test_class_set_of_this_package_may_be_named(file: Path) -> None:
    spec = read_spec(rewrite(file, {"netwarp_ros": json.dumps({**header_of(file), "classes": "cityscapes"})}))
    assert spec.classes == load_classes("cityscapes")


def test_no_temporary_file_is_left(file: Path) -> None:
    assert [path.name for path in file.parent.iterdir()] == ["model.safetensors"]


def test_other_endings_are_refused(tmp_path: Path, network: VideoCNN) -> None:
    with pytest.raises(WeightsError, match=r"model\.pt does not end in \.safetensors"):
        save_model(tmp_path / "model.pt", network, SPEC)


@pytest.mark.parametrize("name", ["nonesuch", "../weights/x", "model.pt", "", "A B"])
def test_an_unknown_name_lists_the_shipped_models(name: str) -> None:
    with pytest.raises(WeightsError, match="no model named") as caught:
        find_weights(name)
    assert all(shipped in str(caught.value) for shipped in shipped_models())


def test_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights file .*absent\.safetensors"):
        load_model(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64, b"\x80\x04\x95pickle"])
def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_model(path)


def test_truncated_file_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_model(file)


def test_foreign_file_is_refused(file: Path) -> None:
    with pytest.raises(WeightsError, match="has no 'netwarp_ros' entry"):
        load_model(rewrite(file, {"format": "pt"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"host": "resnet"}, "unknown host 'resnet'"),
        ({"host_arguments": {"num_classes": 11, "depth": 3}}, "depth"),
        ({"host_arguments": {"num_classes": "11"}}, r"host_arguments\.num_classes is '11', must be a valid integer"),
        ({"host_arguments": {"num_classes": 10**10}}, "num_classes is 10000000000, must be less than or equal to 4096"),
        ({"host_arguments": {"num_classes": -1}}, "num_classes is -1, must be greater than or equal to 0"),
        ({"host_arguments": {f"argument{index}": 1 for index in range(40)}}, "must have at most 32 items"),
        ({"host": "x" * 201}, "host is 'xxx.*xxx', must have at most 200 characters"),
        ({"netwarp": {"layers": ["fusion"] * 101}}, r"netwarp\.layers is \['fusion', .*must have at most 100 items"),
        ({"netwarp": {"layers": ["x" * 201]}}, r"netwarp\.layers\[0\] is 'xxx.*xxx', must have at most 200 characters"),
        (
            {"netwarp": {"layers": [f"{'x' * 190}{index}" for index in range(100)]}},
            "cannot insert NetWarp into ddrnet23slim: .*no layer",
        ),
        ({"mean": [0.5, 0.5, float("nan")]}, r"mean\[2\] is nan, must be less than or equal to 1"),
        ({"mean": [123.7, 0.5, 0.5]}, r"mean\[0\] is 123\.7, must be less than or equal to 1"),
        ({"std": [0.0, 1.0, 1.0]}, r"std\[0\] is 0\.0, must be greater than or equal to 0\.001"),
        ({"std": [0.2, 0.2, float("-inf")]}, r"std\[2\] is -inf, must be greater than or equal to 0\.001"),
        ({"input_height": 4321}, "input_height is 4321, must be less than or equal to 4320"),
        ({"input_height": True}, "input_height is True, must be a valid integer"),
        ({"notes": ["data"]}, r"notes is \['data'\], must be a valid dictionary"),
        ({"notes": {"data": "x" * 2001}}, r"notes\.data is 'xxx.*xxx', must have at most 2000 characters"),
        ({"notes": {"x" * 201: "data"}}, "must have at most 200 characters"),
        ({"notes": {str(index): "" for index in range(33)}}, "notes is .*must have at most 32 items"),
        ({"notes": {"data": "x" * MAX_JSON}}, "has 26.... characters: at most 262144 are read"),
        (
            {"classes": {"name": "one", "void": 255, "classes": [{"name": "a\x1b[2J", "color": [0, 0, 0]}]}},
            r"classes\.classes\[0\]: name is 'a\\x1b\[2J': give a text without control characters",
        ),
        ({"host_arguments": {"num_classes": 11.5}}, r"host_arguments\.num_classes is 11\.5, must be a valid integer"),
        ({"host_arguments": {"num_classes": 12}}, "does not fit the network it names: .*of another shape"),
        ({"netwarp": {"layers": ["fuison"]}}, "did you mean 'fusion'"),
        ({"netwarp": {"layers": ["fusion", "high4"]}}, "missing .netwarps.1"),
        ({"netwarp": None}, "not of this network .*flow_cnn"),
        (
            {"netwarp": {"layers": ["fusion"], "remember": "all"}},
            r"netwarp\.remember is 'all', must be 'before' or 'after'",
        ),
        ({"mean": [0.5, 0.5]}, r"mean\[2\] is missing"),
        ({"input_height": 0}, "input_height is 0, must be greater than or equal to 1"),
        ({"classes": "../../etc"}, r"model\.safetensors: classes: '\.\./\.\./etc' is not the name of a class"),
        ({"classes": "roads"}, r"model\.safetensors: classes: no class set named 'roads'"),
        ({"classes": {"name": "roads", "void": 11}}, r"classes\.classes is missing"),
        ({"surprise": 1}, r"the header of .*model\.safetensors has the unknown key surprise: give host, classes, "),
    ],
)
def test_a_wrong_spec_is_refused_by_key(file: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        load_model(rewrite(file, {"netwarp_ros": json.dumps({**header_of(file), **change})}))
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", "is not valid JSON: "),
        ("[]", r"is \[\], must be a mapping with host, "),
        ("3", "is 3, must be a mapping with host, "),
        ("{}", "host is missing"),
        ('{"host": "a", "host": "b"}', "is not valid JSON: the key 'host' occurs twice in one mapping"),
        ("[" * 200_000, "is nested too deeply"),
    ],
)
def test_a_header_without_a_spec_is_refused(file: Path, header: str, message: str) -> None:
    with pytest.raises(WeightsError, match=rf"the header of .*model\.safetensors:? {message}"):
        read_spec(rewrite(file, {"netwarp_ros": header}))


def test_a_wrong_size_is_refused_before_memory_is_allocated(file: Path) -> None:
    """The network of this header has 10^11 parameters."""
    header = {**header_of(file), "host": "dilation8", "host_arguments": {"num_classes": 11, "width": 4096}}
    with pytest.raises(WeightsError, match="does not fit"):
        load_model(rewrite(file, {"netwarp_ros": json.dumps({**header, "netwarp": None})}))


@pytest.mark.parametrize("name", ["host.stem.0.1.running_var", "netwarps.0.w2"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(file: Path, network: VideoCNN, name: str, value: float) -> None:
    tensors = load_file(file)
    tensors[name].view(-1)[0] = value
    with pytest.raises(WeightsError, match=rf"model\.safetensors: {name} has values of torch\.\w+ that are not finite"):
        load_model(rewrite(file, {"netwarp_ros": json.dumps(header_of(file))}, tensors))
    broken = copy.deepcopy(network)
    broken.state_dict()[name].view(-1)[0] = value
    with pytest.raises(WeightsError, match=rf"the network: {name} has values"):
        save_model(file.with_name("broken.safetensors"), broken, SPEC)
    assert [path.name for path in file.parent.iterdir()] == ["model.safetensors"]


def test_a_weight_that_is_too_large_for_its_type_is_not_written(file: Path, network: VideoCNN) -> None:
    large = copy.deepcopy(network)
    large.state_dict()["host.stem.0.0.weight"].view(-1)[0] = 1e6
    with pytest.raises(
        WeightsError, match=r"host\.stem\.0\.0\.weight has values of torch\.float16 that are not finite"
    ):
        save_model(file, large, SPEC)
    save_model(file, large, SPEC, dtype=torch.float32)


@pytest.mark.parametrize("name", ["host.stem.0.0.weight", "netwarps.0.w1"])
def test_weights_of_another_type_are_refused(file: Path, name: str) -> None:
    tensors = load_file(file)
    tensors[name] = tensors[name].to(torch.int64)
    with pytest.raises(WeightsError, match=rf"{name} has the type torch\.int64, not torch\.float32"):
        load_model(rewrite(file, {"netwarp_ros": json.dumps(header_of(file))}, tensors))


def test_a_large_header_is_refused_unread(file: Path) -> None:
    notes = {"x": "y" * MAX_HEADER_BYTES}
    with pytest.raises(WeightsError, match=rf"has a header of 10\d+ bytes; at most {MAX_HEADER_BYTES} are read"):
        read_spec(rewrite(file, notes))


def test_the_number_of_classes_is_that_of_the_network(file: Path) -> None:
    header = {**header_of(file), "classes": "cityscapes"}
    with pytest.raises(WeightsError, match="num_classes is 11, but cityscapes has 19 classes"):
        load_model(rewrite(file, {"netwarp_ros": json.dumps(header)}))


def test_a_spec_that_could_not_be_read_again_is_not_written(tmp_path: Path, network: VideoCNN) -> None:
    notes = {f"{index}": "\x00" * 2000 for index in range(32)}  # six characters of JSON each
    with pytest.raises(WeightsError, match="the spec has .* characters of JSON, at most .* are read: shorten notes"):
        save_model(tmp_path / "model.safetensors", network, dataclasses.replace(SPEC, notes=notes))
