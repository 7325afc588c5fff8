# SPDX-License-Identifier: Apache-2.0
"""Training of NetWarp: clips of moving stills, the loss over them, and what a short training changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

from netwarp_ros.data.camvid import VOID
from netwarp_ros.data.motion import Clip, Motion
from netwarp_ros.losses import lovasz_softmax
from netwarp_ros.models import ModelSpec, NetWarpSpec, VideoCNN, build, load_model, save_model
from netwarp_ros.training import normalise
from netwarp_ros.training_config import LossConfig, VideoTrainingConfig, load_config
from netwarp_ros.video_training import clip_loss, flows, insert, train_netwarp

SPEC = ModelSpec("ddrnet23slim", "camvid", {"num_classes": 11}, input_height=64)
INSERTION = NetWarpSpec(("head.refine",), flow_grid="features", remember="after")


@pytest.fixture
def host(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_model(tmp_path / "host.safetensors", build(SPEC), SPEC, dtype=torch.float32)


def clip(length: int = 3, seed: int = 0, **options: Any) -> Clip:
    y, x = np.mgrid[:80, :120]
    label = (x // 40 + 3 * (y // 40)).astype(np.uint8)
    image = np.stack([40 * label, 255 - 40 * label, 20 * label], axis=-1).astype(np.uint8)
    motion = Motion(length, height=64, width=96, **options)
    return motion(image, label, np.random.default_rng(seed), void=VOID)


def test_a_clip_is_a_function_of_the_seed() -> None:
    one, same, other = clip(seed=3), clip(seed=3), clip(seed=4)
    np.testing.assert_array_equal(one.images, same.images)
    np.testing.assert_array_equal(one.labels, same.labels)
    assert (one.images != other.images).any()


def test_labels_move_with_the_pictures() -> None:
    """Each label has a colour of its own, so a picture without noise tells the label of a pixel off the seams."""
    moving = clip(length=4, noise=0.0, exposure=0.0, shift=(6.0, 2.0))
    assert moving.images.shape == (4, 64, 96, 3) and moving.labels.shape == (4, 64, 96)
    labelled = moving.labels != VOID
    assert (moving.labels[0] != moving.labels[-1]).mean() > 0.02, "it moves"
    told = np.round(moving.images[..., 2] / 20).astype(np.uint8)
    assert (told == moving.labels)[labelled].mean() > 0.97


def test_without_motion_and_noise_all_frames_are_one() -> None:
    still = clip(approach=(0.0, 0.0), turn=0.0, shift=(0.0, 0.0), noise=0.0, exposure=0.0)
    for t in (0, 1):
        np.testing.assert_array_equal(still.images[t], still.images[-1])
        np.testing.assert_array_equal(still.labels[t], still.labels[-1])


def test_flow_leads_from_each_frame_to_the_one_before() -> None:
    rng = np.random.default_rng(0)
    scene = cv2.GaussianBlur(rng.integers(0, 256, (96, 160), np.uint8), (0, 0), 2)
    images = np.stack([np.repeat(np.roll(scene, 3 * t, axis=1)[..., None], 3, axis=2) for t in range(3)])
    fields = flows(Clip(images, np.zeros(images.shape[:3], np.uint8)), "fast")
    assert fields.shape == (3, 2, 96, 160) and fields.dtype == np.float32
    assert not fields[0].any()
    np.testing.assert_allclose(np.median(fields[1:], axis=(2, 3)), [[-3, 0], [-3, 0]], atol=0.2)


def test_loss_at_the_start_is_the_hosts(host: Path) -> None:
    """With w2 = 0 the memory does not count: the loss is the host's, averaged over all frames but the first."""
    network, moving = insert(load_model(host).network, INSERTION), clip()
    images, labels = torch.from_numpy(moving.images), torch.from_numpy(moving.labels)
    weights, config = torch.ones(11), LossConfig(lovasz=0.5)
    with torch.no_grad():
        displacements = torch.from_numpy(flows(moving, "fast"))[None]
        loss = clip_loss(network, images[None], labels[None], displacements, weights, config)
        full = F.interpolate(network.host(normalise(images[1:])), size=(64, 96), mode="bilinear", align_corners=False)
    expected = []
    for logits, label in zip(full[:, None], labels[1:, None], strict=True):
        cross_entropy = F.cross_entropy(logits, label.long(), ignore_index=VOID)
        expected.append(cross_entropy + 0.5 * lovasz_softmax(logits[..., ::2, ::2], label[:, ::2, ::2]))
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)


def settings(camvid: Path, host: Path, output: Path) -> dict[str, Any]:
    return {
        "netwarp": {"host": str(host), "layers": ["head.refine"], "remember": "after", "clip_length": 3},
        "data": {"camvid": str(camvid)},
        "optimiser": {"steps": 4, "batch": 2, "rate": 0.05, "warm_up": 1},
        "output": str(output),
        "precision": "float32",
        "workers": 0,
    }


def test_training_moves_netwarp_and_leaves_the_host(camvid: Path, host: Path, tmp_path: Path) -> None:
    file = tmp_path / "video.yaml"
    file.write_text(yaml.safe_dump(settings(camvid, host, tmp_path / "out")))
    config = load_config(file)
    assert isinstance(config, VideoTrainingConfig)
    model = load_model(train_netwarp(config))
    before = load_model(host).network
    assert isinstance(before, VideoCNN)
    for name, value in before.host.state_dict().items():
        torch.testing.assert_close(model.network.host.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    assert model.spec.netwarp == INSERTION
    assert model.network.netwarps[0].w2.abs().mean() > 0.05
    assert model.network.flow_cnn is not None and model.network.flow_cnn.conv4.bias.abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": "head.refine"}, "netwarp.layers is 'head.refine', must be a list of names"),
        ({"clip_length": 1}, "netwarp.clip_length is 1, must be from 2 to 64"),
        ({"remember": "all"}, "netwarp.remember is 'all', must be one of before, after"),
        ({"flow_cnn": 1}, "netwarp.flow_cnn is 1, must be of type bool"),
        ({"layer": ["head"]}, "unknown key netwarp.layer; did you mean netwarp.layers"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = settings(tmp_path, tmp_path, tmp_path)
    content["netwarp"] = {**content["netwarp"], **change}
    file = tmp_path / "video.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=message):
        load_config(file)
