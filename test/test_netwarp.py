# SPDX-License-Identifier: Apache-2.0
"""FlowCNN, NetWarp and the resizing of flow: parameter counts, initial state, numbers computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from netwarp_ros.models import FlowCNN, NetWarp, augment, resize_flow
from netwarp_ros.models.netwarp import EPSILON, Concatenation
from netwarp_ros.models.resampling import average, interpolate
from netwarp_ros.ops import warp


def test_flow_cnn_has_the_papers_parameters() -> None:
    flow_cnn = FlowCNN()
    assert sum(parameter.numel() for parameter in flow_cnn.parameters()) == 6892
    shapes = [tuple(getattr(flow_cnn, f"conv{i}").weight.shape) for i in (1, 2, 3, 4)]
    assert shapes == [(16, 11, 3, 3), (32, 16, 3, 3), (2, 32, 3, 3), (2, 4, 3, 3)]


def test_flow_cnn_starts_as_the_identity() -> None:
    flow = 10 * torch.randn(1, 2, 9, 12)
    assert torch.equal(FlowCNN()(flow, torch.randn(1, 3, 9, 12), torch.randn(1, 3, 9, 12)), flow)


def test_flow_cnn_gives_displacements_of_either_sign() -> None:
    torch.manual_seed(0)
    flow_cnn = FlowCNN()
    torch.nn.init.normal_(flow_cnn.conv4.weight)
    out = flow_cnn(torch.randn(1, 2, 16, 16), torch.randn(1, 3, 16, 16), torch.randn(1, 3, 16, 16))
    assert (out < 0).any() and (out > 0).any()


def test_netwarp_starts_as_the_identity_bit_for_bit() -> None:
    present, previous = torch.randn(2, 6, 5, 7), torch.randn(2, 6, 5, 7)
    assert torch.equal(NetWarp(6)(present, previous, torch.randn(2, 2, 5, 7)), present)


def test_netwarp_is_equation_2() -> None:
    netwarp = NetWarp(3)
    torch.nn.init.normal_(netwarp.w1)
    torch.nn.init.normal_(netwarp.w2)
    present, previous, flow = torch.randn(1, 3, 5, 7), torch.randn(1, 3, 5, 7), torch.randn(1, 2, 5, 7)
    w1, w2 = netwarp.w1.view(1, 3, 1, 1), netwarp.w2.view(1, 3, 1, 1)
    torch.testing.assert_close(netwarp(present, previous, flow), w1 * present + w2 * warp(previous, flow + EPSILON))


def test_concatenation_starts_as_the_identity_and_mixes_all_channels() -> None:
    concatenation = Concatenation(3)
    assert sum(parameter.numel() for parameter in concatenation.parameters()) == 2 * 3 * 3 + 3
    present, previous, flow = torch.randn(1, 3, 5, 7), torch.randn(1, 3, 5, 7), torch.randn(1, 2, 5, 7)
    assert torch.equal(concatenation(present, previous, flow), present)
    torch.nn.init.normal_(concatenation.combine.weight)
    mixing = concatenation.combine.weight[:, :, 0, 0]
    both = torch.cat((present, warp(previous, flow + EPSILON)), dim=1)
    torch.testing.assert_close(concatenation(present, previous, flow), torch.einsum("oc,bchw->bohw", mixing, both))
    half = concatenation(present.bfloat16(), previous.bfloat16(), flow)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), concatenation(present, previous, flow), atol=0.05, rtol=0.02)


def test_epsilon_gives_integer_flow_a_gradient_on_both_sides() -> None:
    """At integer coordinates, bilinear interpolation has two one-sided derivatives; epsilon selects the right one."""
    previous = torch.tensor([0.0, 1.0, 4.0]).view(1, 1, 1, 3)
    flow = torch.zeros(1, 2, 1, 3, requires_grad=True)
    netwarp = NetWarp(1)
    torch.nn.init.ones_(netwarp.w2)
    netwarp(torch.zeros(1, 1, 1, 3), previous, flow).sum().backward()
    assert flow.grad is not None
    assert flow.grad[0, 0, 0].tolist() == [1.0, 3.0, 0.0]


def test_resized_flow_is_in_pixels_of_its_own_grid() -> None:
    flow = torch.empty(1, 2, 360, 480)
    flow[:, 0], flow[:, 1] = 16.0, -8.0
    small = resize_flow(flow, (45, 60))
    assert small.shape == (1, 2, 45, 60)
    torch.testing.assert_close(small[:, 0], torch.full((1, 45, 60), 2.0))
    torch.testing.assert_close(small[:, 1], torch.full((1, 45, 60), -1.0))


def test_resizing_averages_over_each_cell() -> None:
    flow = torch.zeros(1, 2, 2, 4)
    flow[0, 0] = torch.tensor([[1.0, 3.0, 0.0, 0.0], [5.0, 7.0, 0.0, 0.0]])
    assert resize_flow(flow, (1, 2))[0, 0].tolist() == [[2.0, 0.0]]


def test_resizing_to_a_finer_grid_interpolates() -> None:
    flow = torch.tensor([[0.0, 4.0], [0.0, 4.0]]).expand(1, 2, 2, 2)
    assert resize_flow(flow, (2, 4))[0, :, 0].tolist() == [[0.0, 2.0, 6.0, 8.0], [0.0, 1.0, 3.0, 4.0]]


@pytest.mark.parametrize("size", [(45, 60), (30, 61), (90, 17)])
def test_each_axis_is_divided_by_its_own_ratio(size: tuple[int, int]) -> None:
    small = resize_flow(torch.ones(1, 2, 90, 120), size)
    torch.testing.assert_close(small[0, :, 0, 0], torch.tensor([size[1] / 120, size[0] / 90]))


def test_flow_of_the_right_size_is_not_copied() -> None:
    flow = torch.randn(1, 2, 5, 7)
    assert resize_flow(flow, (5, 7)) is flow


def test_flow_may_have_a_grid_of_its_own() -> None:
    """Half the size with half the displacements is the same smooth motion."""
    video_cnn = augment(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1)), ["0"], flow_cnn=False)
    nn.init.constant_(video_cnn.netwarps[0].w2, 0.4)
    first, second = torch.randn(2, 1, 3, 64, 96)
    flow = torch.full((1, 2, 64, 96), 4.0)
    with torch.no_grad():
        _, memory = video_cnn(first)
        expected, _ = video_cnn(second, flow, memory)
        output, _ = video_cnn(second, flow[..., ::2, ::2] / 2, memory)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(45, 60), (24, 48), (7, 11), (360, 480)])
def test_maps_are_averaged_and_interpolated_as_pytorch_does_it(channels: int, size: tuple[int, int]) -> None:
    """By OpenCV where that is the same, else by PyTorch: uneven cells, many channels, a batch, a gradient."""
    maps = torch.randn(1, channels, 360, 480)
    small = maps[..., :40, :64]
    area, scaled = F.interpolate(maps, size=size, mode="area"), F.interpolate(small, size=size, mode="bilinear")
    torch.testing.assert_close(average(maps, size), area, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(interpolate(small, size), scaled, rtol=1e-4, atol=1e-4)
    assert average(maps.expand(2, -1, -1, -1), size).shape == (2, channels, *size)
    assert interpolate(small.clone().requires_grad_(), size).requires_grad
    pixels = torch.randint(0, 256, (1, channels, 360, 480), dtype=torch.uint8)
    exact = F.interpolate(pixels.double(), size=size, mode="area").float()
    torch.testing.assert_close(average(pixels, size), exact, rtol=1e-5, atol=1e-3)
