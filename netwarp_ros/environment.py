# SPDX-License-Identifier: Apache-2.0
"""Environment variables that PyTorch and OpenCV read once, when they are loaded."""

from __future__ import annotations

import os


def configure_libraries() -> None:
    """Set the variables that the user has not set. Call this first in a program, before PyTorch and OpenCV load."""
    # OpenMP threads spin while they wait for one another. On a robot, other processes and OpenCV's own threads take
    # cores away; if one thread of a layer loses its core, all others spin for it, and a frame takes many times as long.
    # If threads sleep at once, a frame takes 1.5 times as long on an idle machine. So they spin, but briefly
    # (docs/benchmarks.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")

    # The header of a damaged JPEG may state 10^9 pixels, and OpenCV would allocate them all. No camera has more than
    # this.
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(8192**2))
