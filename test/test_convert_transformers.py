# SPDX-License-Identifier: Apache-2.0
"""Directories of the Hugging Face hub: conversion keeps the scores, and hostile directories and headers are refused.

No test here may use the network: names that could be addresses must be refused before anybody looks them up.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers_networks import NETWORKS, NUM_CLASSES, PREPROCESSOR, change, logits_of, make, save, segformer

from netwarp_ros import cli
from netwarp_ros.models import WeightsError, load_model
from netwarp_ros.models.others.conversion import Overrides, convert_directory
from netwarp_ros.models.others.preprocessing import parse_preprocessing
from netwarp_ros.models.spec import InputSize

Change = Callable[[Path], None]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail if anything opens a connection, even if it goes on without."""
    asked: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        asked.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert asked == []


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def convert(folder: Path, out: Path, *options: object) -> int:
    return run("convert", folder, "-o", out, *options)


# Conversion


@pytest.mark.parametrize("name", NETWORKS)
def test_a_converted_network_scores_as_before(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = make(name)
    out = tmp_path / "model.safetensors"
    assert convert(save(network, tmp_path / "net"), out) == 0
    printed = capsys.readouterr()
    kind = type(network).__name__
    count = len(network.state_dict())
    assert (
        f"transformers:{kind}\n{count} of the network's {count} tensors loaded\n{NUM_CLASSES} classes, net: "
        in printed.out
    )
    model = load_model(out)
    assert model.spec.host == f"transformers:{kind}" and model.spec.host_arguments == {"num_classes": NUM_CLASSES}
    frame = torch.rand(1, 3, *model.spec.input_size.fixed or (64, 96))
    expected = logits_of(network, frame)
    assert torch.equal(logits_of(model.network.host, frame), expected) and expected.std() > 1e-3


def test_torch_files_in_half_precision_with_the_names_of_old_versions_are_read(tmp_path: Path) -> None:
    network = make("segformer")
    folder = save(network, tmp_path / "net")
    state = {key: value.half() if value.is_floating_point() else value
             for key, value in load_file(folder / "model.safetensors").items()}  # fmt: skip
    assert "decode_head.linear_c.0.proj.bias" in state.keys() - network.state_dict().keys()
    (folder / "model.safetensors").unlink()
    torch.save(state | {"segformer.unknown": torch.ones(2)}, folder / "pytorch_model.bin")
    conversion = convert_directory(folder, Overrides())
    assert not conversion.result.missing and conversion.result.unused == ("segformer.unknown",)
    expected = logits_of(network.half().float(), frame := torch.rand(1, 3, 64, 64))
    assert torch.equal(logits_of(conversion.network.host, frame), expected)


def shard(folder: Path, names: tuple[str, str] = ("a.safetensors", "b.safetensors")) -> None:
    """Split the weights of a directory into two files with an index."""
    state = load_file(folder / "model.safetensors")
    halves = list(state)[::2], list(state)[1::2]
    for name, keys in zip(("a.safetensors", "b.safetensors"), halves, strict=True):
        save_file({key: state[key] for key in keys}, folder / name)
    index = {key: name for name, keys in zip(names, halves, strict=True) for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "model.safetensors").unlink()


def test_weights_in_several_files_are_read(tmp_path: Path) -> None:
    network = make("segformer")
    shard(folder := save(network, tmp_path / "net"))
    frame = torch.rand(1, 3, 64, 64)
    host = convert_directory(folder, Overrides()).network.host
    assert torch.equal(logits_of(host, frame), logits_of(network, frame))


def test_the_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    network = make("segformer")
    folder = save(network, tmp_path / "models--org--street-net" / "snapshots" / "0123abcd")
    (blobs := folder.parent.parent / "blobs").mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.move(file, blobs / f"hash{number}")
        file.symlink_to(Path("../../blobs") / f"hash{number}")
    conversion = convert_directory(folder, Overrides())
    assert conversion.spec.classes.name == "org--street-net"
    assert conversion.spec.notes["origin"] == "converted from org--street-net"


def test_mobilevits_bgr_is_converted_to_rgb(tmp_path: Path) -> None:
    network = make("mobilevit")
    file = {"do_rescale": True, "do_flip_channel_order": True, "size": {"shortest_edge": 544}, "crop_size": 512}
    conversion = convert_directory(save(network, tmp_path / "net", file), Overrides())
    spec = conversion.spec
    assert (spec.mean, spec.std, spec.input_height) == ((0, 0, 0), (1, 1, 1), 544)
    frame = torch.rand(1, 3, 64, 96)
    expected = logits_of(network, frame.flip(1))
    torch.testing.assert_close(logits_of(conversion.network.host, frame), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits_of(network, frame), expected, rtol=1e-2)


def test_known_labels_become_the_class_set_of_this_package(tmp_path: Path) -> None:
    from netwarp_ros.classes import load_classes

    names = load_classes("cityscapes").names
    folder = save(segformer(len(names)).eval(), tmp_path / "net")
    change(folder, id2label=dict(enumerate(names)), label2id={name: number for number, name in enumerate(names)})
    assert convert_directory(folder, Overrides()).spec.classes.name == "cityscapes"


def test_the_users_word_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = tmp_path / "five.yaml"
    colors = [f"{{name: c{number}, color: [{number}, 0, 0]}}" for number in range(NUM_CLASSES)]
    classes.write_text(f"name: five\nvoid: 255\nclasses: [{', '.join(colors)}]\n")
    folder, out = save(make("segformer"), tmp_path / "net", {}), tmp_path / "model.safetensors"
    change(folder, id2label={0: "wrong", 1: "number"})
    options = ("--classes", classes, "--input-height", 300, "--mean", 0.1, 0.2, 0.3, "--std", 0.4, 0.5, 0.6)
    assert convert(folder, out, *options) == 0
    spec = load_model(out).spec
    assert spec.classes.names == tuple(f"c{n}" for n in range(NUM_CLASSES)) and spec.input_height == 300
    assert spec.mean == (0.1, 0.2, 0.3) and spec.std == (0.4, 0.5, 0.6)
    assert "input height 300; the network takes images of any size" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "mean", "std", "height"),
    [
        ({"do_normalize": False}, (0, 0, 0), (1, 1, 1), None),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 512}, (0.5,) * 3, (0.5,) * 3, 512),
        ({"do_rescale": False, "do_normalize": False, "size": {"height": 3, "width": 4}}, (0,) * 3, (1 / 255,) * 3, 3),
        ({"do_rescale": False, "image_mean": [51] * 3, "image_std": [102] * 3}, (0.2,) * 3, (0.4,) * 3, None),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1] * 3, "image_std": [1] * 3}, (0.5,) * 3, (0.5,) * 3, None),
        ({"do_flip_channel_order": True, "do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]},
         (0.3, 0.2, 0.1), (3, 2, 1), None),
        ({"image_processor_type": "MobileViTImageProcessor", "image_mean": [0.5] * 3}, (0, 0, 0), (1, 1, 1), None),
        ({"size": {"shortest_edge": 640, "longest_edge": 800}}, None, None, 640),
        ({"do_resize": True, "size": 640}, None, None, 640),
        ({"do_resize": False, "size": {"height": 3, "width": 4}}, None, None, None),
    ],
)  # fmt: skip
def test_preprocessing_is_read(file: dict[str, Any], mean: Any, std: Any, height: int | None) -> None:
    found = parse_preprocessing(file)
    assert found.mean == (mean and pytest.approx(mean)) and found.std == (std and pytest.approx(std))
    assert found.height == height


# What is refused


def text(name: str, content: str) -> Change:
    return lambda folder: void((folder / name).write_text(content))


def void(_: Any) -> None:
    return None


def config(**values: Any) -> Change:
    return lambda folder: change(folder, **values)


def without(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def pickled_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Harmful()))


def torch_safetensors(folder: Path) -> None:
    torch.save({"weight": torch.ones(1)}, folder / "model.safetensors")


def pickled_bin(folder: Path) -> None:
    torch.save({"weight": torch.ones(1), "object": Harmful()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def expanded_bin(folder: Path) -> None:
    torch.save({"weight": torch.ones(1).expand(10**6, 10**6)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def linked(name: str) -> Change:
    def link(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("/etc/passwd")

    return link


def tensors(**values: torch.Tensor | None) -> Change:
    """Replace tensors of the file; None removes one."""

    def replace(folder: Path) -> None:
        state = load_file(folder / "model.safetensors") | {key.replace("__", "."): v for key, v in values.items()}
        save_file({key: value for key, value in state.items() if value is not None}, folder / "new.safetensors")
        (folder / "new.safetensors").replace(folder / "model.safetensors")  # the old file is mapped into memory

    return replace


HOSTILE: list[tuple[Change, str]] = [
    (config(auto_map={"AutoModel": "modeling_x.Net"}), "auto_map is .* code that is not part of transformers"),
    (config(trust_remote_code=True), "trust_remote_code is True"),
    (config(num_encoder_blocks=10**6), "num_encoder_blocks is 1000000: at most 100000"),
    (config(depths=[99_999, 1, 1, 1]), "the network has more than [0-9]+ parameters"),
    (config(hidden_sizes=[10**9] * 4), r"hidden_sizes\[0\] is 1000000000"),
    (config(hidden_sizes=[99_999] * 4, decoder_hidden_size=99_999, num_attention_heads=[1, 1, 1, 1]),
     "describes a network of [0-9]+ values, but its weights have [0-9]+ bytes"),
    (config(image_size=10**9), "image_size is 1000000000"),
    (config(depths=[1] * 10**6), "config.json has more than 262144 bytes"),
    (config(depths=[1] * 20_000), "more than 10000 values"),
    (config(backbone="../../x"), "backbone is '../../x'"),
    (config(backbone="microsoft/resnet-50"), "look for it on the hub"),
    (config(use_pretrained_backbone=True), "would be downloaded"),
    (config(attn_implementation="kernels-community/flash-attn2"), "can be code on the hub"),
    (config(quantization_config={"quant_method": "gptq"}), "quantised weights"),
    (config(hidden_act="../x"), "hidden_act is '../x': it may be a path"),
    (config(id2label={str(n): f"c{n}" for n in range(10**5)}), "config.json has more than 262144 bytes"),
    (config(id2label={str(n): f"c{n}" for n in range(10**4)}), "id2label has 10000 classes: a model has 1 to 255"),
    (config(id2label={"0": "a", "7": "b"}), "id2label has the keys 0, 7: number the classes from 0"),
    (config(id2label={"0": 3}), "number the classes from 0"),
    (config(id2label=[1]), "id2label is a list"),
    (config(id2label={"0": "a", "1": "b"}), r"decode_head.classifier.weight \(2, 16, 1, 1\), in the file \(11, 16, 1"),
    (config(architectures=["SegformerForImageClassification"]), "is not one for semantic segmentation: give Beit"),
    (config(architectures=["BeitForSemanticSegmentation"]), "is of model_type 'segformer', but Beit"),
    (config(architectures=None), "architectures is None: give a list"),
    (config(model_type="beit"), "is of model_type 'beit', but Segformer"),
    (config(hidden_sizes=[8, 16]), "cannot build SegformerForSemanticSegmentation"),
    (text("config.json", "[" * 100_000), "is nested too deeply"),
    (text("config.json", '{"a":' * 50 + "1" + "}" * 50), "nested more than 8 deep"),
    (text("config.json", "no"), "is not valid JSON"),
    (text("config.json", "[1]"), "must be a valid dictionary"),
    (text("config.json", '{"a": 1, "a": 2}'), "the key 'a' occurs twice"),
    (text("config.json", '{"a": 1' + "0" * 10_000 + "}"), "is not valid JSON"),
    (text("preprocessor_config.json", '{"image_mean": [1, "a", 3]}'), r"image_mean is \[1, 'a', 3\]"),
    (text("preprocessor_config.json", '{"rescale_factor": 0}'), "rescale_factor is 0"),
    (text("preprocessor_config.json", '{"rescale_offset": true}'), "rescale_offset, which is not supported"),
    (text("preprocessor_config.json", '{"do_normalize": false}'), "does not say which size.*give --input-height"),
    (text("preprocessor_config.json", '{"do_normalize": false, "do_resize": false, "size": 64}'), "not say which size"),
    (text("preprocessor_config.json", '{"do_normalize": false, "size": 99999}'), "input_height is 99999, must be less"),
    (text("preprocessor_config.json", json.dumps(PREPROCESSOR | {"image_std": [0, 1, 1]})), r"std\[0\] is 0.0, must"),
    (without("preprocessor_config.json"), "does not say how images are normalised .*give --mean and --std"),
    (without("model.safetensors"), "has no weights: it needs model.safetensors, "),
    (without("config.json"), "has no config.json"),
    (pickled_safetensors, "model.safetensors is not a readable safetensors file"),
    (torch_safetensors, "model.safetensors is not a readable safetensors file"),
    (pickled_bin, r"pytorch_model.bin holds more than weights, or is damaged \(it holds posix.system, which could run"),
    (expanded_bin, r"weight claims \(1000000, 1000000\), but has fewer values"),
    (lambda folder: shard(folder, ("../../etc/passwd", "b.safetensors")), "names the file '../../etc/passwd': only"),
    (lambda folder: shard(folder, ("/etc/passwd", "b.safetensors")), "names the file '/etc/passwd'"),
    (lambda folder: shard(folder, ("c.safetensors", "b.safetensors")), "has no readable c.safetensors"),
    (linked("config.json"), "config.json is a link out of the directory: copy the file"),
    (linked("model.safetensors"), "model.safetensors is a link out of the directory"),
    (linked("preprocessor_config.json"), "preprocessor_config.json is a link out of the directory"),
    (tensors(decode_head__classifier__bias=None), "1 missing in it: decode_head.classifier.bias"),
    (tensors(decode_head__classifier__bias=torch.full((11,), float("nan"))), "bias has values that are not finite"),
    (tensors(decode_head__classifier__bias=torch.ones(9)), r"decode_head.classifier.bias \(11,\), in the file \(9,\)"),
]  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make("segformer"), tmp_path_factory.mktemp("hub") / "net")


@pytest.fixture(scope="module")
def converted(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "model.safetensors"
    assert convert(directory, out) == 0
    return out


class Cost:
    """What a block takes: less than a second of the CPU, and a GB."""

    def __enter__(self) -> None:
        self._memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._start = time.process_time()

    def __exit__(self, *_: object) -> None:
        assert time.process_time() - self._start < 1
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._memory < 10**6  # kB


@pytest.mark.parametrize(("spoil", "message"), HOSTILE, ids=[message[:40] for _, message in HOSTILE])
def test_a_hostile_directory_is_refused(
    spoil: Change,
    message: str,
    directory: Path,
    converted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil(Path(shutil.copytree(directory, tmp_path / "net")))
    capsys.readouterr()
    with Cost():
        assert convert(tmp_path / "net", tmp_path / "out.safetensors") == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1 and error.startswith("netwarp: ") and len(error) < 1200 and "\x1b" not in error
    assert "weights_only" not in error and not (tmp_path / "out.safetensors").exists()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_encoder_blocks": 10**6}, "num_encoder_blocks is 1000000: at most"),
        ({"depths": [99_999, 1, 1, 1]}, "the network has more than [0-9]+ parameters"),
        ({"hidden_sizes": [10**9] * 4}, "is 1000000000: at most"),
        ({"hidden_sizes": [99_999] * 4}, "does not fit the network it names|cannot build"),
        ({"model_type": "beit"}, "is of model_type 'beit', but Segformer"),
        ({"image_size": 64}, "has the key 'image_size', which SegformerConfig does not have"),
        ({"_attn_implementation": "a/b"}, "can be code on the hub"),
        ({"attn_implementation": "a/b"}, "can be code on the hub"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "code that is not part of transformers"),
        ({"torch_dtype": "float16"}, "has the key 'torch_dtype': make the file with netwarp convert"),
        ({"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": {}}}}}}}}}}, "nested more than 8 deep"),
    ],
)
def test_a_hostile_header_is_refused(values: dict[str, Any], message: str, converted: Path, tmp_path: Path) -> None:
    with safe_open(converted, framework="pt") as file:
        header = json.loads(file.metadata()["netwarp_ros"])
    header["host_config"] |= values
    path = tmp_path / "hostile.safetensors"
    save_file(load_file(converted), path, metadata={"netwarp_ros": json.dumps(header)})
    with Cost(), pytest.raises(WeightsError, match=message):
        load_model(path)


def test_a_small_file_with_a_large_window_is_refused(tmp_path: Path) -> None:
    """Swin computes a table of 90 ** 4 integers for each layer, which is not in the file."""
    window, out = 90, tmp_path / "model.safetensors"
    assert convert(save(make("upernet-swin"), tmp_path / "net"), out) == 0
    with safe_open(out, framework="pt") as file:
        header = json.loads(file.metadata()["netwarp_ros"])
    header["host_config"]["backbone_config"]["window_size"] = window
    state = {
        key: torch.zeros((2 * window - 1) ** 2, *value.shape[1:], dtype=value.dtype)
        if key.endswith("relative_position_bias_table")
        else value
        for key, value in load_file(out).items()
    }
    save_file(state, path := tmp_path / "hostile.safetensors", metadata={"netwarp_ros": json.dumps(header)})
    assert path.stat().st_size < 10**7
    with Cost(), pytest.raises(WeightsError, match="describes buffers that are not among the weights"):
        load_model(path)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        (lambda host: setattr(host, "forward", None), "cannot be run at 128x128, which the directory's network takes"),
        (lambda host: host.decode_head.classifier.bias.data.add_(1), "gives other scores than the directory's network"),
    ],
)
def test_a_network_that_is_not_the_same_when_it_is_built_again_is_refused(
    replaced: Callable[[Any], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from netwarp_ros.models.others import transformers_files

    built = transformers_files.build_transformers_host

    def build(*arguments: Any) -> Any:
        host = built(*arguments)
        load = host.load_state_dict

        def load_and_replace(state: Any) -> None:
            load(state)
            replaced(host)

        host.load_state_dict = load_and_replace
        return host

    monkeypatch.setattr(transformers_files, "build_transformers_host", build)
    with pytest.raises(WeightsError, match=message):
        convert_directory(save(make("segformer"), tmp_path / "net"), Overrides())


def test_a_header_cannot_name_a_class_that_is_no_network(converted: Path, tmp_path: Path) -> None:
    with safe_open(converted, framework="pt") as file:
        header = json.loads(file.metadata()["netwarp_ros"])
    for name in ("pipeline", "AutoModel", "../x", "__version__"):
        path = tmp_path / "hostile.safetensors"
        metadata = {"netwarp_ros": json.dumps(header | {"host": f"transformers:{name}"})}
        save_file(load_file(converted), path, metadata=metadata)
        with pytest.raises(WeightsError, match="is not one for semantic segmentation"):
            load_model(path)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("net/model.safetensors", [], "is part of a network of transformers: give its directory, .*/net"),
        (
            "net/model.safetensors",
            ["--host", "transformers:X"],
            "is described by its config.json: give the directory net",
        ),
        ("net", ["--host", "pspnet50"], "net says itself which network it holds: leave out --host"),
        ("net", ["--classes", "cityscapes"], "the weights do not fit config.json: 2 of another shape in the file"),
        ("net", ["--input-height", "5000"], "input_height is 5000, must be less than or equal to 4320"),
    ],
)
def test_what_is_wrong_with_a_command_is_named(
    source: str,
    options: list[str],
    message: str,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(directory.parent)
    assert convert(Path(source), tmp_path / "out.safetensors", *options) == 2
    assert re.search(message, error := capsys.readouterr().err), error


def test_a_height_that_a_fixed_network_cannot_take_is_refused(tmp_path: Path) -> None:
    folder = save(make("eomt"), tmp_path / "net")
    with pytest.raises(ValueError, match="input height is 65, but the network takes 64x64 only: give --input-"):
        convert_directory(folder, Overrides(input_height=65))
    assert convert_directory(folder, Overrides(input_height=64)).spec.input_size == InputSize(fixed=(64, 64))


def test_a_network_of_a_billion_pixels_is_not_run(tmp_path: Path) -> None:
    folder = save(make("dpt"), tmp_path / "net", PREPROCESSOR | {"size": {"height": 31_623, "width": 31_623}})
    shutil.copytree(folder, other := tmp_path / "other")
    assert convert_directory(folder, Overrides()).spec.input_size.fixed == (32, 32)
    change(other, image_size=[31_623, 31_623])
    with Cost(), pytest.raises(WeightsError, match="describes a network of|does not fit|do not fit|cannot build"):
        convert_directory(other, Overrides())
