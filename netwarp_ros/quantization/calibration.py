# SPDX-License-Identifier: Apache-2.0
"""What int8 graphs are calibrated on: the inputs that the step graphs get in float32, on recorded frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from torch import Tensor, nn

from netwarp_ros.engines.engine import Engine, Normalisation
from netwarp_ros.engines.graph_engine import RunGraph
from netwarp_ros.engines.graphs import StepGraph
from netwarp_ros.engines.openvino import OpenVINOEngine
from netwarp_ros.models import Model, VideoCNN
from netwarp_ros.models.others.onnx_host import refuse_onnx
from netwarp_ros.recordings.frames import FrameSource, read_ahead
from netwarp_ros.segmenter import Segmenter, Stream

WARM_UP = 4
"""Frames that are segmented before each recorded one, to fill the memory."""

MAX_SAMPLE_BYTES = 2**29
"""Most memory for samples. One of the default model at 480×360 has 10 MB, so there are at most 50."""

Sample = tuple[np.ndarray, ...]
"""A frame ``(1, H, W, 3)`` uint8, and the warped representations ``(1, h, w, C)`` and gates ``(1, h, w, 1)`` float32;
without those of layers, or for a first frame, the frame alone."""

MakeEngine = Callable[[VideoCNN, Normalisation], Engine]


def segmenter_with(model: Model, make_engine: MakeEngine, threads: int = 0) -> Segmenter:
    """Return a segmenter whose engine is made by a function, from the network in float32 on the CPU.

    ``threads``, if not 0, limits PyTorch and OpenCV.
    """
    segmenter = Segmenter(model, engine="torch", precision="float32", threads=threads)
    segmenter.engine = make_engine(segmenter.network, segmenter.engine.normalisation)
    return segmenter


class Recorder(OpenVINOEngine):
    """The float32 engine, which also records the inputs of the step graphs.

    Args:
        network: The network.
        normalisation: That of the frames.
        threads: Number of threads; 0 for one on each core.

    Attributes:
        is_recording: Whether the next frame is recorded.
        samples: What was recorded. If it becomes larger than `MAX_SAMPLE_BYTES`, every second sample is dropped, now
            and from then on.
    """

    def __init__(self, network: VideoCNN, normalisation: Normalisation, threads: int) -> None:
        super().__init__(network, normalisation, "float32", threads)
        self.is_recording, self.samples = False, list[Sample]()
        self._seen, self._stride = 0, 1

    def compile(self, graph: nn.Module, inputs: Sequence[Tensor]) -> RunGraph:
        run = super().compile(graph, inputs)
        if not isinstance(graph, StepGraph):
            return run

        def record_and_run(*maps: Tensor) -> Sequence[Tensor]:
            if self.is_recording:
                self._record(maps)
            return run(*maps)

        return record_and_run

    def _record(self, maps: Sequence[Tensor]) -> None:
        if self._seen % self._stride == 0:
            self.samples.append(tuple(features.numpy().copy() for features in maps))
        self._seen += 1
        while len(self.samples) > 2 and sum(map(_bytes, self.samples)) > MAX_SAMPLE_BYTES:
            del self.samples[1::2]
            self._stride *= 2


def record_samples(model: Model, frames: FrameSource, count: int, threads: int = 0) -> list[Sample]:
    """Segment a recording in float32, and record inputs of the step graphs.

    Args:
        model: The model.
        frames: The recording. Each camera is a stream.
        count: Number of frames to record, evenly spaced. Those far from all of these are skipped.
        threads: Number of threads; 0 for one on each core.

    Raises:
        ValueError: If there is no frame, or the model is an ONNX file.
    """
    refuse_onnx(model.spec, model.name, "it cannot be quantized")
    segmenter = segmenter_with(model, partial(Recorder, threads=threads), threads)
    recorder, streams = segmenter.engine, dict[str, Stream]()
    assert isinstance(recorder, Recorder)
    first = len(frames.cameras) if model.network.layers else 0  # a frame without memory is no sample of the step graph
    wanted, near = _choose(len(frames), count, WARM_UP * len(frames.cameras), first)
    for frame in read_ahead(frames):
        stream = streams.setdefault(frame.camera, segmenter.stream())
        if frame.index not in near:
            stream.reset()
            continue
        recorder.is_recording = frame.index in wanted
        stream.segment(frame.image, frame.stamp_ns, frame.frame_id, frame.encoding)
    if not recorder.samples:
        raise ValueError("there is no frame to calibrate on")
    if model.network.layers and all(len(sample) == 1 for sample in recorder.samples):
        raise ValueError(
            f"none of {len(frames)} frames has one before it, which NetWarp needs: give --images of a video"
        )
    return recorder.samples


def _bytes(sample: Sample) -> int:
    return sum(array.nbytes for array in sample)


def _choose(length: int, count: int, warm_up: int, first: int = 0) -> tuple[set[int], set[int]]:
    """Return the indices of the frames to record, from ``first`` on if possible, and those of the frames to segment."""
    first = min(first, max(0, length - 1))
    wanted = set(np.linspace(first, max(0, length - 1), min(count, length)).round().astype(int).tolist())
    return wanted, {index - before for index in wanted for before in range(warm_up + 1)}
