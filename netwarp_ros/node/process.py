# SPDX-License-Identifier: Apache-2.0
"""How a node's process begins and ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import rclpy


@contextmanager
def ros_process(name: str) -> Iterator[None]:
    """Hold ROS for the body of a program, which SIGINT and SIGTERM end quietly.

    A ValueError or OSError of the body is about what the user gave: it becomes one line on standard error.

    Args:
        name: What that line begins with.

    Raises:
        SystemExit: With status 2, after that line.
    """
    rclpy.init()
    try:
        yield
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{name}: {error}\n")
        raise SystemExit(2) from None
    except BaseException:
        # A signal ends the context. What comes of it then depends on what rclpy was at: ExternalShutdownException,
        # KeyboardInterrupt, or an RCLError where it was about to wait.
        if rclpy.ok():
            raise
    finally:
        rclpy.try_shutdown()
