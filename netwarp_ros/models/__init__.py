# SPDX-License-Identifier: Apache-2.0
"""NetWarp, the image CNNs that it turns into video CNNs, and their weights.

Words with one meaning each:

* **image CNN**: a network that segments each frame by itself.
* **host**: the image CNN that NetWarp is inserted into.
* **video CNN**: a host with NetWarp modules (`VideoCNN`, made by `augment`).
* **network**: an image CNN or a video CNN.
* **model**: what a weights file holds: a network with its spec and its name (`Model`).
"""

from __future__ import annotations

from netwarp_ros.models.building import build
from netwarp_ros.models.flow_cnn import FlowCNN
from netwarp_ros.models.inference import WHOLE_FRAME, Inference, InferenceMemory
from netwarp_ros.models.insertion import augment
from netwarp_ros.models.layer_outputs import LayerOutput
from netwarp_ros.models.netwarp import NetWarp, resize_flow
from netwarp_ros.models.outputs import class_scores
from netwarp_ros.models.spec import InputSize, ModelSpec, NetWarpSpec, WeightsError
from netwarp_ros.models.video_cnn import Memory, VideoCNN
from netwarp_ros.models.weights import (
    DEFAULT_MODEL,
    Model,
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
    "InputSize",
    "LayerOutput",
    "Memory",
    "Model",
    "ModelSpec",
    "NetWarp",
    "NetWarpSpec",
    "VideoCNN",
    "WeightsError",
    "augment",
    "build",
    "class_scores",
    "load_model",
    "read_spec",
    "resize_flow",
    "save_model",
    "shipped_models",
]
