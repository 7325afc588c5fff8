# SPDX-License-Identifier: Apache-2.0
"""What a program does before it imports PyTorch, OpenCV and ROS."""

from __future__ import annotations

import os
import signal


def configure_libraries() -> None:
    """Set the environment variables that PyTorch and OpenCV read when they are loaded, unless the user has set them.

    Programs call this, not modules that others import: it changes the environment of the whole process.
    """
    # OpenMP threads spin while they wait for one another. On a robot, other processes and OpenCV's own threads take
    # cores away; if one thread of a layer loses its core, all others spin for it, and a frame takes many times as long.
    # If threads sleep at once, a frame takes 1.5 times as long on an idle machine. So they spin, but briefly
    # (docs/benchmarks.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")

    # The header of a damaged JPEG may state 10^9 pixels, and OpenCV would allocate them all. No camera has more than
    # this.
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(8192**2))


def start_node() -> None:
    """Call `configure_libraries`, and let SIGINT and SIGTERM end the process at once, with status 0.

    This is for the seconds in which a node's modules are imported: Python would print a traceback.
    `netwarp_ros.node.process.ros_process` then handles the signals.
    """
    configure_libraries()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
