# SPDX-License-Identifier: Apache-2.0
"""What a stream keeps of its previous frame, and how that becomes plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from netwarp_ros.models import Inference, InferenceMemory, Memory
from netwarp_ros.segmenter.keyframes import KeyFrame


@dataclass(frozen=True)
class PreviousFrame:
    """The previous frame of a stream.

    Attributes:
        stamp_ns: Its stamp.
        shape: Shape of the image.
        encoding: ROS encoding of the image.
        frame_id: Name of the camera's optical frame.
        grey: ``(h, w)`` uint8, as the flow estimator takes it; None if the flow is estimated on the network's device.
        flow: ``(h, w, 2)`` float32, the flow that was estimated from it to the frame before; None if none was.
        kept: Instead of these two, what is kept on the network's device, see `DisOnDevice`.
        memory: Memory of the latest key frame; None without NetWarp.
        key: The latest key frame; None if no frame is skipped.
    """

    stamp_ns: int
    shape: tuple[int, ...]
    encoding: str
    frame_id: str
    grey: np.ndarray | None
    flow: np.ndarray | None
    memory: Memory | InferenceMemory | None
    key: KeyFrame | None = None
    kept: tuple[torch.Tensor, ...] = ()

    def state(self) -> dict[str, Any]:
        """Return tensors and plain values: safe for ``torch.load``."""
        memory, key = self.memory, self.key
        passes = memory.passes if isinstance(memory, InferenceMemory) else () if memory is None else (memory,)
        return {
            **vars(self),
            "grey": _to_tensor(self.grey),
            "flow": _to_tensor(self.flow),
            "memory": [one_pass._asdict() for one_pass in passes],
            "memory_shape": memory.shape if isinstance(memory, InferenceMemory) else None,
            "key": key and {**vars(key), "grey": torch.from_numpy(key.grey), "flow": _to_tensor(key.flow)},
        }

    @classmethod
    def of(cls, state: Mapping[str, Any], inference: Inference) -> PreviousFrame:
        """Undo `state`; ``inference`` made the memory, if that is of windows."""
        values = dict(state)
        passes, shape = tuple(Memory(**one) for one in values["memory"]), values.pop("memory_shape")
        values["memory"] = InferenceMemory(inference, shape, passes) if shape else passes[0] if passes else None
        values["grey"], values["flow"] = _to_array(values["grey"]), _to_array(values["flow"])
        values["kept"] = tuple(values.get("kept", ()))
        if (key := values["key"]) is not None:
            values["key"] = KeyFrame(**{**key, "grey": _to_array(key["grey"]), "flow": _to_array(key["flow"])})
        return cls(**values)


def _to_tensor(array: np.ndarray | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(array)


def _to_array(tensor: torch.Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.cpu().numpy()
