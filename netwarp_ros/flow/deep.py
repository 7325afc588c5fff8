# SPDX-License-Identifier: Apache-2.0
"""DeepFlow (Weinzaepfel et al., ICCV 2013) without its matching, as OpenCV's contributed modules have it.

Of these modules' estimators it is the one that gives a flow for every image: RLOF fails on small ones, and SimpleFlow
and Dual TV-L1 take seconds (docs/benchmarks.md).
"""

from __future__ import annotations

import cv2
import numpy as np

from netwarp_ros.flow.dis import grey_pair


class DeepFlow:
    """Reverse flow between two frames by a variational method, from coarse to fine; it keeps nothing from call to call.

    Raises:
        ValueError: If OpenCV was built without its contributed modules.
    """

    def __init__(self) -> None:
        if not hasattr(cv2, "optflow"):
            raise ValueError("deepflow is of OpenCV's contributed modules: install opencv-contrib-python-headless")
        self._estimator = cv2.optflow.createOptFlow_DeepFlow()

    def __call__(self, present: np.ndarray, previous: np.ndarray) -> np.ndarray:
        """Estimate the flow from the present frame back to the previous one; see `DisFlow.__call__`."""
        return self._estimator.calc(*grey_pair(present, previous), None)  # type: ignore[call-overload]  # see DisFlow
