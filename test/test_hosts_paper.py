# SPDX-License-Identifier: Apache-2.0
"""The paper's hosts: published parameter counts, layers under the paper's names, and NetWarp at each layer.

Parameters and shapes are checked on the full networks, built on the meta device, which allocates nothing. Values are
computed with narrow networks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netwarp_ros.classes import load_classes
from netwarp_ros.models import ModelSpec, NetWarpSpec, augment, build, load_model, save_model
from netwarp_ros.models.hosts import Dilation8, Dilation10, PlayData, PSPNet50, PSPNet101
from netwarp_ros.models.hosts.dilation import _mirrored
from netwarp_ros.models.hosts.vgg import DilatedVGG16

CONTEXT = [f"ctx_{name}" for name in ("conv1_1", "conv1_2", "conv2_1", "conv3_1", "conv4_1", "conv5_1", "fc1", "final")]
LAYERS: dict[type[nn.Module], dict[str, tuple[int, int]]] = {  # insertion layers as name: (stride, channels)
    PlayData: {
        "conv1_2": (1, 64),
        "conv2_2": (2, 128),
        "conv3_3": (4, 256),
        "conv4_3": (8, 512),
        "conv5_3": (8, 512),
        "fc6": (8, 4096),
        "fc7": (8, 4096),
        "fc8": (8, 11),
    },
    Dilation8: dict.fromkeys(CONTEXT, (8, 11)),
    Dilation10: dict.fromkeys([*CONTEXT[:6], "ctx_conv6_1", "ctx_conv7_1", *CONTEXT[6:]], (8, 11)),
    PSPNet101: {"conv4_23": (8, 1024), "conv5_4": (8, 512)},
    PSPNet50: {"conv4_6": (8, 1024), "conv5_4": (8, 512)},
}
KINDS = list(LAYERS)
INSERTIONS = [(kind, name) for kind, layers in LAYERS.items() for name in layers]

# Parameter counts of torchvision's ImageNet classifiers.
VGG16, VGG16_FC8 = 138_357_544, 4096 * 1000 + 1000
RESNET = {PSPNet50: 25_557_032, PSPNet101: 44_549_160}
RESNET_STEM_AND_FC = 64 * 3 * 49 + 2 * 64 + 2048 * 1000 + 1000


def tiny(kind: type[nn.Module], num_classes: int = 5, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return kind(num_classes, width=2, **arguments).eval()


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("classes", [11, 19])
def test_the_vgg_hosts_have_vgg16s_parameters_and_their_classifiers(classes: int) -> None:
    front_end = VGG16 - VGG16_FC8 + 4096 * classes + classes
    context = classes * classes * 9 + classes
    last = classes * classes + classes
    with torch.device("meta"):
        assert count(PlayData(classes)) == front_end
        assert count(Dilation8(classes)) == front_end + 7 * context + last
        assert count(Dilation10(classes)) == front_end + 9 * context + last
    if classes == 11:
        assert front_end == 134_305_611  # the paper: 134.3 M


@pytest.mark.parametrize(("kind", "expected"), [(PSPNet50, 46_715_347), (PSPNet101, 65_707_475)])
def test_pspnet_has_resnets_parameters_and_its_stem_and_head(kind: type[PSPNet101], expected: int) -> None:
    stem = 9 * (3 * 64 + 64 * 64 + 64 * 128) + 2 * (64 + 64 + 128)
    first_block = 64 * 64 + 64 * 256  # reads 128 channels from this stem, not 64
    pyramid = 4 * (2048 * 512 + 2 * 512)
    head = 9 * 4096 * 512 + 2 * 512 + 512 * 19 + 19
    assert RESNET[kind] - RESNET_STEM_AND_FC + stem + first_block + pyramid + head == expected
    with torch.device("meta"):
        assert count(kind(19)) == expected
        assert count(kind(19, auxiliary=True)) == expected + 9 * 1024 * 256 + 2 * 256 + 256 * 19 + 19


@pytest.mark.parametrize(
    ("kind", "layers", "weights"),
    [
        (PlayData, ["fc6", "fc7"], 16_384),
        (PSPNet101, ["conv4_23", "conv5_4"], 3_072),
        (Dilation8, CONTEXT, 8 * 2 * 11),
    ],
)
def test_netwarp_adds_what_the_paper_says(kind: type[nn.Module], layers: list[str], weights: int) -> None:
    with torch.device("meta"):
        video_cnn = augment(kind(11), layers)
    assert count(video_cnn.netwarps) == weights
    assert video_cnn.flow_cnn is not None and count(video_cnn.flow_cnn) == 6_892
    assert count(video_cnn) == count(video_cnn.host) + weights + 6_892


@pytest.mark.parametrize("kind", KINDS)
def test_insertion_layers_give_the_documented_maps(kind: type[nn.Module]) -> None:
    seen: dict[str, torch.Size] = {}
    with torch.device("meta"):
        host = kind(11).eval()
        for name in LAYERS[kind]:
            host.get_submodule(name).register_forward_hook(
                lambda _m, _i, out, name=name: seen.__setitem__(name, out.shape)
            )
        logits = host(torch.empty(1, 3, 64, 96))
    assert seen == {
        name: (1, channels, 64 // stride, 96 // stride) for name, (stride, channels) in LAYERS[kind].items()
    }
    assert logits.shape == (1, 11, 8, 12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 96), (45, 67), (33, 129), (1, 1)])
def test_logits_have_an_eighth_of_the_frames_size_rounded_up(kind: type[nn.Module], size: tuple[int, int]) -> None:
    height, width = size
    with torch.inference_mode():
        logits = tiny(kind)(torch.randn(2, 3, height, width))
    assert logits.shape == (2, 5, -(-height // 8), -(-width // 8))
    assert logits.isfinite().all()


def test_the_papers_crop_gives_the_papers_grid() -> None:
    with torch.device("meta"):
        assert tiny(PSPNet101)(torch.empty(1, 3, 713, 713)).shape[-2:] == (90, 90)


@pytest.mark.parametrize(("kind", "layer"), INSERTIONS)
def test_netwarp_begins_as_the_host_and_then_blends(kind: type[nn.Module], layer: str) -> None:
    host = tiny(kind)
    video_cnn = augment(host, [layer]).eval()
    previous, present = torch.randn(2, 1, 3, 64, 64)
    flow = torch.full((1, 2, 64, 64), 3.0)
    with torch.no_grad():
        first, memory = video_cnn(previous)
        assert torch.equal(first, host(previous))
        kept = memory.representations[layer].clone()
        second, _ = video_cnn(present, flow, memory)
        assert torch.equal(second, host(present))
        assert torch.equal(memory.representations[layer], kept)
        video_cnn.netwarps[0].w2.fill_(0.5)
        blended, _ = video_cnn(present, flow, memory)
    assert not torch.allclose(blended, second, rtol=1e-3)


@pytest.mark.parametrize(("kind", "layer"), [pair for pair in INSERTIONS if pair[1] not in ("fc8", "ctx_final")])
def test_insertion_is_before_the_relu(kind: type[nn.Module], layer: str) -> None:
    host, frame = tiny(kind), torch.randn(1, 3, 32, 32)
    logits = []
    for level in (-1, -2):
        hook = host.get_submodule(layer).register_forward_hook(
            lambda _m, _i, out, level=level: torch.full_like(out, level)
        )
        with torch.inference_mode():
            logits.append(host(frame))
        hook.remove()
    assert torch.equal(*logits)


def test_dilations_and_strides_of_pspnet() -> None:
    host = PSPNet101(11, width=2)
    for block in host.blocks:
        stage, number = int(block[4]), int(block.split("_")[1])
        convolution = host.get_submodule(f"{block}.body.2.0")
        assert isinstance(convolution, nn.Conv2d) and convolution.kernel_size == (3, 3)
        assert convolution.dilation[0] == convolution.padding[0] == {2: 1, 3: 1, 4: 2, 5: 4}[stage]
        assert convolution.stride[0] == (2 if (stage, number) == (3, 1) else 1)
    assert len(host.blocks) == 33 and host.blocks[-4] == "conv4_23"


def test_dilations_of_the_vgg_hosts() -> None:
    def dilations(host: nn.Module) -> dict[str, tuple[int, int]]:
        modules = host.named_modules()
        return {name: (m.kernel_size[0], m.dilation[0]) for name, m in modules if isinstance(m, nn.Conv2d)}

    front_end = {
        f"conv{stage}_{n}": (3, 1) for stage, count in ((1, 2), (2, 2), (3, 3), (4, 3)) for n in range(1, count + 1)
    }
    front_end |= {f"conv5_{n}": (3, 2) for n in (1, 2, 3)} | {"fc6": (7, 4), "fc7": (1, 1), "fc8": (1, 1)}
    eight = [(3, 1), (3, 1), (3, 2), (3, 4), (3, 8), (3, 16), (3, 1), (1, 1)]
    ten = [*eight[:6], (3, 32), (3, 64), *eight[6:]]
    assert dilations(tiny(PlayData)) == front_end
    assert dilations(tiny(Dilation8)) == front_end | dict(zip(LAYERS[Dilation8], eight, strict=True))
    assert dilations(tiny(Dilation10)) == front_end | dict(zip(LAYERS[Dilation10], ten, strict=True))


def test_padding_changes_only_what_is_near_the_edge() -> None:
    """Far from the edges, the logits with and without padding are equal, as both have the same grid."""
    torch.manual_seed(0)
    padded = DilatedVGG16(5, width=2, padded=True).eval()
    bare = DilatedVGG16(5, width=2, padded=False).eval()
    bare.load_state_dict(padded.state_dict())
    frame = torch.randn(1, 3, 400, 408)
    with torch.inference_mode():
        one, other = padded(frame), bare(F.pad(frame, [DilatedVGG16.MARGIN] * 4))
        inside = slice(24, -24)
        assert one.shape == other.shape == (1, 5, 50, 51)
        torch.testing.assert_close(one[..., inside, inside], other[..., inside, inside])


def test_the_context_begins_as_the_identity_behind_the_front_end() -> None:
    host, frame = tiny(Dilation8), torch.randn(1, 3, 200, 210)
    with torch.inference_mode():
        expected = DilatedVGG16.forward(host, F.pad(frame, [186] * 4, mode="reflect"))  # type: ignore[arg-type]
        assert expected.min() < 0
        assert torch.equal(host(frame), expected.relu())


@pytest.mark.parametrize(
    ("size", "expected"), [(1, [0] * 7), (2, [1, 0, 1, 0, 1, 0, 1, 0]), (3, [1, 2, 1, 0, 1, 2, 1, 0, 1])]
)
def test_small_frames_are_mirrored_repeatedly(size: int, expected: list[int]) -> None:
    assert _mirrored(size, 3, torch.device("cpu")).tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_trains_with_gradients_everywhere(kind: type[nn.Module]) -> None:
    has_auxiliary = issubclass(kind, PSPNet101)
    host = tiny(kind, auxiliary=True) if has_auxiliary else tiny(kind)
    host.train()
    frame = torch.randn(2, 3, 64, 64)
    outputs: list[Tensor] = list(host(frame, auxiliary=True)) if has_auxiliary else [host(frame)]
    assert [output.shape for output in outputs] == [(2, 5, 8, 8)] * len(outputs)
    sum(output.square().mean() for output in outputs).backward()  # type: ignore[union-attr]
    assert [name for name, p in host.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_arguments_are_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="num_classes is 1, must be at least 2"):
        kind(1)
    if issubclass(kind, PSPNet101):
        with pytest.raises(ValueError, match=rf"{kind.__name__}\(auxiliary=True\)"):
            tiny(kind)(torch.randn(1, 3, 32, 32), auxiliary=True)


@pytest.mark.parametrize(
    ("host", "layer"),
    [
        ("playdata", "fc6"),
        ("dilation8", "ctx_fc1"),
        ("dilation10", "ctx_conv7_1"),
        ("pspnet50", "conv4_6"),
        ("pspnet101", "conv4_23"),
    ],
)
def test_host_comes_back_from_a_weights_file(host: str, layer: str, tmp_path: Path) -> None:
    spec = ModelSpec(host, load_classes("camvid"), {"num_classes": 11, "width": 2}, NetWarpSpec((layer,)))
    network = build(spec).eval()
    model = load_model(save_model(tmp_path / "model.safetensors", network, spec, dtype=torch.float32))
    frame = torch.randn(1, 3, 32, 48)
    with torch.inference_mode():
        assert torch.equal(model.network(frame)[0], network(frame)[0])
