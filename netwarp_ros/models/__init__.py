# SPDX-License-Identifier: Apache-2.0
"""NetWarp, the hosts it turns into video CNNs, and their weights."""

from __future__ import annotations

from netwarp_ros.models.flow_cnn import FlowCNN
from netwarp_ros.models.inference import WHOLE_FRAME, Inference, InferenceMemory
from netwarp_ros.models.netwarp import NetWarp, resize_flow
from netwarp_ros.models.video_cnn import Memory, VideoCNN, augment
from netwarp_ros.models.weights import (
    DEFAULT_MODEL,
    Model,
    ModelSpec,
    NetWarpSpec,
    WeightsError,
    build,
    load_model,
    read_spec,
    save_model,
    shipped_models,
)

__all__ = [
    "DEFAULT_MODEL",
    "WHOLE_FRAME",
    "FlowCNN",
    "Inference",
    "InferenceMemory",
    "Memory",
    "Model",
    "ModelSpec",
    "NetWarp",
    "NetWarpSpec",
    "VideoCNN",
    "WeightsError",
    "augment",
    "build",
    "load_model",
    "read_spec",
    "resize_flow",
    "save_model",
    "shipped_models",
]
