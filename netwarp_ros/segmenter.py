# SPDX-License-Identifier: Apache-2.0
"""The streaming core: frames in, masks and timings out.

A `Segmenter` owns what cameras share: network, flow estimator, device and precision. A `Stream` owns what belongs to
one camera: the memory of its previous frame, and the rules by which that memory starts anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from netwarp_ros.flow import DisFlow, FlowEstimator
from netwarp_ros.models import (
    DEFAULT_MODEL,
    WHOLE_FRAME,
    Inference,
    InferenceMemory,
    Memory,
    Model,
    VideoCNN,
    load_model,
    resize_flow,
)
from netwarp_ros.timing import timed

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GRAPHS = "reduce-overhead"
COMPILE_MODES = ("none", "default", GRAPHS)
"""What may be done to the host: nothing, or a mode of `torch.compile`; the last replays it as CUDA graphs."""

TOLERANCE = 0.01
"""Share of the pixels that a compiled host may see differently: its sums are rounded in another order."""

MAX_GAP = 0.5
"""Seconds between two frames over which the flow between them is not trusted."""


class MemoryState(IntEnum):
    """Whether a frame was segmented with the memory of the one before it; values as in FrameTiming.msg."""

    NEW = 0
    KEPT = 1


class Reset(StrEnum):
    """Why a stream's memory started anew."""

    FIRST = "first frame"
    STAMP = "stamp not later than the last"
    GAP = "gap over max_gap"
    SIZE = "change of size"
    ENCODING = "change of encoding"
    FRAME_ID = "change of frame_id"
    REQUEST = "request"
    HOST_ONLY = "no NetWarp in use"


@dataclass(frozen=True)
class Result:
    """What comes out for one frame.

    Attributes:
        mask: ``(H, W)`` uint8 class ids at the image's size.
        stages_ms: Duration of each stage, in ms: ``prepare`` (scaling and grey image), ``flow``, ``network`` (transfer,
            normalisation, network, argmax, transfer back; less the flow, which is estimated when the first layers of
            the network have been launched).
        memory: Whether the memory was kept.
        reason: Why it started anew (a `Reset`); empty when kept.
    """

    mask: np.ndarray
    stages_ms: dict[str, float]
    memory: MemoryState
    reason: str


class Segmenter:
    """A video CNN ready to segment streams of images; not for several threads at a time.

    Args:
        model: A loaded `Model`, which then belongs to the segmenter (device, precision and memory format of its network
            change), or what `netwarp_ros.models.load_model` takes.
        flow: Flow estimator, or the name of a DIS preset.
        device: A torch device: ``cpu``, ``cuda``, ``cuda:1``.
        precision: ``float32``, ``bfloat16``, ``float16`` (CUDA only), or ``auto``: float16 on CUDA, bfloat16 on a CPU
            that has instructions for it, else float32. Coordinates and combination weights stay in float32.
        input_height: Height in pixels that images are scaled to for network and flow, their aspect kept; 0 is the
            height the model was trained at.
        max_gap: Seconds between two stamps over which the memory starts anew.
        host_only: Run the host network frame by frame, without NetWarp and flow.
        inference: What the network sees of a frame at the input height: by default all of it, at once.
        compile: Of `COMPILE_MODES`: how `torch.compile` shall make the host faster, which takes half a minute now and
            for each size of image. A host that cannot be compiled, or would give other masks, runs as it is; where that
            is so with CUDA graphs, it is compiled without. ``compiled`` is what it came to, ``compile_problem`` why.

    Raises:
        ValueError: If an argument is not of these, or the device or precision is not to be had here.
    """

    def __init__(
        self,
        model: Model | str | Path = DEFAULT_MODEL,
        *,
        flow: FlowEstimator | str = "ultrafast",
        device: str = "cpu",
        precision: str = "auto",
        input_height: int = 0,
        max_gap: float = MAX_GAP,
        host_only: bool = False,
        inference: Inference = WHOLE_FRAME,
        compile: str = "none",
    ) -> None:
        if input_height < 0:
            raise ValueError(f"input_height is {input_height}: give pixels, or 0 for the height of the training")
        if compile not in COMPILE_MODES:
            raise ValueError(f"compile is {compile!r}: choose one of {', '.join(COMPILE_MODES)}")
        if not max_gap > 0:
            raise ValueError(f"max_gap is {max_gap}: give seconds > 0")
        self.model = model if isinstance(model, Model) else load_model(model)
        self.device = _device(device)
        self.dtype = _precision(precision, self.device)
        self.flow = DisFlow(flow) if isinstance(flow, str) else flow
        self.input_height = input_height or self.model.spec.input_height
        self.max_gap = max_gap
        self.network = self.model.network.eval().to(self.device)
        self.network.host.to(dtype=self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.temporal = bool(self.network.layers) and not host_only
        self.inference = inference
        self._video_cnn = self.network if self.temporal else VideoCNN(self.network.host, {})
        self._forward: Callable[..., tuple[Tensor, Memory | InferenceMemory]] = (
            self._video_cnn if inference == WHOLE_FRAME else partial(inference, self._video_cnn)
        )

        # (rgb / 255 - mean) / std as one multiplication and one addition per channel.
        spec = self.model.spec
        mean, std = (torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self.compiled, self.compile_problem = "none", ""
        if compile != "none":
            self._compile(compile)

    @property
    def precision(self) -> str:
        """Name of the precision in use."""
        return str(self.dtype).removeprefix("torch.")

    def _compile(self, mode: str) -> None:
        """Compile the host and hold its masks to those without; where that fails, note why and do with less."""
        host = self._video_cnn.host
        try:
            if mode == GRAPHS and not (self.device.type == "cuda" and self.inference == WHOLE_FRAME):
                raise RuntimeError("CUDA graphs are for whole frames on CUDA")
            wanted = self._rehearse()
            self._video_cnn.host = torch.compile(host, dynamic=False, mode=mode)  # type: ignore[assignment]
            self.compiled = mode
            if (differing := (self._rehearse() != wanted).mean()) > TOLERANCE:
                raise RuntimeError(f"compiled, it gives other masks in {differing:.1%} of the pixels")
        except Exception as error:  # PyTorch's compilers and the C++ compiler they call have no error in common
            self._video_cnn.host, self.compiled = host, "none"
            self.compile_problem = str(error).strip().partition("\n")[0] or type(error).__name__
            if mode == GRAPHS:
                self._compile("default")

    def _rehearse(self) -> np.ndarray:
        """Return the masks of a few frames of a stream that moves."""
        height, stream = self.input_height, self.stream()
        noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
        image = cv2.resize(noise, (height * 4 // 3, height), interpolation=cv2.INTER_CUBIC)
        return np.stack([stream.segment(np.roll(image, 2 * step, axis=1), step).mask for step in range(4)])

    def stream(self, state: Mapping[str, Any] | None = None) -> Stream:
        """Return a new stream: one for each camera; with the `Stream.state` of another, one that goes on from there."""
        stream = Stream(self)
        if state is not None:
            stream.restore(state)
        return stream

    def warm_up(self, width: int = 640, height: int = 480) -> None:
        """Segment two black frames, so that the first real ones do not pay for what PyTorch does once per shape."""
        stream = self.stream()
        image = np.zeros((height, width, 3), np.uint8)
        for stamp_ns in (1, 2):
            stream.segment(image, stamp_ns)

    def scale(self, image: np.ndarray) -> np.ndarray:
        """Scale an image ``(H, W, 3)`` to the input height; the image itself where it has that height."""
        height, width = image.shape[:2]
        if height == self.input_height:
            return image
        size = (max(1, round(width * self.input_height / height)), self.input_height)
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA if height > self.input_height else cv2.INTER_LINEAR)

    @torch.inference_mode()
    def infer(
        self,
        image: np.ndarray,
        flow: Callable[[], np.ndarray] | None = None,
        memory: Memory | InferenceMemory | None = None,
    ) -> tuple[np.ndarray, Memory | InferenceMemory | None]:
        """Run the network on one frame at the input height.

        Args:
            image: ``(H, W, 3)`` BGR uint8.
            flow: Returns the reverse flow ``(h, w, 2)`` float32 in pixels of its own grid, which is resized to the
                frame's; called when NetWarp needs it, which is never when ``memory`` is None.
            memory: What the previous call on this stream returned, or None.

        Returns:
            The mask ``(H, W)`` uint8, and the memory for the next call (None where NetWarp is not in use).
        """
        pixels = self._upload(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        frame = torch.addcmul(self._shift, pixels, self._scale).to(self.dtype, memory_format=torch.channels_last)
        height, width = image.shape[:2]
        motion = None if flow is None else lambda: resize_flow(self._upload(flow()), (height, width))
        if self.compiled == GRAPHS:
            torch.compiler.cudagraph_mark_step_begin()
        scores, memory = self._forward(frame, motion, memory)
        if self.compiled == GRAPHS and isinstance(memory, Memory):
            memory = memory.clone()  # the next replay writes over what this one gave
        return _mask(scores, (height, width)), memory if self.temporal else None

    def _upload(self, array: np.ndarray) -> Tensor:
        """Return an array ``(H, W, C)`` as ``(1, C, H, W)`` on the device; nothing is copied on the CPU."""
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.permute(2, 0, 1).unsqueeze(0)


@dataclass(frozen=True)
class _Previous:
    """The previous frame of a stream."""

    stamp_ns: int
    shape: tuple[int, ...]
    encoding: str
    frame_id: str
    grey: np.ndarray
    flow: np.ndarray | None
    memory: Memory | InferenceMemory


@dataclass
class Stream:
    """One camera's sequence of frames.

    Attributes:
        segmenter: Network and flow, shared with other streams.
        resets: How often the memory started anew, by reason.
    """

    segmenter: Segmenter
    resets: Counter[str] = field(default_factory=Counter)
    _previous: _Previous | None = None
    _pending: Reset = Reset.FIRST

    def reset(self) -> None:
        """Forget the previous frame, on request."""
        self._previous, self._pending = None, Reset.REQUEST

    def state(self) -> dict[str, Any]:
        """Return all that the next frame depends on, as tensors and plain values, such as `torch.load` trusts."""
        state: dict[str, Any] = {"pending": str(self._pending), "previous": None}
        state["resets"] = {str(reason): count for reason, count in self.resets.items()}
        if self._previous is not None:
            memory, flow = self._previous.memory, self._previous.flow
            passes = memory.passes if isinstance(memory, InferenceMemory) else (memory,)
            state["previous"] = {
                **vars(self._previous),
                "grey": torch.from_numpy(self._previous.grey),
                "flow": None if flow is None else torch.from_numpy(flow),
                "memory": [each._asdict() for each in passes],
                "memory_shape": memory.shape if isinstance(memory, InferenceMemory) else None,
            }
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of another stream, of a segmenter like this one."""
        self.resets, self._pending, self._previous = Counter(state["resets"]), Reset(state["pending"]), None
        if state["previous"] is not None:
            previous = dict(state["previous"])
            passes, shape = tuple(Memory(**each) for each in previous["memory"]), previous.pop("memory_shape")
            previous["memory"] = InferenceMemory(self.segmenter.inference, shape, passes) if shape else passes[0]
            previous["grey"] = previous["grey"].cpu().numpy()
            previous["flow"] = None if previous["flow"] is None else previous["flow"].cpu().numpy()
            self._previous = _Previous(**previous)

    def segment(
        self,
        image: np.ndarray,
        stamp_ns: int,
        frame_id: str = "",
        encoding: str = "bgr8",
        *,
        flow: np.ndarray | None = None,
    ) -> Result:
        """Segment the next frame.

        Args:
            image: ``(H, W, 3)`` BGR uint8. Not kept.
            stamp_ns: When it was taken, in ns.
            frame_id: Name of the camera's optical frame.
            encoding: What the image was before it became BGR.
            flow: ``(H, W, 2)`` float32, the reverse flow to the previous image in pixels, where it is known; by default
                the segmenter estimates it.

        Raises:
            ValueError: If image or flow are not of this form. The memory is as before then.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ValueError(f"image is {image.shape} {image.dtype}: give (H, W, 3) BGR uint8, at least one pixel")
        if flow is not None and (flow.shape != (*image.shape[:2], 2) or flow.dtype != np.float32):
            raise ValueError(f"flow is {flow.shape} {flow.dtype}: give {(*image.shape[:2], 2)} float32")
        segmenter, stages = self.segmenter, dict.fromkeys(("prepare", "flow", "network"), 0.0)
        reason = self._reason(stamp_ns, image.shape, encoding, frame_id)
        previous = None if reason else self._previous

        with timed(stages, "prepare"):
            scaled = segmenter.scale(image)
            grey = cv2.cvtColor(scaled, cv2.COLOR_BGR2GRAY) if segmenter.temporal else None
        estimated = None

        def find_flow() -> np.ndarray:
            nonlocal estimated
            if flow is not None:
                return flow
            assert previous is not None and grey is not None
            with timed(stages, "flow"):
                estimated = self._flow(grey, previous)
            return estimated

        with timed(stages, "network"):
            mask, memory = segmenter.infer(scaled, find_flow, previous.memory if previous else None)
            if mask.shape != image.shape[:2]:
                mask = cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        stages["network"] -= stages["flow"]

        if grey is not None and memory is not None:
            self._previous = _Previous(stamp_ns, image.shape, encoding, frame_id, grey, estimated, memory)
        if reason and segmenter.temporal:
            self.resets[reason] += 1
        return Result(mask, stages, MemoryState.NEW if reason else MemoryState.KEPT, reason)

    def _flow(self, grey: np.ndarray, previous: _Previous) -> np.ndarray:
        """Estimate the flow to the previous frame; of all estimators, DIS alone takes a start."""
        estimator = self.segmenter.flow
        if isinstance(estimator, DisFlow):
            return estimator(grey, previous.grey, start=previous.flow)
        return estimator(grey, previous.grey)

    def _reason(self, stamp_ns: int, shape: tuple[int, ...], encoding: str, frame_id: str) -> str:
        """Return why the memory cannot be used for this frame; empty when it can."""
        previous = self._previous
        if not self.segmenter.temporal:
            return Reset.HOST_ONLY
        if previous is None:
            return self._pending
        if frame_id != previous.frame_id:
            return Reset.FRAME_ID
        if encoding != previous.encoding:
            return Reset.ENCODING
        if shape != previous.shape:
            return Reset.SIZE
        if stamp_ns <= previous.stamp_ns:
            return Reset.STAMP
        if stamp_ns - previous.stamp_ns > self.segmenter.max_gap * 1e9:
            return Reset.GAP
        return ""


def _mask(scores: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Return the class of the greatest score at each pixel of the wanted size, ``(H, W)`` uint8 on the CPU."""
    if tuple(scores.shape[-2:]) != size:
        scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
    return scores.argmax(dim=1)[0].to(torch.uint8).cpu().numpy()


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}: give cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}: give cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device is {name!r}, but PyTorch sees {count} CUDA devices here: use cpu, or mend the driver")
    return device


def _precision(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16") else torch.float32
    if name not in PRECISIONS:
        raise ValueError(f"precision is {name!r}: choose one of auto, {', '.join(PRECISIONS)}")
    if name == "float16" and device.type == "cpu":
        raise ValueError("precision is 'float16', which CPUs compute slowly: choose bfloat16, float32 or auto")
    return PRECISIONS[name]
