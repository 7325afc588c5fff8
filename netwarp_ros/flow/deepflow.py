# SPDX-License-Identifier: Apache-2.0
"""DeepFlow (Weinzaepfel et al., ICCV 2013), from OpenCV's contributed modules, where it lacks DeepMatching.

It serves to compare DIS with. Of the other estimators in these modules, RLOF fails on small images, and SimpleFlow and
Dual TV-L1 take seconds (docs/benchmarks.md).
"""

from __future__ import annotations

import cv2
import numpy as np

from netwarp_ros.flow.dis import grey_pair


class DeepFlow:
    """Reverse flow between two frames by a variational method, from coarse to fine. It keeps no state between calls.

    Raises:
        ValueError: If OpenCV was built without its contributed modules.
    """

    def __init__(self) -> None:
        if not hasattr(cv2, "optflow"):
            raise ValueError("deepflow needs OpenCV's contributed modules: install opencv-contrib-python-headless")
        self._estimator = cv2.optflow.createOptFlow_DeepFlow()

    def __call__(self, present: np.ndarray, previous: np.ndarray) -> np.ndarray:
        """Estimate the flow from the present frame back to the previous one; see `DisFlow.__call__`."""
        return self._estimator.calc(*grey_pair(present, previous), None)  # type: ignore[call-overload]  # see DisFlow
