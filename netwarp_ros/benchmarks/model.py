# SPDX-License-Identifier: Apache-2.0
"""The cost of NetWarp: a video CNN and its own host timed on the same frames, flow included (the paper's Tables 3, 4).

The two alternate on every frame, so that other load on the machine slows both down alike.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from netwarp_ros.models import Model
from netwarp_ros.segmenter import Segmenter


@dataclass(frozen=True)
class Overhead:
    """Times of a video CNN and of its host.

    Attributes:
        frames: Number of frames timed.
        stages_ms: For ``host`` and ``netwarp``, the median duration of each stage of the segmenter, and of their
            ``total``.
        overhead_percent: Median over the frames of (video CNN's total / host's total - 1), in per cent.
        engine: Name of the engine that ran both.
        engine_problem: Why it is not the one asked for; empty if it is.
    """

    frames: int
    stages_ms: dict[str, dict[str, float]]
    overhead_percent: float
    engine: str
    engine_problem: str

    def to_json(self) -> dict[str, Any]:
        return {
            "frames": self.frames,
            "stages_ms": self.stages_ms,
            "overhead": self.overhead_percent,
            "engine": self.engine,
            "engine_problem": self.engine_problem,
        }


def measure_overhead(images: Sequence[np.ndarray], model: Model, *, passes: int = 3, **options: Any) -> Overhead:
    """Time a model and its host on the same frames.

    Args:
        images: At least two successive BGR images ``(H, W, 3)`` uint8 of one size.
        model: A video CNN.
        passes: How often to segment all images. The first image of each pass is not timed.
        options: Other arguments of `Segmenter`.

    Raises:
        ValueError: If the model has no NetWarp, or there are too few images.
    """
    check_has_netwarp(model)
    segmenters = {
        "host": Segmenter(model, host_only=True, **options),
        "netwarp": Segmenter(model, **options),
    }
    stages = time_in_turns(segmenters, images, passes)
    host, video = stages["host"]["total"], stages["netwarp"]["total"]
    medians = {
        name: {stage: statistics.median(values) for stage, values in taken.items()} for name, taken in stages.items()
    }
    overhead = 100 * (median_ratio(video, host) - 1)
    in_use = segmenters["netwarp"]
    return Overhead(len(host), medians, overhead, in_use.engine.name, in_use.engine_problem)


def check_has_netwarp(model: Model) -> None:
    """Raise a ValueError if a model is an image CNN."""
    if not model.network.layers:
        raise ValueError(f"model {model.name} is an image CNN: choose one with NetWarp, see `netwarp models`")


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median of the ratios of times that belong together."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def time_in_turns(
    segmenters: Mapping[str, Segmenter], images: Sequence[np.ndarray], passes: int
) -> dict[str, dict[str, list[float]]]:
    """Let segmenters segment the same images; they alternate on every image.

    Args:
        segmenters: The segmenters, by name.
        images: At least two successive BGR images ``(H, W, 3)`` uint8 of one size.
        passes: How often to segment all images. The first image of each pass is not timed.

    Returns:
        The durations in ms of each stage of a segmenter, and of their ``total``, by name and stage.

    Raises:
        ValueError: If there are too few images.
    """
    if len(images) < 2:
        raise ValueError(f"{len(images)} images: give at least 2, for the first one has no flow")
    streams = {name: segmenter.stream() for name, segmenter in segmenters.items()}
    height, width = images[0].shape[:2]
    for segmenter in segmenters.values():
        segmenter.warm_up(width, height)
    stages: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in streams}
    for _ in range(passes):
        for index, image in enumerate(images):
            for name, stream in streams.items():
                if index == 0:
                    stream.reset()
                times = stream.segment(image, index + 1).stages_ms
                if index > 0:
                    for stage, value in (*times.items(), ("total", sum(times.values()))):
                        stages[name][stage].append(value)
    return stages
