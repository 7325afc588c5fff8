# SPDX-License-Identifier: Apache-2.0
"""Consistency over time: how well the predictions of successive frames agree, once motion is taken out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np

from netwarp_ros.metrics.confusion import ConfusionMatrix, check_ids


class TemporalConsistency:
    """Mean IoU between each prediction and the one before it, warped along the optical flow.

    TC as in Liu, Shen, Yu, Wang, "Efficient Semantic Video Segmentation with Per-frame Inference", ECCV 2020: the mIoU
    of the previous prediction, warped, against the present one in the place of the label, from one confusion matrix
    over all pairs. (A share of equal pixels would be all road and sky.) Unlike theirs it leaves out pixels whose flow
    leads out of the image, and can leave out those whose flow is not to be trusted; `flows_agree` tells them.

    The flow must not be the segmenter's own, or the network would be judged by what it was told.

    Args:
        num_classes: Number of classes K.

    Attributes:
        matrix: ``counts[i, j]`` pixels are i in a frame and were j in the one before it.
    """

    def __init__(self, num_classes: int) -> None:
        self.matrix = ConfusionMatrix(num_classes, void=-1)

    def update(
        self, present: np.ndarray, previous: np.ndarray, flow: np.ndarray, where: np.ndarray | None = None
    ) -> np.ndarray:
        """Count the pixels of one pair of frames.

        Args:
            present: ``(H, W)`` uint8 class ids predicted for frame t.
            previous: ``(H, W)`` uint8 class ids predicted for frame t-1.
            flow: ``(H, W, 2)`` float32, reverse flow in pixels: pixel (x, y) of frame t is at (x + u, y + v) in
                frame t-1.
            where: ``(H, W)`` bool; only pixels where it is True are counted. All, by default. Those whose flow leads
                out of the image never are.

        Returns:
            The counts of this pair alone, ``(K, K)`` int64.

        Raises:
            ValueError: If shapes or types differ from these, or an id is no class.
        """
        warped, inside = warp_nearest(previous, flow)
        return self.matrix.update(warped, present, where=inside if where is None else inside & where)

    def miou(self) -> float:
        """Return the consistency in per cent, over the classes that occur in the present predictions; nan if none."""
        return self.matrix.miou()

    def flicker(self) -> np.ndarray:
        """Return how much each class flickers, ``(K,)`` in per cent; nan for a class that is never predicted.

        Of the pixels that are of the class in a frame or in the one before it, motion taken out, it is the part that is
        not in both: 100 less the IoU of the class.
        """
        return 100 - self.matrix.iou()


class _Run(NamedTuple):
    """A video as far as it was taken.

    Attributes:
        label: ``(H, W)``, of the last frame.
        constant: ``(H, W)`` int32, for how many frames each pixel has had that label.
        correct: ``(H, W)`` int32, for how many of the last of them it was predicted right.
    """

    label: np.ndarray
    constant: np.ndarray
    correct: np.ndarray


class VideoConsistency:
    """VC_n: of the pixels whose label stays the same through n frames, the part that is right in all of them.

    After Miao et al., "VSPW: A large-scale dataset for video scene parsing in the wild", CVPR 2021: for each window of
    n successive frames, |(∩ S) ∩ (∩ S')| / |∩ S|, S being the labels and S' the predictions of its frames, as sets of
    pairs of pixel and class; the score is the mean over all windows. Void is no class. The script that the authors
    published asks only for predictions that stay the same, right or wrong.

    Args:
        void: Id of unlabelled pixels in label maps.
        lengths: The numbers of frames n, each > 1.

    Attributes:
        windows: Of each length, the sum of the scores of the windows, and their number: ``(2,)`` float64.

    Raises:
        ValueError: If there is no length, or one is not > 1.
    """

    def __init__(self, void: int, lengths: Iterable[int]) -> None:
        self._void = void
        self.windows = {length: np.zeros(2) for length in sorted(lengths)}
        if not self.windows or min(self.windows) <= 1:
            raise ValueError(f"lengths is {list(self.windows)}: give at least one, each > 1 frame")
        self._runs: dict[str, _Run] = {}

    def restart(self, video: str = "") -> None:
        """Let no window of a video span its frames so far and the next: there is a gap, or some are not labelled."""
        self._runs.pop(video, None)

    def update(self, prediction: np.ndarray, label: np.ndarray, video: str = "") -> None:
        """Take the next frame of a video.

        Args:
            prediction: ``(H, W)`` class ids, integers.
            label: ``(H, W)`` class ids, integers, or void.
            video: Which one, where several come by turns.

        Raises:
            ValueError: If types differ from these, or the size from that of the frame before.
        """
        check_ids(prediction, "prediction")
        check_ids(label, "label")
        run = self._runs.get(video)
        if run is None:
            run = _Run(np.full_like(label, self._void), *np.zeros((2, *label.shape), np.int32))
        for ids, name in ((prediction, "prediction"), (label, "label")):
            if ids.shape != run.label.shape:
                raise ValueError(f"{name} is {ids.shape}, but the frame before is {run.label.shape}: give one size")
        labelled, right = label != self._void, (prediction == label) & (label != self._void)
        kept = label == run.label
        constant = np.where(labelled, np.where(kept, run.constant, 0) + 1, 0)
        correct = np.where(right, np.where(kept, run.correct, 0) + 1, 0)
        self._runs[video] = _Run(label.copy(), constant, correct)
        for length, window in self.windows.items():
            count = int(np.count_nonzero(constant >= length))
            if count:
                window += int(np.count_nonzero(correct >= length)) / count, 1

    def score(self) -> dict[int, float]:
        """Return the mean over the windows in per cent, by their length; nan where no window has a constant pixel."""
        return {
            length: float(100 * total / count) if count else float("nan")
            for length, (total, count) in self.windows.items()
        }


def warp_nearest(ids: np.ndarray, flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Warp a map of ids along a reverse flow, taking the nearest pixel.

    Args:
        ids: ``(H, W)`` uint8.
        flow: ``(H, W, 2)`` float32, in pixels.

    Returns:
        The warped map ``(H, W)`` uint8, and where it is from ``inside`` the image, ``(H, W)`` bool; 0 elsewhere, also
        where the flow is not finite.

    Raises:
        ValueError: If the shapes or types are not these.
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
    """Find the pixels that the two flows between a pair of frames lead back to where they started from.

    The test of Sundaram, Brox, Keutzer, "Dense point trajectories by GPU-accelerated large displacement optical flow",
    ECCV 2010, eq. 5: ``|r + f|² <= 0.01 (|r|² + |f|²) + 0.5``, with f taken where r leads, bilinearly. It fails where
    something is hidden in one of the frames, and where the flow is wrong.

    Args:
        reverse: ``(H, W, 2)`` float32, from frame t to frame t-1, in pixels.
        forward: ``(H, W, 2)`` float32, from frame t-1 to frame t, in pixels.

    Returns:
        ``(H, W)`` bool, on the grid of frame t; False where the flow leads out of the image or is not finite.

    Raises:
        ValueError: If the shapes or types are not these.
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
        return inside & (error - allowed <= 0)  # a difference, so that infinity does not equal infinity


def _targets(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates (x, y) in the other frame that each pixel's flow leads to, float64."""
    height, width = flow.shape[:2]
    return np.arange(width) + flow[..., 0], np.arange(height)[:, None] + flow[..., 1]


def _check_flow(flow: np.ndarray, name: str, size: tuple[int, ...]) -> None:
    if flow.shape != (*size, 2) or flow.dtype != np.float32:
        raise ValueError(f"{name} is {flow.shape} {flow.dtype}: give {(*size, 2)} float32")
