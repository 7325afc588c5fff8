# SPDX-License-Identifier: Apache-2.0
"""The streaming core: frames in, masks and timings out."""

from netwarp_ros.segmenter.device_flow import FLOW_DEVICES
from netwarp_ros.segmenter.keyframes import KeyFrames
from netwarp_ros.segmenter.masks import Confidence, MaskSize
from netwarp_ros.segmenter.results import MemoryState, Reset, Result
from netwarp_ros.segmenter.segmenter import MAX_GAP, MAX_INPUT_WIDTH, Segmenter, Stream

__all__ = [
    "FLOW_DEVICES",
    "MAX_GAP",
    "MAX_INPUT_WIDTH",
    "Confidence",
    "KeyFrames",
    "MaskSize",
    "MemoryState",
    "Reset",
    "Result",
    "Segmenter",
    "Stream",
]
