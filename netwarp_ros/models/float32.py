# SPDX-License-Identifier: Apache-2.0
"""Arithmetic in full float32, whatever precision the user allows PyTorch to use instead.

By default, PyTorch computes float32 convolutions on NVIDIA GPUs from Ampere on in TensorFloat-32, with 10 bits of
mantissa instead of 23. A displacement of 200 pixels is then rounded by up to 0.1 of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any

import torch

_FULL = "ieee"

Restore = Callable[[], None]


@contextmanager
def full_float32() -> Iterator[None]:
    """Context manager and decorator: convolutions and matrix products of float32 tensors are not rounded to less.

    PyTorch has this setting once for the process. So it holds for all threads, from the first that enters to the last
    that leaves; then the user's setting is back. Set up a training that uses TensorFloat-32 elsewhere accordingly: the
    gradient of a call is computed under the setting at the time of ``backward``.
    """
    _leases.enter()
    try:
        yield
    finally:
        _leases.leave()


class _Leases:
    """Counts the threads that need full precision."""

    def __init__(self) -> None:
        self._lock, self._count, self._restore = Lock(), 0, list[Restore]()

    def enter(self) -> None:
        with self._lock:
            if self._count == 0:
                self._restore = _set_full_precision()
            self._count += 1

    def leave(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0:
                while self._restore:
                    self._restore.pop()()


_leases = _Leases()


def _set_full_precision() -> list[Restore]:
    """Set full precision by PyTorch's older settings and by its newer ones, which it keeps consistent only in part.

    Returns:
        What takes it back, the last first.
    """
    backends: Any = torch.backends  # the types of its modules lack the newer settings
    cudnn, cuda, mkldnn = backends.cudnn, backends.cuda, backends.mkldnn
    operations = (cudnn.conv, cudnn.rnn, cuda.matmul, mkldnn.conv, mkldnn.matmul)
    before = [(operation, operation.fp32_precision) for operation in operations]

    def restore() -> None:
        for operation, precision in before:
            operation.fp32_precision = "none"  # what a more general setting gives, if there is one
            if operation.fp32_precision != precision:
                operation.fp32_precision = precision

    undo = [restore]
    with suppress(RuntimeError):  # the older settings cannot be read where a newer one differs
        allowed = cudnn.allow_tf32
        cudnn.allow_tf32 = False
        undo.append(lambda: setattr(cudnn, "allow_tf32", allowed))
    with suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        undo.append(lambda: torch.set_float32_matmul_precision(matmul))
    for operation in operations:
        operation.fp32_precision = _FULL
    return undo
