# SPDX-License-Identifier: Apache-2.0
"""The FlowCNN Λ: it transforms an optical flow so that it suits the warping of representations (paper, Section 3.1)."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from netwarp_ros.models.float32 import full_float32


class FlowCNN(nn.Module):
    """Compute Λ(F_t) from the flow F_t and the two frames it connects.

    Three 3x3 convolutions give 16, 32 and 2 channels. The output of the third is concatenated with the flow, and a last
    3x3 convolution reduces the four channels to two. 6,892 parameters. As in the authors' release, a ReLU follows the
    first two convolutions only, so that negative displacements are not cut off.

    Initially the last convolution outputs the flow unchanged: Λ(F) = F. The layers before it have PyTorch's default
    initialisation; they have an effect as soon as training changes the weights of the last one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(11, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 2, 3, padding=1)
        self.conv4 = nn.Conv2d(4, 2, 3, padding=1)
        self.relu = nn.ReLU()
        with torch.no_grad():
            self.conv4.weight.zero_()
            self.conv4.weight[:, 2:, 1, 1] = torch.eye(2)
            assert self.conv4.bias is not None
            self.conv4.bias.zero_()

    def forward(self, flow: Tensor, previous: Tensor, present: Tensor) -> Tensor:
        """Return the transformed flow.

        It computes in full float32: less would lose fractions of a pixel. Where `torch.compile` compiles it, this holds
        if the compiled code is called within `full_float32`, as engines do.

        Args:
            flow: ``(B, 2, H, W)`` reverse flow in pixels of its grid.
            previous: ``(B, 3, H, W)`` frame t-1, as the network sees it.
            present: ``(B, 3, H, W)`` frame t.

        Returns:
            ``(B, 2, H, W)``, in pixels of the same grid.
        """
        with nullcontext() if torch.compiler.is_compiling() else full_float32():
            hidden = self.relu(self.conv1(torch.cat((flow, previous, present, present - previous), dim=1)))
            hidden = self.conv3(self.relu(self.conv2(hidden)))
            return self.conv4(torch.cat((hidden, flow), dim=1))
