# SPDX-License-Identifier: Apache-2.0
"""The thread in which a node does its long work, while its executor goes on. It knows nothing of ROS."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

T = TypeVar("T")


def _be_nice(niceness: int) -> None:
    if niceness and sys.platform == "linux":  # where a thread has a niceness of its own
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + niceness)


class Worker:
    """Runs tasks one after another, all in the same thread.

    PyTorch, cuDNN and oneDNN keep much for each thread: CUDA graphs, plans, teams of OpenMP threads. A network that was
    loaded and warmed up in one thread is not ready in another.

    The thread starts with the first task, and ends after `stop`. The worker forgets a task that has ended, with its
    result and its error.

    Args:
        name: Name of the thread.
        niceness: How much less than others the thread is favored by the scheduler, on Linux.
    """

    def __init__(self, name: str, niceness: int = 0) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=lambda: _be_nice(niceness))
        self._unfinished: set[Future[Any]] = set()

    def submit(self, task: Callable[[], T]) -> Future[T]:
        """Run a task after those submitted before. Its result or its error will be in the future.

        Raises:
            RuntimeError: After `stop`.
        """
        future = self._pool.submit(task)
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        return future

    def is_idle(self, within_s: float = 0.0) -> bool:
        """Tell whether all tasks end within some seconds."""
        return not wait(self._unfinished.copy(), within_s).not_done

    def stop(self) -> None:
        """Cancel the tasks that have not begun, and let the thread end after the present one. This does not wait."""
        self._pool.shutdown(wait=False, cancel_futures=True)
