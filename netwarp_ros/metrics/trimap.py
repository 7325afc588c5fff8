# SPDX-License-Identifier: Apache-2.0
"""Trimap IoU: the IoU of the pixels near the borders of the labels (the paper's tIoU and its Fig. 4).

After Kohli, Ladický, Torr, "Robust higher order potentials", IJCV 2009, and Krähenbühl, Koltun, "Efficient inference in
fully connected CRFs", NIPS 2011.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from netwarp_ros.metrics.confusion import ConfusionMatrix, check_ids


class TrimapIoU:
    """IoU within bands around label boundaries, for several widths at once.

    A pixel is in the trimap of width w when a pixel with another label is no further than w from it, as the crow flies
    from centre to centre. Width 1 is thus the one row of pixels on each side of a boundary. Void is a label like any
    other as far as boundaries go, for it is drawn along outlines that were too uncertain to label; void pixels
    themselves are not scored. The border of the image is no boundary.

    Args:
        num_classes: Number of classes K.
        void: Id of unlabelled pixels in label maps.
        widths: In pixels, each > 0.

    Attributes:
        matrices: The `ConfusionMatrix` of each width.

    Raises:
        ValueError: If there is no width, or one is not > 0.
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
            prediction: ``(H, W)`` class ids, integers.
            label: ``(H, W)`` class ids, integers, or void.
            distance: What `boundary_distance` gives of the label, where it is known already.

        Returns:
            The counts of this frame alone by width, each ``(K, K)`` int64.

        Raises:
            ValueError: As `ConfusionMatrix.update`.
        """
        if distance is None:
            distance = boundary_distance(label)
        return {
            width: matrix.update(prediction, label, where=distance <= width) for width, matrix in self.matrices.items()
        }

    def miou(self) -> dict[int, float]:
        """Return the mean IoU in per cent by width; nan where no pixel was counted."""
        return {width: matrix.miou() for width, matrix in self.matrices.items()}


def boundary_distance(label: np.ndarray) -> np.ndarray:
    """Return for each pixel the distance to the nearest pixel that has another label.

    Args:
        label: ``(H, W)`` integers.

    Returns:
        ``(H, W)`` float64, in pixels, between centres; infinite where the label is the only one in the map.
    """
    check_ids(label, "label")
    distance = np.full(label.shape, np.inf)
    values = np.unique(label)
    if len(values) < 2:
        return distance
    for value in values:
        inside = label == value
        transform = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        # Squared distances are whole numbers; rounding takes away what float32 added, so that "<= width" is exact.
        distance[inside] = np.sqrt(np.rint(np.square(transform[inside], dtype=np.float64)))
    return distance
