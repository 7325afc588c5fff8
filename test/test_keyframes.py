# SPDX-License-Identifier: Apache-2.0
"""Key frames: which frames they are, and what is made of them on the frames between."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from test_segmenter import SECOND, SPEC, host, images, segmenter, video_cnn
from torch import nn

from netwarp_ros.models import Inference, Model, VideoCNN
from netwarp_ros.ops import warp
from netwarp_ros.segmenter import KeyFrames, MemoryState, Reset, Result, Segmenter
from netwarp_ros.segmenter.keyframes import KeyFrame, accumulate, move, unseen_share


def host_alone(**options: Any) -> Segmenter:
    return Segmenter(Model(VideoCNN(host(), {}), SPEC, "host"), precision="float32", engine="torch", **options)


def constant_flow(u: float, v: float, height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width, 2), (u, v), np.float32)


def run(one: Segmenter, sequence: list[np.ndarray], **options: Any) -> list[Result]:
    stream = one.stream()
    return [stream.segment(image, index * SECOND // 10, **options) for index, image in enumerate(sequence)]


def keys(results: list[Result]) -> list[int]:
    return [index for index, result in enumerate(results) if result.is_key]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1", "keyframes is '1': give none, adaptive, or a number N from 2 to 100"),
        ("101", "keyframes is '101'"),
        ("every 4", "keyframes is 'every 4'"),
        ("", "keyframes is ''"),
        ("-4", "keyframes is '-4'"),
    ],
)
def test_wrong_values_are_named_with_what_to_give(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        segmenter(keyframes=text)


def test_limits_of_adaptive_key_frames_are_checked() -> None:
    with pytest.raises(ValueError, match=r"most_unseen is 1\.5: give a share from 0 to 1"):
        KeyFrames("adaptive", most_unseen=1.5)
    with pytest.raises(ValueError, match="bound is 0: give 1 to 100 frames"):
        KeyFrames("adaptive", bound=0)


def test_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="keyframes is 4, which needs a network that sees the whole frame"):
        segmenter(keyframes="4", inference=Inference(window=32))


def test_by_default_every_frame_is_a_key_frame() -> None:
    assert keys(run(segmenter(), images(4))) == [0, 1, 2, 3]


@pytest.mark.parametrize("make", [segmenter, host_alone])
def test_every_nth_frame_is_a_key_frame_counted_from_the_last_reset(make: Any) -> None:
    one = make(keyframes="3")
    assert keys(run(one, images(8))) == [0, 3, 6]
    stream = one.stream()
    made = []
    for index, image in enumerate(images(6)):
        if index == 2:
            stream.reset()
        made.append(stream.segment(image, index * SECOND // 10))
    assert keys(made) == [0, 2, 5]


def test_the_network_runs_on_key_frames_alone() -> None:
    one = segmenter(keyframes="3", engine="torch")
    runs = 0

    def counted(*arguments: Any) -> Any:
        nonlocal runs
        runs += 1
        return engine(*arguments)

    engine, one.engine = one.engine, counted  # type: ignore[assignment]
    one.engine.device = engine.device  # type: ignore[attr-defined]
    run(one, images(7))
    assert runs == 3


def test_flows_add_up_to_the_flow_over_all_steps() -> None:
    """From x to 1.1 x + 1, and again, is to 1.21 x + 2.1; bilinear interpolation of a linear field is exact."""
    rows, columns = np.mgrid[0:30, 0:40].astype(np.float32)
    one = np.dstack([0.1 * columns + 1, 0 * rows]).astype(np.float32)
    twice = accumulate(one, one)  # OpenCV rounds places to 1/32 pixel
    inside = columns + one[..., 0] <= 39
    np.testing.assert_allclose(twice[..., 0][inside], (0.21 * columns + 2.1)[inside], atol=0.005)
    assert not twice[..., 1].any()
    assert accumulate(one, None) is one


def test_a_flow_on_another_grid_is_brought_to_that_of_the_grey_image() -> None:
    key = KeyFrame(torch.zeros(1, 2, 6, 8), np.zeros((12, 16), np.uint8), 1, constant_flow(1.0, 0.5, 12, 16))
    flow = key.flow_from(constant_flow(4.0, 2.0, 24, 32))
    assert flow.shape == (12, 16, 2)
    np.testing.assert_allclose(flow, constant_flow(3.0, 1.5, 12, 16), atol=1e-6)


def test_a_skipped_frame_has_the_scores_of_the_key_frame_moved_along_the_accumulated_flow() -> None:
    """Two frames whose flow is (-4, 0) and (-4, 4): the scores, at a quarter of the size, are moved by (-2, 1)."""
    one = host_alone(keyframes="4", flow="ultrafast")
    stream, sequence = one.stream(), images(3)
    stream.segment(sequence[0], 0)
    stream.segment(sequence[1], SECOND // 10, flow=constant_flow(-4.0, 0.0))
    result = stream.segment(sequence[2], 2 * SECOND // 10, flow=constant_flow(-4.0, 4.0))
    assert not result.is_key

    scores, _ = one.infer(one.upload(sequence[0]))
    expected = torch.empty_like(scores)
    for y in range(12):
        for x in range(16):
            expected[..., y, x] = scores[..., min(11, y + 1), max(0, x - 2)]
    torch.testing.assert_close(move(scores, constant_flow(-8.0, 4.0)), expected)
    resized = nn.functional.interpolate(expected, size=(48, 64), mode="bilinear", align_corners=False)
    assert (result.mask == resized[0].argmax(0).numpy()).mean() > 0.999
    assert (result.mask != one.stream().segment(sequence[2], 0).mask).mean() > 0.1


def test_the_memory_of_a_key_frame_is_warped_to_the_next_one_along_the_accumulated_flow() -> None:
    one, sequence = segmenter(keyframes="2", engine="torch"), images(3)
    stream = one.stream()
    for index, image in enumerate(sequence):
        result = stream.segment(image, index * SECOND // 10, flow=constant_flow(-2.0, 0.0))
    assert result.is_key and result.memory is MemoryState.KEPT

    network = video_cnn()
    mean, std = torch.tensor(SPEC.mean).view(1, 3, 1, 1), torch.tensor(SPEC.std).view(1, 3, 1, 1)
    frames = [
        (torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None] / 255 - mean) / std for image in sequence
    ]
    flow = torch.from_numpy(constant_flow(-4.0, 0.0)).permute(2, 0, 1)[None]
    with torch.no_grad():
        _, memory = network(frames[0])
        logits, _ = network(frames[2], flow, memory)
    resized = nn.functional.interpolate(logits, size=(48, 64), mode="bilinear", align_corners=False)
    assert (result.mask == resized[0].argmax(0).numpy()).mean() > 0.999


def test_nothing_is_unseen_where_the_flow_is_right_even_if_the_exposure_changes() -> None:
    grey = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in images(2, 96, 128)]
    share = unseen_share(grey[1], grey[0], constant_flow(-2.0, 0.0, 96, 128))
    assert share == pytest.approx(2 / 128, abs=0.01)  # at the left border
    brighter = cv2.add(grey[1] // 2, 90)
    assert unseen_share(brighter, grey[0] // 2, constant_flow(-2.0, 0.0, 96, 128)) == pytest.approx(2 / 128, abs=0.01)


def test_what_is_uncovered_and_what_comes_in_is_unseen() -> None:
    before = np.full((60, 80), 100, np.uint8)
    uncovered = before.copy()
    uncovered[20:40, 20:40] = 200  # a twelfth; the mean changes by 8
    none = constant_flow(0.0, 0.0, 60, 80)
    assert unseen_share(uncovered, before, none) == pytest.approx(1 / 12)
    assert unseen_share(before, before, none) == 0
    assert unseen_share(before, before, constant_flow(20.0, 0.0, 60, 80)) == pytest.approx(1 / 4)
    assert unseen_share(before, before, constant_flow(0.0, -30.0, 60, 80)) == pytest.approx(1 / 2)


def test_adaptive_key_frames_come_when_something_is_uncovered_and_after_the_bound() -> None:
    still = images(1)[0]
    other = still.copy()
    other[10:40, 10:40] = 255 - other[10:40, 10:40]
    other[12:38, 12:38] = 255
    adaptive = KeyFrames("adaptive", most_unseen=0.05, bound=5)
    options: dict[str, Any] = {"keyframes": adaptive, "flow": lambda present, previous: constant_flow(0.0, 0.0)}
    assert keys(run(segmenter(**options), [still] * 12)) == [0, 5, 10]
    assert keys(run(segmenter(**options), [still] * 3 + [other] * 7)) == [0, 3, 8]


def test_a_stream_continues_from_its_state_in_the_middle_of_skipped_frames() -> None:
    one, sequence = segmenter(keyframes="4"), images(9)
    expected = run(one, sequence)
    stream = one.stream()
    for index, image in enumerate(sequence):
        result = stream.segment(image, index * SECOND // 10)
        assert np.array_equal(result.mask, expected[index].mask) and result.is_key == expected[index].is_key
        file = io.BytesIO()
        torch.save(stream.state(), file)
        file.seek(0)
        stream = one.stream(torch.load(file, weights_only=True))


def test_a_gap_makes_a_key_frame_without_memory() -> None:
    stream = segmenter(keyframes="4").stream()
    first, second, third = images(3)
    assert stream.segment(first, 0).is_key
    assert not stream.segment(second, SECOND // 10).is_key
    result = stream.segment(third, 2 * SECOND)
    assert (result.is_key, result.memory, result.reason) == (True, MemoryState.NEW, Reset.GAP)


def test_a_host_alone_skips_frames_too_and_resets_are_those_of_its_stream() -> None:
    results = run(host_alone(keyframes="3"), images(4))
    assert keys(results) == [0, 3]
    assert {(result.memory, result.reason) for result in results} == {(MemoryState.NEW, Reset.HOST_ONLY)}


def test_masks_of_skipped_frames_have_size_ego_mask_labels_and_confidence() -> None:
    ego = np.zeros((48, 64), np.uint8)
    ego[40:] = 1
    one = segmenter(keyframes="4", mask_size="32x24")
    stream = one.stream(ego_mask=ego)
    for index, image in enumerate(images(3)):
        result = stream.segment(image, index * SECOND // 10, confidence=True)
        assert result.mask.shape == (24, 32) and result.confidence is not None
        assert (result.mask[20:] == 255).all() and not result.confidence[20:].any()
        assert (result.mask[:19] < 5).all() and result.confidence[:19].any()
    assert not result.is_key


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_engines_agree_on_skipped_frames(engine: str) -> None:
    expected = run(segmenter(engine="torch", keyframes="3"), images(5))
    for result, other in zip(expected, run(segmenter(engine=engine, keyframes="3"), images(5)), strict=True):
        assert (result.mask == other.mask).mean() > 0.995 and result.is_key == other.is_key


def test_warming_up_runs_a_key_frame_with_memory() -> None:
    one = segmenter(keyframes="4", engine="torch")
    seen = []
    infer = one.infer

    def note(*arguments: Any, **options: Any) -> Any:
        seen.append(arguments[2] is not None)
        return infer(*arguments, **options)

    one.infer = note  # type: ignore[method-assign]
    one.warm_up(64, 48)
    assert seen == [False, True]


def test_scores_are_moved_by_the_warp_operator_of_the_networks() -> None:
    scores, flow = torch.randn(1, 3, 6, 8), np.random.default_rng(0).normal(size=(6, 8, 2)).astype(np.float32)
    expected = warp(scores, torch.from_numpy(flow).permute(2, 0, 1)[None].contiguous())
    torch.testing.assert_close(move(scores, flow), expected)
