# SPDX-License-Identifier: Apache-2.0
"""Copy-paste of rare classes: objects of one image are put into another, where they were in their own.

Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation" (CVPR 2021), for whole
classes. The image that gives them is drawn by its classes, so that a class in few images is seen as often as any other
(rare class sampling: Hoyer, Dai, Van Gool, "DAFormer", CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from netwarp_ros.datasets.samples import Clip, Samples

_MOST_ZOOM = 1.5
_NOTHING = 255  # no class has this id
_LEAST_PIXELS = 100
"""A label map with fewer pixels of a class does not count as one that has it."""


def indices_by_class(samples: Samples, classes: Sequence[int]) -> list[list[int]]:
    """Return which labelled frames of a data set have which of some classes.

    Args:
        samples: The data set. All its label maps are read.
        classes: Ids of the classes.

    Returns:
        For each class that occurs, the indices of its frames.
    """
    found: dict[int, list[int]] = {class_id: [] for class_id in classes}
    for index in range(len(samples)):
        counts = np.bincount(samples[index].label.ravel(), minlength=256)
        for class_id in classes:
            if counts[class_id] >= _LEAST_PIXELS:
                found[class_id].append(index)
    return [indices for indices in found.values() if indices]


def paste(image: Clip, donor: Clip, classes: Sequence[int], rng: np.random.Generator) -> Clip:
    """Put the pixels of some classes of one image over another one.

    They are zoomed by up to 1.5, shifted sideways by up to a third of the width, and mirrored. Colors stay, so give
    images before their colors are changed.

    Args:
        image: One frame.
        donor: One frame of any size.
        classes: Ids of the classes.
        rng: Source of all random values.
    """
    _, height, width = image.labels.shape
    given = donor.labels.shape[1:]
    zoom = np.exp(rng.uniform(-np.log(_MOST_ZOOM), np.log(_MOST_ZOOM)))
    scale = np.array([zoom * width / given[1] * rng.choice((-1, 1)), zoom * height / given[0]])
    place = np.array(
        [width / 2 + width * rng.uniform(-1 / 3, 1 / 3), height / 2]
    )  # of the center, which is zoomed about
    matrix = np.column_stack([np.diag(scale), place - scale * np.array([given[1] / 2, given[0] / 2])])
    label = cv2.warpAffine(donor.labels[0], matrix, (width, height), flags=cv2.INTER_NEAREST, borderValue=_NOTHING)
    pixels = cv2.warpAffine(donor.images[0], matrix, (width, height), flags=cv2.INTER_LINEAR)
    chosen = np.isin(label, np.asarray(classes, np.uint8))
    return Clip(
        np.where(chosen[..., None], pixels, image.images[0])[None], np.where(chosen, label, image.labels[0])[None]
    )
