# SPDX-License-Identifier: Apache-2.0
"""Semantic segmentation of camera streams by a NetWarp video CNN, in ROS 2 and without.

The names below are imported when they are first used, so ``import netwarp_ros`` loads neither PyTorch nor ROS.

Example:
    >>> from netwarp_ros import Segmenter
    >>> stream = Segmenter(device="cpu").stream()  # one for each camera
    >>> result = stream.segment(image, stamp_ns)  # BGR uint8, nanoseconds  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netwarp_ros.models import augment
    from netwarp_ros.segmenter import Segmenter, Stream

__all__ = ["Segmenter", "Stream", "__version__", "augment"]

__version__ = "0.1.0"

_MODULES = {"Segmenter": "netwarp_ros.segmenter", "Stream": "netwarp_ros.segmenter", "augment": "netwarp_ros.models"}


def __getattr__(name: str) -> Any:
    """Import an exported name from the module that defines it (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
