# SPDX-License-Identifier: Apache-2.0
"""The losses along known motion and of distillation, and the motion that batches have."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import MEAN, STD, configure, tiny_host, video  # noqa: F401
from torch import nn
from torch.nn import functional as F

from netwarp_ros.datasets.augmentation import Augmentation
from netwarp_ros.datasets.motion import Motion, flow_of
from netwarp_ros.datasets.samples import Clip
from netwarp_ros.datasets.street import StreetDataset
from netwarp_ros.models import Inference, NetWarpSpec, VideoCNN, build, load_model, save_model
from netwarp_ros.street import Street
from netwarp_ros.training.data import Batches, open_sources, true_motion
from netwarp_ros.training.losses import ClipLoss, consistency_loss, normalise
from netwarp_ros.training.trainer import build_network


def test_consistency_is_zero_along_the_motion_and_counts_where_it_is_trusted() -> None:
    """Class 1 is right of x = 4, and moves by one pixel to the right."""
    previous = torch.zeros(1, 2, 3, 8)
    previous[:, 1, :, 4:] = 1
    previous[:, 0] = 1 - previous[:, 1]
    present = previous.roll(1, dims=3)
    present[..., 0] = torch.tensor([1.0, 0.0]).view(2, 1)
    motion, trust = torch.zeros(1, 2, 3, 8), torch.ones(1, 1, 3, 8)
    motion[:, 0] = -1
    assert consistency_loss(present, previous, motion, trust) == 0
    still = torch.zeros_like(motion)
    assert consistency_loss(present, previous, still, trust).item() == pytest.approx(2 / 8)  # one column in eight
    trust[..., 4] = 0.5
    assert consistency_loss(present, previous, still, trust).item() == pytest.approx(2 * 0.5 / 7.5)
    assert consistency_loss(present, previous, still, 0 * trust) == 0


def test_the_flow_of_stills_in_motion_leads_to_the_same_point_of_the_still() -> None:
    moves = Motion()(3, 40, 60, np.random.default_rng(0))
    flow = flow_of(moves, 40, 60)
    assert flow.shape == (3, 40, 60, 2) and not flow[0].any()
    for t in (1, 2):
        point = np.array([17.0, 11.0, 1.0])
        before = point + np.append(flow[t, 11, 17], 0)
        np.testing.assert_allclose(np.linalg.inv(moves[t]) @ point, np.linalg.inv(moves[t - 1]) @ before, atol=1e-4)


def test_augmentation_moves_a_known_motion_along() -> None:
    """Zoomed by 2 and mirrored, a flow to the right becomes one of twice the length to the left."""
    flow = np.zeros((2, 24, 32, 2), np.float32)
    flow[..., 0], flow[..., 1] = 3, -1
    flow[:, :, :16] = np.nan
    clip = Clip(np.zeros((2, 24, 32, 3), np.uint8), np.zeros((2, 24, 32), np.uint8), flow)
    augment = Augmentation(24, 32, min_scale=2, max_scale=2, colour=0, blur=0)
    signs = set()
    for seed in range(8):
        moved = augment(clip, np.random.default_rng(seed), void=11).motion
        assert moved is not None and moved.shape == (2, 24, 32, 2)
        known = moved[~np.isnan(moved[..., 0])]
        if len(known):
            signs.add(np.sign(known[0, 0]))
            assert np.allclose(known[:, 1], -2) and np.allclose(np.abs(known[:, 0]), np.abs(known[0, 0]))
            assert 6 * 0.9 < abs(known[0, 0]) < 6 * 1.1  # the width is stretched by up to 8 %
    assert signs == {-1, 1}


def test_the_street_gives_its_exact_motion_if_it_is_wanted() -> None:
    sample, frame = StreetDataset(64, 48, range(3, 4), 1, with_motion=True)[0], Street(64, 48, 3).frame(12)
    assert sample.motion is not None
    np.testing.assert_array_equal(np.isnan(sample.motion[..., 0]), ~frame.valid)
    np.testing.assert_array_equal(sample.motion[frame.valid], frame.flow[frame.valid])
    assert StreetDataset(64, 48, range(3, 4), 1)[0].motion is None


def test_motion_is_halved_and_trusted_where_it_is_known_and_stays_in_the_frame() -> None:
    flow = np.full((2, 8, 8, 2), (2, 0), np.float32)
    flow[1, 0, 0] = np.nan
    motion, trust = true_motion(Clip(np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8), np.uint8), flow))
    assert motion.shape == (1, 2, 4, 4) and trust.shape == (1, 1, 4, 4)
    torch.testing.assert_close(motion[0, 0, :, :3], torch.ones(4, 3))
    expected = torch.tensor([1.0, 1, 1, 0]).repeat(4, 1)
    expected[0, 0] = 0.75
    torch.testing.assert_close(trust[0, 0], expected)


def test_the_motion_of_videos_is_estimated() -> None:
    texture = np.random.default_rng(0).integers(0, 256, (12, 30), np.uint8).repeat(8, 0).repeat(8, 1)
    images = np.stack([texture[:, 6 * t : 6 * t + 160] for t in range(2)])[..., None].repeat(3, -1)
    motion, trust = true_motion(Clip(images, np.zeros(images.shape[:3], np.uint8)))
    assert (motion[0, 0, 5:-5, 5:-10] - 3).abs().median() < 0.1
    assert trust[0, 0, 5:-5, 5:-10].mean() > 0.9


def loss_of(tmp_path: Path, camvid: Path, **loss: Any) -> float:
    model = {"host": None, "initial": str(tmp_path / "host.safetensors"), "train_host": False}
    sections = video(camvid)
    sections["model"] = {**sections["model"], **model}
    config = configure(tmp_path, camvid, **sections, loss={"auxiliary": 0.0, **loss})
    datasets = open_sources(config.data, config.augment, with_motion=True)
    torch.manual_seed(0)
    network, spec = build_network(config, datasets[0].classes, 64)
    with torch.no_grad():
        return ClipLoss(network, spec, torch.ones(11), config).train()(*Batches(datasets, config)[0]).item()


@pytest.fixture
def host(tmp_path: Path, camvid: Path) -> VideoCNN:
    config = configure(tmp_path, camvid)
    network, spec = build_network(config, open_sources(config.data, config.augment)[0].classes, 64)
    spec_of_file = dataclasses.replace(spec, netwarp=None)
    plain = VideoCNN(network.host, {})
    weights = {name: value for name, value in plain.state_dict().items() if "auxiliary" not in name}
    built = build(spec_of_file)
    built.load_state_dict(weights)
    built.host.classifier.weight.data.mul_(20)  # else its classes are all as probable
    save_model(tmp_path / "host.safetensors", built, spec_of_file, dtype=torch.float32)
    return built.eval()


def test_consistency_and_distillation_are_added_with_their_weights(
    tmp_path: Path, camvid: Path, host: VideoCNN
) -> None:
    plain = loss_of(tmp_path, camvid)
    consistency, distillation = (loss_of(tmp_path, camvid, **{k: 1.0}) - plain for k in ("consistency", "distillation"))
    assert loss_of(tmp_path, camvid, consistency=3.0, distillation=2.0) - plain == pytest.approx(
        3 * consistency + 2 * distillation, rel=1e-3
    )
    config = configure(tmp_path, camvid, **video(camvid), loss={"consistency": 1.0})
    batch = Batches(open_sources(config.data, config.augment, with_motion=True), config)[0]
    views = Inference(scales=(1.0, 1.5), flip=True)
    pairs, divergences, previous = [], [], None
    with torch.no_grad():
        for t in range(3):  # the network is its host: w2 is 0
            frame = normalise(batch.images[:, t], MEAN, STD)
            logits, _ = host(frame)
            size = batch.motion.shape[-2:]
            present = F.interpolate(logits, size=size, mode="bilinear", align_corners=False).softmax(1)
            if previous is not None:
                along = batch.motion[:, t - 1], batch.trust[:, t - 1]
                pairs.append(consistency_loss(present, previous, *along))
                target = F.interpolate(views(host, frame)[0], size=logits.shape[-2:], mode="area")
                divergences.append((target * (target.log() - logits.log_softmax(1))).sum(1).mean())
            previous = present
    assert consistency == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-3, abs=1e-6)
    assert distillation == pytest.approx(torch.stack(divergences).mean().item(), rel=1e-3, abs=1e-6)


def test_a_gate_is_added_to_a_trained_netwarp(tmp_path: Path, camvid: Path, host: VideoCNN) -> None:
    layers = {"layers": ["features"], "flow_grid": "first"}
    netwarp = NetWarpSpec(layers=("features",), flow_grid="first")
    spec = dataclasses.replace(load_model(tmp_path / "host.safetensors").spec, netwarp=netwarp)
    trained = build(spec)
    trained.load_state_dict(host.state_dict(), strict=False)
    nn.init.constant_(trained.netwarps[0].w2, 0.25)
    file = save_model(tmp_path / "trained.safetensors", trained, spec, dtype=torch.float32)

    def built(**changes: Any) -> VideoCNN:
        sections = video(camvid)
        sections["model"] = {
            "host": None, "initial": str(file), "train_host": False, "netwarp": {**layers, "blend": "gated", **changes},
        }  # fmt: skip
        config = configure(tmp_path, camvid, **sections)
        network, spec = build_network(config, open_sources(config.data, config.augment)[0].classes, 64)
        assert spec.netwarp == dataclasses.replace(netwarp, blend="gated")
        return network

    network = built()
    assert network.gate is not None and torch.equal(network.netwarps[0].w2, trained.netwarps[0].w2)
    for changes in ({"blend": "netwarp"}, {"remember": "after"}):
        with pytest.raises(ValueError, match="already has NetWarp behind features.*blend: gated to add a gate"):
            built(**changes)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"loss": {"consistency": 1.0}}, "loss.consistency compares successive frames, but clip.length is 1"),
        ({"loss": {"distillation": 1.0}}, "loss.distillation learns from the host.*train_host: false"),
        ({"loss": {"consistency": -1.0}}, "loss.consistency"),
        ({"loss": {"distillation": 11.0}}, "loss.distillation"),
    ],
)
def test_errors_say_what_to_give(tmp_path: Path, camvid: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure(tmp_path, camvid, **sections)
