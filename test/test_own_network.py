# SPDX-License-Identifier: Apache-2.0
"""docs/own_network.md, run as it is written: from a Hugging Face directory, and from an `nn.Module`, to masks."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from transformers_networks import make, transformers

from netwarp_ros import cli
from netwarp_ros.classes import load_classes
from netwarp_ros.models import class_scores, load_model, read_spec
from netwarp_ros.models.weights import stored_type
from netwarp_ros.segmenter import Segmenter

PAGE = (Path(__file__).parent.parent / "docs" / "own_network.md").read_text(encoding="utf-8")
CAMVID = load_classes("camvid").names
FRAMES = 9


def code(language: str) -> list[str]:
    """Return the blocks of the page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def commands(block: int) -> list[list[str]]:
    """Return the commands of one of the page's console blocks, each as its arguments."""
    return [shlex.split(line.removeprefix("$ ")) for line in code("console")[block].splitlines()]


def run(command: list[str], *more: str) -> None:
    assert command[0] == "netwarp"
    with pytest.raises(SystemExit) as ended:
        cli.main([*command[1:], *more])
    assert not ended.value.code


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the page's first three commands in an empty folder."""
    folder = tmp_path_factory.mktemp("own")
    host = make("segformer")
    host.config.id2label = dict(enumerate(CAMVID))
    host.config.label2id = {name: index for index, name in enumerate(CAMVID)}
    host.save_pretrained(folder / "segformer")
    processor = transformers.SegformerImageProcessorPil(size={"height": 48, "width": 64})
    processor.save_pretrained(folder / "segformer")
    (folder / "drive").mkdir()
    texture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8), (0, 0), 2)
    for index in range(FRAMES):
        cv2.imwrite(str(folder / "drive" / f"f{index}.png"), np.roll(texture, 2 * index, axis=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        convert, insert, adapt = commands(0)[:3]
        run(convert)
        run(insert)
        run(adapt, "--steps", "2")
    return folder


def test_convert_reads_what_the_directory_says(directory: Path) -> None:
    spec = read_spec(directory / "image.safetensors")
    assert spec.host == "transformers:SegformerForSemanticSegmentation"
    assert spec.classes.names == CAMVID and spec.input_height == 48 and spec.netwarp is None
    assert spec.mean == (0.485, 0.456, 0.406) and spec.host_config["depths"] == [1, 1, 1, 1]


@torch.no_grad()
def test_masks_are_those_of_transformers_until_netwarp_is_trained(directory: Path) -> None:
    model = load_model(directory / "untrained.safetensors")
    assert model.spec.netwarp is not None and model.spec.netwarp.layers == ("decode_head.batch_norm",)
    assert stored_type(directory / "untrained.safetensors") == torch.float32
    stream = Segmenter(model, engine="torch", precision="float32").stream()
    processor = transformers.SegformerImageProcessorPil.from_pretrained(directory / "segformer")
    host = transformers.SegformerForSemanticSegmentation.from_pretrained(directory / "segformer")
    for number, path in enumerate(sorted((directory / "drive").glob("*.png"))):
        image = cv2.imread(str(path))
        mask = stream.segment(image, number * 50_000_000).mask
        pixels = processor(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), return_tensors="pt")
        output = host(**pixels)
        (expected,) = processor.post_process_semantic_segmentation(output, [image.shape[:2]])
        np.testing.assert_array_equal(mask, expected.numpy())
        assert len(np.unique(mask)) > 1


def test_adapt_trains_netwarp_alone(directory: Path) -> None:
    before, after = (load_model(directory / f"{name}.safetensors").network for name in ("untrained", "video"))
    for (name, one), other in zip(before.state_dict().items(), after.state_dict().values(), strict=True):
        assert torch.equal(one, other) or not name.startswith("host."), name
    assert after.netwarps[0].w2.abs().max() > 0


def test_segment_writes_the_masks(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory)
    run(commands(0)[3])
    masks = sorted((directory / "out" / "masks").glob("*.png"))
    assert [path.name for path in masks] == [f"f{index}.png" for index in range(FRAMES)]
    assert cv2.imread(str(masks[0]), cv2.IMREAD_UNCHANGED).shape == (48, 64)


@pytest.mark.ros
def test_the_node_takes_the_file(directory: Path) -> None:
    """The last command of the page starts the node with this parameter."""
    from graph import image_message, moving_images, node_command, open_graph, own_domain, running
    from sensor_msgs.msg import Image

    (name,) = [argument.partition(":=")[2] for argument in commands(0)[4] if argument.startswith("model:=")]
    model = name.replace("$PWD", str(directory))
    with own_domain(), open_graph() as graph, running(node_command("segment_node", model=model), directory / "log"):
        lifecycle = graph.lifecycle()
        lifecycle.configure()
        lifecycle.activate()
        masks = graph.subscribe(Image, "/camera/segmentation/mask")
        publisher = graph.publisher("/camera/image_raw", Image)
        message = image_message(moving_images(1)[0], 1)
        publisher.publish(message)
        graph.until(lambda: masks, "mask")
        assert masks[0].header == message.header
        assert (masks[0].height, masks[0].width, masks[0].encoding) == (message.height, message.width, "mono8")


def test_layers_can_be_told_as_yaml(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory)
    layers = "{segformer.stages.1.patch_embeddings: {member: 0}}"
    run(["netwarp", "insert", "image.safetensors", "--layers", layers, "-o", "told.safetensors"])
    spec = read_spec("told.safetensors").netwarp
    assert spec is not None and [*spec.layers] == ["segformer.stages.1.patch_embeddings"]
    frame = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        output, memory = load_model("told.safetensors").network(frame)
    assert class_scores(output).shape == (1, 11, 12, 16)
    assert memory.representations["segformer.stages.1.patch_embeddings"].shape == (1, 16, 6, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["untrained.safetensors"], "untrained.safetensors already has NetWarp behind decode_head.batch_norm"),
        (["image.safetensors", "--layers", "decode_head.norm"], "did you mean 'decode_head.batch_norm'"),
        (["image.safetensors", "--layers", "{segformer: {member: 7}}"], "'segformer' gives .*, which has no tensor 7"),
        (
            ["image.safetensors", "--layers", "{a: {grid: 1}}"],
            r"layers.*a has the unknown key grid: give member, layout",
        ),
        (["image.safetensors", "--flow-grid", "half"], "flow_grid is 'half', must be"),
    ],
)
def test_wrong_insertions_are_named(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(directory)
    with pytest.raises(SystemExit):
        cli.main(["insert", *arguments, "-o", "new.safetensors"])
    assert re.search(message, capsys.readouterr().err)
    assert not Path("new.safetensors").exists()


def test_a_network_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text(code("python")[0])
    declared = tomllib.loads(code("toml")[0])["project"]["entry-points"]
    groups = "".join(f"[{group}]\n{name} = {value}\n" for group in declared for name, value in declared[group].items())
    installed = tmp_path / "my_networks-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my-networks\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(groups)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    torch.manual_seed(0)
    network = importlib.import_module("my_networks").Small(11)
    torch.save(network.state_dict(), "small.pt")
    run(commands(2)[0])
    run(["netwarp", "insert", "image.safetensors", "--layers", "features", "-o", "untrained.safetensors"])
    video_cnn = load_model("untrained.safetensors").network
    frame = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        assert torch.equal(video_cnn(frame)[0], network(frame))
    del sys.modules["my_networks"]


@pytest.mark.timeout(600)  # for a transformer's biases, NNCF takes 90 s on a slow core
@pytest.mark.parametrize(
    "command",
    [
        "evaluate --images drive --labels labels --model video.safetensors --engine torch --json scores.json",
        "table models --images drive --labels labels --model video.safetensors --engine torch --json table.json",
        "export video.safetensors --format openvino -o exported",
        "quantize video.safetensors --images drive -o out-int8.safetensors",
        "benchmark model --model video.safetensors --engine torch --frames 2 --passes 1 --json benchmark.json",
    ],
    ids=lambda command: command.split()[0],
)
def test_every_command_takes_the_file(directory: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(directory)
    (directory / "labels").mkdir(exist_ok=True)
    for path in (directory / "drive").glob("*.png"):
        cv2.imwrite(f"labels/{path.name}", np.full((48, 64), 5, np.uint8))
    run(["netwarp", *command.split()])
    target = Path(command.split()[-1])
    assert target.stat().st_size > 0
    if target.name == "scores.json":
        assert json.loads(target.read_text())["frames"] == FRAMES
    if command.startswith("export"):
        assert {"first.xml", "step.xml", "model.json"} <= {path.name for path in target.iterdir()}


def test_training_takes_the_file(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory)
    recipe = {
        "model": {"initial": "untrained.safetensors", "train_host": False},
        "data": [{"kind": "street", "seeds": 1, "frames": 2}],
        "clip": {"length": 2},
        "augment": {"height": 48, "width": 64},
        "optimiser": {"kind": "adam", "steps": 2, "rate": 0.01, "warm_up": 0},
        "output": "trained", "precision": "float32", "workers": 0,
    }  # fmt: skip
    Path("recipe.yaml").write_text(json.dumps(recipe))
    run(["netwarp", "train", "recipe.yaml"])
    trained_network = load_model("trained/model.safetensors").network
    assert trained_network.netwarps[0].w2.abs().max() > 0
