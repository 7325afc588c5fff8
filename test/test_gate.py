# SPDX-License-Identifier: Apache-2.0
"""The gate in the blend: values by hand, what the network is at the start, and that training can close it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from commands import SPEC, SmallHost
from test_engines import flows, frames, video_cnn
from torch import Tensor, nn

from netwarp_ros.models import Memory, ModelSpec, NetWarpSpec, VideoCNN, WeightsError, build, load_model, save_model
from netwarp_ros.models.gate import Gate, evidence, resize_gate
from netwarp_ros.models.hosts import HOSTS
from netwarp_ros.models.netwarp import NetWarp
from netwarp_ros.resources import parse_json

GATED = {"flow_grid": "first", "remember": "after", "blend": "gated"}


def run(network: VideoCNN, count: int = 3) -> tuple[list[Tensor], list[Memory]]:
    memory, outputs, memories = None, [], []
    for frame, flow in zip(frames(count), flows(count), strict=True):
        output, memory = network(frame.float() / 255, flow, memory)
        outputs.append(output)
        memories.append(memory)
    return outputs, memories


def closed(network: VideoCNN, bias: float) -> VideoCNN:
    """Set a to a constant: g = 2 sigmoid(-bias) everywhere."""
    assert network.gate is not None and network.gate.conv2.bias is not None
    nn.init.zeros_(network.gate.conv2.weight)
    nn.init.constant_(network.gate.conv2.bias, bias)
    return network


def test_the_gate_has_a_few_hundred_weights_and_is_open_at_the_start() -> None:
    gate = Gate()
    assert sum(parameter.numel() for parameter in gate.parameters()) == 441
    g = gate(3 * torch.randn(2, 2, 8, 9), torch.randn(2, 3, 8, 9), torch.randn(2, 3, 8, 9))
    assert torch.equal(g, torch.ones(2, 1, 8, 9))


def test_the_evidence_is_zero_where_a_picture_moves_as_the_flow_says() -> None:
    """A ramp moves by one pixel to the left: its last column was not in view."""
    ramp = torch.arange(9.0).expand(1, 3, 4, 9)
    flow = torch.zeros(1, 2, 4, 9)
    flow[:, 0] = 1
    seen = evidence(flow, ramp, ramp + 1)
    assert seen[:, :, :, :7].abs().max() < 2e-4  # of the ε that is added to the flow
    torch.testing.assert_close(seen[0, :3, :, 8], torch.ones(3, 4))  # clamped to the border, where the ramp is 1 less
    torch.testing.assert_close(seen[0, 4, :, 7:], torch.tensor([0.0, 1.0]).expand(4, 2))


def test_the_evidence_tells_where_the_flow_varies_and_by_how_far_it_leads_out() -> None:
    flow = torch.zeros(1, 2, 4, 6)
    flow[0, 0, :, 3:] = 0.5
    flow[0, 1, 2:] = -0.25
    flow[0, 0, 0, 0] = -9
    frame = torch.zeros(1, 3, 4, 6)
    *_, variation, outside = evidence(flow, frame, frame)[0]
    expected = torch.zeros(4, 6)
    expected[:, 3], expected[2] = 0.5, 0.25
    expected[2, 3] = 0.75
    expected[0, 1] = expected[1, 0] = 2  # 9, but 2 at most
    torch.testing.assert_close(variation, expected)
    assert outside[0, 0] == 2 and outside[0, 5] == 0.5 and outside[1, 2] == 0


def test_the_blend_is_the_formula() -> None:
    """By hand: z = 2, warped 10, w1 = 0.5, w2 = 0.25, so g takes from 10 what it gives to 2."""
    netwarp = NetWarp(1)
    nn.init.constant_(netwarp.w1, 0.5)
    nn.init.constant_(netwarp.w2, 0.25)
    present, warped = torch.full((1, 1, 1, 3), 2.0), torch.full((1, 1, 1, 3), 10.0)
    gate = torch.tensor([[[[0.0, 0.5, 1.0]]]])
    expected = torch.tensor([[[[1.5, 2.5, 3.5]]]])
    torch.testing.assert_close(netwarp.blend(present, warped, gate), expected)
    assert torch.equal(netwarp.blend(present, warped, torch.ones_like(gate)), netwarp.blend(present, warped))
    still = torch.zeros(1, 2, 1, 3)
    torch.testing.assert_close(netwarp(present, warped, still, gate), expected)


@pytest.mark.parametrize("flow_grid", ["image", "features", "first"])
def test_an_open_gate_is_plain_netwarp_and_a_closed_one_forgets_the_past(flow_grid: str) -> None:
    plain = video_cnn(flow_grid=flow_grid)
    gated = video_cnn(flow_grid=flow_grid, blend="gated")
    assert set(gated.state_dict()) - set(plain.state_dict()) == {f"gate.{name}" for name in Gate().state_dict()}
    gated.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        for one, other in zip(run(closed(gated, 0.0))[0], run(plain)[0], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        outputs, _ = run(closed(gated, 200.0))
        for netwarp in plain.netwarps:
            assert isinstance(netwarp, NetWarp)
            netwarp.w1 += netwarp.w2
            netwarp.w2.zero_()
        for one, other in zip(outputs, run(plain)[0], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_memory_is_a_value() -> None:
    network = video_cnn(**GATED)
    with torch.no_grad():
        _, (first, *_) = run(network, 1)
        kept = {name: z.clone() for name, z in first.representations.items()}
        (small,) = (frame.clone() for frame in first.frames.values())
        frame, flow = frames(1)[0].float() / 255, flows(1)[0]
        one, _ = network(frame, flow, first)
        other, _ = network(frame, flow, first)
    assert torch.equal(one, other)
    assert all(torch.equal(z, kept[name]) for name, z in first.representations.items())
    assert torch.equal(*first.frames.values(), small)


def test_without_a_flow_cnn_the_memory_has_the_frames_that_the_gate_needs() -> None:
    network = video_cnn(flow_cnn=False, **GATED)
    with torch.no_grad():
        _, memories = run(network, 2)
    assert [tuple(frame.shape) for frame in memories[-1].frames.values()] == [(1, 3, 19, 26)]


def test_training_closes_the_gate_where_the_picture_is_wrong() -> None:
    """The previous frame is white on the right half. A gate of 0 is wanted there, and 1 elsewhere: it learns that."""
    torch.manual_seed(0)
    gate, flow = Gate(), torch.zeros(1, 2, 16, 16)
    present = torch.zeros(1, 3, 16, 16)
    previous = present.clone()
    previous[..., 8:] = 2
    wanted = torch.ones(1, 1, 16, 16)
    wanted[..., 8:] = 0
    optimiser = torch.optim.Adam(gate.parameters(), 0.02)
    for _ in range(60):
        optimiser.zero_grad()
        loss = (gate(flow, previous, present) - wanted).square().mean()
        loss.backward()
        optimiser.step()
    g = gate(flow, previous, present)
    assert g[..., :6].min() > 0.9 and g[..., 10:].max() < 0.1


def test_a_gate_that_is_open_everywhere_can_still_be_closed_but_not_opened_further() -> None:
    gate = Gate()
    assert gate.conv2.bias is not None
    nn.init.constant_(gate.conv2.bias, -1.0)
    maps = torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    g = gate(*maps)
    assert torch.equal(g, torch.ones(1, 1, 4, 4))
    for sign in (1.0, -1.0):
        gate.zero_grad()
        (sign * gate(*maps).sum()).backward()
        assert gate.conv2.bias.grad is not None
        assert (gate.conv2.bias.grad.item() == -8.0) if sign == 1 else (gate.conv2.bias.grad.item() == 0)


def test_the_gradient_reaches_the_gate_and_the_gate_gives_the_flow_none() -> None:
    network = video_cnn(**GATED)
    outputs, _ = run(network)
    outputs[-1].square().sum().backward()
    assert network.gate is not None and network.gate.conv2.weight.grad is not None
    assert network.gate.conv2.weight.grad.abs().sum() > 0
    flow = torch.zeros(1, 2, 4, 4, requires_grad=True)
    Gate()(flow, torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)).sum().backward()
    assert flow.grad is None


def test_a_gate_is_averaged_on_coarser_grids_and_interpolated_on_finer_ones() -> None:
    gate = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    torch.testing.assert_close(resize_gate(gate, (1, 1)), torch.tensor([[[[0.5]]]]))
    torch.testing.assert_close(resize_gate(gate, (2, 4))[0, 0, 0], torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_a_file_says_that_its_network_has_a_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HOSTS, "small", SmallHost)
    spec = dataclasses.replace(SPEC, netwarp=NetWarpSpec(layers=("features",), blend="gated"))
    network = build(spec)
    assert network.gate is not None
    nn.init.constant_(network.gate.conv2.weight, 0.25)
    model = load_model(save_model(tmp_path / "gated.safetensors", network, spec))
    assert model.spec.netwarp == spec.netwarp and model.network.gate is not None
    assert torch.equal(model.network.gate.conv2.weight, network.gate.conv2.weight)
    plain = dataclasses.replace(SPEC, netwarp=NetWarpSpec(layers=("features",)))
    for claimed, message in ((plain, r"4 not of this network \(gate\.conv1\.bias"), (spec, "4 missing")):
        built = network if claimed is plain else build(plain)
        with pytest.raises(WeightsError, match=message):
            load_model(save_model(tmp_path / "other.safetensors", built, claimed))


@pytest.mark.parametrize("blend", ["gate", "", None, 1, ["gated"]])
def test_another_blend_is_refused(blend: object) -> None:
    header = dataclasses.asdict(dataclasses.replace(SPEC, netwarp=NetWarpSpec(layers=("features",))))
    header["netwarp"]["blend"] = blend
    with pytest.raises(ValueError, match="netwarp.blend"):
        parse_json(ModelSpec, json.dumps(header), "the header")
