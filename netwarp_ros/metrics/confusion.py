# SPDX-License-Identifier: Apache-2.0
"""Intersection over union, from one confusion matrix over all frames."""

from __future__ import annotations

import numpy as np


class ConfusionMatrix:
    """Counts of pixels by class of the label and class of the prediction, void pixels left out.

    One matrix serves all frames, as in CamVid's, Cityscapes' and VOC's protocols: a score is of the pixels of the whole
    set, not a mean over images.

    Args:
        num_classes: Number of classes K.
        void: Id of unlabelled pixels in label maps; not the id of a class.

    Attributes:
        counts: ``(K, K)`` int64; ``counts[i, j]`` pixels are labelled i and predicted j.

    Raises:
        ValueError: If there is no class, or void is one.

    Example:
        >>> matrix = ConfusionMatrix(num_classes=2, void=255)
        >>> matrix.update(prediction=np.array([[0, 0, 1]]), label=np.array([[0, 1, 1]]))
        array([[1, 0],
               [1, 1]])
        >>> matrix.iou()
        array([50., 50.])
        >>> matrix.miou()
        50.0
    """

    def __init__(self, num_classes: int, void: int) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}: give at least 1")
        if 0 <= void < num_classes:
            raise ValueError(f"void is {void}, which is the id of one of the {num_classes} classes: give another")
        self.num_classes = num_classes
        self.void = void
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def update(self, prediction: np.ndarray, label: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
        """Count the pixels of one frame.

        Args:
            prediction: ``(H, W)`` class ids, integers.
            label: ``(H, W)`` class ids, integers, or void.
            where: ``(H, W)`` bool; only pixels where it is True are counted. All, by default.

        Returns:
            The counts of this frame alone, ``(K, K)`` int64.

        Raises:
            ValueError: If shapes or types differ from these, or an id to be counted is neither a class nor void.
        """
        check_ids(prediction, "prediction")
        check_ids(label, "label")
        if prediction.shape != label.shape:
            raise ValueError(f"prediction is {prediction.shape}, label is {label.shape}: give two of one size")
        counted = label != self.void
        if where is not None:
            if where.shape != label.shape or where.dtype != np.bool_:
                raise ValueError(f"where is {where.shape} {where.dtype}: give {label.shape} bool")
            counted &= where
        labelled, predicted = label[counted].astype(np.int64), prediction[counted].astype(np.int64)
        self._check_range(labelled, "label", f" and {self.void} for void")
        self._check_range(predicted, "prediction", "")
        cells = np.bincount(labelled * self.num_classes + predicted, minlength=self.num_classes**2)
        counts = cells.reshape(self.counts.shape)
        self.counts += counts
        return counts

    def iou(self) -> np.ndarray:
        """Return the intersection over union of each class, ``(K,)`` in per cent.

        It is TP / (TP + FP + FN); nan for a class that is in neither labels nor predictions.
        """
        return iou(self.counts)

    def miou(self) -> float:
        """Return the mean IoU over the classes that occur in the labels, in per cent; nan before any pixel.

        A class that is only ever predicted is no term of the mean: its pixels already count against the classes they
        were labelled as.
        """
        return miou(self.counts)

    def _check_range(self, ids: np.ndarray, name: str, also: str) -> None:
        if ids.size and (ids.min() < 0 or ids.max() >= self.num_classes):
            wrong = ids[(ids < 0) | (ids >= self.num_classes)][0]
            raise ValueError(f"{name} holds the id {wrong}: classes are 0 to {self.num_classes - 1}{also}")


def iou(counts: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each class in per cent, nan for a class without pixels.

    Args:
        counts: ``(..., K, K)``: one or more confusion matrices, as `ConfusionMatrix.counts` is.

    Returns:
        ``(..., K)`` float64.
    """
    intersection = np.diagonal(counts, axis1=-2, axis2=-1)
    union = counts.sum(axis=-2) + counts.sum(axis=-1) - intersection
    return 100 * np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)


def miou(counts: np.ndarray) -> float:
    """Return the mean IoU over the classes that occur in the labels, in per cent; nan where there is no pixel.

    Args:
        counts: ``(K, K)``, as `ConfusionMatrix.counts` is.
    """
    labelled = counts.sum(axis=1) > 0
    return float(iou(counts)[labelled].mean()) if labelled.any() else float("nan")


def check_ids(ids: np.ndarray, name: str) -> None:
    """Check that an array can be a map of class ids.

    Raises:
        ValueError: If it is not two-dimensional or not of integers.
    """
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} is {ids.shape} {ids.dtype}: give (H, W) integer class ids")
