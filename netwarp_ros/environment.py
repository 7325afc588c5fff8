# SPDX-License-Identifier: Apache-2.0
"""Settings of libraries under this package that they read from the environment, once, when they are loaded."""

from __future__ import annotations

import os


def configure() -> None:
    """Set them for this process, where the environment has not: first thing in a program, before PyTorch and OpenCV."""
    # A robot has other work for its processor, and OpenCV has threads of its own. Those of a layer spin while they wait
    # for one another, and where one of them has lost its core, all spin for it: a frame then takes many times as long.
    # Threads that sleep at once cost a machine with nothing else to do half as much again. So they spin, but briefly
    # (docs/benchmarks.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")

    # A few damaged bytes make a JPEG claim a thousand million pixels, and OpenCV would fill them all with grey. No
    # camera has more than this.
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(8192**2))
