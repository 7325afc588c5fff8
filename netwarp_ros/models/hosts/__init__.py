# SPDX-License-Identifier: Apache-2.0
"""Hosts: the image CNNs that NetWarp can be inserted into, one per file. They import nothing but torch."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from netwarp_ros.models.hosts.ddrnet import DDRNet23Slim
from netwarp_ros.models.hosts.dilation import Dilation8, Dilation10
from netwarp_ros.models.hosts.playdata import PlayData
from netwarp_ros.models.hosts.pspnet import PSPNet50, PSPNet101
from netwarp_ros.models.hosts.swiftnet import SwiftNetLite0, SwiftNetLite2

__all__ = [
    "HOSTS",
    "DDRNet23Slim",
    "Dilation8",
    "Dilation10",
    "PSPNet50",
    "PSPNet101",
    "PlayData",
    "SwiftNetLite0",
    "SwiftNetLite2",
]

HOSTS: dict[str, Callable[..., nn.Module]] = {
    "ddrnet23slim": DDRNet23Slim,
    "dilation10": Dilation10,
    "dilation8": Dilation8,
    "playdata": PlayData,
    "pspnet101": PSPNet101,
    "pspnet50": PSPNet50,
    "swiftnet_lite0": SwiftNetLite0,
    "swiftnet_lite2": SwiftNetLite2,
}
"""The hosts that a `ModelSpec` can name."""
