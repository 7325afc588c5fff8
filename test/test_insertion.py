# SPDX-License-Identifier: Apache-2.0
"""Insertion into public networks: the blend reaches whatever reads the layer's output, or `augment` refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, LRASPP, Tokens, block
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from netwarp_ros.models import LayerOutput, VideoCNN, augment, class_scores
from netwarp_ros.models.insertion import example_frame
from netwarp_ros.models.video_cnn import InsertionLayer

LAYERS: dict[str, tuple[list[str], tuple[int, int]]] = {
    "segformer": (["segformer.stages.0", "segformer.stages.1", "segformer.stages.2", "segformer.stages.3"], (96, 128)),
    "upernet": ([f"backbone.encoder.stages.{index}" for index in range(4)], (96, 128)),
    "upernet-swin": (["backbone.swin.embeddings", "backbone.hidden_states_norms.stage3"], (96, 128)),
    "mask2former": (
        ["model.pixel_level_module.decoder", "model.transformer_module.input_projections.0"],
        (96, 128),
    ),
    "dpt": (["dpt.encoder.layer.1", "neck.convs.2"], (32, 32)),
    "mobilevit": (["mobilevit.encoder.layer.3", "segmentation_head.aspp.project"], (96, 128)),
    "beit": (["beit.layers.1", "fpn.fpn2"], (64, 64)),
    "eomt": (["layers.0", "layers.1.mlp"], (64, 64)),
    "unet": (["down.1", "merge.0"], (48, 64)),
    "deeplab": (["backbone.layer3", "backbone.layer4"], (50, 70)),
    "lraspp": (["backbone.2", "cbr"], (50, 70)),
    "tokens": (["blocks.0", "blocks.1"], (48, 64)),
}


@pytest.fixture(params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    torch.manual_seed(0)
    return str(request.param)


def frames(name: str, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 3, *LAYERS[name][1], generator=generator) for _ in range(count)]


def motion(name: str) -> Tensor:
    return torch.full((1, 2, *LAYERS[name][1]), 1.5)


def inserted(name: str, **options: Any) -> VideoCNN:
    layers, size = LAYERS[name]
    host = ARCHITECTURES[name]().eval()
    return augment(host, layers, **{"flow_grid": "features", "example": example_frame(host, size), **options})


def with_blend(video_cnn: VideoCNN, w1: float = 0.6, w2: float = 0.4) -> VideoCNN:
    for netwarp in video_cnn.netwarps:
        nn.init.constant_(netwarp.w1, w1)
        nn.init.constant_(netwarp.w2, w2)
    return video_cnn


@torch.no_grad()
def test_it_equals_its_host_until_it_is_trained(name: str) -> None:
    host = ARCHITECTURES[name]().eval()
    unchanged = copy.deepcopy(host)
    layers, size = LAYERS[name]
    video_cnn, memory = augment(host, layers, example=example_frame(host, size)), None
    for frame in frames(name):
        output, memory = video_cnn(frame, motion(name), memory)
        assert torch.equal(class_scores(output), class_scores(unchanged(frame)))


@torch.no_grad()
def test_w2_has_an_effect_behind_each_layer(name: str) -> None:
    video_cnn = inserted(name)
    first, second, _ = frames(name)
    _, memory = video_cnn(first)
    plain = class_scores(video_cnn(second, motion(name), memory)[0])
    for netwarp in video_cnn.netwarps:
        nn.init.constant_(netwarp.w2, 0.5)
        blended = class_scores(video_cnn(second, motion(name), memory)[0])
        assert not torch.equal(blended, plain)
        nn.init.zeros_(netwarp.w2)


@torch.no_grad()
def test_memory_holds_a_map_of_each_layer(name: str) -> None:
    _, memory = inserted(name)(frames(name)[0])
    assert {*memory.representations} == {*LAYERS[name][0]}
    height, width = LAYERS[name][1]
    for features in memory.representations.values():
        assert features.ndim == 4 and features.shape[0] == 1
        assert abs(features.shape[2] * width - features.shape[3] * height) < 1.2 * max(
            height, width
        )  # the frame's shape


@torch.no_grad()
def test_only_what_is_remembered_counts_if_w1_is_zero(name: str) -> None:
    """With w1 = 0, w2 = 1 and no motion, frame t gives what the layer gave at t - 1: frame t itself has no effect."""
    layers, size = LAYERS[name]
    host = ARCHITECTURES[name]().eval()
    options: dict[str, Any] = {"flow_cnn": False, "example": example_frame(host, size)}
    video_cnn = with_blend(augment(host, layers[-1:], **options), w1=0, w2=1)
    first, second, third = frames(name)
    _, memory = video_cnn(first)
    still = torch.zeros(1, 2, *size)
    seen: list[Tensor] = []
    video_cnn.netwarps[0].register_forward_hook(lambda _module, _inputs, blend: seen.append(blend))
    video_cnn(second, still, memory)
    video_cnn(third, still, memory)
    expected = memory.representations[layers[-1]]
    for blend in seen:
        torch.testing.assert_close(blend, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_gradients_reach_the_weights_and_the_previous_frame(name: str) -> None:
    video_cnn = with_blend(inserted(name))
    first, second, _ = frames(name)
    first.requires_grad_()
    _, memory = video_cnn(first)
    class_scores(video_cnn(second, motion(name), memory)[0]).std().backward()
    assert first.grad is not None and first.grad.abs().max() > 0
    for netwarp in video_cnn.netwarps:
        assert netwarp.w1.grad.abs().max() > 0 and netwarp.w2.grad.abs().max() > 0


@torch.no_grad()
def test_a_batch_of_streams_equals_each_alone(name: str) -> None:
    video_cnn = with_blend(inserted(name))
    one, two, three = frames(name)
    flow = motion(name)

    def run(first: Tensor, second: Tensor, flow: Tensor) -> Tensor:
        return class_scores(video_cnn(second, flow, video_cnn(first)[1])[0])

    together = run(torch.cat((one, two)), torch.cat((two, three)), torch.cat((flow, flow)))
    for index, alone in enumerate((run(one, two, flow), run(two, three, flow))):
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-3, atol=1e-3)


def test_names_and_weights_stay_as_they_are(name: str) -> None:
    host = ARCHITECTURES[name]().eval()
    names, classes = [*host.state_dict()], {key: type(module) for key, module in host.named_modules()}
    layers, size = LAYERS[name]
    video_cnn = augment(host, layers, example=example_frame(host, size))
    assert [*host.state_dict()] == names
    assert {key: type(module) for key, module in host.named_modules()} == classes
    theirs = [key for key in video_cnn.state_dict() if key.startswith("host.")]
    assert theirs == [f"host.{key}" for key in names]
    assert not any(module.training for module in host.modules())


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("later", [False, True], ids=["alone", "with a later hook"])
def test_segformers_head_gets_the_blend(index: int, later: bool) -> None:
    """Transformers records hidden states by hooks of its own, which it registers when the network first runs."""
    torch.manual_seed(0)
    host = ARCHITECTURES["segformer"]()
    layer = f"segformer.stages.{index}"
    video_cnn = with_blend(augment(host, [layer], remember="after", flow_cnn=False, flow_grid="features"))
    recorded: list[Tensor] = []
    if later:
        hook = lambda _module, _inputs, output: recorded.append(output)  # noqa: E731
        host.get_submodule(layer).register_forward_hook(hook)
    states: list[tuple[Tensor, ...]] = []
    host.decode_head.register_forward_pre_hook(lambda _module, inputs: states.append(inputs[0]))
    with torch.no_grad():
        _, memory = video_cnn(torch.randn(1, 3, 96, 128))
        _, after = video_cnn(torch.randn(1, 3, 96, 128), torch.ones(1, 2, 96, 128), memory)
    blend = after.representations[layer]
    assert not torch.equal(blend, memory.representations[layer])
    assert torch.equal(states[-1][index], blend)
    assert not later or torch.equal(recorded[-1], blend)


@pytest.mark.parametrize("index", range(4))
def test_upernets_head_gets_the_blend(index: int) -> None:
    torch.manual_seed(0)
    host = ARCHITECTURES["upernet"]()
    layer = f"backbone.encoder.stages.{index}"
    video_cnn = with_blend(augment(host, [layer], remember="after", flow_cnn=False, flow_grid="features"))
    taken: list[Tensor] = []
    norm = host.backbone.hidden_states_norms[f"stage{index + 1}"]
    norm.register_forward_pre_hook(lambda _module, inputs: taken.append(inputs[0]))
    first, second = torch.randn(2, 1, 3, 96, 128)
    with torch.no_grad():
        _, memory = video_cnn(first)
        output, after = video_cnn(second, torch.ones(1, 2, 96, 128), memory)
        assert torch.equal(taken[-1], after.representations[layer])
        assert not torch.equal(output.logits, video_cnn(second)[0].logits)


def test_a_swin_stage_gives_two_maps_and_the_head_reads_the_second() -> None:
    torch.manual_seed(0)
    host = ARCHITECTURES["upernet-swin"]()
    layer = "backbone.swin.encoder.layers.1"
    with pytest.raises(ValueError, match=r"'backbone.swin.encoder.layers.1' gives a tuple .*\{NAME: \{member: 0\}\}"):
        augment(host, [layer])
    video_cnn = with_blend(augment(host, {layer: LayerOutput(member=1)}))
    with torch.no_grad():
        first, second = torch.randn(2, 1, 3, 128, 128)
        _, memory = video_cnn(first)
        assert memory.representations[layer].shape == (1, 32, 16, 16)  # before the stage halves it
        blended = video_cnn(second, torch.zeros(1, 2, 128, 128), memory)[0].logits
        assert not torch.equal(blended, video_cnn(second)[0].logits)


def test_tokens_before_those_of_the_grid_are_not_blended() -> None:
    torch.manual_seed(0)
    host = Tokens().eval()
    video_cnn = with_blend(augment(host, ["blocks.0"], flow_cnn=False), w1=0.0, w2=0.0)
    seen: list[Tensor] = []
    host.blocks[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        frame = torch.randn(1, 3, 48, 64)
        _, memory = video_cnn(frame)
        video_cnn(frame, torch.zeros(1, 2, 48, 64), memory)
    before, blended = seen
    assert torch.equal(blended[:, 0], before[:, 0]) and before[:, 0].abs().max() > 0
    assert blended[:, 1:].abs().max() == 0


def test_a_grid_that_cannot_be_seen_has_to_be_told() -> None:
    class Cropped(Tokens):
        """Its tokens are of no grid that a stride gives: three columns are cut off."""

        def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(frame[..., :-24])

    host = Cropped().eval()
    example = torch.randn(1, 3, 48, 72)
    with pytest.raises(ValueError, match=r"layer 'blocks.0' gives \(1, 37, 32\), which is no grid .*tokens: \[h, w\]"):
        augment(host, ["blocks.0"], example=example)
    _, memory = augment(host, {"blocks.0": LayerOutput(tokens=(6, 6))}, example=example)(example)
    assert memory.representations["blocks.0"].shape == (1, 32, 6, 6)
    with pytest.raises(ValueError, match=r"fewer tokens than the cells of its grid \(6, 7\)"):
        augment(host, {"blocks.0": LayerOutput(tokens=(6, 7))}, example=example)


@torch.no_grad()
def test_the_grid_of_tokens_follows_the_frame() -> None:
    torch.manual_seed(0)
    video_cnn = with_blend(augment(Tokens().eval(), ["blocks.0"]))
    for height, width in ((48, 64), (80, 40)):
        first, second = torch.randn(2, 1, 3, height, width)
        _, memory = video_cnn(first)
        assert memory.representations["blocks.0"].shape == (1, 32, height // 8, width // 8)
        scores, _ = video_cnn(second, torch.ones(1, 2, height, width), memory)[0]
        assert scores.shape == (1, 11, height // 8, width // 8)


@torch.no_grad()
def test_a_layer_with_channels_last_is_seen() -> None:
    class Pixels(nn.Module):
        """As torchvision's Swin: its stages give (B, h, w, C)."""

        def __init__(self) -> None:
            super().__init__()
            self.patches, self.stage, self.head = nn.Conv2d(3, 24, 4, 4), nn.Linear(24, 24), nn.Linear(24, 5)

        def forward(self, frame: Tensor) -> Tensor:
            return self.head(self.stage(self.patches(frame).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    video_cnn = with_blend(augment(Pixels(), ["stage"]))
    _, memory = video_cnn(torch.randn(1, 3, 48, 64))
    assert memory.representations["stage"].shape == (1, 24, 12, 16)
    assert video_cnn(torch.randn(1, 3, 48, 64), torch.ones(1, 2, 48, 64), memory)[0].shape == (1, 5, 12, 16)


def test_forward_that_is_called_directly_is_blended_too() -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = block(3, 8), nn.Conv2d(8, 5, 1)

        def forward(self, frame: Tensor) -> Tensor:
            return self.head(self.stem.forward(frame))

    video_cnn = with_blend(augment(Direct().eval(), ["stem"]))
    with torch.no_grad():
        first, second = torch.randn(2, 1, 3, 16, 16)
        _, memory = video_cnn(first)
        blended, _ = video_cnn(second, torch.zeros(1, 2, 16, 16), memory)
        assert not torch.equal(blended, video_cnn(second)[0])


def test_ddp_finds_the_gradients(tmp_path: Any) -> None:
    """DistributedDataParallel raises if a parameter has no gradient."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    video_cnn = with_blend(augment(LRASPP(), ["backbone.2"]))
    ddp = DistributedDataParallel(video_cnn)
    try:
        frame = torch.randn(1, 3, 48, 64)
        _, memory = ddp(frame)
        output, _ = ddp(frame, torch.ones(1, 2, 48, 64), memory)
        output["out"].sum().backward()
        assert {name for name, value in video_cnn.named_parameters() if value.grad is None} == set()
    finally:
        del ddp  # or it would free the group, with Python locked, for which the group's thread may wait
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("make", [ARCHITECTURES["segformer"], LRASPP], ids=["segformer", "lraspp"])
@pytest.mark.parametrize("first", [0, 1], ids=["the inner one first", "the outer one first"])
def test_removal_gives_the_host_back(make: Callable[[], nn.Module], first: int) -> None:
    host = make().eval()
    name = "segformer.stages.1" if hasattr(host, "segformer") else "cbr"
    layer = host.get_submodule(name)
    networks = [augment(host, [name]), augment(host, [name])]
    networks.pop(first).remove()
    (left,) = networks
    frame = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        _, memory = left(frame)
    assert name in memory.representations
    left.remove()
    assert "forward" not in vars(layer)
    with pytest.raises(ValueError, match=f"layer '{name}' has another forward than NetWarp gave it"):
        left.remove()


def test_insertion_again_behind_modules_that_were_replaced() -> None:
    host = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1))
    video_cnn = augment(host, ["1"])
    nn.SyncBatchNorm.convert_sync_batchnorm(video_cnn)
    assert isinstance(host[1], nn.SyncBatchNorm)
    for _ in range(2):
        video_cnn.insert()
    with torch.no_grad():
        _, memory = video_cnn.eval()(torch.randn(1, 3, 16, 16))
    assert memory.representations["1"].shape == (1, 8, 16, 16)
    video_cnn.remove()
    assert "forward" not in vars(host[1])


def test_an_unknown_layer_leaves_the_host_as_it_was() -> None:
    host = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1))
    layer = InsertionLayer(8, False)
    with pytest.raises(ValueError, match="no layer '9'"):
        VideoCNN(host, {"0": layer, "9": layer})
    assert "forward" not in vars(host[0])


def test_tokens_of_stride_32_are_not_taken_for_28() -> None:
    class Coarse(Tokens):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 32, 32, 32)

    video_cnn = augment(Coarse().eval(), ["blocks.0"])
    with torch.no_grad():
        _, memory = video_cnn(torch.randn(1, 3, 384, 512))
    assert memory.representations["blocks.0"].shape == (1, 32, 12, 16)


def test_a_map_that_may_be_either_way_round_has_to_be_told() -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage, self.head = nn.Conv2d(3, 32, 4, 4), nn.Conv2d(32, 5, 1)

        def forward(self, frame: Tensor) -> Tensor:
            return self.head(self.stage(frame))

    example = torch.randn(1, 3, 128, 128)
    with pytest.raises(ValueError, match=r"gives \(1, 32, 32, 32\), which may be .* \{layout: pixels\}"):
        augment(Square(), ["stage"], example=example)
    assert augment(Square(), {"stage": LayerOutput(layout="map")}, example=example).layers == ("stage",)
    assert augment(Square(), ["stage"]).layers == ("stage",)  # on a frame that is no square


def test_a_layer_may_be_named_by_its_second_name() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)
            self.body = self.stem

        def forward(self, frame: Tensor) -> Tensor:
            return self.head(self.body(frame))

    assert augment(Shared(), ["body"]).layers == ("body",)
