# SPDX-License-Identifier: Apache-2.0
"""The streaming core: masks at the image's size, memory that is kept or reset by the rules, and errors."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from netwarp_ros.classes import load_classes
from netwarp_ros.engines import Engine
from netwarp_ros.flow import DisFlow, halve
from netwarp_ros.models import Model, ModelSpec, VideoCNN, augment
from netwarp_ros.segmenter import MemoryState, Reset, Result, Segmenter

SECOND = 1_000_000_000
CAMVID = load_classes("camvid")
SPEC = ModelSpec(host="ddrnet23slim", classes=CAMVID, host_arguments={"num_classes": 5}, input_height=48)


def host() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.Tanh(), nn.Conv2d(8, 5, 3, padding=1)).eval()


def video_cnn() -> VideoCNN:
    network = augment(host(), ["0"], flow_grid="features")
    nn.init.constant_(network.netwarps[0].w2, 0.8)
    return network


def segmenter(**options: object) -> Segmenter:
    return Segmenter(Model(video_cnn(), SPEC, "test"), precision="float32", **options)  # type: ignore[arg-type]


def images(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Return frames of a texture that moves two pixels to the right per frame."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    texture = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return [np.roll(texture, 2 * i, axis=1) for i in range(count)]


def by_hand(sequence: list[np.ndarray]) -> list[np.ndarray]:
    """Segment images of the input height without the segmenter: PyTorch, DIS and the video CNN alone."""
    network, memory, masks, previous, start = video_cnn(), None, [], None, None
    mean, std = torch.tensor(SPEC.mean).view(3, 1, 1), torch.tensor(SPEC.std).view(3, 1, 1)
    for image in sequence:
        rgb = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1) / 255
        flow = None
        if previous is not None:
            greys = (halve(cv2.cvtColor(each, cv2.COLOR_BGR2GRAY)) for each in (image, previous))
            start = DisFlow("ultrafast", halved=True)(*greys, start)
            flow = torch.from_numpy(start).permute(2, 0, 1)[None]
        with torch.no_grad():
            logits, memory = network(((rgb - mean) / std)[None], flow, memory)
        logits = nn.functional.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=False)
        masks.append(logits[0].argmax(0).numpy().astype(np.uint8))
        previous = image
    return masks


def test_masks_equal_those_computed_by_hand() -> None:
    stream = segmenter().stream()
    for i, (image, expected) in enumerate(zip(images(4), by_hand(images(4)), strict=True)):
        result = stream.segment(image, i * SECOND // 10)
        assert result.mask.dtype == np.uint8 and result.mask.shape == (48, 64)
        assert (result.mask == expected).mean() > 0.999
        assert result.memory == (MemoryState.KEPT if i else MemoryState.NEW)
        assert set(result.stages_ms) == {"prepare", "flow", "network"}


def test_it_is_warm_for_images_that_give_the_same_input_size() -> None:
    one = segmenter()
    assert not one.is_warm(64, 48)
    one.warm_up(640, 480)
    assert one.is_warm(64, 48) and one.is_warm(1280, 960) and not one.is_warm(1280, 720)


def with_flow_thread(one: Segmenter) -> Segmenter:
    """Let a segmenter on the CPU estimate the flow as it does with a GPU."""
    one._flow_thread = ThreadPoolExecutor(1, "flow")
    return one


def test_with_a_gpu_another_thread_estimates_the_same_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, threaded = segmenter(), with_flow_thread(segmenter())
    estimate, threads = DisFlow.__call__, list[str]()

    def noting(*arguments: Any, **options: Any) -> np.ndarray:
        threads.append(threading.current_thread().name)
        return estimate(*arguments, **options)

    monkeypatch.setattr(DisFlow, "__call__", noting)
    streams = plain.stream(), threaded.stream()
    for index, image in enumerate(images(4)):
        results = [stream.segment(image, index * SECOND // 10) for stream in streams]
        assert np.array_equal(results[0].mask, results[1].mask)
        assert results[1].memory == (MemoryState.KEPT if index else MemoryState.NEW)
    assert threads == ["MainThread", "flow_0"] * 3


def test_flow_of_a_frame_that_fails_does_not_disturb_the_next_one() -> None:
    """The network may fail before it asks for the flow, which the other thread still estimates then."""
    plain, threaded = segmenter().stream(), with_flow_thread(segmenter()).stream()
    first, second, third = images(3)
    engine = threaded.segmenter.engine

    class Failing(Engine):
        def __call__(self, *_arguments: Any) -> Any:
            raise RuntimeError("out of memory")

    for stream in (plain, threaded):
        stream.segment(first, 0)
    threaded.segmenter.engine = Failing()
    with pytest.raises(RuntimeError, match="out of memory"):
        threaded.segment(second, SECOND // 10)
    threaded.segmenter.engine = engine
    masks = [stream.segment(third, 2 * SECOND // 10).mask for stream in (plain, threaded)]
    assert np.array_equal(*masks)


def test_memory_changes_the_mask() -> None:
    first, second = images(2)
    with_memory, without = segmenter().stream(), segmenter().stream()
    with_memory.segment(first, 0)
    assert (with_memory.segment(second, 1).mask != without.segment(second, 1).mask).any()


@pytest.mark.parametrize(("height", "width"), [(48, 64), (96, 128), (24, 32), (97, 61), (1, 1), (2, 300)])
def test_mask_has_the_images_size(height: int, width: int) -> None:
    stream = segmenter().stream()
    for i in range(2):
        assert stream.segment(np.full((height, width, 3), 90, np.uint8), i).mask.shape == (height, width)


def test_input_height_is_the_height_of_the_flows_images() -> None:
    seen = []

    def flow(present: np.ndarray, previous: np.ndarray) -> np.ndarray:
        seen.append((present.shape, previous.shape))
        return np.zeros((*present.shape[:2], 2), np.float32)

    for height, expected in ((0, (48, 64)), (24, (24, 32)), (96, (96, 128))):
        stream = segmenter(input_height=height, flow=flow).stream()
        for i in range(2):
            stream.segment(np.zeros((192, 256, 3), np.uint8), i)
        assert seen.pop() == (expected, expected)


@pytest.mark.parametrize(
    ("image_size", "input_size"),
    [
        # width x height, scaled to 360 rows
        ((480, 360), (480, 360)),
        ((4096, 2160), (683, 360)),
        ((480, 640), (270, 360)),
        ((1, 1), (360, 360)),
        ((3, 400), (3, 360)),
        ((1, 4000), (1, 360)),
        ((200, 80), (900, 360)),
        # 360 rows would be too wide
        ((640, 2), (640, 2)),
        ((400, 3), (400, 3)),
        ((800, 80), (800, 80)),
        ((2048, 16), (1000, 8)),
        ((2048, 360), (1000, 176)),
        ((30000, 1), (1000, 1)),
    ],
)
def test_size_of_the_networks_input(image_size: tuple[int, int], input_size: tuple[int, int]) -> None:
    image = np.zeros((image_size[1], image_size[0], 3), np.uint8)
    scaled = segmenter(input_height=360, max_input_width=1000).frames.frame(image)
    assert (scaled.shape[1], scaled.shape[0]) == input_size


def test_an_image_of_few_rows_is_not_scaled_up() -> None:
    """2048x16 was scaled to 46080x360."""
    wide = Segmenter(Model(video_cnn(), SPEC, "test"), max_input_width=128, precision="float32")
    stream = wide.stream()
    image = np.random.default_rng(0).integers(0, 256, (16, 2048, 3), np.uint8)
    first, second = stream.segment(image, 0), stream.segment(image, 1)
    assert first.mask.shape == second.mask.shape == (16, 2048) and not second.reason
    assert wide.frames.frame(image).shape == (1, 128, 3)
    assert segmenter(input_height=360).frames.frame(image) is image


def test_segmenters_share_a_loaded_model_and_do_not_change_it() -> None:
    model = Model(video_cnn().train(), SPEC, "shared")
    weights = {name: (value.dtype, value.clone()) for name, value in model.network.state_dict().items()}
    full = Segmenter(model, precision="float32")
    before, image = full.stream().segment(images(1)[0], 0).mask, images(1)[0]
    half, alone = Segmenter(model, precision="bfloat16"), Segmenter(full.model, precision="bfloat16", host_only=True)
    assert (full.precision, half.precision, alone.precision) == ("float32", "bfloat16", "bfloat16")
    assert np.array_equal(full.stream().segment(image, 0).mask, before)
    assert np.array_equal(half.stream().segment(image, 0).mask, alone.stream().segment(image, 0).mask)
    assert model.network.training
    for name, value in model.network.state_dict().items():
        assert value.dtype == weights[name][0] and torch.equal(value, weights[name][1]), name


@pytest.mark.auto_engine
@pytest.mark.parametrize("host_only", [False, True])
def test_the_default_engine_gives_the_masks_of_torch(host_only: bool) -> None:
    plain, fast = segmenter(engine="torch", host_only=host_only), segmenter(host_only=host_only)
    assert (plain.engine.name, fast.engine.name, fast.engine_problem) == ("torch", "openvino", "")
    expected, stream = plain.stream(), fast.stream()
    for i, image in enumerate(images(3)):
        assert np.array_equal(stream.segment(image, i).mask, expected.segment(image, i).mask)


def test_segmenter_limits_the_threads_of_its_libraries() -> None:
    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        segmenter(threads=1)
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (1, 1)
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def test_given_flow_is_used_and_none_is_estimated() -> None:
    def refuse(_present: np.ndarray, _previous: np.ndarray) -> np.ndarray:
        raise AssertionError("a flow was given")

    first, second = images(2)
    dis = DisFlow("ultrafast")
    estimating = segmenter(flow=lambda present, previous: dis(present, previous)).stream()
    given, flow = segmenter(flow=refuse).stream(), dis(second, first)
    estimating.segment(first, 1)
    given.segment(first, 1, flow=flow)
    expected, result = estimating.segment(second, 2), given.segment(second, 2, flow=flow)
    assert expected.stages_ms["flow"] > 0 == result.stages_ms["flow"]
    assert np.array_equal(result.mask, expected.mask)
    assert (given.segment(first, 3, flow=flow + 10).mask != estimating.segment(first, 3, flow=flow).mask).any()


def test_given_flow_is_scaled_with_the_image() -> None:
    first, second = (cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST) for image in images(2))
    flow = np.full((48, 64, 2), 3, np.float32)
    small, large = segmenter().stream(), segmenter(input_height=48).stream()
    for stream, step in ((small, 2), (large, 1)):
        stream.segment(first[::step, ::step], 1)
    expected = small.segment(second[::2, ::2], 2, flow=flow).mask
    mask = large.segment(second, 2, flow=2 * cv2.resize(flow, (128, 96))).mask
    assert np.array_equal(mask[::2, ::2], expected)
    with pytest.raises(ValueError, match=r"flow is \(48, 64, 2\) float32: give \(96, 128, 2\) float32"):
        large.segment(second, 3, flow=flow)


def segment_changes(*changes: dict[str, object]) -> list[Result]:
    """Segment a first frame, and then one frame for each change of its arguments."""
    stream = segmenter().stream()
    good = {"image": images(1)[0], "stamp_ns": 10 * SECOND, "frame_id": "left", "encoding": "bgr8"}
    return [stream.segment(**{**good, **change}) for change in ({}, *changes)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"stamp_ns": 10 * SECOND}, Reset.STAMP),
        ({"stamp_ns": 9 * SECOND}, Reset.STAMP),
        ({"stamp_ns": 0}, Reset.STAMP),
        ({"stamp_ns": 10 * SECOND + SECOND // 2 + 1}, Reset.GAP),
        ({"stamp_ns": 11 * SECOND, "image": np.zeros((48, 65, 3), np.uint8)}, Reset.SIZE),
        ({"stamp_ns": 11 * SECOND, "encoding": "rgb8"}, Reset.ENCODING),
        ({"stamp_ns": 11 * SECOND, "frame_id": "right"}, Reset.FRAME_ID),
    ],
)
def test_memory_is_reset(change: dict[str, object], reason: Reset) -> None:
    first, second = segment_changes(change)
    assert (first.memory, first.reason) == (MemoryState.NEW, Reset.FIRST)
    assert (second.memory, second.reason) == (MemoryState.NEW, reason)
    assert second.stages_ms["flow"] == 0, "no flow is estimated for a frame without memory"


def test_memory_is_kept_up_to_the_gap() -> None:
    _, second = segment_changes({"stamp_ns": 10 * SECOND + SECOND // 2})
    assert (second.memory, second.reason) == (MemoryState.KEPT, "")


def test_memory_is_kept_after_a_reset() -> None:
    *_, third = segment_changes({"stamp_ns": 0}, {"stamp_ns": 1})
    assert third.memory == MemoryState.KEPT


def test_resets_are_counted_by_reason() -> None:
    stream = segmenter().stream()
    image = images(1)[0]
    for stamp_ns in (5, 6, 3, 4, 4):
        stream.segment(image, stamp_ns)
    stream.reset()
    stream.segment(image, 7)
    assert stream.resets == {Reset.FIRST: 1, Reset.STAMP: 2, Reset.REQUEST: 1}


def test_streams_have_memories_of_their_own() -> None:
    shared = segmenter()
    left, right = shared.stream(), shared.stream()
    mixed = []
    for i, image in enumerate(images(4)):
        mixed.append(left.segment(image, i).mask)
        right.segment(255 - image, i)
    alone = segmenter().stream()
    for i, image in enumerate(images(4)):
        np.testing.assert_array_equal(alone.segment(image, i).mask, mixed[i])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((48, 64), np.uint8),
        np.zeros((48, 64, 4), np.uint8),
        np.zeros((48, 64, 3), np.float32),
        np.zeros((0, 64, 3), np.uint8),
    ],
)
def test_wrong_image_is_named_and_the_memory_is_kept(image: np.ndarray) -> None:
    stream = segmenter().stream()
    good = images(2)
    stream.segment(good[0], 0)
    with pytest.raises(ValueError, match="give .H, W, 3. BGR uint8"):
        stream.segment(image, 1)
    assert stream.segment(good[1], 2).memory == MemoryState.KEPT


def test_memory_is_kept_if_the_flow_fails() -> None:
    calls = []

    def flow(present: np.ndarray, previous: np.ndarray) -> np.ndarray:
        calls.append(present)
        if len(calls) == 1:
            raise RuntimeError("flow failed")
        return np.zeros((*present.shape[:2], 2), np.float32)

    stream = segmenter(flow=flow).stream()
    frames = images(3)
    stream.segment(frames[0], 0)
    with pytest.raises(RuntimeError, match="flow failed"):
        stream.segment(frames[1], 1)
    assert stream.segment(frames[2], 2).memory == MemoryState.KEPT


def test_image_may_be_overwritten_after_the_call() -> None:
    first, second = images(2)
    kept, overwritten = segmenter().stream(), segmenter().stream()
    kept.segment(first, 0)
    expected = kept.segment(second, 1).mask
    buffer = first.copy()
    overwritten.segment(buffer, 0)
    buffer[:] = 0
    np.testing.assert_array_equal(overwritten.segment(second, 1).mask, expected)


def test_host_only_runs_the_host_frame_by_frame() -> None:
    def flow(present: np.ndarray, previous: np.ndarray) -> np.ndarray:
        raise AssertionError("no flow without NetWarp")

    stream = segmenter(host_only=True, flow=flow).stream()
    plain = Segmenter(Model(VideoCNN(host(), {}), SPEC, "plain"), precision="float32", flow=flow).stream()
    for i, image in enumerate(images(3)):
        result = stream.segment(image, i)
        np.testing.assert_array_equal(result.mask, plain.segment(image, i).mask)
        assert (result.memory, result.reason) == (MemoryState.NEW, Reset.HOST_ONLY)
    assert stream.resets == {}


def test_bfloat16_agrees_with_float32() -> None:
    full, half = segmenter().stream(), Segmenter(Model(video_cnn(), SPEC, "test"), precision="bfloat16").stream()
    for i, image in enumerate(images(3)):
        assert (full.segment(image, i).mask == half.segment(image, i).mask).mean() > 0.95


@pytest.mark.parametrize(
    ("cpu", "pytorch", "onednn", "precision"),
    [
        ("avx512_bf16", "AVX512", "", "bfloat16"),
        ("avx512_bf16", "AVX512", "ALL", "bfloat16"),
        ("avx512_bf16", "AVX512", "AVX512_CORE_BF16", "bfloat16"),
        ("avx512_bf16", "AVX512", "AVX512_CORE", "float32"),
        ("avx512_bf16", "AVX512", "avx2", "float32"),
        ("avx512_bf16", "AVX2", "", "float32"),
        ("avx512_bf16", "DEFAULT", "", "float32"),
        ("avx512_vnni", "AVX512", "", "float32"),
        ("avx2", "AVX2", "", "float32"),
    ],
)
def test_auto_is_bfloat16_where_the_cpu_and_both_limits_allow(
    cpu: str, pytorch: str, onednn: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {cpu: True})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: pytorch)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", onednn)
    assert Segmenter(Model(video_cnn(), SPEC, "test")).precision == precision


@pytest.mark.parametrize(
    "limit", [{"ATEN_CPU_CAPABILITY": "avx2"}, {"ATEN_CPU_CAPABILITY": "default"}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}]
)
def test_environment_limits_auto_to_float32(limit: dict[str, str]) -> None:
    """PyTorch reads ATEN_CPU_CAPABILITY once, so this needs a process of its own."""
    program = "from netwarp_ros import Segmenter; print(Segmenter(engine='torch').precision)"
    environment = {name: value for name, value in os.environ.items() if "CPU_CAPABILITY" not in name} | limit
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["float32"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"device": "cuda:99"}, "device is 'cuda:99', but PyTorch sees"),
        ({"precision": "int4"}, "precision is 'int4': choose one of auto, float32"),
        ({"precision": "float16"}, "precision is 'float16', which CPUs"),
        ({"input_height": -1}, "input_height is -1"),
        ({"input_height": 4321}, "input_height is 4321: give pixels up to 4320, or 0"),
        ({"max_input_width": 0}, "max_input_width is 0: give pixels > 0"),
        ({"max_gap": 0.0}, "max_gap is 0.0"),
        ({"flow": "slow"}, "unknown flow 'slow'"),
        ({"model": "nonesuch"}, "no model named 'nonesuch'"),
    ],
)
def test_wrong_arguments_are_named(option: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"model": Model(video_cnn(), SPEC, "test"), **option}
    with pytest.raises(ValueError, match=message):
        Segmenter(**arguments)  # type: ignore[arg-type]


def test_warm_up_does_not_change_the_masks() -> None:
    warm, cold = segmenter(), segmenter()
    warm.warm_up(width=64, height=48)
    stream, other = warm.stream(), cold.stream()
    for i, image in enumerate(images(2)):
        np.testing.assert_array_equal(stream.segment(image, i).mask, other.segment(image, i).mask)
