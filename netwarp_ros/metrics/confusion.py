# SPDX-License-Identifier: Apache-2.0
"""Intersection over union, from one confusion matrix over all frames."""

from __future__ import annotations

import numpy as np

NO_CLASS = 255
"""In predictions, a pixel without a class, as a label map or an ego mask leaves it. No metric counts such pixels."""


class ConfusionMatrix:
    """Numbers of pixels by labelled and predicted class; pixels without a label or without a prediction do not count.

    One matrix counts all frames, as in the protocols of CamVid, Cityscapes and Pascal VOC. So a score is computed over
    the pixels of the whole data set; it is not a mean over images.

    Args:
        num_classes: Number of classes K.
        void: Id of unlabelled pixels in label maps. It must not be the id of a class.

    Attributes:
        counts: ``(K, K)`` int64; ``counts[i, j]`` pixels are labelled i and predicted j.

    Raises:
        ValueError: If there is no class, or void is the id of a class.

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
            raise ValueError(f"void is {void}, the id of a class: give an id that is not in 0 to {num_classes - 1}")
        self.num_classes = num_classes
        self.void = void
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def update(self, prediction: np.ndarray, label: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
        """Count the pixels of one frame.

        Args:
            prediction: ``(H, W)`` integer class ids, or 255 for no class, unless this is the id of a class.
            label: ``(H, W)`` integer class ids or void.
            where: ``(H, W)`` bool; False excludes a pixel. By default all pixels count.

        Returns:
            The counts of this frame alone, ``(K, K)`` int64.

        Raises:
            ValueError: If a shape or type differs from these, or a pixel that counts has an invalid id.
        """
        check_ids(prediction, "prediction")
        check_ids(label, "label")
        if prediction.shape != label.shape:
            raise ValueError(f"prediction is {prediction.shape}, label is {label.shape}: give the same size")
        counted = label != self.void
        if self.num_classes <= NO_CLASS:
            counted &= prediction != NO_CLASS
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
        """Return the intersection over union of each class, TP / (TP + FP + FN), ``(K,)`` in per cent.

        It is nan for a class that occurs neither in labels nor in predictions.
        """
        return iou(self.counts)

    def miou(self) -> float:
        """Return the mean IoU over the classes that occur in the labels, in per cent; nan if no pixel was counted.

        A class that is only predicted does not enter the mean: its pixels already lower the IoU of other classes.
        """
        return miou(self.counts)

    def _check_range(self, ids: np.ndarray, name: str, other_ids: str) -> None:
        if ids.size and (ids.min() < 0 or ids.max() >= self.num_classes):
            wrong = ids[(ids < 0) | (ids >= self.num_classes)][0]
            raise ValueError(f"{name} holds the id {wrong}: classes are 0 to {self.num_classes - 1}{other_ids}")


def iou(counts: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each class in per cent; nan for a class without pixels.

    Args:
        counts: ``(..., K, K)``, one or more confusion matrices like `ConfusionMatrix.counts`.

    Returns:
        ``(..., K)`` float64.
    """
    intersection = np.diagonal(counts, axis1=-2, axis2=-1)
    union = counts.sum(axis=-2) + counts.sum(axis=-1) - intersection
    return 100 * np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)


def miou(counts: np.ndarray) -> float:
    """Return the mean IoU over the classes that occur in the labels, in per cent; nan if no pixel is counted.

    Args:
        counts: ``(K, K)``, like `ConfusionMatrix.counts`.
    """
    labelled = counts.sum(axis=1) > 0
    return float(iou(counts)[labelled].mean()) if labelled.any() else float("nan")


def check_ids(ids: np.ndarray, name: str) -> None:
    """Check that an array is a map of class ids.

    Raises:
        ValueError: If it does not have two dimensions, or does not hold integers.
    """
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} is {ids.shape} {ids.dtype}: give (H, W) integer class ids")
