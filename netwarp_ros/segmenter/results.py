# SPDX-License-Identifier: Apache-2.0
"""What a stream returns for a frame, and why its memory was reset."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

import numpy as np


class MemoryState(IntEnum):
    """Whether a frame was segmented with the memory of the previous frame; values as in FrameTiming.msg."""

    NEW = 0
    KEPT = 1


class Reset(StrEnum):
    """Why a stream's memory was reset: the frame was segmented without it."""

    FIRST = "first frame"
    STAMP = "stamp not later than the last"
    GAP = "gap over max_gap"
    SIZE = "change of size"
    ENCODING = "change of encoding"
    FRAME_ID = "change of frame_id"
    PUBLISHERS = "several publishers"
    REQUEST = "request"
    HOST_ONLY = "no NetWarp in use"


@dataclass(frozen=True)
class Result:
    """The result for one frame.

    Attributes:
        mask: ``(H, W)`` uint8 class ids, 255 where there is no class; at the image's size, unless `MaskSize` says
            otherwise.
        stages_ms: Duration of each stage, in ms: ``prepare`` (scaling and grey image), ``flow``, ``network`` (transfer,
            normalisation, network, argmax, transfer back). The flow is estimated during the network's forward pass;
            its time is not counted under ``network``. With a GPU, another thread estimates it meanwhile, and ``flow``
            is how long the network waits for it.
        memory: Whether the memory was kept.
        reason: Why it was reset (a `Reset`); empty when it was kept.
        confidence: ``(H, W)`` uint8, the confidence of each pixel of the mask in 1/255, see `Confidence`; 0 where there
            is no class. None if it was not asked for.
        is_key: Whether the network was run on this frame; otherwise its scores were moved here from the latest key
            frame, see `KeyFrames`.
    """

    mask: np.ndarray
    stages_ms: dict[str, float]
    memory: MemoryState
    reason: str
    confidence: np.ndarray | None = None
    is_key: bool = True
