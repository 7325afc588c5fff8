# SPDX-License-Identifier: Apache-2.0
"""Find out which sizes of images a network takes, by trying it."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

from torch import nn

from netwarp_ros.models.insertion import evaluating, example_frame
from netwarp_ros.models.outputs import class_scores
from netwarp_ros.models.spec import MAX_FIXED_PIXELS, InputSize
from netwarp_ros.models.video_cnn import Size, map_size
from netwarp_ros.resources import cut

MULTIPLES = (1, 2, 4, 8, 14, 16, 28, 32, 64)
"""Multiples that are tried in turn. 14 is the patch of DINOv2."""

_STRIDES = (0.25, 0.5, 1, 1.75, 2, 3.5, 4, 7, 8, 14, 16, 28, 32, 64)


def find_input_size(host: nn.Module, fixed: Iterable[Size] = ()) -> InputSize:
    """Return which sizes a network takes.

    It is run on two images that are no larger than a few hundred pixels, for each of `MULTIPLES` until one works: with
    sides that are odd multiples of it, or its double would do. A network that only takes the size of its training is
    run at the sizes in ``fixed``.

    A run works if it gives class scores on a grid that covers the image, a cell for each block of one stride: a network
    that drops the pixels of an unfinished patch would shift its mask.

    Args:
        host: Takes ``(1, 3, H, W)``. It is run in evaluation mode; nothing in it changes.
        fixed: Sizes ``(height, width)`` to try if no multiple works.

    Raises:
        ValueError: If no size works. The message has the reason of the first.
    """
    reasons = []
    for multiple in MULTIPLES:
        if not (reason := _why_not(host, _probes(multiple))):
            return InputSize(multiple)
        reasons.append(reason)
    for size in dict.fromkeys(fixed):
        if size[0] * size[1] > MAX_FIXED_PIXELS:
            reasons.append(f"{size[1]}x{size[0]} has more than {MAX_FIXED_PIXELS} pixels")
        elif not (reason := _why_not(host, [size])):
            return InputSize(fixed=size)
        else:
            reasons.append(reason)
    last = f"; {cut(reasons[-1], 300)}" if reasons[-1] != reasons[0] else ""
    raise ValueError(f"{type(host).__name__} takes no size that was tried: {cut(reasons[0], 300)}{last}")


def _probes(multiple: int) -> list[Size]:
    """Return two sizes that are not square: some networks take any square."""
    if multiple == 1:
        return [(97, 131), (127, 95)]  # the second has the greatest remainders: a dropped remainder shows best there
    count = max(1, 97 // multiple - 1) // 2 * 2 + 1
    return [(count * multiple, (count + 2) * multiple), ((count + 2) * multiple, count * multiple)]


def _why_not(host: nn.Module, sizes: Iterable[Size]) -> str:
    """Run a network at some sizes. Return why its scores are of no use; empty if they are good."""
    strides = set(_STRIDES)
    for size in sizes:
        where = f"at {size[1]}x{size[0]}"
        try:
            with evaluating(host):
                scores = class_scores(host(example_frame(host, size)))
        except Exception as error:  # networks raise errors of any type for sizes that they do not take
            return f"{where}: {type(error).__name__}: {error}"
        grid = map_size(scores)
        if scores.shape[0] != 1 or not scores.isfinite().all():
            return f"{where}: the scores are not finite, or of another batch"
        strides = {stride for stride in strides if grid == (ceil(size[0] / stride), ceil(size[1] / stride))}
        if not strides:
            return f"{where}: the scores are {grid[1]}x{grid[0]}, which is not the image's size divided by a stride"
    return ""
