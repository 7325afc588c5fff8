# SPDX-License-Identifier: Apache-2.0
"""How a node's process begins, runs and ends, seen from inside and from outside."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.node import Node

HEARTBEAT_S = 0.5
"""How long a signal goes unnoticed at most."""

PATIENCE_S = 60.0
"""Longest wait for a process to start, to answer or to end, and for a next frame."""


class NodeError(RuntimeError):
    """A node's process failed, or does not do in time what it should."""


@contextmanager
def ros_process(name: str) -> Iterator[None]:
    """Hold ROS for the body of a program, which SIGINT and SIGTERM end quietly.

    A ValueError or OSError of the body is about what the user gave: it becomes one line on standard error.

    Args:
        name: What that line begins with.

    Raises:
        SystemExit: With status 2, after that line.
    """
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
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
        interrupted = signal.getsignal(signal.SIGINT) is not _interrupt
        for number, handler in before.items():
            # Ignored is what stays so while the interpreter ends, which with PyTorch takes a second.
            signal.signal(number, signal.SIG_IGN if interrupted else handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Interrupt the program, once: on Ctrl-C, the terminal sends SIGINT to all of a launch, and `ros2 launch` another.

    ROS by itself ends its context alone, which a model that is being compiled does not look at.
    """
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: None)
    raise KeyboardInterrupt


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


class NodeProcess:
    """A node of this package in a process of its own, which ends with the ``with`` statement.

    Args:
        module: Its module in ``netwarp_ros.node``.
        namespace: Its namespace.
        folder: Where its log goes, to ``MODULE.log``.
        parameters: Its parameters.
    """

    def __init__(self, module: str, namespace: str, folder: Path, **parameters: Any) -> None:
        self._log = folder / f"{module.rpartition('.')[2]}.log"
        arguments = [part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")]
        with self._log.open("wb") as log:
            command = [sys.executable, "-m", f"netwarp_ros.node.{module}", "--ros-args", "-r", f"__ns:={namespace}"]
            self._process = subprocess.Popen([*command, *arguments], stdout=log, stderr=subprocess.STDOUT)

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def said(self) -> str:
        """What it wrote so far."""
        return self._log.read_text(encoding="utf-8", errors="replace").strip()

    def has_ended(self) -> bool:
        """Tell whether it has ended by itself."""
        return self._process.poll() is not None

    def check(self) -> None:
        """Raise a `NodeError` if it has ended with an error."""
        if self._process.poll():
            raise NodeError(f"{self._log.stem} ended with status {self._process.returncode}:\n{self.said}")
