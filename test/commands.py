# SPDX-License-Identifier: Apache-2.0
"""The command line run in this process, with a small model of random weights and a few images."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from netwarp_ros import cli
from netwarp_ros.classes import load_classes
from netwarp_ros.models import ModelSpec, NetWarpSpec, build, save_model
from netwarp_ros.models.hosts import HOSTS
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.segmenter import Segmenter

SPEC = ModelSpec(
    host="small",
    classes=load_classes("camvid"),
    host_arguments={"num_classes": 11},
    netwarp=NetWarpSpec(layers=("features",), flow_grid="features"),
    input_height=48,
    notes={"miou": "none, random weights"},
)


class SmallHost(nn.Sequential):
    """One layer of features and a classifier, at stride 4."""

    def __init__(self, num_classes: int) -> None:
        features, classifier = nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.Conv2d(8, num_classes, 1)
        super().__init__(OrderedDict(features=features, squash=nn.Tanh(), classifier=classifier))


def small_model(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a model file, and let models have its host for the rest of the test."""
    monkeypatch.setitem(HOSTS, "small", SmallHost)
    torch.manual_seed(0)
    network = build(SPEC).eval()
    nn.init.constant_(network.netwarps[0].w2, 0.5)
    path.parent.mkdir()
    return save_model(path, network, SPEC)


def write_images(folder: Path) -> Path:
    """Write three images of a texture that moves to the right: f0.png, f1.png, f2.png."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    for index in range(3):
        cv2.imwrite(str(folder / f"f{index}.png"), np.roll(cv2.GaussianBlur(noise, (0, 0), 2), 2 * index, axis=1))
    return folder


def write_labels(folder: Path, model: Path, images: Path) -> Path:
    """Write the model's own masks as label maps, a quarter of each replaced."""
    folder.mkdir()
    for index, mask in enumerate(masks_of(model, images)):
        mask[:12] = index
        cv2.imwrite(str(folder / f"f{index}.png"), mask)
    return folder


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def masks_of(model: Path, recording: Path) -> list[np.ndarray]:
    stream = Segmenter(model).stream()
    return [stream.segment(frame.image, frame.stamp_ns).mask for frame in open_frames(recording)]


def scores_of(model: Path, *arguments: object) -> dict[str, Any]:
    """Evaluate, and return what the JSON file beside the model holds."""
    file = model.with_name("scores.json")
    assert run("evaluate", "--model", model, *arguments, "--json", file) == 0
    return json.loads(file.read_text())


def without_times(scores: dict[str, Any]) -> dict[str, Any]:
    """Return what must be the same wherever the same frames come from."""
    kept = {key: scores[key] for key in ("frames", "labelled", "miou", "iou", "tiou", "tc", "flicker", "vc", "host")}
    records = ("stamp_ns", "confusion", "tiou", "tc", "tc_unmasked", "disagreement", "reason")
    first_ns = scores["per_frame"][0]["stamp_ns"]
    frames = [{key: record[key] for key in records} for record in scores["per_frame"]]
    return {**kept, "per_frame": [{**frame, "stamp_ns": frame["stamp_ns"] - first_ns} for frame in frames]}
