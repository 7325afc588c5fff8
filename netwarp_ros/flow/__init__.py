# SPDX-License-Identifier: Apache-2.0
"""Optical flow estimators.

An estimator is any callable ``(present, previous) -> ndarray (H, W, 2)`` of float32 reverse flow in pixels: pixel
(x, y) of the present frame is found at (x + u, y + v) in the previous one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from netwarp_ros.flow.dis import PRESETS, DisFlow

FlowEstimator = Callable[[np.ndarray, np.ndarray], np.ndarray]

__all__ = ["PRESETS", "DisFlow", "FlowEstimator"]
