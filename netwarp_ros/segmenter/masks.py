# SPDX-License-Identifier: Apache-2.0
"""How class scores become a mask and its confidence.

Scores are on the coarse grid of the network's output. The mask is made at the size of the network's input, and there
the class is looked up in the label map and compared with its threshold. Then it gets its size, by nearest neighbor:
between class ids there is nothing to interpolate. `MaskSize` decides which size that is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch import Tensor

from netwarp_ros import ops
from netwarp_ros.classes import VOID, ClassSet
from netwarp_ros.models.resampling import Size
from netwarp_ros.resources import cut, quote


@dataclass(frozen=True)
class MaskSize:
    """The size of masks: that of the image, that of the image as the network sees it, or a fixed one.

    Args:
        text: ``image``, ``network``, or ``WIDTHxHEIGHT`` in pixels, such as ``320x240``.

    Raises:
        ValueError: If the text is none of these.
    """

    text: str = "image"

    def __post_init__(self) -> None:
        if self.text not in ("image", "network") and not _SIZE.fullmatch(self.text):
            raise ValueError(
                f"mask_size is {quote(self.text)}: give image, network, or WIDTHxHEIGHT in pixels, such as 320x240"
            )

    def of(self, image: Size, network: Size) -> Size:
        """Return the mask's size, for the sizes of an image and of what the network sees of it."""
        if self.text in ("image", "network"):
            return image if self.text == "image" else network
        width, height = map(int, self.text.split("x"))
        return height, width


_SIZE = re.compile(r"[1-9][0-9]{0,3}x[1-9][0-9]{0,3}")


@dataclass(frozen=True)
class Confidence:
    """How confident the network must be.

    The confidence of a pixel is the greatest probability of its classes, softmax(scores / T), in [0, 1].

    Attributes:
        temperature: T. Networks are often surer than they are right; T > 1 corrects this (Guo et al., "On calibration
            of modern neural networks", ICML 2017).
        thresholds: By the name of a class of the masks, the confidence below which a pixel has no class (255).

    Raises:
        ValueError: If the temperature is not > 0, or a threshold is not in [0, 1].
    """

    temperature: float = 1.0
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}: give a number > 0")
        for name, threshold in self.thresholds.items():
            if not 0 <= threshold <= 1:
                raise ValueError(f"the threshold of {quote(name)} is {threshold}: give 0 to 1")

    def table(self, classes: ClassSet) -> np.ndarray | None:
        """Return the least confidence of each value of a mask, ``(256,)`` uint8 in 1/255; None without thresholds.

        Raises:
            ValueError: If a threshold is of a class that is not in the set.
        """
        table = np.zeros(256, np.uint8)
        for name, threshold in self.thresholds.items():
            if name not in classes.names:
                raise ValueError(
                    f"there is a threshold of {quote(name)}, which is no class of {classes.name}: give some of "
                    f"{cut(', '.join(classes.names))}"
                )
            table[classes.names.index(name)] = np.ceil(255 * threshold)
        return table if table.any() else None

    def least(self, classes: ClassSet) -> float:
        """Return the least confidence that a pixel with a class can have: the least threshold of all classes."""
        return min(self.thresholds.get(name, 0.0) for name in classes.names)


def classify(
    scores: Tensor, size: Size, temperature: float | None, *, are_probabilities: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the class of each pixel of the network's input, and how confident the network is.

    All is computed on the device of the scores, and the confidence on their coarse grid.

    Args:
        scores: ``(1, K, h, w)``; or the classes ``(1, H, W)`` uint8 themselves, if the confidence is not needed.
        size: Size of the network's input.
        temperature: See `Confidence`; None if the confidence is not needed.
        are_probabilities: Whether the scores are probabilities. Their logarithms then take the place of scores.

    Returns:
        The mask ``(H, W)`` uint8 at that size, and the confidence ``(h, w)`` uint8 in 1/255; None if it is not needed.
    """
    mask = scores[0] if scores.dtype == torch.uint8 else ops.resize_argmax(scores, size)[0]
    if temperature is None:
        return _on_cpu(mask)[0], None
    scaled = (scores.log() if are_probabilities else scores.float()) / temperature
    # The greatest softmax is exp(max - logsumexp).
    greatest = torch.exp(scaled.amax(1) - scaled.logsumexp(1))[0]
    mask_on_cpu, confidence = _on_cpu(mask, (255 * greatest).round().to(torch.uint8))
    return mask_on_cpu, confidence


def enlarge(confidence: np.ndarray, size: Size) -> np.ndarray:
    """Interpolate the confidence from the grid of the scores to a size."""
    return cv2.resize(confidence, size[::-1], interpolation=cv2.INTER_LINEAR)


def leave_out_unsure(mask: np.ndarray, confidence: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return a mask with 255 where its confidence is below the threshold of the class, of `Confidence.table`."""
    return cv2.bitwise_or(mask, cv2.compare(confidence, cv2.LUT(mask, thresholds), cv2.CMP_LT))


def without_void(confidence: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the confidence with 0 where the mask has no class (255)."""
    return cv2.bitwise_and(confidence, cv2.LUT(mask, _HAS_CLASS))


def at_size(mask: np.ndarray, size: Size) -> np.ndarray:
    """Resize a mask or its confidence by nearest neighbor. One that has the size already is returned itself."""
    if mask.shape == size:
        return mask
    return cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)


_HAS_CLASS = np.where(np.arange(256) == VOID, 0, 255).astype(np.uint8)


def _on_cpu(*maps: Tensor) -> list[np.ndarray]:
    """Return maps of one device as arrays."""
    if maps[0].device.type != "cuda":
        return [one.numpy() for one in maps]
    pinned = [torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in maps]
    for target, one in zip(pinned, maps, strict=True):
        target.copy_(one, non_blocking=True)
    torch.cuda.current_stream(maps[0].device).synchronize()  # the only place where the CPU waits for the GPU
    return [target.numpy().copy() for target in pinned]  # there is little pinned memory: it must not be kept
