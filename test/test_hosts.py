# SPDX-License-Identifier: Apache-2.0
"""What every host must hold to: shapes at any size, named stages, the same answer for a frame alone and in a batch."""

from __future__ import annotations

import pytest
import torch

from netwarp_ros.models.hosts import DDRNet23Slim

STAGES = {  # name: stride, channels
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
}


@pytest.fixture(scope="module")
def host() -> DDRNet23Slim:
    torch.manual_seed(0)
    return DDRNet23Slim(11).eval()


@pytest.mark.parametrize("size", [(64, 96), (45, 67), (33, 129), (1, 1)])
def test_logits_have_a_quarter_of_any_size_rounded_up(host: DDRNet23Slim, size: tuple[int, int]) -> None:
    height, width = size
    with torch.inference_mode():
        logits = host(torch.randn(2, 3, height, width))
    assert logits.shape == (2, 11, -(-height // 4), -(-width // 4))
    assert logits.isfinite().all()


def test_parameters_fit_ten_megabytes_in_half_precision(host: DDRNet23Slim) -> None:
    parameters = sum(parameter.numel() for parameter in host.parameters())
    assert parameters == 4_293_931
    auxiliary = sum(parameter.numel() for parameter in DDRNet23Slim(11, auxiliary=True).parameters()) - parameters
    assert auxiliary == 64 * 64 * 9 + 2 * 2 * 64 + 64 * 11 + 11


def test_named_stages_give_the_documented_maps(host: DDRNet23Slim) -> None:
    seen: dict[str, torch.Size] = {}
    hooks = [
        host.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out.shape))
        for name in STAGES
    ]
    with torch.inference_mode():
        host(torch.randn(1, 3, 64, 96))
    for hook in hooks:
        hook.remove()
    assert seen == {name: (1, channels, 64 // stride, 96 // stride) for name, (stride, channels) in STAGES.items()}


@pytest.mark.parametrize("name", STAGES)
def test_what_a_stage_gave_is_not_overwritten_later(host: DDRNet23Slim, name: str) -> None:
    kept = []
    hook = host.get_submodule(name).register_forward_hook(lambda _m, _i, out: kept.extend([out, out.clone()]))
    with torch.inference_mode():
        host(torch.randn(1, 3, 64, 64))
    hook.remove()
    assert torch.equal(kept[0], kept[1])


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_reaches_the_logits(host: DDRNet23Slim, name: str) -> None:
    frame = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        usual = host(frame)
        hook = host.get_submodule(name).register_forward_hook(lambda _m, _i, out: out + 1)
        moved = host(frame)
        hook.remove()
    assert not torch.allclose(usual, moved)


def test_evaluation_is_deterministic_and_frames_do_not_mix(host: DDRNet23Slim) -> None:
    frames = torch.randn(2, 3, 48, 64)
    with torch.inference_mode():
        together = host(frames)
        assert torch.equal(together, host(frames))
        torch.testing.assert_close(together[1:], host(frames[1:]), rtol=1e-4, atol=1e-4)


def test_trains_on_a_batch_of_one_with_gradients_everywhere() -> None:
    network = DDRNet23Slim(5, auxiliary=True).train()
    logits, auxiliary = network(torch.randn(1, 3, 64, 64), auxiliary=True)
    assert logits.shape == (1, 5, 16, 16)
    assert auxiliary.shape == (1, 5, 8, 8)
    (logits.square().mean() + auxiliary.square().mean()).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_refuses_what_it_cannot_do(host: DDRNet23Slim) -> None:
    with pytest.raises(ValueError, match="num_classes is 1, must be at least 2"):
        DDRNet23Slim(1)
    with pytest.raises(ValueError, match="auxiliary=True"):
        host(torch.randn(1, 3, 32, 32), auxiliary=True)
