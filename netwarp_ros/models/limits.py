# SPDX-License-Identifier: Apache-2.0
"""Bounds on building a network whose description may come from anybody, such as the header of a file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)


@contextmanager
def at_most(parameters: int, modules: int) -> Iterator[None]:
    """Stop what builds a network inside the block as soon as it is too large.

    What other threads build meanwhile is not counted. A parameter that replaces another counts too.

    Args:
        parameters: Most parameters (tensors) that may be registered.
        modules: Most submodules that may be registered.

    Raises:
        ValueError: From inside the block, when one more is registered.

    Example:
        >>> with at_most(parameters=2, modules=0):
        ...     _ = torch.nn.Linear(3, 2)
        >>> with at_most(parameters=1, modules=0):
        ...     _ = torch.nn.Linear(3, 2)
        Traceback (most recent call last):
        ...
        ValueError: the network has more than 1 parameters
    """
    thread = threading.get_ident()
    left = {"parameters": parameters, "modules": modules}
    limits = dict(left)

    def count(kind: str) -> None:
        if threading.get_ident() == thread:
            left[kind] -= 1
            if left[kind] < 0:
                raise ValueError(f"the network has more than {limits[kind]} {kind}")

    def on_parameter(_module: Any, _name: str, parameter: Any) -> None:
        if parameter is not None:
            count("parameters")

    def on_module(_module: Any, _name: str, submodule: Any) -> None:
        if submodule is not None:
            count("modules")

    hooks = (
        register_module_parameter_registration_hook(on_parameter),
        register_module_module_registration_hook(on_module),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
