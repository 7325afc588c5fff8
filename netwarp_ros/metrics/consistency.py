# SPDX-License-Identifier: Apache-2.0
"""Consistency over time: how well the predictions of successive frames agree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np

from netwarp_ros.metrics.confusion import NO_CLASS, ConfusionMatrix, check_ids


class TemporalConsistency:
    """TC: mean IoU between each prediction and the previous one, warped along the optical flow.

    From Liu, Shen, Yu, Wang, "Efficient Semantic Video Segmentation with Per-frame Inference", ECCV 2020. The warped
    prediction takes the role of the prediction, and the present one that of the label, in one confusion matrix over all
    pairs of frames. Unlike in the paper, pixels whose flow leads out of the image do not count, nor those that have no
    class (255) in either prediction; ``where`` can exclude more, such as those that fail `flows_agree`.

    The flow must not be the one that the network uses: along its own flow, a network would be consistent by design.

    Args:
        num_classes: Number of classes K.

    Attributes:
        matrix: `ConfusionMatrix`; ``counts[i, j]`` pixels are i in a frame and were j in the previous one.
    """

    def __init__(self, num_classes: int) -> None:
        self.matrix = ConfusionMatrix(num_classes, void=NO_CLASS)

    def update(
        self, present: np.ndarray, previous: np.ndarray, flow: np.ndarray, where: np.ndarray | None = None
    ) -> np.ndarray:
        """Count the pixels of one pair of frames.

        Args:
            present: ``(H, W)`` uint8 class ids predicted for frame t, or 255 for no class.
            previous: ``(H, W)`` uint8 class ids predicted for frame t-1, or 255.
            flow: ``(H, W, 2)`` float32, reverse flow in pixels: pixel (x, y) of frame t is at (x + u, y + v) in
                frame t-1.
            where: ``(H, W)`` bool; False excludes a pixel. By default all pixels whose flow stays in the image count.

        Returns:
            The counts of this pair alone, ``(K, K)`` int64.

        Raises:
            ValueError: If a shape or type differs from these, or an id is not a class.
        """
        warped, inside = warp_nearest(previous, flow)
        return self.matrix.update(warped, present, where=inside if where is None else inside & where)

    def miou(self) -> float:
        """Return the mean over the classes of the present predictions, in per cent; nan if no pixel was counted."""
        return self.matrix.miou()

    def flicker(self) -> np.ndarray:
        """Return how much each class flickers, ``(K,)`` in per cent; nan for a class that is never predicted.

        Of the pixels that have the class in the present or in the warped previous prediction, it is the percentage that
        does not have it in both: 100 - IoU of the class.
        """
        return 100 - self.matrix.iou()


class _PixelRuns(NamedTuple):
    """For how many frames up to the last one each pixel has kept its label.

    Attributes:
        label: ``(H, W)``, label map of the last frame.
        constant: ``(H, W)`` int32, number of successive frames with that label.
        correct: ``(H, W)`` int32, number of successive frames with that label as label and as prediction.
    """

    label: np.ndarray
    constant: np.ndarray
    correct: np.ndarray


class VideoConsistency:
    """VC_n: of the pixels whose label stays the same for n frames, the percentage that is correct in all of them.

    From Miao et al., "VSPW: A large-scale dataset for video scene parsing in the wild", CVPR 2021. A window of n
    successive frames scores |(∩ S) ∩ (∩ S')| / |∩ S|, where S and S' are the labels and the predictions of a frame, as
    sets of pairs of pixel and class; void is not a class. A pixel whose prediction has no class (255) is treated as
    void. VC_n is the mean over all windows. In the authors' script, unlike in their paper, predictions need only stay
    the same, correct or not.

    Args:
        void: Id of unlabelled pixels in label maps.
        lengths: Numbers of frames n, each > 1.

    Attributes:
        totals: By length, ``(2,)`` float64: the sum of the windows' scores, and the number of windows.

    Raises:
        ValueError: If there is no length, or a length is not > 1.
    """

    def __init__(self, void: int, lengths: Iterable[int]) -> None:
        self._void = void
        self.totals = {length: np.zeros(2) for length in sorted(lengths)}
        if not self.totals or min(self.totals) <= 1:
            raise ValueError(f"lengths is {list(self.totals)}: give at least one, each > 1 frame")
        self._runs: dict[str, _PixelRuns] = {}

    def restart(self, video: str = "") -> None:
        """Restart the windows of a video. Call this after a gap, or after a frame without a label."""
        self._runs.pop(video, None)

    def update(self, prediction: np.ndarray, label: np.ndarray, video: str = "") -> None:
        """Count the windows that end with the next frame of a video.

        Args:
            prediction: ``(H, W)`` integer class ids, or 255 for no class.
            label: ``(H, W)`` integer class ids or void.
            video: Name of the video, if the frames of several alternate.

        Raises:
            ValueError: If a shape or type differs from these, or the size differs from that of the previous frame.
        """
        check_ids(prediction, "prediction")
        check_ids(label, "label")
        runs = self._runs.get(video)
        if runs is None:
            runs = _PixelRuns(np.full_like(label, self._void), *np.zeros((2, *label.shape), np.int32))
        for ids, name in ((prediction, "prediction"), (label, "label")):
            if ids.shape != runs.label.shape:
                raise ValueError(f"{name} is {ids.shape}, but the previous frame is {runs.label.shape}: give one size")
        labelled, same = (label != self._void) & (prediction != NO_CLASS), label == runs.label
        constant = np.where(labelled, np.where(same, runs.constant, 0) + 1, 0)
        correct = np.where(labelled & (prediction == label), np.where(same, runs.correct, 0) + 1, 0)
        self._runs[video] = _PixelRuns(label.copy(), constant, correct)
        for length, total in self.totals.items():
            count = int(np.count_nonzero(constant >= length))
            if count:
                total += int(np.count_nonzero(correct >= length)) / count, 1

    def score(self) -> dict[int, float]:
        """Return VC_n in per cent by n; nan if no window has a pixel whose label stays the same."""
        return {
            length: float(100 * score / count) if count else float("nan")
            for length, (score, count) in self.totals.items()
        }


def warp_nearest(ids: np.ndarray, flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Warp a map of class ids along a reverse flow, with nearest-neighbour sampling.

    Args:
        ids: ``(H, W)`` uint8.
        flow: ``(H, W, 2)`` float32, in pixels.

    Returns:
        The warped map, ``(H, W)`` uint8, and a mask, ``(H, W)`` bool. Where the flow leads out of the image or is not
        finite, the mask is False and the map 0.

    Raises:
        ValueError: If a shape or type differs from these.
    """
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise ValueError(f"ids is {ids.shape} {ids.dtype}: give (H, W) uint8")
    _check_flow(flow, "flow", ids.shape)
    height, width = ids.shape
    x, y = _targets(flow)
    x, y = np.rint(x), np.rint(y)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    warped = np.zeros_like(ids)
    warped[inside] = ids[y[inside].astype(np.intp), x[inside].astype(np.intp)]
    return warped, inside


def flows_agree(reverse: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """Check where the reverse and the forward flow between two frames agree: the forward-backward test.

    From Sundaram, Brox, Keutzer, "Dense point trajectories by GPU-accelerated large displacement optical flow", ECCV
    2010, eq. 5: ``|r + f|² <= 0.01 (|r|² + |f|²) + 0.5``, where f is sampled bilinearly at the point that r leads to. A
    pixel fails if it is hidden in one of the frames, or if its flow is wrong.

    Args:
        reverse: ``(H, W, 2)`` float32, from frame t to frame t-1, in pixels.
        forward: ``(H, W, 2)`` float32, from frame t-1 to frame t, in pixels.

    Returns:
        ``(H, W)`` bool, on the grid of frame t; False also where the flow leads out of the image or is not finite.

    Raises:
        ValueError: If a shape or type differs from these.
    """
    _check_flow(reverse, "reverse", reverse.shape[:2])
    _check_flow(forward, "forward", reverse.shape[:2])
    height, width = reverse.shape[:2]
    x, y = _targets(reverse)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    x, y = (np.where(inside, coordinate, 0).astype(np.float32) for coordinate in (x, y))
    back = cv2.remap(forward, x, y, cv2.INTER_LINEAR).astype(np.float64)
    there = reverse.astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = np.square(there + back).sum(axis=2)
        allowed = 0.01 * (np.square(there).sum(axis=2) + np.square(back).sum(axis=2)) + 0.5
        return inside & (error - allowed <= 0)  # inf <= inf would pass; inf - inf is nan and fails


def _targets(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates x and y, ``(H, W)`` float64, that the flow of each pixel leads to."""
    height, width = flow.shape[:2]
    return np.arange(width) + flow[..., 0], np.arange(height)[:, None] + flow[..., 1]


def _check_flow(flow: np.ndarray, name: str, size: tuple[int, ...]) -> None:
    if flow.shape != (*size, 2) or flow.dtype != np.float32:
        raise ValueError(f"{name} is {flow.shape} {flow.dtype}: give {(*size, 2)} float32")
