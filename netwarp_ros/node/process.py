# SPDX-License-Identifier: Apache-2.0
"""The process of a node: its signals, its executor, and a handle on a node in another process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, Thread, get_ident
from types import FrameType
from typing import Any, NoReturn

import rclpy
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.context import Context
from rclpy.exceptions import InvalidHandle
from rclpy.executors import (
    ConditionReachedException,
    Executor,
    ShutdownException,
    SingleThreadedExecutor,
    TimeoutException,
)
from rclpy.node import Node
from rclpy.service import Service
from rclpy.signals import uninstall_signal_handlers

HEARTBEAT_S = 0.5
"""Period of the timer that wakes an idle executor, so that it sees that ROS was shut down."""

TIMEOUT_S = 60.0
"""How long to wait for a process to start, to respond or to end, and for the next frame."""


class NodeError(RuntimeError):
    """A node's process failed, or did not do its work in time."""


@contextmanager
def ros_process(name: str) -> Iterator[None]:
    """Initialize ROS for the body of a program. SIGINT and SIGTERM end the program without a message.

    A ValueError or OSError in the body means wrong input: it becomes one line on standard error.

    Args:
        name: Name of the program, with which that line begins.

    Raises:
        SystemExit: With status 2, after that line; with status 0 if a signal came before the body began.
    """
    handlers = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    in_body = False
    try:
        _initialize()
        in_body = True
        yield
    except (OSError, ValueError) as error:
        from netwarp_ros.resources import cut

        sys.stderr.write(f"{name}: {cut(str(error), 2000)}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        if not in_body:
            raise SystemExit(0) from None
    except BaseException:
        # Whichever call rclpy was in when the context shut down, it raises an error: ExternalShutdownException or
        # RCLError, for instance. Such an error is no failure.
        if rclpy.ok() or not in_body:
            raise
    finally:
        rclpy.try_shutdown()
        interrupted = signal.getsignal(signal.SIGINT) is not _interrupt
        for number, handler in handlers.items():
            # SIG_IGN stays in force while the interpreter shuts down, which takes a second with PyTorch. Python
            # handlers do not.
            signal.signal(number, signal.SIG_IGN if interrupted else handler)


def _initialize() -> None:
    """Initialize ROS with the arguments of this process.

    Raises:
        ValueError: If ROS refuses an argument, a file of parameters, or a variable of the environment.
    """
    try:
        rclpy.init()
    except RuntimeError as error:
        problem = re.sub(r", at \S+:\d+", "", str(error))  # a line of ROS's source
        raise ValueError(
            f"ROS cannot start: {type(error).__name__}: {problem}. Correct the arguments after --ros-args, or the "
            "environment."
        ) from error


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt at the first signal, and ignore later ones.

    On Ctrl-C the terminal sends SIGINT to every process of a launch, and `ros2 launch` sends another. ROS's own handler
    only shuts the context down, which does not end a compilation of the model.
    """
    for later in (signal.SIGINT, signal.SIGTERM):
        signal.signal(later, lambda *_: None)
    sys.unraisablehook = _unless_half_made
    raise KeyboardInterrupt


def _unless_half_made(error: sys.UnraisableHookArgs) -> None:
    """Report an error that nobody can catch, but not that of an object whose making the signal cut short.

    Tasks of rclpy, of which the executor makes many, have such a ``__del__``.
    """
    if not (error.exc_type is AttributeError and getattr(error.object, "__name__", "") == "__del__"):
        sys.__unraisablehook__(error)


def end_process() -> NoReturn:
    """End the process at once with status 0, although a thread is still busy. Call this after `ros_process`.

    Python would wait for the thread, which no signal interrupts. If it does not wait for a thread (a daemon), it may
    crash when that thread returns from C++.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


@contextmanager
def executing(node: Node) -> Iterator[Executor]:
    """Yield an executor that holds a node; destroy the node at the end.

    With rclpy's executors, a callback that raises an error ends the process. Here the error is logged and the node goes
    on. If it is the callback of a service, the caller gets the default response, such as ``success=False``.
    """
    executor = _Executor(context=node.context)
    executor.add_node(node)
    for service in node.services:
        _respond_always(service, node)
    # A signal wakes the executor just before it shuts the context down. Without this timer, an idle executor could see
    # the context still valid and wait again, forever.
    node.create_timer(HEARTBEAT_S, lambda: None, clock=Clock(clock_type=ClockType.STEADY_TIME))
    try:
        yield executor
    finally:
        # After a signal, a thread of rclpy triggers guard conditions. If they were destroyed meanwhile, it would crash.
        uninstall_signal_handlers()
        node.destroy_node()


class Beside(MutuallyExclusiveCallbackGroup):
    """Callbacks that take long. In `executing`, each runs in a thread of its own, one at a time, beside the others."""


@contextmanager
def executor_paused(node: Node) -> Iterator[None]:
    """Let the executor of `executing` rest while another thread creates or destroys topics of its node.

    rclpy's executors end by an error if a topic is destroyed while they prepare to wait for it.
    """
    executor = node.executor
    if isinstance(executor, _Executor):
        with executor.paused():
            yield
    else:
        yield


class _Executor(SingleThreadedExecutor):
    """Logs the errors of callbacks; rclpy's executors raise them. Callbacks in group `Beside` have their own thread."""

    def __init__(self, *, context: Context) -> None:
        super().__init__(context=context)
        self._changed = Condition()
        self._pauses, self._has_rested = 0, False
        self._spinning: int | None = None  # the thread that spins at present
        self._error: BaseException | None = None  # of a thread beside

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Wait until the executor rests, and let it rest during the body; in its own thread, it does already."""
        if self._spinning == get_ident():
            yield
            return
        with self._changed:
            self._pauses, self._has_rested = self._pauses + 1, True
            self.wake()
            self._changed.wait_for(lambda: self._spinning is None)
        try:
            yield
        finally:
            with self._changed:
                self._pauses -= 1
                self._changed.notify_all()

    def _is_to_rest(self) -> bool:
        return self._pauses > 0

    def spin_once(self, timeout_sec: float | None = None) -> None:
        """Wait for one callback and execute it, as rclpy's executors do."""
        if self._error is not None:
            raise self._error
        with self._changed:
            self._changed.wait_for(lambda: not self._pauses)
            if self._has_rested:
                self._cb_iter = None  # of what was ready before, some may be destroyed; the rest is still ready
            self._spinning, self._has_rested = get_ident(), False
        try:
            self._spin_once(timeout_sec)
        finally:
            with self._changed:
                self._spinning = None
                self._changed.notify_all()

    def _spin_once(self, timeout_sec: float | None) -> None:
        entity: Any
        try:
            handler, entity, node = self.wait_for_ready_callbacks(timeout_sec, None, self._is_to_rest)
        except (ShutdownException, TimeoutException, ConditionReachedException):
            return
        if entity is not None and isinstance(entity.callback_group, Beside):
            Thread(target=self._execute_beside, args=(handler, entity, node), daemon=True).start()
        else:
            self._execute(handler, entity, node)

    def _execute_beside(self, handler: Any, entity: Any, node: Any) -> None:
        try:
            self._execute(handler, entity, node)
        except (InvalidHandle, SystemExit):  # the node was destroyed meanwhile
            pass
        except BaseException as error:
            if self.context.ok():
                self._error = error  # the executor raises it
                self.wake()

    def _execute(self, handler: Any, entity: Any, node: Any) -> None:
        handler()
        if not handler.done() or (error := handler.exception()) is None:
            return
        # After ROS was shut down, errors are expected: `ros_process` handles them. After a message that could not be
        # taken, rclpy executes nothing of its callback group any more: better end.
        if not self.context.ok() or entity is None or not self.can_execute(entity):
            raise error
        _log(node, "a callback", error)


def _respond_always(service: Service, node: Node) -> None:
    """Let a service respond even if its callback raises an error. Callers would wait for the response in vain."""
    callback = service.callback
    service_type: Any = service.srv_type  # its type hint lacks Response

    def respond(request: Any, response: Any) -> Any:
        try:
            return callback(request, response)
        except Exception as error:
            if not node.context.ok():
                raise
            _log(node, f"a request to {service.service_name}", error)
            return service_type.Response()

    service.callback = respond


def _log(node: Node, what: str, error: BaseException) -> None:
    node.get_logger().error(f"{what} failed: {type(error).__name__}: {error}")
    node.get_logger().debug("".join(traceback.format_exception(error)))


def parameter_arguments(**parameters: Any) -> list[str]:
    """Return the arguments that give a node's process its parameters, for behind ``--ros-args``."""
    return [part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")]


class NodeProcess:
    """A node in a process of its own. The process ends with the ``with`` statement.

    Args:
        module: Full name of the module that runs it, such as ``netwarp_ros.node.segment_node``.
        namespace: Its namespace.
        folder: Folder of its log, whose name is the module's last part and ``.log``.
        parameters: Its parameters.
    """

    def __init__(self, module: str, namespace: str, folder: Path, **parameters: Any) -> None:
        self._log = folder / f"{module.rpartition('.')[2]}.log"
        with self._log.open("wb") as log:
            command = [sys.executable, "-m", module, "--ros-args", "-r", f"__ns:={namespace}"]
            self._process = subprocess.Popen(
                [*command, *parameter_arguments(**parameters)], stdout=log, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    @property
    def output(self) -> str:
        """What the process has written so far."""
        return self._log.read_text(encoding="utf-8", errors="replace").strip()

    def has_ended(self) -> bool:
        """Tell whether the process has ended by itself."""
        return self._process.poll() is not None

    def check(self) -> None:
        """Raise a `NodeError` if the process has ended with an error."""
        if self._process.poll():
            raise NodeError(f"{self._log.stem} ended with status {self._process.returncode}:\n{self.output}")
