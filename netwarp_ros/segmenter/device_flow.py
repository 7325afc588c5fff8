# SPDX-License-Identifier: Apache-2.0
"""Which device estimates the flow, and the flow on a GPU: there, nothing of a frame but its mask comes back."""

from __future__ import annotations

import warnings
from collections.abc import Hashable

import torch
from torch import Tensor

from netwarp_ros.engines import FlowOnDevice
from netwarp_ros.flow import TensorDis, dis_problem
from netwarp_ros.models.input_frames import InputFrames
from netwarp_ros.models.resampling import Size
from netwarp_ros.ops import compiled

FLOW_DEVICES = ("auto", "cpu", "cuda")


def choose_flow_device(wanted: str, network: torch.device, moves_scores: bool) -> torch.device:
    """Return the device that estimates DIS flow.

    Args:
        wanted: One of `FLOW_DEVICES`. ``auto``: the network's, if our operator has CUDA and works there.
        network: The network's device.
        moves_scores: Whether class scores are moved along the flow, from key frames.

    Raises:
        ValueError: If it is none of these, or ``cuda`` and that is not possible.
    """
    if wanted not in FLOW_DEVICES:
        raise ValueError(f"flow_device is {wanted!r}: choose one of {', '.join(FLOW_DEVICES)}")
    if wanted == "cpu":
        return torch.device("cpu")
    problem = ""
    if network.type != "cuda":
        problem = f"the network is on {network}: give device cuda"
    elif "cuda" not in compiled.DIS_DEVICES:
        problem = "the operator library has no CUDA kernels: build it with nvcc (docs/operator.md)"
    elif moves_scores:
        problem = "with key frames, the flow is accumulated on the CPU: give keyframes none"
    elif failure := dis_problem(network):
        problem = f"{failure}: report it with the output of tools/gpu_check.sh"
        if wanted == "auto":
            warnings.warn(f"OpenCV estimates the flow, on the CPU: {failure}", RuntimeWarning, stacklevel=2)
    if problem and wanted == "cuda":
        raise ValueError(f"flow_device is cuda, but {problem}, or give flow_device auto or cpu")
    return torch.device("cpu") if problem else network


class DisOnDevice(FlowOnDevice):
    """DIS flow from a frame to the one before.

    Of a frame, its pyramid is kept, and its flow, from which the search for the next one starts.

    Args:
        estimator: What estimates it.
        frames: How images become frames.
        image: Size of the image.
        frame: ``(1, 3, H, W)`` uint8, RGB, what the image has become.
        before: What was kept of the frame before; nothing for a first frame.
    """

    def __init__(
        self, estimator: TensorDis, frames: InputFrames, image: Size, frame: Tensor, before: tuple[Tensor, ...]
    ) -> None:
        super().__init__(frame, before)
        self._estimator, self._frames, self._image = estimator, frames, image
        self._size = frames.scaled(image)  # the flow is that of the frame without its padding

    @property
    def key(self) -> Hashable:
        return self._estimator.search, self._estimator.level, self._size

    def compute(self, frame: Tensor, before: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        pyramid = self._pyramid(frame)
        flow = self._estimator.flow(pyramid, before[0], self._size, *before[1:])
        return self._frames.pad_flow_maps(flow, self._image), (pyramid, flow)

    def result(self) -> tuple[Tensor, ...]:
        """Return what to keep of the frame, whether its flow was needed or not."""
        return (self._pyramid(self._frame),) if self.kept is None else self.kept

    def _pyramid(self, frame: Tensor) -> Tensor:
        return self._estimator.pyramid(frame[..., : self._size[0], : self._size[1]])
