# SPDX-License-Identifier: Apache-2.0
"""How a network of the Hugging Face hub wants its images prepared: its ``preprocessor_config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from netwarp_ros.models.video_cnn import Size
from netwarp_ros.resources import quote

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for a network.

    Attributes:
        mean: Mean of the RGB values, in [0, 1], that frames are normalised with; None if the file does not say.
        std: Standard deviation of the RGB values, likewise.
        height: Height in pixels that images are scaled to; None if the file does not say.
        size: ``(height, width)`` that images are scaled to, for a network that takes no other.
        bgr: Whether the weights expect BGR.
    """

    mean: Triple | None
    std: Triple | None
    height: int | None
    size: Size | None
    bgr: bool


def parse_preprocessing(content: Mapping[str, Any]) -> Preprocessing:
    """Read what a ``preprocessor_config.json`` holds.

    Values are normalised here as ``(value / 255 - mean) / std``. Files that scale them otherwise, or not at all, give a
    mean and deviation to the same effect. What concerns labels and training (``do_reduce_labels``, ``ignore_index``)
    is of no importance here, and images are not cropped.

    Raises:
        ValueError: A value has a wrong type, or asks for what cannot be done here.
    """
    if content.get("rescale_offset"):
        raise ValueError("preprocessor_config.json has rescale_offset, which is not supported")
    # MobileViT's processor swaps channels and does not normalise; its file need not say so.
    kind = str(content.get("image_processor_type") or content.get("feature_extractor_type") or "")
    mobile = kind.startswith("MobileViT") or "do_flip_channel_order" in content
    normalise = content.get("do_normalize")
    mean: Triple | None = (0.0, 0.0, 0.0)
    std: Triple | None = (1.0, 1.0, 1.0)
    if normalise or (normalise is None and not mobile):
        mean, std = _triple(content, "image_mean"), _triple(content, "image_std")
    scale = 255.0
    if content.get("do_rescale", True) is not False:
        factor = content.get("rescale_factor", 1 / 255)
        if not _is_number(factor) or not 1e-5 < factor <= 1:
            raise ValueError(
                f"rescale_factor is {quote(factor, 80)} in preprocessor_config.json: give a number up to 1"
            )
        scale = 1.0 if abs(255 * factor - 1) < 1e-6 else 255 * float(factor)
    bgr = content.get("do_flip_channel_order", mobile) is True
    height, size = _size(content.get("size") if content.get("do_resize", True) is not False else None)
    return Preprocessing(_rgb(mean, scale, bgr=bgr), _rgb(std, scale, bgr=bgr), height, size, bgr)


def _rgb(values: Triple | None, scale: float, *, bgr: bool) -> Triple | None:
    """Return values for RGB from 0 to 1, given those for a network's channels on its scale."""
    if values is None:
        return None
    first, second, third = (value / scale for value in values)
    return (third, second, first) if bgr else (first, second, third)


def _triple(content: Mapping[str, Any], key: str) -> Triple | None:
    values = content.get(key)
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != 3 or not all(map(_is_number, values)):
        raise ValueError(f"{key} is {quote(values, 80)} in preprocessor_config.json: give three numbers")
    return float(values[0]), float(values[1]), float(values[2])


def _size(value: Any) -> tuple[int | None, Size | None]:
    """Return the height that images are scaled to, and the size if the file gives both sides."""
    if isinstance(value, Mapping):
        height, width = _side(value.get("height")), _side(value.get("width"))
        if height is not None and width is not None:
            return height, (height, width)
        value = value.get("shortest_edge")
    edge = _side(value)
    return edge, None if edge is None else (edge, edge)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _side(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
