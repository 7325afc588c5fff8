# SPDX-License-Identifier: Apache-2.0
"""The engines beside each other: the time of a whole frame, NetWarp's share of it, and how far the masks differ."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from netwarp_ros.benchmarks.model import check_has_netwarp, median_ratio, time_in_turns
from netwarp_ros.engines import EngineError
from netwarp_ros.models import Model
from netwarp_ros.models.spec import WeightsError
from netwarp_ros.segmenter import Segmenter

REFERENCE = {"engine": "torch", "precision": "float32", "compile": "none"}
"""The engine that the others are compared with."""

Arguments = dict[str, Any]
"""Arguments of `Segmenter`: engine, precision and compile mode."""


@dataclass(frozen=True)
class EngineResult:
    """What one engine does with a model.

    Attributes:
        engine: Its name.
        precision: Precision of the host.
        host_ms: Median time of a whole frame with the host alone.
        frame_ms: The same with NetWarp, flow included.
        p99_ms: 99th percentile of it.
        overhead_percent: Median over the frames of (time with NetWarp / time of the host - 1), in per cent.
        speedup: Median over the frames of (time in `REFERENCE` / time in this engine), both with NetWarp.
        changed_percent: Pixels whose class differs from that of `REFERENCE`, in per cent of all.
    """

    engine: str
    precision: str
    host_ms: float
    frame_ms: float
    p99_ms: float
    overhead_percent: float
    speedup: float
    changed_percent: float

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def compare_engines(
    images: Sequence[np.ndarray], model: Model, engines: Sequence[Arguments], *, passes: int = 3, **options: Any
) -> tuple[list[EngineResult], list[str]]:
    """Time engines, and `REFERENCE`, on the same frames in turns.

    Args:
        images: At least two successive BGR images ``(H, W, 3)`` uint8 of one size.
        model: A video CNN.
        engines: The engines.
        passes: How often to segment all images. The first image of each pass is not timed.
        options: Other arguments of `Segmenter`.

    Returns:
        The results, `REFERENCE` first, and for each engine that could not be used a note that says why.

    Raises:
        ValueError: If the model has no NetWarp, or there are too few images.
    """
    check_has_netwarp(model)
    segmenters: dict[str, Segmenter] = {}
    notes = []
    for arguments in (REFERENCE, *(each for each in engines if each != REFERENCE)):
        try:
            pair = [Segmenter(model, host_only=alone, **{**options, **arguments}) for alone in (True, False)]
        except (EngineError, WeightsError) as error:
            notes.append(str(error))
            continue
        number = len(segmenters) // 2
        segmenters |= {f"host {number}": pair[0], f"video {number}": pair[1]}
    times = {name: stages["total"] for name, stages in time_in_turns(segmenters, images, passes).items()}
    expected, results = _masks(segmenters["video 0"], images), []
    for number in range(len(segmenters) // 2):
        segmenter, host, video = segmenters[f"video {number}"], times[f"host {number}"], times[f"video {number}"]
        results.append(
            EngineResult(
                engine=segmenter.engine.name,
                precision=segmenter.precision,
                host_ms=statistics.median(host),
                frame_ms=statistics.median(video),
                p99_ms=float(np.percentile(video, 99)),
                overhead_percent=100 * (median_ratio(video, host) - 1),
                speedup=median_ratio(times["video 0"], video),
                changed_percent=100 * float(np.mean(_masks(segmenter, images) != expected)),
            )
        )
    return results, notes


def _masks(segmenter: Segmenter, images: Sequence[np.ndarray]) -> np.ndarray:
    """Return the masks of all images, ``(N, H, W)``."""
    stream = segmenter.stream()
    return np.stack([stream.segment(image, index).mask for index, image in enumerate(images, 1)])
