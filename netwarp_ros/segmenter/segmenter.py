# SPDX-License-Identifier: Apache-2.0
"""The streaming core: frames in, masks and timings out.

A `Segmenter` owns what all cameras share: network, engine and flow estimator. A `Stream` belongs to one
camera: it holds the memory of the previous frame and decides when to reset it (`Stream._reset_reason`).
`netwarp_ros.segmenter.masks` makes masks of class scores.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from netwarp_ros.classes import LabelMap, load_label_map
from netwarp_ros.engines import EngineOptions, FlowOnDevice, open_engine
from netwarp_ros.flow import DisFlow, FlowEstimator, TensorDis, create_estimator, halve
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
from netwarp_ros.models.input_frames import InputFrames
from netwarp_ros.models.resampling import as_maps
from netwarp_ros.models.video_cnn import map_size, to_device
from netwarp_ros.segmenter.device_flow import DisOnDevice, choose_flow_device
from netwarp_ros.segmenter.ego_mask import EgoMask
from netwarp_ros.segmenter.keyframes import KeyFrame, KeyFrames, move
from netwarp_ros.segmenter.masks import (
    Confidence,
    MaskSize,
    Size,
    at_size,
    classify,
    enlarge,
    leave_out_unsure,
    without_void,
)
from netwarp_ros.segmenter.previous_frame import PreviousFrame
from netwarp_ros.segmenter.results import MemoryState, Reset, Result
from netwarp_ros.timing import timed

MAX_GAP = 0.5
"""Default of ``max_gap``, in seconds. Over a longer gap, the flow between two frames is not trusted."""

MAX_INPUT_WIDTH = 4096
"""Default of ``max_input_width``, in pixels. At 512 rows, only images wider than 8:1 reach it."""


class Segmenter:
    """A model ready to segment streams of images. Use it from one thread at a time.

    Args:
        model: The name of a shipped model, the path of a weights file, or a loaded `Model`. A loaded one stays as it
            is: the segmenter copies it and changes the device, precision and memory format of the copy.
        flow: Flow estimator, or the name of one, see `netwarp_ros.flow.ESTIMATORS`.
        flow_device: Where a preset of DIS is estimated: ``cpu``, by OpenCV; ``cuda``, by our operator; ``auto``, the
            network's device, if our operator has CUDA there.
        engine: What runs the network; see `EngineOptions` for this and the following five.
        device: A torch device.
        precision: Precision of the host.
        compile: Mode of `torch.compile`, for engine ``torch``. If it does not work, engine ``torch`` runs uncompiled.
        threads: Threads of an engine on the CPU. If it is not 0, it also limits PyTorch and OpenCV in this process.
        engine_cache: Folder for what an engine makes of a model.
        input_height: Images are scaled to this height in pixels for network and flow; the aspect ratio is kept. 0
            means the height the model was trained at. Another one costs accuracy, as objects have another size than in
            training, and time in proportion to its square.
        max_input_width: An image that would then be wider than this, in pixels, keeps its own size; if it is wider
            itself, it is scaled to this width. This bounds time and memory for images of few rows, as of a line camera.
        max_gap: The memory is reset if two stamps are more than this many seconds apart.
        host_only: Run the host by itself, frame by frame, without NetWarp and flow.
        rival: One of `netwarp_ros.rivals.RIVALS`, which then refines the scores of the host alone; empty for none.
        inference: Which views of a frame the network sees; by default one, the whole frame.
        label_map: Maps the model's classes to those of the masks; the name of a shipped label map, or a file.
        mask_size: Size of the masks; see `MaskSize`.
        keyframes: Which frames the network runs on; on the others, scores are moved along the flow. See `KeyFrames`.

    Attributes:
        model: The segmenter's own model.
        classes: The classes of the masks: those of the label map, or the model's.
        frames: How images become frames that the network takes.
        engine: The engine in use.
        engine_options: What was asked for.
        engine_problem: Why it is not the one asked for, or not the best one; empty if it is.
        uses_netwarp: Whether memory and flow are in use: the model has NetWarp, and not ``host_only``; or the rival
            uses earlier frames.

    Raises:
        ValueError: If an argument is not valid, or the device, engine or precision is not available here.
    """

    def __init__(
        self,
        model: Model | str | Path = DEFAULT_MODEL,
        *,
        flow: FlowEstimator | str = "ultrafast",
        flow_device: str = "auto",
        engine: str = "auto",
        device: str = "cpu",
        precision: str = "auto",
        compile: str = "none",
        threads: int = 0,
        engine_cache: str | Path | None = None,
        input_height: int = 0,
        max_input_width: int = MAX_INPUT_WIDTH,
        max_gap: float = MAX_GAP,
        host_only: bool = False,
        rival: str = "",
        inference: Inference = WHOLE_FRAME,
        label_map: LabelMap | str | Path | None = None,
        mask_size: str = "image",
        keyframes: KeyFrames | str = "none",
    ) -> None:
        if not max_gap > 0:
            raise ValueError(f"max_gap is {max_gap}: give seconds > 0")
        cache = None if engine_cache is None else Path(engine_cache)
        self.engine_options = EngineOptions(engine, device, precision, compile, threads, cache)
        self.model = (
            replace(model, network=copy.deepcopy(model.network)) if isinstance(model, Model) else load_model(model)
        )
        self.classes, self._label_table = self.model.spec.classes, None
        if label_map is not None:
            chosen = label_map if isinstance(label_map, LabelMap) else load_label_map(label_map)
            self.classes, self._label_table = chosen.classes, chosen.table(self.model.spec.classes)
        self.label_map = label_map
        self.mask_size = MaskSize(mask_size)
        self.keyframes = KeyFrames(keyframes) if isinstance(keyframes, str) else keyframes
        self.confidence = Confidence()
        if threads:
            torch.set_num_threads(threads)
            cv2.setNumThreads(threads)
        self.frames = InputFrames(self.model.spec, input_height, max_input_width)
        self.max_gap = max_gap
        self.inference = inference.fitted(self.model.spec.input_size)
        if self.keyframes.skip and self.inference != WHOLE_FRAME:
            raise ValueError(
                f"keyframes is {self.keyframes.text}, which needs a network that sees the whole frame: leave "
                "out windows, scales, flip"
            )
        self.network = self.model.network
        self.uses_netwarp = bool(self.network.layers) and not (host_only or rival)
        in_use = self.network if self.uses_netwarp else VideoCNN(self.network.host, {})
        self.engine, self.engine_problem = open_engine(in_use, self.model, self.input_height, self.engine_options)
        if rival:
            from netwarp_ros.rivals import open_rival  # the robot's process loads no rivals

            if self.inference != WHOLE_FRAME:
                raise ValueError(f"rival {rival} sees the whole frame: leave out windows, scales, flip")
            self.engine = opened = open_rival(rival, self.engine, len(self.model.spec.classes))
            self.uses_netwarp = opened.frames > 0
        self.device = self.engine.device
        self._flow_device = choose_flow_device(flow_device, self.device, self.keyframes.skip)
        self._warm: set[tuple[Size, Size | None]] = set()
        self.flow = flow
        self._flow_thread = ThreadPoolExecutor(1, "flow") if self.device.type == "cuda" else None

    @property
    def input_height(self) -> int:
        """Height in pixels that images are scaled to."""
        return self.frames.height

    @property
    def uses_flow(self) -> bool:
        """Whether the flow between frames is in use: by NetWarp, or to move scores from key frames."""
        return self.uses_netwarp or self.keyframes.skip

    @property
    def precision(self) -> str:
        """Name of the precision in effect."""
        return self.engine.precision

    @property
    def flow(self) -> FlowEstimator:
        """The flow estimator. The name of one may be set too.

        Of DIS, the preset counts alone: it is given halved frames, see `DisFlow`, or computes on the network's device,
        see `TensorDis`, with its flow on the grid of halved frames. If another kind of estimator is set, reset the
        streams.
        """
        return self._flow

    @flow.setter
    def flow(self, estimator: FlowEstimator | str) -> None:
        if isinstance(estimator, str):
            estimator = create_estimator(estimator, self._flow_device)
        if isinstance(estimator, DisFlow):
            estimator = DisFlow(estimator.preset, halved=True, fine=self.keyframes.skip)
        elif isinstance(estimator, TensorDis):
            if self.keyframes.skip:
                raise ValueError("key frames need the flow on the CPU: give DisFlow")
            estimator = TensorDis(estimator.preset, self.device, level=1)
            self._warm.clear()  # what is recorded of a frame holds the search
        self._flow = estimator

    @property
    def confidence(self) -> Confidence:
        """How confident the network must be. May be set at any time.

        Raises:
            ValueError: If a threshold is of a class that masks do not have.
        """
        return self._confidence[0]

    @confidence.setter
    def confidence(self, confidence: Confidence) -> None:
        self._confidence = confidence, confidence.table(self.classes)

    def grey(self, image: np.ndarray) -> np.ndarray:
        """Return an image ``(H, W, 3)`` as the flow estimator takes it: grey, and halved for DIS."""
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        return halve(grey) if isinstance(self.flow, DisFlow) else grey

    def begin_flow(self, estimate: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
        """Begin to estimate a flow, and return a function that returns it.

        With a GPU, another thread estimates it, while this one launches the layers before the first insertion. On the
        CPU the network takes all cores, so the flow is estimated when it is asked for.
        """
        return estimate if self._flow_thread is None else self._flow_thread.submit(estimate).result

    def stream(self, state: Mapping[str, Any] | None = None, *, ego_mask: np.ndarray | None = None) -> Stream:
        """Return a new stream. Each camera needs its own.

        Args:
            state: What `Stream.state` returned; the new stream continues from there.
            ego_mask: ``(h, w)`` of any size, bool or uint8: what is not 0 is left out of the camera's images, see
                `EgoMask`.

        Raises:
            ValueError: If the ego mask is none, or the network sees windows or several scales.
        """
        if ego_mask is not None and self.inference != WHOLE_FRAME:
            raise ValueError("an ego mask needs a network that sees the whole frame: leave out windows, scales, flip")
        stream = Stream(self, None if ego_mask is None else EgoMask(ego_mask, self.frames))
        if state is not None:
            stream.restore(state)
        return stream

    def is_warm(self, width: int, height: int) -> bool:
        """Tell whether `warm_up` was called for images that become frames of the same size."""
        return self._warm_key(width, height) in self._warm

    def warm_up(self, width: int = 640, height: int = 480) -> None:
        """Segment black frames, so that what is done once for their size is done beforehand.

        Two of them are key frames. With the flow on the device, the third one is the first that starts from a flow.
        """
        self._warm.add(self._warm_key(width, height))
        stream = self.stream()
        image = np.zeros((height, width, 3), np.uint8)
        for stamp_ns in range(1, self.keyframes.distance + 2 + isinstance(self.flow, TensorDis)):
            stream.segment(image, stamp_ns)

    def _warm_key(self, width: int, height: int) -> tuple[Size, Size | None]:
        """Return the sizes that what is done once depends on: on the device, the flow is that of the unpadded frame."""
        size = height, width
        return self.frames.padded(size), self.frames.scaled(size) if isinstance(self.flow, TensorDis) else None

    def upload(self, image: np.ndarray) -> Tensor:
        """Return an image ``(H, W, 3)`` BGR uint8, from `InputFrames.frame`, as ``(1, 3, H, W)`` RGB on the device."""
        return to_device(as_maps(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)), self.device)

    @torch.inference_mode()
    def infer(
        self,
        frame: Tensor,
        flow: Callable[[], np.ndarray] | FlowOnDevice | None = None,
        memory: Memory | InferenceMemory | None = None,
        *,
        classes_only: bool = False,
    ) -> tuple[Tensor, Memory | InferenceMemory | None]:
        """Run the network on one frame.

        Args:
            frame: ``(1, 3, H, W)`` uint8, from `upload`.
            flow: Returns the reverse flow ``(h, w, 2)`` float32 in pixels of its own grid, or is one on the device.
                Called when NetWarp needs it, so never when ``memory`` is None.
            memory: The memory that the previous call on this stream returned, or None.
            classes_only: Whether the class of each pixel will do.

        Returns:
            The scores ``(1, K, h, w)`` of the model's classes, with windows or several scales their probabilities; or
            the classes ``(1, H, W)`` uint8. And the memory for the next call, None without NetWarp.
        """
        motion: Callable[[], Tensor] | None
        motion = flow if flow is None or isinstance(flow, FlowOnDevice) else lambda: as_maps(flow())
        if self.inference != WHOLE_FRAME:
            result, memory = self._run_on_views(frame, motion, memory)
        else:
            assert not isinstance(memory, InferenceMemory)
            result, memory = (self.engine.segment if classes_only else self.engine)(frame, motion, memory)
        return result, memory if self.uses_netwarp else None

    def finish(
        self, scores: Tensor, image: Size, ego: EgoMask | None, temperature: float | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Make the mask of an image, and its confidence, from what `infer` returned.

        Args:
            scores: Of the padded frame, or its classes, if no confidence is needed.
            image: Size of the image.
            ego: What is left out.
            temperature: Of the confidence; None if it is not needed.
        """
        probabilities = self.inference != WHOLE_FRAME
        with torch.inference_mode():
            mask, confidence = classify(scores, self.frames.padded(image), temperature, are_probabilities=probabilities)
        if confidence is not None:
            confidence = self.frames.cropped(enlarge(confidence, (mask.shape[0], mask.shape[1])), image)
        mask = self.frames.cropped(mask, image)
        if self._label_table is not None:
            mask = cv2.LUT(mask, self._label_table)
        if confidence is not None and (thresholds := self._confidence[1]) is not None:
            mask = leave_out_unsure(mask, confidence, thresholds)
        size = self.mask_size.of(image, (mask.shape[0], mask.shape[1]))
        mask = at_size(mask, size)
        if ego is not None:
            mask = ego.leave_out(mask)
        return mask, None if confidence is None else without_void(at_size(confidence, size), mask)

    def _run_on_views(
        self, frame: Tensor, flow: Callable[[], Tensor] | None, memory: Memory | InferenceMemory | None
    ) -> tuple[Tensor, InferenceMemory]:
        """Return the probabilities of a frame of which the network sees views, and the memory for the next one."""
        assert not isinstance(memory, Memory)
        size = map_size(frame)
        # Windows are cut from frame and flow.
        resized = None if flow is None else lambda: resize_flow(to_device(flow(), self.device), size)
        return self.inference(self.engine, self.engine.normalisation(frame), resized, memory)


@dataclass
class Stream:
    """One camera's sequence of frames, made by `Segmenter.stream`.

    Attributes:
        segmenter: Network and flow estimator, shared with other streams.
        resets: How often the memory was reset, by reason.
    """

    segmenter: Segmenter
    _ego: EgoMask | None = None
    resets: Counter[str] = field(default_factory=Counter)
    _previous: PreviousFrame | None = None
    _next_reset: Reset = Reset.FIRST

    def reset(self, reason: Reset = Reset.REQUEST) -> None:
        """Forget the previous frame: the next one is segmented without memory, for this reason."""
        self._previous, self._next_reset = None, reason

    def state(self) -> dict[str, Any]:
        """Return everything the next result depends on, as tensors and plain values: safe for ``torch.load``."""
        state: dict[str, Any] = {"pending": str(self._next_reset)}
        state["resets"] = {str(reason): count for reason, count in self.resets.items()}
        state["previous"] = self._previous and self._previous.state()
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state` of another stream, whose segmenter had the same model and options."""
        self.resets, self._next_reset, self._previous = Counter(state["resets"]), Reset(state["pending"]), None
        if state["previous"] is not None:
            self._previous = PreviousFrame.of(state["previous"], self.segmenter.inference)

    def segment(
        self,
        image: np.ndarray,
        stamp_ns: int,
        frame_id: str = "",
        encoding: str = "bgr8",
        *,
        flow: np.ndarray | None = None,
        confidence: bool = False,
    ) -> Result:
        """Segment the next frame.

        Args:
            image: ``(H, W, 3)`` BGR uint8. No reference to it is kept.
            stamp_ns: When the image was taken, in ns.
            frame_id: Name of the camera's optical frame.
            encoding: ROS encoding of the image before it was converted to BGR.
            flow: ``(H, W, 2)`` float32, the reverse flow to the previous image in pixels, if already known. By default
                the segmenter estimates it.
            confidence: Whether the result has the confidence of the mask.

        Raises:
            ValueError: If image or flow have another shape or type. The memory stays as it was.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ValueError(f"image is {image.shape} {image.dtype}: give (H, W, 3) BGR uint8, at least one pixel")
        if flow is not None and (flow.shape != (*image.shape[:2], 2) or flow.dtype != np.float32):
            raise ValueError(f"flow is {flow.shape} {flow.dtype}: give {(*image.shape[:2], 2)} float32")
        segmenter, stages = self.segmenter, dict.fromkeys(("prepare", "flow", "network"), 0.0)
        broken = self._reset_reason(stamp_ns, image.shape, encoding, frame_id)
        reason = broken if segmenter.uses_netwarp else Reset.HOST_ONLY
        previous = None if broken else self._previous
        key = None if previous is None else previous.key
        size = (image.shape[0], image.shape[1])
        settings, thresholds = segmenter._confidence
        temperature = settings.temperature if confidence or thresholds is not None else None

        with timed(stages, "prepare"):
            scaled = segmenter.frames.scale(image)
            if self._ego is not None:
                scaled = self._ego.paint_over(scaled, size)
            frame = segmenter.frames.pad(scaled)
            on_device = segmenter.flow if isinstance(segmenter.flow, TensorDis) and segmenter.uses_flow else None
            grey = segmenter.grey(scaled) if segmenter.uses_flow and on_device is None else None
        estimated: np.ndarray | None = None
        to_key: np.ndarray | None = None
        wait = None
        moving: DisOnDevice | None = None
        if previous is not None and grey is not None and flow is None:
            wait = segmenter.begin_flow(partial(self._estimate_flow, grey, previous))

        def flow_to_key() -> np.ndarray:
            """Return the flow to the latest key frame: to the previous frame, if no frame is skipped."""
            nonlocal estimated, to_key
            if to_key is None:
                to_previous = flow
                if to_previous is None:
                    assert wait is not None
                    with timed(stages, "flow"):
                        to_previous = estimated = wait()
                to_key = to_previous if key is None else key.flow_from(to_previous)
            return to_key

        def padded_flow() -> np.ndarray:
            return segmenter.frames.pad_flow(flow_to_key(), size)

        with timed(stages, "network"):
            memory, next_key = previous.memory if previous else None, None
            is_key = key is None or segmenter.keyframes.is_due(key, grey, flow_to_key)
            if key is None or is_key:
                pixels = segmenter.upload(frame)
                if on_device is not None:
                    kept = previous.kept if previous else ()
                    moving = DisOnDevice(on_device, segmenter.frames, size, pixels, kept)
                along = padded_flow if moving is None or flow is not None else moving
                mask_only = temperature is None and not segmenter.keyframes.skip
                scores, memory = segmenter.infer(pixels, along, memory, classes_only=mask_only)
                if self._ego is not None and isinstance(memory, Memory):
                    memory = self._ego.forget(memory, size)
                if grey is not None and segmenter.keyframes.skip:
                    next_key = KeyFrame(scores, grey)
            else:
                scores, next_key = move(key.scores, padded_flow()), key.followed(flow_to_key())
            mask, sureness = segmenter.finish(scores, size, self._ego, temperature)
        stages["network"] -= stages["flow"]

        if segmenter.uses_flow:
            kept = () if moving is None else moving.result()
            taken = stamp_ns, image.shape, encoding, frame_id
            self._previous = PreviousFrame(*taken, grey, estimated, memory, next_key, kept)
        if reason and segmenter.uses_netwarp:
            self.resets[reason] += 1
        state = MemoryState.NEW if reason else MemoryState.KEPT
        return Result(mask, stages, state, reason, sureness if confidence else None, is_key)

    def _estimate_flow(self, grey: np.ndarray, previous: PreviousFrame) -> np.ndarray:
        """Estimate the flow to the previous frame. DIS starts its search from the previous flow; others cannot."""
        estimator = self.segmenter.flow
        assert previous.grey is not None
        if isinstance(estimator, DisFlow):
            return estimator(grey, previous.grey, start=previous.flow)
        return estimator(grey, previous.grey)

    def _reset_reason(self, stamp_ns: int, shape: tuple[int, ...], encoding: str, frame_id: str) -> str:
        """Return why the memory cannot be used for this frame (a `Reset`), or an empty string if it can."""
        previous = self._previous
        if previous is None:
            return self._next_reset
        if self.segmenter.uses_flow and (previous.grey is None) != isinstance(self.segmenter.flow, TensorDis):
            return Reset.REQUEST  # since then, the flow has moved to another device
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
