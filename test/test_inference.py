# SPDX-License-Identifier: Apache-2.0
"""Windows, scales and mirror images: where they are, how they are averaged, and that each has its own memory."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from netwarp_ros.classes import load_classes
from netwarp_ros.flow import DisFlow, halve
from netwarp_ros.models import Inference, Model, ModelSpec, VideoCNN, augment, resize_flow
from netwarp_ros.segmenter import MemoryState, Segmenter

PAPER_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
SIZE = (20, 30)
# Upper and left edges, by hand, of windows of 16 pixels with stride 8 on a frame of this size.
TOPS, LEFTS = (0, 4), (0, 8, 14)


def pointwise() -> VideoCNN:
    """Return a video CNN of 1x1 convolutions: each pixel depends on itself and its previous place alone."""
    torch.manual_seed(0)
    host = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Tanh(), nn.Conv2d(6, 4, 1)).eval()
    return with_blend(augment(host, ["0"], flow_cnn=False))


def strided() -> VideoCNN:
    """Return a video CNN of stride 2 whose output depends on neighboring pixels and on the border of its input."""
    torch.manual_seed(0)
    host = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(6, 4, 3, padding=1)).eval()
    return with_blend(augment(host, ["0"]))


def with_blend(video_cnn: VideoCNN) -> VideoCNN:
    """Set the combination weights so that the previous frame has an effect."""
    nn.init.constant_(video_cnn.netwarps[0].w1, 0.5)
    nn.init.constant_(video_cnn.netwarps[0].w2, 0.5)
    return video_cnn


def frames(count: int, size: tuple[int, int] = SIZE, batch: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [2 * torch.randn(batch, 3, *size, generator=generator) for _ in range(count)]


def flow_of(u: float, v: float, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.tensor([u, v], dtype=torch.float32).view(1, 2, 1, 1).expand(1, 2, *size).contiguous()


def run(network: Any, sequence: list[Tensor], motion: list[Tensor]) -> list[Tensor]:
    """Return the outputs for a sequence; the flow of the first frame is not used."""
    memory, outputs = None, []
    with torch.no_grad():
        for frame, flow in zip(sequence, motion, strict=True):
            output, memory = network(frame, flow, memory)
            outputs.append(output)
    return outputs


def infer(
    inference: Inference, video_cnn: VideoCNN, sequence: list[Tensor], motion: list[Tensor] | None = None
) -> list[Tensor]:
    """Return the probabilities for a sequence."""
    motion = motion or [flow_of(0, 0, tuple(frame.shape[-2:])) for frame in sequence]  # type: ignore[arg-type]
    return run(lambda *arguments: inference(video_cnn, *arguments), sequence, motion)


def probabilities_of(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False).softmax(1)


# Where the windows are


def test_cityscapes_takes_the_papers_8_windows() -> None:
    ((size, windows),) = Inference(713).windows(1024, 2048)
    assert size == (1024, 2048)
    assert [(y.start, x.start) for y, x in windows] == [(y, x) for y in (0, 311) for x in (0, 476, 952, 1335)]
    assert all((y.stop - y.start, x.stop - x.start) == (713, 713) for y, x in windows)


def test_cityscapes_takes_the_papers_81_windows_at_six_scales() -> None:
    scales = Inference(713, scales=PAPER_SCALES).windows(1024, 2048)
    assert [size for size, _ in scales] == [(512 + 256 * i, 1024 + 512 * i) for i in range(6)]
    assert [len(windows) for _, windows in scales] == [2, 6, 8, 15, 18, 32]


@given(length=st.integers(1, 90), window=st.integers(1, 40), data=st.data())
def test_windows_cover_every_pixel_and_stay_within(length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(0, window))
    ((_, windows),) = Inference(window, stride).windows(1, length)
    columns = [x for _, x in windows]
    assert {i for x in columns for i in range(x.start, x.stop)} == set(range(max(length, window)))
    step = stride or math.ceil(2 * window / 3)
    assert [x.start for x in columns[:-1]] == [i * step for i in range(len(columns) - 1)]
    assert len(columns) == 1 or columns[-2].stop < length  # the last window is needed


def test_whole_frame_is_one_window_at_each_scale() -> None:
    scales = Inference(scales=(0.5, 1.5)).windows(21, 30)
    assert [(size, [(y.stop, x.stop) for y, x in windows]) for size, windows in scales] == [
        ((10, 15), [(10, 15)]),
        ((32, 45), [(32, 45)]),
    ]


# How they are averaged


@pytest.mark.parametrize("inference", [Inference(), Inference(16, 8), Inference(16, 8, flip=True), Inference(64)])
def test_windows_do_not_change_a_pointwise_network(inference: Inference) -> None:
    (frame,) = frames(1)
    (probabilities,) = infer(inference, pointwise(), [frame])
    torch.testing.assert_close(probabilities, pointwise().host(frame).softmax(1))


def test_each_pixel_is_the_mean_over_the_windows_that_contain_it() -> None:
    video_cnn, (frame,) = strided(), frames(1)
    seen: dict[tuple[int, int], list[Tensor]] = {(y, x): [] for y in range(SIZE[0]) for x in range(SIZE[1])}
    for top in TOPS:
        for left in LEFTS:
            window = probabilities_of(video_cnn.host(frame[..., top : top + 16, left : left + 16]), (16, 16))
            for y in range(16):
                for x in range(16):
                    seen[top + y, left + x].append(window[0, :, y, x])
    assert {len(views) for views in seen.values()} == {1, 2, 3, 4, 6}
    expected = torch.stack([torch.stack(views).mean(0) for views in seen.values()], dim=1).view(1, 4, *SIZE)
    (probabilities,) = infer(Inference(16, 8), video_cnn, [frame])
    torch.testing.assert_close(probabilities, expected)


def test_scales_have_equal_weight_whatever_their_number_of_windows() -> None:
    video_cnn, (frame,) = strided(), frames(1)
    views = []
    for size in ((10, 15), (20, 30), (40, 60)):
        scaled = F.interpolate(frame, size=size, mode="bilinear", antialias=True)
        (at_scale,) = infer(Inference(16, 8), video_cnn, [scaled])
        views.append(F.interpolate(at_scale, size=SIZE, mode="bilinear", antialias=True))
    (probabilities,) = infer(Inference(16, 8, scales=(0.5, 1.0, 2.0)), video_cnn, [frame])
    torch.testing.assert_close(probabilities, torch.stack(views).mean(0))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(1, *SIZE))


def test_mirror_image_has_the_weight_of_the_window() -> None:
    video_cnn, (frame,) = strided(), frames(1)
    straight, mirrored = (probabilities_of(video_cnn.host(image), SIZE) for image in (frame, frame.flip(-1)))
    (probabilities,) = infer(Inference(flip=True), video_cnn, [frame])
    assert not torch.allclose(straight, mirrored.flip(-1), atol=1e-2)
    torch.testing.assert_close(probabilities, (straight + mirrored.flip(-1)) / 2)


@pytest.mark.parametrize("inference", [Inference(16, 8, flip=True), Inference(scales=(0.5, 1.5))])
def test_a_batch_of_streams_equals_each_alone(inference: Inference) -> None:
    sequence, motion = frames(3, batch=2), [flow_of(2, -1)] * 3
    together = infer(inference, strided(), sequence, [flow.expand(2, -1, -1, -1) for flow in motion])
    for stream in range(2):
        alone = infer(inference, strided(), [frame[stream : stream + 1] for frame in sequence], motion)
        torch.testing.assert_close(together[-1][stream : stream + 1], alone[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("limit", [1, 4, 5])
def test_windows_per_pass_changes_the_batches_and_not_the_result(limit: int) -> None:
    sequence, motion, seen = frames(2), [flow_of(2, -1)] * 2, []
    video_cnn = strided()
    expected = infer(Inference(16, 8, flip=True, windows_per_pass=12), video_cnn, sequence, motion)
    video_cnn.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    inference = Inference(16, 8, flip=True, windows_per_pass=limit)
    torch.testing.assert_close(infer(inference, video_cnn, sequence, motion)[-1], expected[-1])
    assert max(seen) == limit and sum(seen) == 2 * 12


def test_host_in_half_precision_gives_float32() -> None:
    inference, sequence, motion = Inference(16, scales=(0.5, 1.5), flip=True), frames(2), [flow_of(2, -1)] * 2
    video_cnn = strided()
    full = infer(inference, video_cnn, sequence, motion)[-1]
    video_cnn.host.to(torch.bfloat16)
    half = infer(inference, video_cnn, [frame.bfloat16() for frame in sequence], motion)[-1]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.02, rtol=0.05)


# What they remember


def test_each_window_has_its_own_memory() -> None:
    """Each window is run by hand on three frames, with a flow that leads out of the window."""
    video_cnn, sequence, motion = strided(), frames(3), [flow_of(6, -3)] * 3
    total, count = torch.zeros(3, 1, 4, *SIZE), torch.zeros(SIZE)
    for top in TOPS:
        for left in LEFTS:
            place = (..., slice(top, top + 16), slice(left, left + 16))
            outputs = run(video_cnn, [frame[place] for frame in sequence], [flow[place] for flow in motion])
            total[place] += torch.stack([probabilities_of(output, (16, 16)) for output in outputs])
            count[place] += 1
    for probabilities, expected in zip(infer(Inference(16, 8), video_cnn, sequence, motion), total, strict=True):
        torch.testing.assert_close(probabilities, expected / count)


def test_window_sees_the_previous_frame_in_itself_alone() -> None:
    """With a pointwise network, windows and whole frame differ only if the flow leads out of the windows."""
    sequence = frames(2)
    for u, same in ((0.0, True), (9.0, False)):
        motion = [flow_of(u, 0)] * 2
        whole, windows = (
            infer(inference, pointwise(), sequence, motion)[-1] for inference in (Inference(), Inference(16))
        )
        assert torch.allclose(whole, windows, atol=1e-3) == same


@pytest.mark.parametrize("inference", [Inference(flip=True), Inference(16, 8, flip=True)])
def test_flow_of_a_mirrored_window_has_u_negated(inference: Inference) -> None:
    """A pointwise network gives the same result for mirror images, but only if u is negated."""
    generator = torch.Generator().manual_seed(2)
    sequence, motion = frames(3), [3 * torch.randn(1, 2, *SIZE, generator=generator) for _ in range(3)]
    plain = Inference(inference.window, inference.stride)
    straight = infer(plain, pointwise(), sequence, motion)[-1]
    torch.testing.assert_close(infer(inference, pointwise(), sequence, motion)[-1], straight, atol=2e-3, rtol=0)
    other_way = [flow * torch.tensor([-1, 1]).view(2, 1, 1) for flow in motion]
    assert not torch.allclose(infer(plain, pointwise(), sequence, other_way)[-1], straight, atol=0.1)


def test_each_window_gets_its_part_of_the_flow_in_pixels_of_its_scale() -> None:
    """The flow grows by a quarter of a pixel per column; a hook records what the network is given."""
    seen: list[Tensor] = []
    video_cnn, (first, second) = pointwise(), frames(2)
    ramp = (0.25 * torch.arange(SIZE[1])).expand(SIZE)
    flow = torch.stack((ramp, -2 * ramp))[None]
    inference = Inference(16, 8, scales=(0.5, 1.0, 2.0), windows_per_pass=1)
    with torch.no_grad():
        _, memory = inference(video_cnn, first)
        video_cnn.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1][0]))
        inference(video_cnn, second, flow, memory)
    windows = inference.windows(*SIZE)
    assert len(seen) == sum(len(places) for _, places in windows) == 1 + 6 + 4 * 7
    motion = iter(seen)
    for (height, width), places in windows:
        ratio = width / SIZE[1]
        for rows, columns in places:
            x = torch.arange(columns.start, columns.stop)
            u = ratio * 0.25 * ((x + 0.5) / ratio - 0.5).clamp(0, SIZE[1] - 1)
            u = torch.where(x < width, u, 0.0).expand(16, 16) * (torch.arange(16) + rows.start < height).view(16, 1)
            torch.testing.assert_close(next(motion), torch.stack((u, -2 * u)))


def test_frame_smaller_than_the_window_is_padded_with_zeros() -> None:
    seen: list[Any] = []
    video_cnn, sequence = strided(), frames(2)
    video_cnn.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    probabilities = infer(Inference(32), video_cnn, sequence, [flow_of(2, -1)] * 2)[-1]
    assert probabilities.shape == (1, 4, *SIZE)
    frame, flow, _ = seen[-1]
    assert torch.equal(frame[..., :20, :30], sequence[-1]) and torch.equal(flow[..., :20, :30], flow_of(2, -1))
    for beyond in (frame[..., 20:, :], frame[..., 30:], flow[..., 20:, :], flow[..., 30:]):
        assert beyond.numel() and not beyond.any()


def test_memory_is_a_value_that_does_not_grow() -> None:
    inference, video_cnn, sequence = Inference(16, 8, flip=True), strided(), frames(3)
    first = inference(video_cnn, sequence[0])[1]
    second = inference(video_cnn, sequence[1], flow_of(2, -1), first)[1]
    again = inference(video_cnn, sequence[1], flow_of(2, -1), first)[1]
    assert [memory.shape[0] for memory in first.passes] == [memory.shape[0] for memory in second.passes] == [8, 4]
    for memory, twin in zip(second.passes, again.passes, strict=True):
        assert torch.equal(memory.representations["0"], twin.representations["0"])


# What is refused


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"window": -1}, "window is -1: give pixels, or 0 for the whole frame"),
        ({"window": 16, "stride": 17}, r"stride is 17: give 1 to window \(16\)"),
        ({"window": 16, "stride": -1}, "stride is -1"),
        ({"stride": 8}, r"stride is 8: give 1 to window \(0\)"),
        ({"scales": ()}, r"scales is \(\): give one or more factors > 0"),
        ({"scales": (1.0, 0.0)}, r"scales is \(1.0, 0.0\)"),
        ({"scales": (math.nan,)}, r"scales is \(nan,\)"),
        ({"scales": (math.inf,)}, r"scales is \(inf,\)"),
        ({"windows_per_pass": 0}, "windows_per_pass is 0: give 1 or more"),
    ],
)
def test_wrong_values_are_named(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Inference(**option)


@pytest.mark.parametrize(
    "other",
    [Inference(16), Inference(16, 8, flip=True), Inference(16, 8, scales=(0.5,)), Inference(16, 8, (1.0,), False, 3)],
)
def test_memory_of_another_inference_is_refused(other: Inference) -> None:
    video_cnn, (frame,) = strided(), frames(1)
    _, memory = other(video_cnn, frame)
    with pytest.raises(ValueError, match=r"memory is of Inference\(window=16, .* reset it with memory=None"):
        Inference(16, 8)(video_cnn, frame, flow_of(0, 0), memory)


def test_wrong_inputs_are_named() -> None:
    inference, video_cnn, (frame,) = Inference(16, 8), strided(), frames(1)
    _, memory = inference(video_cnn, frame)
    with pytest.raises(ValueError, match=r"frame is \(3, 20, 30\): give \(B, C, H, W\)"):
        inference(video_cnn, frame[0])
    with pytest.raises(ValueError, match=r"on frames \(1, 3, 20, 30\), this is .* on \(1, 3, 20, 31\)"):
        inference(video_cnn, frames(1, (20, 31))[0], flow_of(0, 0, (20, 31)), memory)
    with pytest.raises(ValueError, match="memory needs a flow"):
        inference(video_cnn, frame, None, memory)
    with pytest.raises(ValueError, match=r"flow is \(1, 2, 10, 15\), expected \(1, 2, 20, 30\)"):
        inference(video_cnn, frame, flow_of(0, 0, (10, 15)), memory)


# In the segmenter

CAMVID = load_classes("camvid")
SPEC = ModelSpec(host="ddrnet23slim", classes=CAMVID, host_arguments={"num_classes": 4}, input_height=48)
WINDOWS = Inference(32, scales=(0.5, 1.0), flip=True)


def images(count: int) -> list[np.ndarray]:
    """Return frames of a texture that moves two pixels to the right per frame."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    return [np.roll(cv2.GaussianBlur(noise, (0, 0), 1.5), 2 * i, axis=1) for i in range(count)]


def segmenter(**options: Any) -> Segmenter:
    return Segmenter(Model(strided(), SPEC, "test"), precision="float32", **options)


def test_segmenter_chooses_the_most_probable_class_over_all_views() -> None:
    mean, std = torch.tensor(SPEC.mean).view(3, 1, 1), torch.tensor(SPEC.std).view(3, 1, 1)
    sequence = images(3)
    normalised = [
        ((torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1) / 255 - mean) / std)[None] for image in sequence
    ]
    start, motion = None, [flow_of(0, 0, (48, 64))]
    for previous, image in pairwise(sequence):
        greys = (halve(cv2.cvtColor(each, cv2.COLOR_BGR2GRAY)) for each in (image, previous))
        start = DisFlow("ultrafast", halved=True)(*greys, start)
        motion.append(resize_flow(torch.from_numpy(start).permute(2, 0, 1)[None], (48, 64)))
    expected = [probabilities[0].argmax(0).numpy() for probabilities in infer(WINDOWS, strided(), normalised, motion)]
    stream, plain = segmenter(inference=WINDOWS).stream(), segmenter().stream()
    results = [stream.segment(image, i) for i, image in enumerate(sequence)]
    assert [result.memory for result in results] == [MemoryState.NEW, MemoryState.KEPT, MemoryState.KEPT]
    for i, (result, mask) in enumerate(zip(results, expected, strict=True)):
        assert (result.mask == mask).mean() > 0.999
        assert (result.mask != plain.segment(sequence[i], i).mask).any()


def test_segmenter_of_the_host_alone_has_no_memory() -> None:
    alone, stream = segmenter(inference=WINDOWS, host_only=True).stream(), segmenter(inference=WINDOWS).stream()
    for i, image in enumerate(images(2)):
        stream.reset()
        result = alone.segment(image, i)
        assert result.memory == MemoryState.NEW
        np.testing.assert_array_equal(result.mask, stream.segment(image, i).mask)


def test_segmenter_by_default_runs_the_video_cnn_on_the_whole_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("no windows by default")

    monkeypatch.setattr(Inference, "__call__", refuse)
    default, explicit = segmenter().stream(), segmenter(inference=Inference(0, scales=(1.0,))).stream()
    for i, image in enumerate(images(2)):
        np.testing.assert_array_equal(default.segment(image, i).mask, explicit.segment(image, i).mask)
