# SPDX-License-Identifier: Apache-2.0
"""Instance IoU: IoU in which a small object counts as much as a large one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from netwarp_ros.metrics.confusion import ConfusionMatrix, check_ids


class InstanceIoU:
    """IoU of the classes whose objects are told apart, each labelled pixel weighted by the size of its object.

    iIoU = iTP / (iTP + FP + iFN), as in Cordts et al., "The Cityscapes dataset for semantic urban scene understanding",
    CVPR 2016, Sec. 4.2: a labelled pixel, found (iTP) or missed (iFN), counts as the average size of its class's
    objects over the size of its own object. A pixel that is wrongly predicted is of no object and counts as one (FP).
    One sum over all frames serves each class.

    Args:
        num_classes: Number of classes K.
        void: Id of unlabelled pixels in label maps.
        sizes: Average size of an object in pixels by class id, for the classes to be scored; Cityscapes prescribes its
            own (`netwarp_ros.datasets.cityscapes.INSTANCE_SIZES`). By default, the average in the labels, for all
            classes that have objects there.

    Attributes:
        matrix: Labels and predictions.
        totals: ``(3, K)`` float64, of each class: its objects, their pixels, and the sum of the parts of its objects
            that were found.

    Raises:
        ValueError: If a size is not > 0, or not of one of the classes.
    """

    def __init__(self, num_classes: int, void: int, sizes: Mapping[int, float] | None = None) -> None:
        self.matrix = ConfusionMatrix(num_classes, void)
        self._sizes = None if sizes is None else np.full(num_classes, np.nan)
        for k, size in (sizes or {}).items():
            if not (0 <= k < num_classes and size > 0):
                raise ValueError(f"sizes has {size} for class {k}: give pixels > 0, for classes 0 to {num_classes - 1}")
            self._sizes[k] = size  # type: ignore[index]
        self.totals = np.zeros((3, num_classes))

    def update(self, prediction: np.ndarray, label: np.ndarray, instances: np.ndarray) -> None:
        """Count the pixels of one frame.

        Args:
            prediction: ``(H, W)`` class ids, integers.
            label: ``(H, W)`` class ids, integers, or void.
            instances: ``(H, W)`` integers: a number > 0 for each object, which objects of other classes may share; 0
                where objects are not told apart. There, a missed pixel does not count.

        Raises:
            ValueError: As `ConfusionMatrix.update`; if instances is not of this form.
        """
        check_ids(instances, "instances")
        if instances.shape != label.shape:
            raise ValueError(f"instances is {instances.shape}, label is {label.shape}: give two of one size")
        if instances.min(initial=0) < 0:
            raise ValueError(f"instances holds {instances.min()}: give numbers > 0 for objects, and 0 elsewhere")
        self.matrix.update(prediction, label)
        told = (instances > 0) & (label != self.matrix.void)
        numbers = np.int64(instances.max(initial=0)) + 1
        objects, place = np.unique(label[told] * numbers + instances[told], return_inverse=True)
        pixels = np.bincount(place, minlength=len(objects))
        right = np.bincount(place, weights=prediction[told] == label[told], minlength=len(objects))
        for total, share in zip(self.totals, (None, pixels, right / pixels), strict=True):
            total += np.bincount(objects // numbers, weights=share, minlength=len(total))

    def iou(self) -> np.ndarray:
        """Return the instance IoU of each class, ``(K,)`` in per cent.

        It is nan for a class that has no size, or is in neither labels nor predictions.
        """
        sizes, (objects, pixels, found) = self._sizes, self.totals
        if sizes is None:
            sizes = _divide(pixels, objects)
        false_positives = self.matrix.counts.sum(axis=0) - self.matrix.counts.diagonal()
        return 100 * _divide(sizes * found, sizes * objects + false_positives)

    def miou(self) -> float:
        """Return the mean over the classes that have objects in the labels, in per cent; nan before any."""
        scores = self.iou()[self.totals[0] > 0]
        return float(np.nanmean(scores)) if np.isfinite(scores).any() else float("nan")


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return ``a / b``, nan where b is not > 0."""
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b > 0)
