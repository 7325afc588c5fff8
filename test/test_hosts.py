# SPDX-License-Identifier: Apache-2.0
"""Properties of every host: shapes at any size, documented stages, equal logits for a frame alone and in a batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netwarp_ros.models.hosts import DDRNet23Slim, SwiftNetLite0, SwiftNetLite2

HOSTS = {  # parameters with 11 classes, stride of the logits, stages as name: (stride, channels)
    DDRNet23Slim: (
        4_293_931,
        4,
        {
            "stem": (4, 32),
            "layer1": (4, 32),
            "layer2": (8, 64),
            "low3": (16, 128),
            "high3": (8, 64),
            "low4": (32, 192),
            "high4": (8, 64),
            "low5": (32, 384),
            "high5": (8, 128),
            "context": (32, 128),
            "fusion": (8, 128),
            "head.refine": (4, 64),
        },
    ),
    SwiftNetLite0: (
        4_283_627,
        2,
        {
            "backbone.stages.0": (2, 16),
            "backbone.stages.1": (4, 24),
            "backbone.stages.2": (8, 40),
            "backbone.stages.4": (16, 112),
            "backbone.stages.6": (32, 320),
            "context": (32, 128),
            "up16": (16, 128),
            "up8": (8, 128),
            "up4": (4, 64),
            "up2": (2, 32),
        },
    ),
    SwiftNetLite2: (
        5_709_419,
        2,
        {
            "backbone.stages.0": (2, 16),
            "backbone.stages.1": (4, 24),
            "backbone.stages.2": (8, 48),
            "backbone.stages.4": (16, 120),
            "backbone.stages.6": (32, 352),
            "context": (32, 128),
            "up16": (16, 128),
            "up8": (8, 128),
            "up4": (4, 64),
            "up2": (2, 32),
        },
    ),
}
Host = type[DDRNet23Slim] | type[SwiftNetLite0] | type[SwiftNetLite2]
STAGES = [(kind, name) for kind, (_, _, stages) in HOSTS.items() for name in stages]


@pytest.fixture(scope="module")
def built() -> dict[Host, nn.Module]:
    torch.manual_seed(0)
    return {kind: kind(11).eval() for kind in HOSTS}


@pytest.fixture(params=HOSTS)
def kind(request: pytest.FixtureRequest) -> Host:
    return request.param


@pytest.fixture
def host(kind: Host, built: dict[Host, nn.Module]) -> nn.Module:
    return built[kind]


@pytest.mark.parametrize("size", [(64, 96), (45, 67), (33, 129), (1, 1)])
def test_logits_have_a_part_of_any_size_rounded_up(kind: Host, host: nn.Module, size: tuple[int, int]) -> None:
    _, stride, _ = HOSTS[kind]
    height, width = size
    with torch.inference_mode():
        logits = host(torch.randn(2, 3, height, width))
    assert logits.shape == (2, 11, -(-height // stride), -(-width // stride))
    assert logits.isfinite().all()


def test_parameters_fit_twelve_megabytes_in_half_precision(kind: Host, host: nn.Module) -> None:
    parameters = sum(parameter.numel() for parameter in host.parameters())
    assert parameters == HOSTS[kind][0] < 6_000_000


def test_named_stages_give_the_documented_maps(kind: Host, host: nn.Module) -> None:
    _, _, stages = HOSTS[kind]
    seen: dict[str, torch.Size] = {}
    hooks = [
        host.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out.shape))
        for name in stages
    ]
    with torch.inference_mode():
        host(torch.randn(1, 3, 64, 96))
    for hook in hooks:
        hook.remove()
    assert seen == {name: (1, channels, 64 // stride, 96 // stride) for name, (stride, channels) in stages.items()}


@pytest.mark.parametrize(("kind", "name"), STAGES)
def test_output_of_a_stage_is_not_modified_in_place_later(kind: Host, name: str, built: dict[Host, nn.Module]) -> None:
    kept, host = [], built[kind]
    hook = host.get_submodule(name).register_forward_hook(lambda _m, _i, out: kept.extend([out, out.clone()]))
    with torch.inference_mode():
        host(torch.randn(1, 3, 64, 64))
    hook.remove()
    assert torch.equal(kept[0], kept[1])


@pytest.mark.parametrize(("kind", "name"), STAGES)
def test_every_stage_reaches_the_logits(kind: Host, name: str, built: dict[Host, nn.Module]) -> None:
    frame, host = torch.randn(1, 3, 64, 64), built[kind]
    with torch.inference_mode():
        usual = host(frame)
        hook = host.get_submodule(name).register_forward_hook(lambda _m, _i, out: out + 1)
        moved = host(frame)
        hook.remove()
    assert not torch.allclose(usual, moved)


def test_evaluation_is_deterministic_and_frames_do_not_mix(host: nn.Module) -> None:
    frames = torch.randn(2, 3, 48, 64)
    with torch.inference_mode():
        together = host(frames)
        assert torch.equal(together, host(frames))
        torch.testing.assert_close(together[1:], host(frames[1:]), rtol=1e-4, atol=1e-4)


def test_trains_on_a_batch_of_one_with_gradients_everywhere(kind: Host) -> None:
    network = kind(5, auxiliary=True).train()
    stride = HOSTS[kind][1]
    logits, auxiliary = network(torch.randn(1, 3, 64, 64), auxiliary=True)
    assert logits.shape == (1, 5, 64 // stride, 64 // stride)
    assert auxiliary.shape == (1, 5, 8, 8)
    (logits.square().mean() + auxiliary.square().mean()).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_wrong_arguments_are_refused(kind: Host, host: nn.Module) -> None:
    with pytest.raises(ValueError, match="num_classes is 1, must be at least 2"):
        kind(1)
    with pytest.raises(ValueError, match="auxiliary=True"):
        host(torch.randn(1, 3, 32, 32), auxiliary=True)


def test_depthwise_gradients_leave_autocast_on_the_cpu() -> None:
    network = SwiftNetLite0(5).train()
    types: dict[str, torch.dtype] = {}
    for name, module in network.backbone.named_modules():
        if name.endswith("depthwise.0"):
            module.register_forward_hook(lambda _m, _i, out, name=name: types.__setitem__(name, out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(2, 3, 64, 64))
    assert types["stages.0.0.depthwise.0"] == torch.bfloat16
    assert types["stages.1.0.depthwise.0"] == types["stages.4.1.depthwise.0"] == torch.float32
