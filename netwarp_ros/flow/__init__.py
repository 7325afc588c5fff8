# SPDX-License-Identifier: Apache-2.0
"""Optical flow: estimators, and flow read from files.

An estimator is any callable ``(present, previous) -> ndarray (H, W, 2)`` of float32 reverse flow in pixels: pixel
(x, y) of the present frame is found at (x + u, y + v) in the previous one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from netwarp_ros.flow.deepflow import DeepFlow
from netwarp_ros.flow.dis import PRESETS, DisFlow, halve
from netwarp_ros.flow.files import FlowFolder, read_flo, write_flo
from netwarp_ros.flow.nvidia import NvidiaFlow
from netwarp_ros.flow.tensor_dis import TensorDis, dis_problem

FlowEstimator = Callable[[np.ndarray, np.ndarray], np.ndarray]

ESTIMATORS = (*PRESETS, "deepflow", "nvidia")
"""Names of the estimators: the presets of DIS; DeepFlow, which is slow and serves for comparison; and NVIDIA's
hardware, where it is there."""

__all__ = [
    "ESTIMATORS",
    "PRESETS",
    "DeepFlow",
    "DisFlow",
    "FlowEstimator",
    "FlowFolder",
    "NvidiaFlow",
    "TensorDis",
    "create_estimator",
    "dis_problem",
    "halve",
    "open_flow",
    "read_flo",
    "write_flo",
]


def create_estimator(name: str, device: str | torch.device = "cpu") -> FlowEstimator:
    """Return a new estimator.

    Args:
        name: One of `ESTIMATORS`.
        device: Where a preset of DIS is computed: on the CPU by OpenCV, on a GPU by our operator.

    Raises:
        ValueError: If the name is not one of `ESTIMATORS`, or the estimator is not there.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"unknown flow {name!r}: choose one of {', '.join(ESTIMATORS)}")
    if name in PRESETS:
        return DisFlow(name) if torch.device(device).type == "cpu" else TensorDis(name, device)
    return DeepFlow() if name == "deepflow" else NvidiaFlow()


def open_flow(name_or_folder: str) -> tuple[str, FlowFolder | None]:
    """Return the name of an estimator, or the flow in a folder.

    Returns:
        The name and None. For a folder, the name of a quick estimator and the folder; the estimator serves frames that
        have no file, such as those that warm up a network.

    Raises:
        FileNotFoundError: If the folder has no ``.flo`` file.
        ValueError: If the argument is neither one of `ESTIMATORS` nor a folder.
    """
    if name_or_folder in ESTIMATORS:
        return name_or_folder, None
    if Path(name_or_folder).is_dir():
        return "ultrafast", FlowFolder(Path(name_or_folder))
    raise ValueError(f"flow is {name_or_folder!r}: give {', '.join(ESTIMATORS)}, or a folder of .flo files")
