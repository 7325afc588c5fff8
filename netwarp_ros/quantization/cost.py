# SPDX-License-Identifier: Apache-2.0
"""What int8 costs and brings: scores and times of a model in float32 and in int8, on the same frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from netwarp_ros.classes import ClassSet
from netwarp_ros.evaluation.frame_scorer import FrameScorer, LabelledFrame, NetworkCounters
from netwarp_ros.evaluation.results import Scores
from netwarp_ros.evaluation.scoring import Labels
from netwarp_ros.recordings.frames import Frame, read_ahead
from netwarp_ros.segmenter import Segmenter, Stream

_WIDTHS = (2,)
"""The scorer wants a trimap; it is not used here."""


@dataclass(frozen=True)
class Cost:
    """Scores in per cent, and times in ms, in float32 and in int8.

    Attributes:
        frames: Number of frames.
        labelled: Number of labelled ones.
        miou_float32: Mean IoU in float32; nan without labels. See `netwarp_ros.evaluation.results.Scores`.
        miou_int8: The same in int8.
        tc_float32: Temporal consistency in float32; nan without two successive frames.
        tc_int8: The same in int8.
        changed: Per cent of the pixels that have another class in int8 than in float32.
        ms_float32: Median time of a frame in float32, where both took turns.
        ms_int8: The same in int8.
    """

    frames: int
    labelled: int
    miou_float32: float
    miou_int8: float
    tc_float32: float
    tc_int8: float
    changed: float
    ms_float32: float
    ms_int8: float

    def drops(self, most: float) -> list[str]:
        """Return the scores that are lower in int8 by more than ``most`` points, as phrases for an error."""
        scores = {
            "mean IoU": (self.miou_float32, self.miou_int8),
            "temporal consistency": (self.tc_float32, self.tc_int8),
        }
        return [
            f"{name} from {before:.2f} to {after:.2f}"
            for name, (before, after) in scores.items()
            if not math.isnan(before) and not before - after <= most
        ]

    def to_json(self) -> dict[str, float]:
        """Return the values that are numbers."""
        return {name: round(value, 4) for name, value in asdict(self).items() if not math.isnan(value)}


def measure_cost(
    frames: Iterable[Frame],
    labels: Labels | None,
    float32: Segmenter,
    int8: Segmenter,
    classes: ClassSet,
    on_frame: Callable[[], None] = lambda: None,
) -> Cost:
    """Segment frames in float32 and in int8, and compare the masks.

    Args:
        frames: The frames, in order. Each camera is a stream.
        labels: Returns label maps; None if there are none.
        float32: The model in float32.
        int8: The model in int8.
        classes: The classes of labels and masks.
        on_frame: Called after each frame.

    Raises:
        ValueError: If there is no frame, the classes differ from the model's, or a label map does not fit.
    """
    classes.check_names(float32.model.spec.classes, f"model {float32.model.name}")
    scorer = FrameScorer(classes, _WIDTHS, None, 2, float32.max_gap)
    streams: dict[str, list[Stream]] = {}
    changed, labelled, times = list[float](), 0, list[Sequence[float]]()
    for frame in read_ahead(frames):
        if not streams:
            for segmenter in (float32, int8):
                segmenter.warm_up(frame.image.shape[1], frame.image.shape[0])
        pair = streams.setdefault(frame.camera, [float32.stream(), int8.stream()])
        order = (0, 1) if len(times) % 2 else (1, 0)  # a stream that always comes second finds other caches
        results = {
            index: pair[index].segment(frame.image, frame.stamp_ns, frame.frame_id, frame.encoding) for index in order
        }
        masks, label = [results[index].mask for index in (0, 1)], labels and labels(frame)
        scorer.score(LabelledFrame(frame, label, None), masks, stills=False)
        labelled += label is not None
        changed.append(100 * float(np.mean(masks[0] != masks[1])))
        times.append([sum(results[index].stages_ms.values()) for index in (0, 1)])
        on_frame()
    if not times:
        raise ValueError("there is no frame to compare float32 and int8 on")
    before, after = (_scores(classes, totals) for totals in scorer.totals())
    return Cost(
        len(times), labelled, before.miou, after.miou, before.tc, after.tc, float(np.mean(changed)),
        *np.median(times, axis=0).tolist(),
    )  # fmt: skip


def _scores(classes: ClassSet, totals: dict[str, np.ndarray]) -> Scores:
    counters = NetworkCounters(classes, _WIDTHS, None)
    counters.add(totals)
    return counters.scores()
