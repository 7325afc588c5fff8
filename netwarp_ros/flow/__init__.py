# SPDX-License-Identifier: Apache-2.0
"""Optical flow: estimators, and flow read from files.

An estimator is any callable ``(present, previous) -> ndarray (H, W, 2)`` of float32 reverse flow in pixels: pixel
(x, y) of the present frame is found at (x + u, y + v) in the previous one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from netwarp_ros.flow.deepflow import DeepFlow
from netwarp_ros.flow.dis import PRESETS, DisFlow, halve
from netwarp_ros.flow.files import FlowFolder, read_flo, write_flo

FlowEstimator = Callable[[np.ndarray, np.ndarray], np.ndarray]

ESTIMATORS = (*PRESETS, "deepflow")
"""Names of the estimators: the presets of DIS, and DeepFlow, which is slow and serves for comparison."""

__all__ = [
    "ESTIMATORS",
    "PRESETS",
    "DeepFlow",
    "DisFlow",
    "FlowEstimator",
    "FlowFolder",
    "create_estimator",
    "halve",
    "open_flow",
    "read_flo",
    "write_flo",
]


def create_estimator(name: str) -> FlowEstimator:
    """Return a new estimator.

    Raises:
        ValueError: If the name is not one of `ESTIMATORS`, or OpenCV lacks the estimator.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"unknown flow {name!r}: choose one of {', '.join(ESTIMATORS)}")
    return DeepFlow() if name == "deepflow" else DisFlow(name)


def open_flow(name_or_folder: str) -> tuple[FlowEstimator, FlowFolder | None]:
    """Return the estimator with a name, or the flow in a folder.

    Returns:
        The estimator and None. For a folder, a quick estimator and the folder; the estimator serves frames that have no
        file, such as those that warm up a network.

    Raises:
        FileNotFoundError: If the folder has no ``.flo`` file.
        ValueError: If the argument is neither one of `ESTIMATORS` nor a folder, or OpenCV lacks the estimator.
    """
    if name_or_folder in ESTIMATORS:
        return create_estimator(name_or_folder), None
    if Path(name_or_folder).is_dir():
        return create_estimator("ultrafast"), FlowFolder(Path(name_or_folder))
    raise ValueError(f"flow is {name_or_folder!r}: give {', '.join(ESTIMATORS)}, or a folder of .flo files")
