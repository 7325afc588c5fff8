# SPDX-License-Identifier: Apache-2.0
"""Metrics of segmentation: call `update` with each frame, then ask for the score, in per cent."""

from __future__ import annotations

from netwarp_ros.metrics.confusion import ConfusionMatrix, iou, miou
from netwarp_ros.metrics.consistency import TemporalConsistency, VideoConsistency, flows_agree, warp_nearest
from netwarp_ros.metrics.instance import InstanceIoU
from netwarp_ros.metrics.trimap import TrimapIoU, boundary_distance

__all__ = [
    "ConfusionMatrix",
    "InstanceIoU",
    "TemporalConsistency",
    "TrimapIoU",
    "VideoConsistency",
    "boundary_distance",
    "flows_agree",
    "iou",
    "miou",
    "warp_nearest",
]
