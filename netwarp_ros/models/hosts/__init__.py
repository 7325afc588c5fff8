# SPDX-License-Identifier: Apache-2.0
"""Hosts: the image CNNs that NetWarp can be inserted into, one per file. They import nothing but torch."""

from __future__ import annotations

from netwarp_ros.models.hosts.ddrnet import DDRNet23Slim
from netwarp_ros.models.hosts.dilation import Dilation8, Dilation10
from netwarp_ros.models.hosts.playdata import PlayData
from netwarp_ros.models.hosts.pspnet import PSPNet50, PSPNet101
from netwarp_ros.models.hosts.swiftnet import SwiftNetLite0

__all__ = ["DDRNet23Slim", "Dilation8", "Dilation10", "PSPNet50", "PSPNet101", "PlayData", "SwiftNetLite0"]
