# SPDX-License-Identifier: Apache-2.0
"""How a node's process begins, runs and ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.node import Node

HEARTBEAT_S = 0.5
"""How long a signal goes unnoticed at most."""


@contextmanager
def ros_process(name: str) -> Iterator[None]:
    """Hold ROS for the body of a program, which SIGINT and SIGTERM end quietly.

    A ValueError or OSError of the body is about what the user gave: it becomes one line on standard error.

    Args:
        name: What that line begins with.

    Raises:
        SystemExit: With status 2, after that line.
    """
    # ROS would end its context alone, which a model being compiled does not look at. This interrupts the body.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    rclpy.init()
    try:
        yield
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{name}: {error}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        pass
    except BaseException:
        # Where the context ends first, what comes of it depends on what rclpy was at: ExternalShutdownException, or an
        # RCLError where it was about to wait.
        if rclpy.ok():
            raise
    finally:
        rclpy.try_shutdown()
        signal.signal(signal.SIGTERM, before)


@contextmanager
def executing(node: Node) -> Iterator[Executor]:
    """Give the executor of a node, which is destroyed in the end."""
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    # A signal wakes the executor a moment before it ends the context. One that had nothing else to do would find all as
    # it was, and sleep on for ever.
    node.create_timer(HEARTBEAT_S, lambda: None, clock=Clock(clock_type=ClockType.STEADY_TIME))
    try:
        yield executor
    finally:
        node.destroy_node()
