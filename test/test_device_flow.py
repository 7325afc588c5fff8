# SPDX-License-Identifier: Apache-2.0
"""Flow on the network's device, here by the operator's reference on the CPU."""

from __future__ import annotations

import itertools
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from test_cuda_graphs import CPURecorder, on_the_cpu  # noqa: F401
from test_segmenter import SECOND, SPEC, images, segmenter, video_cnn
from torch import nn

from netwarp_ros.engines import FlowOnDevice
from netwarp_ros.engines.cuda_graphs import CUDAGraphEngine
from netwarp_ros.engines.pytorch import TorchEngine
from netwarp_ros.flow import DisFlow, TensorDis, tensor_dis
from netwarp_ros.models import Inference
from netwarp_ros.models.input_frames import InputFrames
from netwarp_ros.ops import compiled
from netwarp_ros.segmenter import MemoryState, Reset, Segmenter, device_flow
from netwarp_ros.segmenter.device_flow import DisOnDevice, choose_flow_device

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def on_device(**options: Any) -> Segmenter:
    """Return a segmenter that treats its CPU as a GPU."""
    return segmenter(engine="torch", flow=TensorDis("ultrafast", "cpu"), **options)


def torch_engine(one: Segmenter) -> TorchEngine:
    assert isinstance(one.engine, TorchEngine)
    return one.engine


def by_hand(sequence: list[np.ndarray]) -> list[np.ndarray]:
    """Segment images of the input height by the operator and the network alone."""
    network, estimator, memory, masks = video_cnn(), TensorDis("ultrafast", "cpu", level=1), None, []
    mean, std = torch.tensor(SPEC.mean).view(3, 1, 1), torch.tensor(SPEC.std).view(3, 1, 1)
    before, flow = None, None
    for image in sequence:
        rgb = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None]
        pyramid = estimator.pyramid(rgb)
        flow = None if before is None else estimator.flow(pyramid, before, (48, 64), flow)
        with torch.no_grad():
            logits, memory = network((rgb / 255 - mean) / std, flow, memory)
        logits = nn.functional.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=False)
        masks.append(logits[0].argmax(0).numpy().astype(np.uint8))
        before = pyramid
    return masks


def test_masks_equal_those_computed_by_hand() -> None:
    stream = on_device().stream()
    for i, (image, expected) in enumerate(zip(images(5), by_hand(images(5)), strict=True)):
        result = stream.segment(image, i * SECOND // 10)
        assert (result.mask == expected).mean() > 0.999
        assert result.memory == (MemoryState.KEPT if i else MemoryState.NEW)


def test_cuda_graphs_hold_flow_and_network_together() -> None:
    """One graph a frame: the flow, the pyramid that it keeps, and the network. Two cameras in turn share it."""
    plain, recorded = on_device(), on_device()
    recorded.engine = CUDAGraphEngine(torch_engine(recorded))
    sequences = images(6), [cv2.flip(image, 1) for image in images(6)]
    streams = [(plain.stream(), recorded.stream()) for _ in sequences]
    for index in range(6):
        for ways, sequence in zip(streams, sequences, strict=True):
            masks = [stream.segment(sequence[index], index * SECOND // 10).mask for stream in ways]
            assert np.array_equal(*masks), index
    # A first frame; one whose flow starts from none; and one whose flow starts from the flow before.
    assert [len(graphs) for graphs in CPURecorder.recorded] == [1, 1, 1]


def test_a_graph_is_kept_for_each_search() -> None:
    one = on_device()
    one.engine = CUDAGraphEngine(torch_engine(one))
    stream, other = one.stream(), on_device().stream()
    for index, image in enumerate(images(6)):
        for each in (stream, other):
            if index == 3:
                each.segmenter.flow = TensorDis("medium", "cpu")
        masks = [each.segment(image, index * SECOND // 10).mask for each in (stream, other)]
        assert np.array_equal(*masks)
    assert len(CPURecorder.recorded) == 4  # the streams go on: medium has a start at once


def test_the_flow_is_that_of_the_image_without_its_padding() -> None:
    frames = InputFrames(SPEC, 0, 4096)
    image = np.full((48, 64, 3), 7, np.uint8)
    rgb = torch.from_numpy(cv2.copyMakeBorder(image, 0, 16, 0, 8, cv2.BORDER_CONSTANT, value=(255, 0, 99)))
    estimator = TensorDis("fast", "cpu", level=1)
    first = DisOnDevice(estimator, frames, (48, 64), rgb.permute(2, 0, 1)[None], ())
    (pyramid,) = first.result()
    assert (pyramid == 7).all()
    second = DisOnDevice(estimator, frames, (48, 64), rgb.permute(2, 0, 1)[None], (pyramid,))
    assert torch.equal(second(), torch.zeros(1, 2, 24, 32))
    assert second.result() is second.kept and len(second.result()) == 2


def test_a_stream_goes_on_from_its_state() -> None:
    one, sequence = on_device(), images(6)
    stream = one.stream()
    for index in range(3):
        stream.segment(sequence[index], index * SECOND // 10)
    restored = one.stream(stream.state())
    for index in range(3, 6):
        results = [each.segment(sequence[index], index * SECOND // 10) for each in (stream, restored)]
        assert np.array_equal(results[0].mask, results[1].mask)
        assert results[1].memory == MemoryState.KEPT


def test_a_known_flow_is_used_and_nothing_starts_from_it() -> None:
    known, sequence = np.zeros((48, 64, 2), np.float32), images(3)
    known[..., 0] = -2
    cpu, device = segmenter(engine="torch").stream(), on_device().stream()
    for index in range(2):
        flow = known if index else None
        masks = [each.segment(sequence[index], index * SECOND // 10, flow=flow).mask for each in (cpu, device)]
        assert np.array_equal(*masks)
    assert device._previous is not None and len(device._previous.kept) == 1
    device.segment(sequence[2], 2 * SECOND // 10)
    assert len(device._previous.kept) == 2


def test_a_reset_forgets_the_flow() -> None:
    stream = on_device().stream()
    for index, image in enumerate(images(3)):
        stream.segment(image, index * SECOND // 10)
    stream.reset()
    assert stream.segment(images(1)[0], SECOND).reason == Reset.REQUEST
    assert stream._previous is not None and len(stream._previous.kept) == 1


def test_the_host_alone_needs_no_flow() -> None:
    stream = on_device(host_only=True).stream()
    assert stream.segment(images(1)[0], 1).reason == Reset.HOST_ONLY and stream._previous is None


def test_windows_are_cut_from_the_flow_of_the_whole_frame() -> None:
    known, stream = np.zeros((48, 64, 2), np.float32), on_device(inference=Inference(32, flip=True)).stream()
    cpu = segmenter(engine="torch", inference=Inference(32, flip=True)).stream()
    still = [images(1)[0]] * 3
    for index, image in enumerate(still):
        masks = [stream.segment(image, index + 1).mask, cpu.segment(image, index + 1, flow=known).mask]
        assert np.array_equal(*masks)
    assert stream._previous is not None and len(stream._previous.kept) == 2


def test_when_the_flow_moves_to_another_device_the_memory_is_reset() -> None:
    """As when a state comes from another machine."""
    device, cpu, sequence = on_device(), segmenter(engine="torch"), images(3)
    for one, other in ((device, cpu), (cpu, device)):
        stream = one.stream()
        stream.segment(sequence[0], 0)
        moved = other.stream(stream.state())
        assert moved.segment(sequence[1], SECOND // 10).reason == Reset.REQUEST
        assert moved.segment(sequence[2], 2 * SECOND // 10).memory == MemoryState.KEPT


def test_warm_is_what_was_recorded() -> None:
    one = on_device()
    one.engine = CUDAGraphEngine(torch_engine(one))
    one.warm_up(64, 48)
    recorded = len(CPURecorder.recorded)
    stream = one.stream()
    for index, image in enumerate(images(4)):
        stream.segment(image, index * SECOND // 10, confidence=index > 1)
    assert one.is_warm(64, 48) and len(CPURecorder.recorded) == recorded == 3
    one.flow = TensorDis("fast", "cpu")
    assert not one.is_warm(64, 48)


def test_on_a_gpu_the_flow_follows_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "DIS_DEVICES", frozenset({"cuda"}))
    monkeypatch.setattr(device_flow, "dis_problem", lambda device: "")
    assert choose_flow_device("auto", CUDA, False) == choose_flow_device("cuda", CUDA, False) == CUDA
    assert choose_flow_device("cpu", CUDA, False) == choose_flow_device("auto", CPU, False) == CPU
    assert choose_flow_device("auto", CUDA, True) == CPU  # key frames
    monkeypatch.setattr(compiled, "DIS_DEVICES", frozenset())
    assert choose_flow_device("auto", CUDA, False) == CPU


def test_a_gpu_that_gives_another_flow_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "DIS_DEVICES", frozenset({"cuda"}))
    monkeypatch.setattr(device_flow, "dis_problem", lambda device: f"DIS on {device} is wrong")
    with pytest.warns(RuntimeWarning, match="OpenCV estimates the flow, on the CPU: DIS on cuda:0 is wrong"):
        assert choose_flow_device("auto", CUDA, False) == CPU
    with pytest.raises(ValueError, match="flow_device is cuda, but DIS on cuda:0 is wrong: report it"):
        choose_flow_device("cuda", CUDA, False)


def test_dis_is_tried_on_a_device_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, estimate = tensor_dis.dis_problem.__wrapped__, tensor_dis.dis_flow
    assert tried(CPU) == ""
    calls = itertools.count()
    monkeypatch.setattr(tensor_dis, "dis_flow", lambda *given: estimate(*given) + (1e-6 if next(calls) == 0 else 0))
    assert tried(CPU) == "DIS on cpu gives another flow than its reference"

    def fail(*given: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image\nand more")

    monkeypatch.setattr(tensor_dis, "dis_flow", fail)
    assert tried(CPU) == "DIS fails on cpu: CUDA error: no kernel image"


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="flow_device is 'gpu': choose one of auto, cpu, cuda"):
        segmenter(flow_device="gpu")
    with pytest.raises(
        ValueError, match="but the network is on cpu: give device cuda, or give flow_device auto or cpu"
    ):
        segmenter(flow_device="cuda")
    with pytest.raises(ValueError, match="flow_device is cuda, but the operator library has no CUDA kernels"):
        choose_flow_device("cuda", CUDA, False)
    monkeypatch.setattr(compiled, "DIS_DEVICES", frozenset({"cuda"}))
    with pytest.raises(ValueError, match="flow_device is cuda, but with key frames"):
        choose_flow_device("cuda", CUDA, True)
    with pytest.raises(ValueError, match="key frames need the flow on the CPU"):
        on_device(keyframes="2")


def test_a_name_of_an_estimator_may_be_set() -> None:
    one = segmenter()
    one.flow = "medium"
    assert isinstance(one.flow, DisFlow) and one.flow.preset == "medium" and one.flow.halved
    with pytest.raises(ValueError, match="unknown flow 'slow'"):
        one.flow = "slow"


def test_a_flow_on_the_device_is_a_flow_like_any_other() -> None:
    """Engines that do not record call it."""

    class Still(FlowOnDevice):
        key = None

        def compute(self, frame: torch.Tensor, before: tuple[torch.Tensor, ...]) -> Any:
            return frame.new_zeros((1, 2, 6, 8), dtype=torch.float32), (before[0] + 1,)

    one = segmenter(engine="torch")
    frame = one.upload(images(1)[0])
    _, memory = one.infer(frame)
    still = Still(frame, (torch.zeros(1),))
    scores, _ = one.infer(frame, still, memory)
    expected, _ = one.infer(frame, lambda: np.zeros((48, 64, 2), np.float32), memory)
    assert torch.equal(scores, expected) and still.kept == (torch.ones(1),)
