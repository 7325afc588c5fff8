# SPDX-License-Identifier: Apache-2.0
"""Load the compiled operators, ``torch.ops.netwarp_ros``, and register them with PyTorch.

Their C++ and CUDA are in `csrc/`. This module adds fake kernels, which give the shape and type of a result, and
backward formulas. Autograd, ``torch.compile`` and ``torch.export`` need them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LIBRARY = Path(__file__).with_name("libnetwarp_ops.so")
"""Where colcon and pip install the library. Symbolic links are not resolved: colcon may link to the source tree."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Types of features and scores that the compiled operators support."""


def load(library: Path = LIBRARY) -> frozenset[str]:
    """Load the library and register it with PyTorch.

    Args:
        library: The file to load.

    Returns:
        The device types that the library supports. If it is missing or cannot be loaded: none, with a warning.
    """
    try:
        torch.ops.load_library(library)
    except OSError as error:
        reason = "it is not built" if not library.exists() else error.__cause__ or error
        warnings.warn(
            f"the compiled operators are not in use ({reason}): plain PyTorch is used instead, several times "
            "slower; build them by `make setup` or `pip install .`, which need a C++ compiler",
            RuntimeWarning,
            stacklevel=2,
        )
        return frozenset()
    _register()
    return _devices_of("warp")


def _devices_of(operator: str) -> frozenset[str]:
    """Return the device types for which the library, if it is loaded, has an operator."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return frozenset(device for device in ("cpu", "cuda") if has_kernel(f"netwarp_ros::{operator}", device.upper()))


def missing_cuda_kernels() -> str:
    """Return that the library has no CUDA kernels, and what to do; empty if it has, or PyTorch is no CUDA build."""
    if "cuda" in DEVICES or not torch.version.cuda:
        return ""
    return (
        "the warp runs in plain PyTorch on the GPU, several times slower: the operator library has no CUDA kernels; "
        f"install the CUDA toolkit {torch.version.cuda}, as PyTorch's, so that its nvcc is found, and build again by "
        "`make setup` or `pip install .` (TORCH_CUDA_ARCH_LIST, such as 8.7, names the GPUs to build for)"
    )


@cache
def warn_of_missing_cuda_kernels() -> None:
    """Warn once if CUDA kernels are missing.

    The first warp on a GPU calls this. Importing the module does not: PyTorch's default for Linux is a CUDA build, also
    on machines without a GPU; and to ask whether there is one may start CUDA, after which processes cannot be forked.
    """
    if problem := missing_cuda_kernels():
        warnings.warn(problem, RuntimeWarning, stacklevel=4)


def _register() -> None:
    for name, fake in _FAKES.items():
        torch.library.register_fake(f"netwarp_ros::{name}", fake)
    torch.library.register_autograd("netwarp_ros::warp", _warp_backward, setup_context=_save_warp)
    torch.library.register_autograd("netwarp_ros::warp_combine", _combine_backward, setup_context=_save_combine)
    for name in ("warp_backward_features", "warp_backward_flow", "warp_combine_backward_weights"):
        torch.library.register_autograd(f"netwarp_ros::{name}", _no_second_derivative)


# Fake kernels


def _result_like(features: Tensor) -> Tensor:
    channels_last = features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty_like(features, memory_format=memory_format)


def _fake_warp(features: Tensor, flow: Tensor) -> Tensor:
    return _result_like(features)


def _fake_combine(present: Tensor, previous: Tensor, flow: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    return _result_like(present)


def _fake_backward_features(grad: Tensor, flow: Tensor, weight: Tensor | None, deterministic: bool) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.channels_last)


def _fake_backward_flow(grad: Tensor, features: Tensor, flow: Tensor, weight: Tensor | None) -> Tensor:
    return torch.empty_like(flow, memory_format=torch.contiguous_format)


def _fake_backward_weights(grad: Tensor, present: Tensor, previous: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    channels = present.shape[1]
    return flow.new_empty(channels), flow.new_empty(channels)


def _fake_resize_argmax(scores: Tensor, height: int, width: int) -> Tensor:
    return scores.new_empty((scores.shape[0], height, width), dtype=torch.uint8)


def _fake_dis_pyramid(frame: Tensor, first: int, last: int) -> Tensor:
    height, width = frame.shape[2:]
    pixels = sum((height >> level) * (width >> level) for level in range(first, last + 1))
    return frame.new_empty((frame.shape[0], pixels))


def _fake_dis_flow(
    present: Tensor, previous: Tensor, start: Tensor | None, height: int, width: int, level: int, *search: int
) -> Tensor:
    rows, columns = (-(-side >> level) for side in (height, width))
    return present.new_empty((present.shape[0], 2, rows, columns), dtype=torch.float32)


_FAKES: dict[str, Callable[..., Any]] = {
    "warp": _fake_warp,
    "warp_combine": _fake_combine,
    "warp_backward_features": _fake_backward_features,
    "warp_backward_flow": _fake_backward_flow,
    "warp_combine_backward_weights": _fake_backward_weights,
    "resize_argmax": _fake_resize_argmax,
    "dis_pyramid": _fake_dis_pyramid,
    "dis_flow": _fake_dis_flow,
}


# Backward formulas


def _save_warp(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    features, flow = inputs
    ctx.save_for_backward(features if ctx.needs_input_grad[1] else None, flow)


def _channels_last(*maps: Tensor) -> Iterator[Tensor]:
    """Convert feature maps to channels-last, the format that the backward operators work on."""
    return (features.contiguous(memory_format=torch.channels_last) for features in maps)


def _warp_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    ops = torch.ops.netwarp_ros
    features, flow = ctx.saved_tensors
    to_features, to_flow = ctx.needs_input_grad
    (grad,) = _channels_last(grad)
    return (
        ops.warp_backward_features(grad, flow, None, _deterministic()) if to_features else None,
        ops.warp_backward_flow(grad, features, flow, None) if to_flow else None,
    )


def _save_combine(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _combine_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    ops = torch.ops.netwarp_ros
    present, previous, flow, w1, w2 = ctx.saved_tensors
    to_present, to_previous, to_flow, to_w1, to_w2 = ctx.needs_input_grad
    grad, present, previous = _channels_last(grad, present, previous)
    grad_w1, grad_w2 = None, None
    if to_w1 or to_w2:
        grad_w1, grad_w2 = ops.warp_combine_backward_weights(grad, present, previous, flow)
    return (
        (grad * w1.view(1, -1, 1, 1)).to(present.dtype) if to_present else None,
        ops.warp_backward_features(grad, flow, w2, _deterministic()) if to_previous else None,
        ops.warp_backward_flow(grad, previous, flow, w2) if to_flow else None,
        grad_w1 if to_w1 else None,
        grad_w2 if to_w2 else None,
    )


def _deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled()


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "the compiled warp operator has no second derivative: differentiate netwarp_ros.ops.reference twice"
    )


DEVICES = load()
"""The device types that the library supports. It is loaded when this module is imported."""

DIS_DEVICES = _devices_of("dis_flow") if DEVICES else frozenset[str]()
"""The device types on which the library computes DIS flow."""
