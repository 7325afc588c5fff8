# SPDX-License-Identifier: Apache-2.0
"""Trimap IoU: the IoU of the pixels near label boundaries; the NetWarp paper's tIoU and its Fig. 4.

From Kohli, Ladický, Torr, "Robust higher order potentials", IJCV 2009, and Krähenbühl, Koltun, "Efficient inference in
fully connected CRFs", NIPS 2011.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from netwarp_ros.metrics.confusion import ConfusionMatrix, check_ids


class TrimapIoU:
    """IoU within bands around label boundaries, for several widths at once.

    The band of width w, the trimap, holds the pixels whose Euclidean distance to the nearest pixel with another label,
    from centre to centre, is at most w. At w = 1 it is one row of pixels on each side of a boundary. The edge between a
    class and void is a boundary too, because annotators mark uncertain outlines as void. Void pixels themselves are not
    counted. The image's border is not a boundary.

    Args:
        num_classes: Number of classes K.
        void: Id of unlabelled pixels in label maps.
        widths: In pixels, each > 0.

    Attributes:
        matrices: The `ConfusionMatrix` of each width.

    Raises:
        ValueError: If there is no width, or a width is not > 0.
    """

    def __init__(self, num_classes: int, void: int, widths: Iterable[int]) -> None:
        self.matrices = {width: ConfusionMatrix(num_classes, void) for width in sorted(widths)}
        if not self.matrices or min(self.matrices) <= 0:
            raise ValueError(f"widths is {list(self.matrices)}: give at least one, each > 0 pixels")

    def update(
        self, prediction: np.ndarray, label: np.ndarray, distance: np.ndarray | None = None
    ) -> dict[int, np.ndarray]:
        """Count the pixels of one frame.

        Args:
            prediction: ``(H, W)`` integer class ids, or 255 for no class: such pixels do not count.
            label: ``(H, W)`` integer class ids or void.
            distance: ``boundary_distance(label)``, if it is known already.

        Returns:
            The counts of this frame alone, ``(K, K)`` int64 by width.

        Raises:
            ValueError: See `ConfusionMatrix.update`.
        """
        if distance is None:
            distance = boundary_distance(label)
        return {
            width: matrix.update(prediction, label, where=distance <= width) for width, matrix in self.matrices.items()
        }

    def miou(self) -> dict[int, float]:
        """Return the mean IoU in per cent by width; nan if no pixel was counted."""
        return {width: matrix.miou() for width, matrix in self.matrices.items()}


def boundary_distance(label: np.ndarray) -> np.ndarray:
    """Return the distance of each pixel to the nearest pixel with another label.

    Args:
        label: ``(H, W)`` integers.

    Returns:
        ``(H, W)`` float64, in pixels from centre to centre; infinite if the map has only one label.

    Raises:
        ValueError: If the label map has another shape or type.
    """
    check_ids(label, "label")
    distance = np.full(label.shape, np.inf)
    values = np.unique(label)
    if len(values) < 2:
        return distance
    for value in values:
        inside = label == value
        transform = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        # Squared distances are integers. Rounding removes the error of float32, so that "<= width" is exact.
        distance[inside] = np.sqrt(np.rint(np.square(transform[inside], dtype=np.float64)))
    return distance
