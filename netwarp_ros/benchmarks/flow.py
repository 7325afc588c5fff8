# SPDX-License-Identifier: Apache-2.0
"""Estimators of optical flow beside OpenCV's DIS: their time, and the error of their flow.

All estimators run in one process and take turns on every pair of frames, so that other load on the machine slows them
down alike. The flow of the synthetic street is known exactly. In a recording, the flow is judged by what it carries
from the frame before: grey values, and labels if there are any.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from netwarp_ros.benchmarks.model import median_ratio
from netwarp_ros.flow import PRESETS, create_estimator
from netwarp_ros.flow.dis import grey_pair
from netwarp_ros.models.resampling import as_maps
from netwarp_ros.ops import compiled, warp
from netwarp_ros.recordings.atomic import replacing, written_by
from netwarp_ros.recordings.frames import Frame, FrameSource

WARM = ":warm"
"""Ending of the name of an estimator that starts from the flow of the pair before."""

NAMES = (
    *(f"{preset}{where}{state}" for where in ("", "@torch", "@cuda") for preset in PRESETS for state in ("", WARM)),
    "deepflow",
    "nvidia",
)
"""Names of the estimators: OpenCV's DIS, our DIS in plain PyTorch on the CPU and on the GPU, and two others."""

VOID = 255
"""Label of pixels without one."""

SKY = 0
"""Class of the street's sky, whose flow nothing shows."""

LARGE_ERROR = 3.0
"""The share of pixels with a larger end-point error, in px, is reported, as in KITTI's benchmark."""


@dataclass(frozen=True)
class FlowResult:
    """What one estimator does on all pairs of frames.

    Attributes:
        estimator: Its name.
        pairs: Number of pairs.
        mean_error: Mean end-point error in px; None if the exact flow is unknown.
        median_error: Median of it, exact to 0.001 px.
        large_percent: Share of pixels whose end-point error is above `LARGE_ERROR`, in per cent.
        photometric_error: Mean of `photometric_errors`, in grey levels; None if all flow leads outside.
        carried_percent: Share of labelled pixels whose label is the one carried along the flow, in per cent; None
            without labels.
        time_ms: Median time of a pair.
        error_ratio: Mean error / mean error of OpenCV's DIS with the same preset and start; photometric if the exact
            flow is unknown. None if OpenCV's did not run, and for estimators without a counterpart.
        time_ratio: Median over the pairs of (time / time of OpenCV's), or None as above.
    """

    estimator: str
    pairs: int
    mean_error: float | None
    median_error: float | None
    large_percent: float | None
    photometric_error: float | None
    carried_percent: float | None
    time_ms: float
    error_ratio: float | None
    time_ratio: float | None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Clip:
    """Adjacent frames, and what is known about them.

    Attributes:
        images: N >= 2 BGR images ``(H, W, 3)`` uint8 of one size.
        flows: Exact reverse flow ``(H, W, 2)`` of each frame; the first is not used. None if it is unknown.
        scored: ``(H, W)`` bool of each frame: where its flow is compared with the exact one. Given with ``flows``.
        labels: ``(H, W)`` uint8 class ids of each frame, None for a frame without. None if no frame has labels.
        void: Label of pixels that are not counted.

    Raises:
        ValueError: If there are fewer than two images, or they differ in size.
    """

    images: Sequence[np.ndarray]
    flows: Sequence[np.ndarray] | None = None
    scored: Sequence[np.ndarray] | None = None
    labels: Sequence[np.ndarray | None] | None = None
    void: int = VOID

    def __post_init__(self) -> None:
        if len(self.images) < 2:
            raise ValueError(f"{len(self.images)} images: give at least 2, for the first one has no flow")
        shapes = list(dict.fromkeys(image.shape for image in self.images))
        if len(shapes) > 1:
            raise ValueError(f"images are {shapes[0]} and {shapes[1]}: give images of one size")


class ExactFrame(Protocol):
    """A frame whose flow is known, as `netwarp_ros.street.StreetFrame`."""

    @property
    def image(self) -> np.ndarray: ...
    @property
    def label(self) -> np.ndarray: ...
    @property
    def flow(self) -> np.ndarray: ...
    @property
    def valid(self) -> np.ndarray: ...


def street_clip(frames: Iterable[ExactFrame]) -> Clip:
    """Return frames of the synthetic street; scored is what both frames show, without the sky."""
    taken = list(frames)
    return Clip(
        [frame.image for frame in taken],
        [frame.flow for frame in taken],
        [frame.valid & (frame.label != SKY) for frame in taken],
    )


def video_clip(
    source: FrameSource,
    count: int,
    *,
    step: int = 1,
    read_label: Callable[[Frame], np.ndarray | None] | None = None,
    void: int = VOID,
) -> Clip:
    """Return the first frames of a recording with one camera.

    Args:
        source: The recording.
        count: Most frames to take.
        step: Takes every frame (1), every second one (2), and so on.
        read_label: Returns the label map of a frame or None, as `LabelFolder`.
        void: Label of pixels that are not counted.

    Raises:
        ValueError: As `Clip`; if labels are read, but no two successive frames have them.
    """
    frames = list(islice(source, 0, count * step, step))
    labels = None if read_label is None else [read_label(frame) for frame in frames]
    clip = Clip([frame.image for frame in frames], labels=labels, void=void)
    if labels is not None and not any(a is not None and b is not None for a, b in pairwise(labels)):
        raise ValueError("no two successive frames have label maps: name them like the frames, NAME.png")
    return clip


class Estimator:
    """An estimator that goes through a clip, pair by pair.

    Args:
        flow: Called as `netwarp_ros.flow.DisFlow`; needs no ``start`` if it is not warm.
        warm: Whether a pair starts from the flow of the pair before.
    """

    def __init__(self, flow: Callable[..., np.ndarray], *, warm: bool = False) -> None:
        self._flow, self._warm = flow, warm
        self._last: np.ndarray | None = None

    def begin(self, present: np.ndarray, previous: np.ndarray) -> None:
        """Prepare for a clip with this first pair: compile and allocate what each kind of call needs."""
        flow = self._flow(present, previous)
        if self._warm:
            self._flow(present, previous, start=flow)
        self._last = None

    def __call__(self, present: np.ndarray, previous: np.ndarray) -> np.ndarray:
        """Estimate the flow of the next pair, ``(H, W, 2)`` float32."""
        start = {} if self._last is None else {"start": self._last}
        flow = self._flow(present, previous, **start)
        if self._warm:
            self._last = flow
        return flow


def open_estimators(names: Iterable[str]) -> tuple[dict[str, Estimator], dict[str, str]]:
    """Open estimators by their names.

    Returns:
        The estimators by name, and the reasons why the others cannot run here.

    Raises:
        ValueError: If a name is not one of `NAMES`, or none of the estimators can run here.
    """
    estimators: dict[str, Estimator] = {}
    skipped: dict[str, str] = {}
    names = list(names)
    for name in names:
        if name not in NAMES:
            raise ValueError(f"unknown estimator {name!r}: choose from {', '.join(NAMES)}")
    for name in names:
        try:
            estimators[name] = Estimator(_open(name.removesuffix(WARM)), warm=name.endswith(WARM))
        except ValueError as error:
            skipped[name] = str(error)
    if not estimators:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise ValueError(f"none of the estimators can run here ({reasons}): choose from {', '.join(NAMES)}")
    return estimators, skipped


def _open(name: str) -> Callable[..., np.ndarray]:
    preset, _, where = name.partition("@")
    if name == "nvidia":
        from netwarp_ros.flow.nvidia import NvidiaFlow

        return NvidiaFlow()
    if not where:
        return create_estimator(name)
    if where == "cuda" and not torch.cuda.is_available():
        raise ValueError("PyTorch finds no GPU with CUDA")
    if where == "cuda" and "cuda" not in compiled.DIS_DEVICES:
        raise ValueError("the operator library has no CUDA kernels: build it where nvcc is found, by `make setup`")
    from netwarp_ros.flow.tensor_dis import TensorDis

    return TensorDis(preset, "cpu" if where == "torch" else where)


def end_point_errors(flow: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Return the distance in px between two flows ``(..., 2)``."""
    difference = flow - exact
    return np.hypot(difference[..., 0], difference[..., 1])


def photometric_errors(flow: np.ndarray, present: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """Return the difference between a pixel and where it was one frame before, read bilinearly.

    Args:
        flow: Reverse flow ``(H, W, 2)`` float32.
        present: ``(H, W)`` grey or ``(H, W, 3)`` BGR, uint8.
        previous: The frame before it.

    Returns:
        ``(K,)`` float32, absolute differences in grey levels, of the pixels whose flow leads inside the image.
    """
    present, previous = grey_pair(present, previous)
    height, width = present.shape
    x, y = np.arange(width) + flow[..., 0], np.arange(height)[:, None] + flow[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    before = warp(as_maps(previous[..., None].astype(np.float32)), as_maps(flow))[0, 0].numpy()
    return np.abs(present - before)[inside]


def carried_labels(flow: np.ndarray, present: np.ndarray, previous: np.ndarray, void: int = VOID) -> np.ndarray:
    """Tell where the label of the frame before, carried along the flow, is the label of this frame.

    Args:
        flow: Reverse flow ``(H, W, 2)`` float32.
        present: Label map ``(H, W)`` uint8 of this frame.
        previous: Label map of the frame before.
        void: Label of pixels that are not counted.

    Returns:
        ``(K,)`` bool, for the pixels that are labelled and whose flow leads to a labelled pixel.
    """
    height, width = present.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    carried = cv2.remap(previous, x + flow[..., 0], y + flow[..., 1], cv2.INTER_NEAREST, borderValue=void)
    return (carried == present)[(carried != void) & (present != void)]


class _Mean:
    """Mean of values that come in parts; None if there are none."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, values: np.ndarray) -> None:
        self._sum += float(values.sum(dtype=np.float64))
        self._count += values.size

    @property
    def value(self) -> float | None:
        return self._sum / self._count if self._count else None

    @property
    def percent(self) -> float | None:
        return 100 * self._sum / self._count if self._count else None


class _Tally:
    """What is counted of one estimator. It does not keep the pixels: thousands of frames may be compared."""

    def __init__(self) -> None:
        self.times_ms: list[float] = []
        self.error, self.large, self.photometric, self.carried = (_Mean() for _ in range(4))
        self._thousandths = np.zeros(100_001, np.int64)  # histogram of errors in 1/1000 px, up to 100 px

    def add(self, clip: Clip, index: int, flow: np.ndarray) -> None:
        """Count the flow of a frame."""
        if clip.flows is not None and clip.scored is not None:
            scored = clip.scored[index]
            errors = end_point_errors(flow[scored], clip.flows[index][scored])
            self.error.add(errors)
            self.large.add(errors > LARGE_ERROR)
            bins = len(self._thousandths)
            self._thousandths += np.bincount(np.rint(1000 * errors).clip(max=bins - 1).astype(int), minlength=bins)
        self.photometric.add(photometric_errors(flow, clip.images[index], clip.images[index - 1]))
        if clip.labels is not None:
            present, previous = clip.labels[index], clip.labels[index - 1]
            if present is not None and previous is not None:
                self.carried.add(carried_labels(flow, present, previous, clip.void))

    @property
    def median_error(self) -> float | None:
        total = self._thousandths.cumsum()
        return float(np.searchsorted(total, total[-1] / 2)) / 1000 if total[-1] else None

    @property
    def main_error(self) -> float | None:
        """Mean end-point error, or the photometric one if the exact flow is unknown."""
        return self.photometric.value if self.error.value is None else self.error.value

    def result(self, name: str, opencv: _Tally | None) -> FlowResult:
        """Return the figures, compared with those of OpenCV's counterpart."""
        error_ratio = time_ratio = None
        if opencv is not None:
            own, other = self.main_error, opencv.main_error
            error_ratio = own / other if own is not None and other else None
            time_ratio = median_ratio(self.times_ms, opencv.times_ms)
        return FlowResult(
            estimator=name,
            pairs=len(self.times_ms),
            mean_error=self.error.value,
            median_error=self.median_error,
            large_percent=self.large.percent,
            photometric_error=self.photometric.value,
            carried_percent=self.carried.percent,
            time_ms=statistics.median(self.times_ms),
            error_ratio=error_ratio,
            time_ratio=time_ratio,
        )


@dataclass(frozen=True)
class Picture:
    """The flow of one frame, ``clip.images[index]``, by all estimators."""

    clip: Clip
    index: int
    flows: Mapping[str, np.ndarray]


def compare(
    clips: Iterable[Clip], estimators: Mapping[str, Estimator], picture_frame: int | None = None
) -> tuple[list[FlowResult], Picture]:
    """Let estimators go through the same clips; they take turns on every pair of frames.

    The first pair of each clip is run once before it is timed.

    Args:
        clips: At least one. One is held in memory at a time, and the first one to the end.
        estimators: The estimators, by name.
        picture_frame: Index of the frame of the first clip whose flow is returned; by default the middle one.

    Returns:
        The results, in the estimators' order, and the flow of one frame.

    Raises:
        ValueError: If there is no clip, the first one has no such frame, or a flow is not finite.
    """
    tallies = {name: _Tally() for name in estimators}
    picture = None
    for clip in clips:
        last = len(clip.images) - 1
        shown = (last + 1) // 2 if picture_frame is None else picture_frame
        if picture is None and not 1 <= shown <= last:
            raise ValueError(f"picture frame is {shown}: give 1 to {last}, for the first frame has no flow")
        for estimator in estimators.values():
            estimator.begin(clip.images[1], clip.images[0])
        for index in range(1, last + 1):
            flows = {}
            for name, estimator in estimators.items():
                begun = perf_counter()
                flows[name] = estimator(clip.images[index], clip.images[index - 1])
                tallies[name].times_ms.append(1e3 * (perf_counter() - begun))
            for name, flow in flows.items():
                if not np.isfinite(flow).all():
                    raise ValueError(f"{name}: the flow of frame {index} is not finite")
                tallies[name].add(clip, index, flow)
            if picture is None and index == shown:
                picture = Picture(clip, index, flows)
    if picture is None:
        raise ValueError("there are no frames: give at least one clip")
    counterparts = {name: tallies.get(_opencv(name)) if "@" in name else None for name in tallies}
    return [tally.result(name, counterparts[name]) for name, tally in tallies.items()], picture


def _opencv(name: str) -> str:
    """Return the name of OpenCV's DIS with the preset and start of ours."""
    return name.partition("@")[0] + (WARM if name.endswith(WARM) else "")


_CAPTION = 22
"""Height of a tile's caption, in pixels."""


def draw_sheet(picture: Picture) -> np.ndarray:
    """Draw a frame, its exact flow if it is known, and each estimator's flow with its error, as tiles of one image.

    Hue is the direction: red to the right, yellow-green down, cyan to the left, violet up. Saturation is the length:
    full at the longest exact flow, or else at the 99th percentile of OpenCV's flow.

    Returns:
        BGR image, uint8. A tile is as wide as the frame and 22 pixels higher. They fill the rows of the smallest
        square that holds them.
    """
    clip, index = picture.clip, picture.index
    image, before = clip.images[index], clip.images[index - 1]
    exact = clip.flows[index] if clip.flows is not None else None
    if exact is None:
        first = next((name for name in picture.flows if name.removesuffix(WARM) in PRESETS), next(iter(picture.flows)))
        longest = float(np.percentile(_length(picture.flows[first]), 99))
    else:
        longest = float(_length(exact).max())
    tiles = [_tile(f"frame {index}", image)]
    if exact is not None:
        tiles.append(_tile("exact flow", flow_colors(exact, longest)))
    for name, flow in picture.flows.items():
        if exact is not None and clip.scored is not None:
            scored = clip.scored[index]
            errors, unit = end_point_errors(flow[scored], exact[scored]), "px"
        else:
            errors, unit = photometric_errors(flow, image, before), "grey levels"
        caption = f"{name}: {errors.mean():.2f} {unit}" if errors.size else name
        tiles.append(_tile(caption, flow_colors(flow, longest)))
    columns = math.ceil(math.sqrt(len(tiles)))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[begin : begin + columns]) for begin in range(0, len(tiles), columns)])


def write_sheet(path: Path, picture: Picture) -> None:
    """Write the sheet of `draw_sheet` as PNG, with the mark of ``netwarp benchmark``.

    Raises:
        FileExistsError: There is a file that `netwarp benchmark` did not write.
    """
    mark, marked = written_by("benchmark"), PngInfo()
    marked.add_text("Software", mark)
    with replacing(path, mark) as temporary:
        Image.fromarray(cv2.cvtColor(draw_sheet(picture), cv2.COLOR_BGR2RGB)).save(temporary, pnginfo=marked)


def flow_colors(flow: np.ndarray, longest: float) -> np.ndarray:
    """Return the colors of a flow ``(H, W, 2)``, BGR, uint8; see `draw_sheet`."""
    angle = np.degrees(np.arctan2(flow[..., 1], flow[..., 0])) % 360
    saturation = 255 * (_length(flow) / max(longest, 1e-6)).clip(max=1)
    full = np.full(angle.shape, 255)
    hsv = np.stack([np.rint(angle / 2) % 180, np.rint(saturation), full], axis=-1).astype(np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


def _length(flow: np.ndarray) -> np.ndarray:
    return np.hypot(flow[..., 0], flow[..., 1])


def _tile(caption: str, image: np.ndarray) -> np.ndarray:
    """Return an image with a caption above it."""
    tile = cv2.copyMakeBorder(image, _CAPTION, 0, 0, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    cv2.putText(tile, caption, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return tile
