# SPDX-License-Identifier: Apache-2.0
"""The operator and the segmenter on a CUDA GPU. `tools/gpu_check.sh` runs these where there is one."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from test_dis import (
    ANY_DIS,
    STARTS,
    assert_dis_equals_the_reference,
    frames_of,
    test_opcheck_of_dis,  # noqa: F401
    texture,
)
from test_operator import ANY_OPERANDS, DTYPES, LAYOUTS, assert_equals_the_reference, generator
from torch import Tensor, nn

from netwarp_ros.flow.tensor_dis import SEARCHES, TensorDis
from netwarp_ros.models import DEFAULT_MODEL, FlowCNN, load_model
from netwarp_ros.ops import compiled, reference, resize_argmax, warp, warp_combine
from netwarp_ros.ops.dis import dis_flow, dis_pyramid
from netwarp_ros.segmenter import Confidence, Segmenter
from netwarp_ros.street import Street

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA GPU: run tools/gpu_check.sh on a machine with one"
)

GPU = torch.device("cuda")
# Maps that reach every kernel: packs of channels or single ones, one pixel a thread or four, any strides.
SHORT = {
    "packs": ((2, 64, 9, 13), "channels-last"),
    "single channels": ((2, 7, 9, 13), "channels-last"),
    "contiguous": ((2, 7, 9, 13), "contiguous"),
    "contiguous, weights by four": ((2, 12, 9, 13), "contiguous"),
    "four pixels a thread": ((1, 128, 129, 257), "channels-last"),
}


def test_the_operators_are_compiled_for_cuda() -> None:
    assert "cuda" in compiled.DEVICES and "cuda" in compiled.DIS_DEVICES


@settings(max_examples=200)
@ANY_OPERANDS
def test_equals_the_reference(**any_operands: Any) -> None:
    assert_equals_the_reference("cuda", **any_operands)


def operands(name: str, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Return the operands of `warp_combine` and a gradient, on the GPU."""
    shape, layout = SHORT[name]
    random = generator(0)
    maps = [LAYOUTS[layout](random(*shape).to(GPU, dtype)) for _ in range(3)]
    # In steps of 1/64 pixel, coordinates are exact: float32 and float64 choose the same neighbours.
    flow = (9 * 64 * random(shape[0], 2, *shape[2:])).round().to(GPU) / 64
    return [*maps[:2], flow, random(shape[1]).to(GPU), random(shape[1]).to(GPU)], maps[2]


@pytest.mark.parametrize("deterministic", [False, True], ids=["atomics", "in order"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHORT)
def test_values_and_gradients_equal_float64(name: str, dtype: torch.dtype, deterministic: bool) -> None:
    inputs, grad = operands(name, dtype)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    inputs = [t.requires_grad_() for t in inputs]
    combined, expected = warp_combine(*inputs), reference.warp_combine(*exact)
    torch.testing.assert_close(combined.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)
    torch.use_deterministic_algorithms(deterministic)
    try:
        gradients = torch.autograd.grad(combined, inputs, grad)
    finally:
        torch.use_deterministic_algorithms(False)
    wanted = torch.autograd.grad(expected, exact, grad.double())
    for part, got, want in zip(("present", "previous", "flow", "w1", "w2"), gradients, wanted, strict=True):
        error = (got.double() - want).norm() / want.norm()
        assert error < max(1e-5, torch.finfo(got.dtype).eps), part


def test_many_channels_and_large_batches_are_within_the_limits_of_a_launch() -> None:
    features, flow = torch.randn(1, 300_001, 1, 2, device=GPU), torch.tensor([0.25, 0.0], device=GPU)
    warped = warp(features, flow.view(1, 2, 1, 1).expand(1, 2, 1, 2).contiguous())
    torch.testing.assert_close(warped[..., 0], 0.75 * features[..., 0] + 0.25 * features[..., 1])
    batch = torch.randn(70_000, 1, 1, 2, device=GPU, requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        (grad,) = torch.autograd.grad(warp(batch, torch.zeros(70_000, 2, 1, 2, device=GPU)).sum(), batch)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(grad, torch.ones_like(batch))


def test_deterministic_gradients_are_the_same_bit_for_bit() -> None:
    inputs, grad = operands("four pixels a thread", torch.float16)
    inputs = [t.requires_grad_() for t in inputs]
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (torch.autograd.grad(warp_combine(*inputs), inputs, grad) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_runs_on_the_current_stream_and_in_a_cuda_graph() -> None:
    inputs, _ = operands("packs", torch.float16)
    expected = warp_combine(*inputs)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream):
        result = warp_combine(*inputs)
    result.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(result, expected)
    inputs[2].zero_()
    graph.replay()
    assert torch.equal(result, warp_combine(*inputs))


def test_opcheck_and_compile() -> None:
    inputs, _ = operands("packs", torch.float32)
    torch.library.opcheck(torch.ops.netwarp_ros.warp_combine.default, tuple(inputs))
    compiled_blend = torch.compile(lambda *tensors: warp_combine(*tensors).relu(), fullgraph=True)
    torch.testing.assert_close(compiled_blend(*inputs), warp_combine(*inputs).relu())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(512, 1024), (64, 128), (33, 70)], ids=str)
def test_the_classes_are_those_of_the_cpu(size: tuple[int, int], dtype: torch.dtype) -> None:
    scores = generator(0)(2, 19, 64, 128).to(dtype)
    scores[0, 1, 2:9, 3:30] = float("nan")
    for layout in ("contiguous", "channels-last"):
        maps = LAYOUTS[layout](scores)
        assert torch.equal(resize_argmax(maps.to(GPU), size).cpu(), resize_argmax(maps, size))


@pytest.mark.parametrize("start", ["no start", "start"])
@pytest.mark.parametrize("size", [(360, 480), (512, 1024)], ids=str)
@pytest.mark.parametrize("preset", SEARCHES)
def test_dis_equals_its_reference(preset: str, size: tuple[int, int], start: str) -> None:
    assert_dis_equals_the_reference(GPU, size, 1, SEARCHES[preset], start=start)


@settings(max_examples=100)
@ANY_DIS
def test_dis_of_any_arguments_equals_its_reference(**any_arguments: Any) -> None:
    assert_dis_equals_the_reference(GPU, **any_arguments)


@pytest.mark.parametrize("size", [(7, 9), (24, 600), (97, 131)], ids=str)
@pytest.mark.parametrize("preset", SEARCHES)
def test_the_flow_of_arrays_is_that_of_the_cpu(preset: str, size: tuple[int, int]) -> None:
    images = texture(*size), texture(*size, seed=1)
    flows = [TensorDis(preset, device)(*images) for device in ("cuda", "cpu")]
    np.testing.assert_array_equal(flows[0], flows[1])


def dis(frames: list[Tensor], start: Tensor) -> Tensor:
    """Return the flow from the first of two frames to the second, with refinement."""
    search, size = SEARCHES["medium"], (frames[0].shape[2], frames[0].shape[3])
    present, previous = (dis_pyramid(frame, search.first) for frame in frames)
    return dis_flow(present, previous, size, search, start)


def dis_inputs() -> tuple[list[Tensor], Tensor]:
    start = STARTS["start"]((90, 120), 2)
    assert start is not None
    return [frame.to(GPU) for frame in frames_of((360, 480), 2, 3)], start.to(GPU)


def test_dis_is_deterministic_and_waits_for_nothing() -> None:
    frames, start = dis_inputs()
    first = dis(frames, start)
    torch.cuda.set_sync_debug_mode("error")
    try:
        others = [dis(frames, start) for _ in range(5)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert first.any() and all(torch.equal(other, first) for other in others)


def test_dis_runs_in_a_cuda_graph() -> None:
    frames, start = dis_inputs()
    first = dis(frames, start)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = dis(frames, start)
    graph.replay()
    assert torch.equal(result, first)
    frames[0].copy_(frames[0].flip(0))  # frames of the batch change places
    frames[1].copy_(frames[1].roll(2, 3))
    start.zero_()
    graph.replay()
    expected = dis(frames, start)
    assert torch.equal(result, expected) and not torch.equal(expected, first)


def test_the_flow_cnn_computes_in_float32() -> None:
    """TensorFloat-32, PyTorch's default for convolutions, rounds a displacement of 200 pixels by up to 0.1 of one."""
    random = generator(0)
    flow, frames = 200 * random(1, 2, 64, 96), [random(1, 3, 64, 96) for _ in range(2)]
    flow_cnn, inputs = FlowCNN(), [flow, *frames]
    assert torch.equal(flow_cnn.to(GPU)(*(tensor.to(GPU) for tensor in inputs)).cpu(), flow)
    nn.init.normal_(flow_cnn.conv4.weight)  # all of its layers count
    expected = copy.deepcopy(flow_cnn).cpu().double()(*(tensor.double() for tensor in inputs))
    got = flow_cnn(*(tensor.to(GPU) for tensor in inputs)).cpu().double()
    assert (got - expected).abs().max() < 2e-6 * expected.abs().max()


ENGINES = {
    "torch": ("torch", "none"),
    "torch, CUDA graphs": ("auto", "none"),
    "torch, compiled": ("torch", "default"),
    "torch, compiled, CUDA graphs": ("torch", "reduce-overhead"),
}
"""Engine and mode of compilation, by the name of the engine that they give on a GPU."""


@pytest.mark.auto_engine
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", [DEFAULT_MODEL, "ddrnet23slim-netwarp-camvid"])
def test_masks_are_those_of_the_cpu(name: str, engine: str) -> None:
    """Two cameras in turn, so that a memory that was overwritten would show."""
    wanted, compile = ENGINES[engine]
    cpu = Segmenter(load_model(name), engine="torch", precision="float32")
    gpu = Segmenter(load_model(name), engine=wanted, device="cuda", compile=compile)
    assert (gpu.precision, gpu.engine.name, gpu.engine_problem) == ("float16", engine, "")
    streets = [Street(seed=seed, rate=15) for seed in (3, 4)]
    streams = [[segmenter.stream() for _ in streets] for segmenter in (cpu, gpu)]
    for index in range(4):
        for camera, street in enumerate(streets):
            image = street.frame(index).image
            results = [ways[camera].segment(image, index * 66_000_000) for ways in streams]
            assert results[0].reason == results[1].reason
            assert np.mean(results[0].mask == results[1].mask) > 0.99, (index, camera)


@pytest.mark.parametrize("engine", ["torch", "cudagraphs"])
def test_confidence_label_map_and_ego_mask_are_those_of_the_cpu(engine: str) -> None:
    ego = np.zeros((36, 48), np.uint8)
    ego[28:, 10:38] = 255
    results = []
    for device, own in (("cpu", "torch"), ("cuda", engine)):
        segmenter = Segmenter(device=device, engine=own, precision="float32", label_map="nav2")
        segmenter.confidence = Confidence(1.5, {"traversable": 0.5})
        stream = segmenter.stream(ego_mask=ego)
        images = [Street(seed=3, rate=15).frame(index).image for index in range(4)]
        results.append([stream.segment(image, i * 66_000_000, confidence=True) for i, image in enumerate(images)])
    for on_cpu, on_gpu in zip(*results, strict=True):
        assert on_cpu.confidence is not None and on_gpu.confidence is not None
        assert (on_cpu.mask == on_gpu.mask).mean() > 0.998
        same = on_cpu.mask == on_gpu.mask
        assert np.abs(on_cpu.confidence.astype(int) - on_gpu.confidence)[same].max() <= 3
        assert (on_gpu.mask == 255).any() and not on_gpu.confidence[on_gpu.mask == 255].any()
