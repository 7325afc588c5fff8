# SPDX-License-Identifier: Apache-2.0
"""Operators: bilinear backward warping of feature maps along optical flow, and class masks at another size.

All implementations of the warp follow these conventions:

* **Coordinates.** An integer coordinate is a pixel center. ``flow[:, 0]`` is u (to the right), ``flow[:, 1]`` is v
  (down), both in pixels of the flow's grid. Output pixel (x, y) is read at (x + u, y + v).
* **Border.** Coordinates outside the grid are clamped to it, each axis by itself. On a clamped axis, the gradient for
  the flow is zero.
* **Precision.** Features are float32, float16 or bfloat16 (or float64, to check gradients). Coordinates and sums are
  float32 (float64 for float64 features). The result is rounded once, to the type of the features.
* **Non-finite flow.** NaN means no displacement. An infinite displacement is clamped to the border in its direction.
  Both have zero gradient.
* **Autocast.** Features keep their type, and the flow is converted to float32.

`csrc/` implements the operators in C++ (the warp also in CUDA) for any memory format and strides, in float32, float16
and bfloat16. Plain PyTorch (`netwarp_ros.ops.reference`) is used for other types and devices, and if the library is not
built. See docs/operator.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from netwarp_ros.ops import compiled, reference

__all__ = ["resize_argmax", "warp", "warp_combine"]

_AUTOCAST_DEVICES = ("cpu", "cuda")
_MOST_CLASSES = 256  # uint8 counts classes up to here
_LARGEST_SIDE = 2**24  # float32 counts pixels up to here


def warp(features: Tensor, flow: Tensor) -> Tensor:
    """Warp feature maps along a flow field: ``out(x, y) = features(x + u, y + v)``, bilinear.

    Args:
        features: ``(B, C, H, W)``.
        flow: ``(B, 2, H, W)``, pixels of this grid; float32 (float64 with float64 features).

    Returns:
        ``(B, C, H, W)`` in the features' type and memory format (contiguous or channels-last).

    Raises:
        ValueError: If a shape or type is wrong.
        RuntimeError: If the tensors are on different devices.
    """
    _check_features(features, "features")
    flow = _to_coordinate_dtype_if_autocast(flow, features)
    _check_flow(features, flow)
    if _is_compiled_for(features):
        return torch.ops.netwarp_ros.warp(features, flow)
    return reference.warp(features, flow)


def warp_combine(present: Tensor, previous: Tensor, flow: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """Blend a feature map with the warped previous one: ``w1 * present + w2 * warp(previous, flow)``.

    This is Eq. 2 of NetWarp (Gadde et al., ICCV 2017) for a flow that the FlowCNN has transformed.

    Args:
        present: ``(B, C, H, W)``, features of frame t.
        previous: ``(B, C, H, W)``, features of frame t-1, of the same type.
        flow: ``(B, 2, H, W)``, reverse flow (present to previous) in pixels of this grid.
        w1: ``(C,)``, weight of each channel of ``present``.
        w2: ``(C,)``, weight of each channel of the warped ``previous``.

    Returns:
        ``(B, C, H, W)`` in ``present``'s type and memory format. The sum is rounded once.

    Raises:
        ValueError: If a shape or type is wrong.
        RuntimeError: If the tensors are on different devices.
    """
    _check_features(present, "present")
    if previous.shape != present.shape or previous.dtype != present.dtype:
        raise ValueError(
            f"previous is {tuple(previous.shape)} {previous.dtype}, present is {tuple(present.shape)} {present.dtype}: "
            "give two feature maps of one shape and type"
        )
    flow = _to_coordinate_dtype_if_autocast(flow, present)
    _check_flow(present, flow)
    for name, weight in (("w1", w1), ("w2", w2)):
        if weight.shape != (present.shape[1],) or not weight.is_floating_point():
            raise ValueError(
                f"{name} is {tuple(weight.shape)} {weight.dtype}: give one floating-point weight for each of the "
                f"{present.shape[1]} channels"
            )
    _check_devices(present=present, previous=previous, flow=flow, w1=w1, w2=w2)
    if _is_compiled_for(present):
        return torch.ops.netwarp_ros.warp_combine(present, previous, flow, w1.float(), w2.float())
    return reference.warp_combine(present, previous, flow, w1, w2)


def resize_argmax(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the class of the greatest score at each pixel, after bilinear resizing of the scores to ``size``.

    The scores are resized in float32 as by ``torch.nn.functional.interpolate(scores, size, mode="bilinear",
    align_corners=False)``, to a larger or a smaller size. If they have that size already, they are not interpolated.
    The compiled operator never stores the resized scores.

    As in ``torch.argmax``, the lowest of equal classes counts, and NaN is greater than any number. As in
    ``interpolate``, an infinite score gives NaN where its weight is 0, and beside the opposite infinity.

    Args:
        scores: ``(B, K, h, w)``, floating point, K from 1 to 256 classes; contiguous or channels-last.
        size: Height H and width W of the result, pixels.

    Returns:
        ``(B, H, W)`` uint8, contiguous. It has no gradient.

    Raises:
        ValueError: If the shape or the type of the scores, or the size is wrong.
    """
    _check_scores(scores)
    height, width = size
    if not (1 <= height <= _LARGEST_SIDE and 1 <= width <= _LARGEST_SIDE):
        raise ValueError(f"size is {(height, width)}: give 1 to 2**24 pixels in each direction")
    if _is_compiled_for(scores):
        return torch.ops.netwarp_ros.resize_argmax(scores, height, width)
    return reference.resize_argmax(scores, (height, width))


def _is_compiled_for(features: Tensor) -> bool:
    device = features.device.type
    if device == "cuda" and device not in compiled.DEVICES and not torch.compiler.is_compiling():
        compiled.warn_of_missing_cuda_kernels()
    return device in compiled.DEVICES and features.dtype in compiled.DTYPES


def _to_coordinate_dtype_if_autocast(flow: Tensor, features: Tensor) -> Tensor:
    """Under autocast, convert a flow to the coordinates' type: a network may have computed it in half precision."""
    device = flow.device.type
    # Not torch.amp.is_autocast_available: torch.compile cannot trace it before PyTorch 2.13.
    autocast = device in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device)
    return flow.to(reference.coordinate_dtype(features.dtype)) if autocast and flow.is_floating_point() else flow


def _check_features(features: Tensor, name: str) -> None:
    if features.ndim != 4 or not features.is_floating_point():
        raise ValueError(f"{name} is {tuple(features.shape)} {features.dtype}: give floating-point (B, C, H, W)")
    if max(features.shape[2:]) > _LARGEST_SIDE:
        raise ValueError(f"{name} is {tuple(features.shape)}: give at most 2**24 pixels in each direction")


def _check_scores(scores: Tensor) -> None:
    _check_features(scores, "scores")
    _, classes, height, width = scores.shape
    if not 1 <= classes <= _MOST_CLASSES:
        raise ValueError(f"scores have {classes} classes: give 1 to {_MOST_CLASSES}")
    if height < 1 or width < 1:
        raise ValueError(f"scores are {tuple(scores.shape)}: give at least one pixel in each direction")


def _check_flow(features: Tensor, flow: Tensor) -> None:
    batch, _, height, width = features.shape
    if flow.shape != (batch, 2, height, width):
        raise ValueError(
            f"flow is {tuple(flow.shape)}, expected {(batch, 2, height, width)} for features of "
            f"{tuple(features.shape)}: resize the flow to the feature grid (netwarp_ros.models.resize_flow)"
        )
    wanted = reference.coordinate_dtype(features.dtype)
    if flow.dtype != wanted:
        raise ValueError(
            f"flow is {flow.dtype}, expected {wanted} with {features.dtype} features: use flow.to({wanted})"
        )
    _check_devices(features=features, flow=flow)


def _check_devices(**tensors: Tensor) -> None:
    if len({tensor.device for tensor in tensors.values()}) > 1:
        places = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        raise RuntimeError(f"tensors are on different devices ({places}): move them to one")
