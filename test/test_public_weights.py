# SPDX-License-Identifier: Apache-2.0
"""Public weights: random weights under a public network's names give the same logits after loading."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from netwarp_ros import cli
from netwarp_ros.models import WeightsError, load_model
from netwarp_ros.models.hosts import (
    HOSTS,
    DDRNet23Slim,
    Dilation8,
    Dilation10,
    PlayData,
    PSPNet50,
    PSPNet101,
    SwiftNetLite0,
    SwiftNetLite2,
)
from netwarp_ros.models.others.public_weights import load_public_weights, read_checkpoint

State = dict[str, Tensor]


def random_host(kind: Callable[..., nn.Module], seed: int, num_classes: int = 5, **arguments: Any) -> nn.Module:
    """Return a narrow host with random weights, biases and statistics."""
    torch.manual_seed(seed)
    host = kind(num_classes, width=2, **arguments).eval()
    for name, value in host.state_dict().items():
        if value.is_floating_point() and not name.endswith("weight"):
            value.uniform_(0.1, 1)
    return host


def rename(state: State, rules: list[tuple[str, str | Callable[[re.Match[str]], str]]]) -> State:
    """Rename each tensor by the first rule whose pattern its name starts with."""

    def renamed(name: str) -> str:
        for pattern, replacement in rules:
            if re.match(pattern, name):
                return re.sub(f"^{pattern}", replacement, name)
        return name

    return {renamed(name): value.clone() for name, value in state.items()}


def _block(match: re.Match[str]) -> str:
    stage, block, convolution, part = map(int, match.groups())
    return f"layer{stage - 1}.{block - 1}.{('conv', 'bn')[part]}{convolution // 2 + 1}."


RESNET: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"conv(\d)_(\d+)\.body\.(\d)\.(\d)\.", _block),
    (r"conv(\d)_(\d+)\.shortcut\.", lambda m: f"layer{int(m[1]) - 1}.{int(m[2]) - 1}.downsample."),
]
SEMSEG: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"stem\.(\d)\.(\d)\.", lambda m: f"layer0.{int(m[1]) // 2 * 3 + int(m[2])}."),
    *RESNET,
    (r"pyramid\.(\d)\.(\d)\.", lambda m: f"ppm.features.{m[1]}.{int(m[2]) + 1}."),
    (r"conv5_4\.", "cls."),
    (r"classifier\.", "cls.4."),
    (r"auxiliary\.0\.", "aux."),
    (r"auxiliary\.3\.", "aux.4."),
]


def logits_of(host: nn.Module, frame: Tensor) -> Tensor:
    with torch.inference_mode():
        return host(frame)


@pytest.fixture
def frame() -> Tensor:
    return torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(1))


# PSPNet


def test_renamed_tensors_have_semsegs_names() -> None:
    names = rename(random_host(PSPNet101, 0, auxiliary=True).state_dict(), SEMSEG)
    assert {
        "layer0.0.weight", "layer0.1.running_var", "layer0.3.weight", "layer0.7.bias",
        "layer1.0.downsample.0.weight", "layer1.0.conv1.weight", "layer3.22.bn3.running_mean", "layer4.2.conv2.weight",
        "ppm.features.0.1.weight", "ppm.features.3.2.bias",
        "cls.0.weight", "cls.1.bias", "cls.4.bias", "aux.0.weight", "aux.1.running_var", "aux.4.weight",
    } <= names.keys()  # fmt: skip


@pytest.mark.parametrize("kind", [PSPNet50, PSPNet101])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"epoch": 200, "state_dict": {f"module.{k}": v for k, v in state.items()}, "optimizer": {}},
        lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}, "hyper_parameters": {"lr": 0.01}},
        lambda state: {"model": {"state_dict": {f"module.model.{k}": v for k, v in state.items()}}},
    ],
    ids=["bare", "DataParallel", "Lightning", "nested"],
)
def test_semsegs_pspnet_gives_the_same_logits(
    kind: type[PSPNet101], wrap: Callable[[State], dict[str, Any]], frame: Tensor
) -> None:
    trained, fresh = random_host(kind, 0, auxiliary=True), random_host(kind, 1, auxiliary=True)
    result = load_public_weights(fresh, wrap(rename(trained.state_dict(), SEMSEG)))
    with torch.inference_mode():
        for expected, logits in zip(trained(frame, auxiliary=True), fresh(frame, auxiliary=True), strict=True):
            assert torch.equal(logits, expected)
    wanted = [name for name in trained.state_dict() if not name.endswith("num_batches_tracked")]
    assert sorted(result.loaded) == sorted(wanted)
    assert result.mismatched == result.missing == result.unused == ()
    assert str(result) == f"{len(wanted)} of the network's {len(wanted)} tensors loaded"


def test_tensors_that_the_host_lacks_are_unused(frame: Tensor) -> None:
    trained, fresh = random_host(PSPNet50, 0, auxiliary=True), random_host(PSPNet50, 1)
    result = load_public_weights(fresh, rename(trained.state_dict(), SEMSEG))
    assert torch.equal(logits_of(fresh, frame), logits_of(trained, frame))
    assert result.missing == () and len(result.unused) == 7
    assert all(name.startswith("aux.") for name in result.unused)
    assert str(result).splitlines()[1].startswith("7 unused in the file: aux.0.weight, aux.1.weight, ")
    assert str(result).endswith(" and 1 more")


def test_classifier_of_another_number_of_classes_is_named_and_not_loaded() -> None:
    trained, fresh = random_host(PSPNet50, 0, num_classes=7), random_host(PSPNet50, 1)
    before = fresh.classifier.weight.clone()
    result = load_public_weights(fresh, rename(trained.state_dict(), SEMSEG))
    assert result.mismatched == (
        "classifier.weight (5, 16, 1, 1), in the file cls.4.weight (7, 16, 1, 1)",
        "classifier.bias (5,), in the file cls.4.bias (7,)",
    )
    assert torch.equal(fresh.classifier.weight, before)
    assert torch.equal(fresh.conv5_4[0].weight, trained.conv5_4[0].weight)
    assert "2 of another shape in the file: classifier.weight (5" in str(result)


def test_torchvisions_resnet_loads_all_but_its_stem() -> None:
    trained, fresh = random_host(PSPNet50, 0), random_host(PSPNet50, 1)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    state = {k: v for k, v in rename(trained.state_dict(), RESNET).items() if k.startswith("layer")}
    state |= {"conv1.weight": torch.ones(2, 3, 7, 7), "bn1.weight": torch.full((2,), 9.0), "bn1.bias": torch.ones(2)}
    for name in ("layer1.0.conv1.weight", "layer1.0.downsample.0.weight"):
        state[name] = state[name][:, :2]
    state |= {"fc.weight": torch.ones(1000, 64), "fc.bias": torch.ones(1000)}
    result = load_public_weights(fresh, state)
    after = fresh.state_dict()
    assert [text.split()[0] for text in result.mismatched] == [
        "conv2_1.body.0.0.weight",
        "conv2_1.shortcut.0.weight",
        "stem.0.0.weight",
    ]
    # A normalisation is of use only with the convolution that it was trained with.
    assert {"fc.weight", "bn1.weight", "layer1.0.bn1.running_var", "layer1.0.downsample.1.bias"} <= set(result.unused)
    assert {"stem.0.1.weight", "conv2_1.body.0.1.running_var", "conv5_4.0.weight", "classifier.bias"} <= set(
        result.missing
    )
    for name in result.loaded:
        assert torch.equal(after[name], trained.state_dict()[name]), name
    for name in result.missing:
        assert torch.equal(after[name], before[name]), name
    assert "conv4_6.body.4.1.running_mean" in result.loaded and "conv2_1.body.2.0.weight" in result.loaded


def test_semsegs_resnet_loads_its_stem_too() -> None:
    trained, fresh = random_host(PSPNet50, 0), random_host(PSPNet50, 1)
    stem = (r"stem\.(\d)\.(\d)\.", lambda m: f"{('conv', 'bn')[int(m[2])]}{int(m[1]) // 2 + 1}.")
    result = load_public_weights(fresh, rename(trained.state_dict(), [stem, *RESNET]))
    assert torch.equal(fresh.stem[4][0].weight, trained.stem[4][0].weight)
    assert {name.split(".")[0] for name in result.missing} == {"pyramid", "conv5_4", "classifier"}


# The VGG hosts


@pytest.mark.parametrize("kind", [PlayData, Dilation8, Dilation10])
@pytest.mark.parametrize(("classifier", "context"), [("final", "ctx_"), ("fc-final", "ct_"), ("fc8", "ctx_")])
def test_caffes_names_give_the_same_logits(kind: type[nn.Module], classifier: str, context: str, frame: Tensor) -> None:
    trained, fresh = random_host(kind, 0), random_host(kind, 1)
    state = rename(trained.state_dict(), [(r"fc8\.", f"{classifier}."), ("ctx_", context)])
    result = load_public_weights(fresh, state | {"ctx_upsample.weight": torch.ones(5, 1, 16, 16)})
    assert torch.equal(logits_of(fresh, frame), logits_of(trained, frame))
    assert result.missing == result.mismatched == () and result.unused == ("ctx_upsample.weight",)


def test_matrices_of_torchvisions_vgg16_become_convolutions() -> None:
    trained, fresh = random_host(PlayData, 0), random_host(PlayData, 1)
    names = [f"conv{stage}_{n}" for stage, count in enumerate((2, 2, 3, 3, 3), start=1) for n in range(1, count + 1)]
    positions = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    theirs = {name: f"features.{position}" for name, position in zip(names, positions, strict=True)}
    theirs |= {"fc6": "classifier.0", "fc7": "classifier.3"}
    ours = trained.state_dict()
    state = {f"{there}.{part}": ours[f"{here}.{part}"] for here, there in theirs.items() for part in ("weight", "bias")}
    for name in ("classifier.0.weight", "classifier.3.weight"):
        state[name] = state[name].flatten(1)
    state |= {"classifier.6.weight": torch.ones(1000, 128), "classifier.6.bias": torch.ones(1000)}
    assert state["classifier.0.weight"].shape == (128, 16 * 49)
    result = load_public_weights(fresh, state)
    assert result.missing == ("fc8.weight", "fc8.bias")
    assert result.unused == ("classifier.6.weight", "classifier.6.bias")
    for name in result.loaded:
        assert torch.equal(fresh.state_dict()[name], ours[name])
    window = torch.randn(1, 16, 7, 7)
    linear = F.linear(window.flatten(1), state["classifier.0.weight"], state["classifier.0.bias"])
    convolution = F.conv2d(window, fresh.fc6.weight, fresh.fc6.bias)
    torch.testing.assert_close(convolution.flatten(1), linear)


@pytest.mark.parametrize(("kind", "count"), [(SwiftNetLite0, 16), (SwiftNetLite2, 21)])
def test_efficientnet_lite_loads_into_the_backbone(
    kind: type[SwiftNetLite0] | type[SwiftNetLite2], count: int, frame: Tensor
) -> None:
    torch.manual_seed(0)
    theirs, ours = kind(5).eval(), kind(5).eval()
    blocks = [f"{stage}.{block}" for stage, blocks in enumerate(theirs.backbone.stages) for block in range(len(blocks))]
    assert len(blocks) == count
    parts = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1")}
    parts |= {"project": ("_project_conv", "_bn2")}
    rules: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
        (r"stem\.0\.", "_conv_stem."),
        (r"stem\.1\.", "_bn0."),
        (r"stages\.(\d\.\d)\.(\w+)\.(\d)\.", lambda m: f"_blocks.{blocks.index(m[1])}.{parts[m[2]][int(m[3])]}."),
    ]
    state = rename(theirs.backbone.state_dict(), rules) | {"_fc.weight": torch.zeros(1000, 1280)}
    assert f"_blocks.{count - 1}._depthwise_conv.weight" in state and "_blocks.0._expand_conv.weight" not in state
    result = load_public_weights(ours, state)
    assert result.unused == ("_fc.weight",) and not result.mismatched
    assert not any(name.startswith("backbone.") for name in result.missing)
    for mine, original in zip(ours.backbone(frame), theirs.backbone(frame), strict=True):
        assert torch.equal(mine, original)


def test_timms_efficientnet_lite_loads_into_the_backbone(frame: Tensor) -> None:
    torch.manual_seed(0)
    theirs, ours = SwiftNetLite0(5).eval(), SwiftNetLite0(5).eval()
    parts = {"expand": ("conv_pw", "bn1"), "depthwise": ("conv_dw", "bn2"), "project": ("conv_pwl", "bn3")}
    first = {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}
    rules: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
        (r"stem\.0\.", "conv_stem."),
        (r"stem\.1\.", "bn1."),
        (r"stages\.(0\.0)\.(\w+)\.(\d)\.", lambda m: f"blocks.{m[1]}.{first[m[2]][int(m[3])]}."),
        (r"stages\.(\d\.\d)\.(\w+)\.(\d)\.", lambda m: f"blocks.{m[1]}.{parts[m[2]][int(m[3])]}."),
    ]
    state = rename(theirs.backbone.state_dict(), rules) | {"classifier.weight": torch.zeros(1000, 1280)}
    state |= {"conv_head.weight": torch.zeros(1280, 320, 1, 1), "bn2.weight": torch.zeros(1280)}
    assert {"conv_stem.weight", "bn1.bias", "blocks.0.0.conv_dw.weight", "blocks.0.0.conv_pw.weight"} <= state.keys()
    assert "blocks.6.0.conv_pwl.weight" in state and "blocks.4.2.bn3.running_var" in state
    result = load_public_weights(ours, state)
    assert sorted(result.unused) == ["bn2.weight", "classifier.weight", "conv_head.weight"] and not result.mismatched
    assert not any(name.startswith("backbone.") for name in result.missing)
    for mine, original in zip(ours.backbone(frame), theirs.backbone(frame), strict=True):
        assert torch.equal(mine, original)


# DDRNet


def _ddrnet_rules(style: str) -> list[tuple[str, str | Callable[[re.Match[str]], str]]]:
    authors = style == "authors"
    stages = {"layer1": "layer1", "layer2": "layer2", "low3": "layer3", "high3": "layer3_", "high4": "layer4_"}
    if not authors:
        stages = {"layer1": "backbone.stem.2", "layer2": "backbone.stem.4", "low3": "backbone.context_branch_layers.0",
                  "high3": "backbone.spatial_branch_layers.0", "high4": "backbone.spatial_branch_layers.1"}  # fmt: skip

    def part(convolution: str, kind: str) -> str:
        name, number = ("conv", "bn")[int(kind)], int(convolution) // 2 + 1
        return f"{name}{number}." if authors else f"conv{number}.{name}."

    def fusion(match: re.Match[str]) -> str:
        down = match[1] == "high_to_low3"
        if authors:
            return f"{'down3' if down else 'compression3'}.{match[2]}."
        return f"backbone.{'down_1' if down else 'compression_1'}.{('conv', 'bn')[int(match[2])]}."

    def stem(match: re.Match[str]) -> str:
        number, kind = int(match[1]) // 2, int(match[2])
        return f"conv1.{3 * number + kind}." if authors else f"backbone.stem.{number}.{('conv', 'bn')[kind]}."

    fifth = "layer5_.0." if authors else "backbone.spatial_branch_layers.2.0."
    return [
        (r"stem\.(\d)\.(\d)\.", stem),
        (r"(high_to_low3|low_to_high3)\.(\d)\.", fusion),
        (r"(layer1|layer2|low3|high3|high4)\.(\d)\.body\.(\d)\.(\d)\.",
         lambda m: f"{stages[m[1]]}.{int(m[2]) // 2}.{part(m[3], m[4])}"),
        (r"(layer1|layer2|low3|high3|high4)\.(\d)\.shortcut\.",
         lambda m: f"{stages[m[1]]}.{int(m[2]) // 2}.downsample."),
        (r"high5\.body\.(\d)\.(\d)\.", lambda m: f"{fifth}{part(m[1], m[2])}"),
        (r"high5\.shortcut\.", f"{fifth}downsample."),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("style", "names"),
    [
        ("authors", {"conv1.0.weight", "conv1.4.bias", "layer1.1.bn2.weight", "layer2.0.downsample.0.weight",
                     "layer3_.0.conv1.weight", "layer5_.0.conv3.weight", "layer5_.0.downsample.1.bias",
                     "down3.0.weight", "compression3.1.running_var"}),
        ("mmsegmentation", {"backbone.stem.0.conv.weight", "backbone.stem.1.bn.bias",
                            "backbone.stem.2.1.conv2.bn.weight", "backbone.stem.4.0.downsample.0.weight",
                            "backbone.down_1.conv.weight",
                            "backbone.spatial_branch_layers.0.0.conv1.conv.weight",
                            "backbone.spatial_branch_layers.2.0.conv3.conv.weight",
                            "backbone.context_branch_layers.0.0.downsample.1.bias",
                            "backbone.compression_1.bn.running_var"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("bias", [False, True])
def test_ddrnets_layers_that_equal_the_papers_are_loaded(
    style: str, names: set[str], bias: bool, frame: Tensor
) -> None:
    torch.manual_seed(0)
    trained, fresh = DDRNet23Slim(5).eval(), DDRNet23Slim(7).eval()
    for name, value in trained.state_dict().items():
        if value.is_floating_point() and not name.endswith("weight"):
            value.uniform_(0.1, 1)
    kept = ("stem.", "layer1.", "layer2.", "low3.", "high3.", "high4.", "high5.", "high_to_low3.", "low_to_high3.")
    part = {name: value for name, value in trained.state_dict().items() if name.startswith(kept)}
    state = rename(part, _ddrnet_rules(style))
    assert names <= state.keys() and len(state) == len(part)
    if bias:  # the authors' first convolutions have one, which their normalisation takes away
        first, mean = ("conv1.0", "conv1.1") if style == "authors" else ("backbone.stem.0.conv", "backbone.stem.0.bn")
        state[f"{first}.bias"] = torch.rand(32)
        state[f"{mean}.running_mean"] += state[f"{first}.bias"]
    state |= {"layer4.0.conv1.weight": torch.ones(256, 128, 3, 3)}
    result = load_public_weights(fresh, state)
    assert result.unused == ("layer4.0.conv1.weight",) and not result.mismatched
    wanted = {name for name in part if not name.endswith("num_batches_tracked")}
    assert set(result.loaded) == wanted and not wanted & set(result.missing)
    with torch.inference_mode():
        theirs, ours = (host.layer2(host.layer1(host.stem(frame))) for host in (trained, fresh))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
        ours, theirs = (host.high5(host.high4(host.high3(theirs))) for host in (fresh, trained))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", [DDRNet23Slim, SwiftNetLite0, SwiftNetLite2])
def test_weights_under_the_hosts_own_names_are_loaded(kind: type[nn.Module], frame: Tensor) -> None:
    torch.manual_seed(0)
    trained, fresh = kind(5).eval(), kind(5).eval()
    result = load_public_weights(fresh, {f"module.{name}": value for name, value in trained.state_dict().items()})
    assert not result.missing and not result.unused and torch.equal(logits_of(fresh, frame), logits_of(trained, frame))


@pytest.mark.parametrize("kind", [PlayData, PSPNet50])
def test_weights_for_bgr_are_converted_to_rgb(kind: type[nn.Module], frame: Tensor) -> None:
    trained, fresh = random_host(kind, 0), random_host(kind, 1)
    load_public_weights(fresh, rename(trained.state_dict(), SEMSEG), bgr=True)
    trained, fresh, frame = trained.double(), fresh.double(), frame.double()
    assert not torch.allclose(logits_of(fresh, frame), logits_of(trained, frame))
    torch.testing.assert_close(logits_of(fresh, frame), logits_of(trained, frame.flip(1)))


def test_half_precision_and_files_without_batch_counts(frame: Tensor) -> None:
    trained, fresh = random_host(PSPNet50, 0), random_host(PSPNet50, 1)
    state = {k: v.half() for k, v in rename(trained.state_dict(), SEMSEG).items() if not k.endswith("batches_tracked")}
    result = load_public_weights(fresh, state)
    assert result.missing == () and logits_of(fresh, frame).dtype == torch.float32
    torch.testing.assert_close(fresh.stem[0][0].weight, trained.stem[0][0].weight, rtol=1e-3, atol=1e-3)


# Files and the command line


def test_files_of_both_kinds_are_read(tmp_path: Path) -> None:
    state = {"conv1_1.weight": torch.rand(2, 3, 3, 3)}
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "a.pth")
    assert torch.equal(read_checkpoint(tmp_path / "a.safetensors")["conv1_1.weight"], state["conv1_1.weight"])
    assert torch.equal(read_checkpoint(tmp_path / "a.pth")["state_dict"]["conv1_1.weight"], state["conv1_1.weight"])


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"no")
    (tmp_path / "a.pth").write_bytes(b"no")
    torch.save(nn.Conv2d(3, 2, 3), tmp_path / "module.pth")
    for name, message in (
        ("absent.pth", "no weights file"),
        ("a.safetensors", "not a readable safetensors file"),
        ("a.pth", "holds more than weights, or is damaged"),
        ("module.pth", r"save the network's state_dict\(\)"),
    ):
        with pytest.raises(WeightsError, match=message):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("kind", "state", "message"),
    [
        (
            PSPNet50,
            {"a.weight": torch.ones(1)},
            r"no tensor of the file fits PSPNet50, .*semseg's PSPNet \(layer0.*torchvision's ResNet",
        ),
        (PSPNet50, {"cls.4.bias": torch.ones(9)}, r"1 of another shape in the file: classifier.bias \(5,\)"),
        (
            PlayData,
            {"a.weight": torch.ones(1)},
            r"no tensor of the file fits PlayData, .*Caffe releases.*torchvision's VGG",
        ),
        (PlayData, {"state_dict": {"epoch": 3}}, "the checkpoint is a dict without tensors: give a state dict"),
        (PlayData, [1, 2], "the checkpoint is a list without tensors"),
    ],
)
def test_checkpoints_without_a_fitting_tensor_are_refused(kind: type[nn.Module], state: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        load_public_weights(random_host(kind, 0), state)


def test_a_host_without_a_table_is_refused() -> None:
    with pytest.raises(WeightsError, match="no public weights are known for Conv2d"):
        load_public_weights(nn.Conv2d(3, 2, 3), {"conv1.weight": torch.ones(1)})


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def test_convert_writes_a_model_and_prints_what_was_loaded(
    tmp_path: Path, frame: Tensor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(HOSTS, "pspnet50", partial(PSPNet50, width=2))
    trained = random_host(PSPNet50, 0, num_classes=19, auxiliary=True)
    torch.save({"state_dict": rename(trained.state_dict(), SEMSEG)}, tmp_path / "a.pth")
    out = tmp_path / "new" / "pspnet.safetensors"
    arguments = ["convert", tmp_path / "a.pth", "--host", "pspnet50", "--classes", "cityscapes", "-o", out]
    assert run(*arguments, "--input-height", 713) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(r"(\d+) of the network's \1 tensors loaded 7 unused in the file: aux.0.weight", text)
    model = load_model(out)
    assert (model.spec.classes.name, model.spec.input_height) == ("cityscapes", 713)
    assert model.spec.mean == pytest.approx((0.485, 0.456, 0.406))
    assert torch.equal(logits_of(model.network.host, frame), logits_of(trained, frame))


def test_convert_accepts_caffes_pixel_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HOSTS, "dilation8", partial(Dilation8, width=2))
    trained = random_host(Dilation8, 0, num_classes=11)
    save_file(rename(trained.state_dict(), [(r"fc8\.", "final.")]), tmp_path / "a.safetensors")
    out, mean = tmp_path / "dilation.safetensors", (110.7, 108.8, 105.4)
    arguments = ["convert", tmp_path / "a.safetensors", "--host", "dilation8", "--classes", "camvid", "-o", out]
    assert run(*arguments, "--caffe-mean", *mean) == 0
    model = load_model(out)
    bgr = torch.randint(0, 256, (1, 3, 40, 48)).float()
    rgb = bgr.flip(1) / 255
    normalised = (rgb - torch.tensor(model.spec.mean).view(1, 3, 1, 1)) / torch.tensor(model.spec.std).view(1, 3, 1, 1)
    expected = logits_of(trained, bgr - torch.tensor(mean).view(1, 3, 1, 1))
    torch.testing.assert_close(logits_of(model.network.host, normalised), expected, rtol=1e-3, atol=1e-2)
