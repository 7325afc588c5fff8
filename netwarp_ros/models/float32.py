# SPDX-License-Identifier: Apache-2.0
"""Arithmetic in full float32, whatever precision the user allows PyTorch to use instead.

By default, PyTorch computes float32 convolutions on NVIDIA GPUs from Ampere on in TensorFloat-32, with 10 bits of
mantissa instead of 23. A displacement of 200 pixels is then rounded by up to 0.1 of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import Lock
from typing import Any

import torch

_FULL = "ieee"


@contextmanager
def full_float32() -> Iterator[None]:
    """Context manager and decorator: convolutions and matrix products of float32 tensors are not rounded to less.

    PyTorch has this setting once for the process. So it holds for all threads, from the first that enters to the last
    that leaves; then the user's setting is back. A gradient is computed under the setting at the time of ``backward``.
    """
    _leases.enter()
    try:
        yield
    finally:
        _leases.leave()


class _Leases:
    """Counts the threads that need full precision."""

    def __init__(self) -> None:
        self._lock, self._count, self._users_setting = Lock(), 0, ExitStack()

    def enter(self) -> None:
        with self._lock:
            if self._count == 0:
                _set_full_precision(self._users_setting)
            self._count += 1

    def leave(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0:
                self._users_setting.close()


_leases = _Leases()


def _set_full_precision(before: ExitStack) -> None:
    """Set full precision by PyTorch's older settings and by its newer ones, which it keeps consistent only in part.

    Args:
        before: Gets what brings back the settings from before.
    """
    backends: Any = torch.backends  # the types of its modules lack the newer settings
    cudnn, cuda, mkldnn = backends.cudnn, backends.cuda, backends.mkldnn
    operations = (cudnn.conv, cudnn.rnn, cuda.matmul, mkldnn.conv, mkldnn.matmul)
    precisions = [operation.fp32_precision for operation in operations]

    @before.callback  # called last: the older settings change the newer ones
    def restore() -> None:
        for operation, precision in zip(operations, precisions, strict=True):
            operation.fp32_precision = "none"  # what a more general setting gives, if there is one
            if operation.fp32_precision != precision:
                operation.fp32_precision = precision

    with suppress(RuntimeError):  # the older settings cannot be read where a newer one differs
        allowed = cudnn.allow_tf32
        cudnn.allow_tf32 = False
        before.callback(setattr, cudnn, "allow_tf32", allowed)
    with suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        before.callback(torch.set_float32_matmul_precision, matmul)
    for operation in operations:
        operation.fp32_precision = _FULL
