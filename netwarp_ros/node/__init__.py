# SPDX-License-Identifier: Apache-2.0
"""The ROS nodes: what is here and in ``launch/`` alone imports ROS."""

from __future__ import annotations

import os

# A robot has other work for its processor. The threads of a layer spin while they wait for one another, and where one
# of them has lost its core to another process, all spin for it: a frame then takes many times as long. Threads that
# sleep at once cost a machine with nothing else to do half as much again. So they spin, but briefly
# (docs/benchmarks.md). PyTorch's OpenMP reads the variable when it is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# A few damaged bytes make a JPEG claim a thousand million pixels, and OpenCV would fill them all with grey. No camera
# has more than this. OpenCV reads the variable when it is loaded.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(8192**2))
