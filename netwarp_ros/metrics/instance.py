# SPDX-License-Identifier: Apache-2.0
"""Instance IoU: an IoU in which a small object counts as much as a large one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from netwarp_ros.metrics.confusion import NO_CLASS, ConfusionMatrix, check_ids


class InstanceIoU:
    """IoU in which a labelled pixel weighs the average size of its class's objects over the size of its own object.

    iIoU = iTP / (iTP + FP + iFN), from Cordts et al., "The Cityscapes dataset for semantic urban scene understanding",
    CVPR 2016, Sec. 4.2. iTP and iFN are the sums of the weights of true positives and false negatives. False positives
    belong to no object and have weight 1. The sums are over all frames.

    Args:
        num_classes: Number of classes K.
        void: Id of unlabelled pixels in label maps.
        sizes: Average size of an object in pixels, by class id, for the classes to score. Cityscapes prescribes them
            (`netwarp_ros.datasets.cityscapes.INSTANCE_SIZES`). By default they are computed from the labels, for all
            classes that have objects.

    Attributes:
        matrix: `ConfusionMatrix` of all pixels.
        totals: ``(3, K)`` float64. For each class: the number of its objects; the number of their pixels; and the sum,
            over its objects, of the fraction of the object that was predicted correctly.

    Raises:
        ValueError: If a size is not > 0, or its class does not exist.
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
            prediction: ``(H, W)`` integer class ids, or 255 for no class: such pixels do not count.
            label: ``(H, W)`` integer class ids or void.
            instances: ``(H, W)`` integers > 0 that number the objects of a class; objects of different classes may have
                the same number. 0 marks pixels without an object, such as those of a group; they count neither as true
                positives nor as false negatives.

        Raises:
            ValueError: If a shape, type or value differs from these; see also `ConfusionMatrix.update`.
        """
        check_ids(instances, "instances")
        if instances.shape != label.shape:
            raise ValueError(f"instances is {instances.shape}, label is {label.shape}: give the same size")
        if instances.min(initial=0) < 0:
            raise ValueError(f"instances holds {instances.min()}: give numbers > 0 for objects, and 0 elsewhere")
        self.matrix.update(prediction, label)
        in_object = (instances > 0) & (label != self.matrix.void) & (prediction != NO_CLASS)
        stride = int(instances.max(initial=0)) + 1
        numbered = label[in_object].astype(np.int64) * stride + instances[in_object]
        ids, index = np.unique(numbered, return_inverse=True)
        pixels = np.bincount(index, minlength=len(ids))
        correct = np.bincount(index, weights=prediction[in_object] == label[in_object], minlength=len(ids))
        for total, weights in zip(self.totals, (None, pixels, correct / pixels), strict=True):
            total += np.bincount(ids // stride, weights=weights, minlength=len(total))

    def iou(self) -> np.ndarray:
        """Return the instance IoU of each class, ``(K,)`` in per cent.

        It is nan for a class without a size, and for one that occurs neither in labels nor in predictions.
        """
        sizes, (objects, pixels, correct) = self._sizes, self.totals
        if sizes is None:
            sizes = _divide(pixels, objects)
        false_positives = self.matrix.counts.sum(axis=0) - self.matrix.counts.diagonal()
        return 100 * _divide(sizes * correct, sizes * objects + false_positives)

    def miou(self) -> float:
        """Return the mean over the classes that have objects in the labels, in per cent; nan if there are none."""
        scores = self.iou()[self.totals[0] > 0]
        return float(np.nanmean(scores)) if np.isfinite(scores).any() else float("nan")


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return ``a / b``, and nan where b is not > 0."""
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b > 0)
