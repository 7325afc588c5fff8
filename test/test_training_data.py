# SPDX-License-Identifier: Apache-2.0
"""Batches of a training: clips from all sources, and their flow."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from netwarp_ros.datasets.camvid import VOID, CamVid
from netwarp_ros.datasets.samples import Clip, Selection, clips
from netwarp_ros.datasets.street import StreetDataset
from netwarp_ros.street import Street
from netwarp_ros.training import data as training_data
from netwarp_ros.training.config import (
    AugmentConfig,
    BagConfig,
    CamVidConfig,
    CityscapesConfig,
    ClipConfig,
    FolderConfig,
    ModelConfig,
    OptimiserConfig,
    Source,
    StreetConfig,
    TrainingConfig,
)
from netwarp_ros.training.data import Batches, class_pixels, data_loader, flows, open_sources


def test_flow_leads_from_each_frame_to_the_previous_one() -> None:
    rng = np.random.default_rng(0)
    scene = cv2.GaussianBlur(rng.integers(0, 256, (96, 160), np.uint8), (0, 0), 2)
    images = np.stack([np.repeat(np.roll(scene, 3 * t, axis=1)[..., None], 3, axis=2) for t in range(3)])
    fields = flows(Clip(images, np.zeros(images.shape[:3], np.uint8)), "fast")
    assert fields.shape == (2, 2, 96, 160) and fields.dtype == np.float32
    np.testing.assert_allclose(np.median(fields, axis=(2, 3)), [[-3, 0], [-3, 0]], atol=0.2)
    assert flows(Clip(images[:1], np.zeros((1, 96, 160), np.uint8)), "fast").shape == (0, 2, 96, 160)


def test_drives_show_the_street() -> None:
    drives = StreetDataset(48, 32, range(3, 5), frames=2, rate=15)
    assert [drives.name(index) for index in range(4)] == ["street_3_12", "street_3_24", "street_4_12", "street_4_24"]
    assert not (drives[0].image == drives[2].image).all()
    clip = clips(drives, 3)[0]
    street = Street(48, 32, seed=3, rate=15)
    for t, number in enumerate((10, 11, 12)):
        frame = street.frame(number)
        np.testing.assert_array_equal(clip.images[t], frame.image)
        np.testing.assert_array_equal(clip.labels[t], frame.label)
    assert drives.read(0, before=1) is drives.read(0, before=1), "kept"
    sent = pickle.loads(pickle.dumps(drives))  # to a process that loads
    np.testing.assert_array_equal(sent[3].image, drives[3].image)


def configure(*sources: Source, length: int = 1, steps: int = 8, **changes: Any) -> TrainingConfig:
    return TrainingConfig(
        model=ModelConfig(host="tiny"),
        data=sources,
        clip=ClipConfig(length=length),
        augment=AugmentConfig(height=32, width=48),
        optimiser=OptimiserConfig(steps=steps),
        **{"workers": 0, **changes},
    )


def batches(config: TrainingConfig, **options: int) -> Batches:
    return Batches(open_sources(config.data, config.augment), config, **options)


def test_each_epoch_has_every_still_once(camvid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = batches(configure(CamVidConfig(root=str(camvid), per_batch=2)))
    monkeypatch.setattr(made, "augment", lambda still, _rng, **_: still)
    horizons = [int((made.clip(step, slot).labels == 0).sum()) // 64 for step in range(8) for slot in range(2)]
    epochs = [horizons[start : start + 4] for start in range(0, 16, 4)]
    assert all(sorted(epoch) == [20, 28, 36, 44] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_all_sources_are_in_each_batch(camvid: Path) -> None:
    config = configure(CamVidConfig(root=str(camvid), per_batch=2), StreetConfig(seeds=1, frames=1))
    images, labels, displacements, *_ = batches(config)[0]
    assert images.shape == (3, 1, 32, 48, 3) and labels.shape == (3, 1, 32, 48)
    assert displacements.shape == (3, 0, 2, 32, 48)
    assert set(labels[:2].unique().tolist()) <= {0, 3, VOID}
    assert not set(labels[2].unique().tolist()) <= {0, 3, VOID}


def test_a_batch_mixes_stills_in_motion_and_video(camvid: Path) -> None:
    video = FolderConfig(images=str(camvid / "images"), labels=str(camvid / "labels"), classes="camvid")
    config = configure(CamVidConfig(root=str(camvid), stills=True), video, length=3)
    images, labels, displacements, *_ = batches(config)[1]
    assert images.shape == (2, 3, 32, 48, 3) and labels.shape == (2, 3, 32, 48)
    assert displacements.shape == (2, 2, 2, 32, 48) and displacements.dtype == torch.float32
    assert displacements.abs().amax(dim=(1, 2, 3, 4)).min() > 0
    with pytest.raises(ValueError, match=r"no clip of 3 frames.*stills: true"):
        batches(dataclasses.replace(config, data=(CamVidConfig(root=str(camvid)),)))


def test_processes_split_a_batch(camvid: Path) -> None:
    config = configure(CamVidConfig(root=str(camvid), per_batch=3, stills=True), length=2)
    whole = batches(config)[5]
    shares = [batches(config, rank=rank, world=2)[5] for rank in (0, 1)]
    for part, (even, odd) in zip(whole, zip(*shares, strict=True), strict=True):
        torch.testing.assert_close(part[::2], even, rtol=0, atol=0)
        torch.testing.assert_close(part[1::2], odd, rtol=0, atol=0)


def test_worker_processes_load_the_same_batches(camvid: Path) -> None:
    config = configure(CamVidConfig(root=str(camvid), per_batch=2), steps=3)
    expected = batches(config)
    for step, batch in enumerate(data_loader(batches(dataclasses.replace(config, workers=1)), start=1), start=1):
        torch.testing.assert_close(batch.images, expected[step].images, rtol=0, atol=0)


def test_class_pixels_are_those_of_an_average_batch(camvid: Path) -> None:
    config = configure(CamVidConfig(root=str(camvid), per_batch=2), StreetConfig(seeds=1, frames=2))
    datasets = open_sources(config.data, config.augment)
    pixels = class_pixels(datasets, config.data)
    street = np.mean([np.bincount(sample.label.ravel(), minlength=11) for sample in datasets[1]], axis=0)
    expected = street + 2 * 64 * np.array([32, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(pixels, expected)


def test_each_kind_of_source_opens_its_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name in ("CamVid", "Cityscapes", "ImageFolder", "BagDataset"):
        samples = StreetDataset(48, 32, range(1), frames=1)
        monkeypatch.setattr(
            training_data, name, lambda *arguments, s=samples, n=name: calls.append((n, *arguments)) or s
        )
    open_sources(
        (
            CamVidConfig(root="a", split="val"),
            CityscapesConfig(root="b"),
            FolderConfig(images="c", labels="d", classes="camvid"),
            BagConfig(path="e", image_topic="f", label_topic="g", classes="camvid"),
        ),
        AugmentConfig(),
    )
    assert [tuple(getattr(part, "name", part) for part in call) for call in calls] == [
        ("CamVid", "a", "val"),
        ("Cityscapes", "b", "train"),
        ("ImageFolder", "c", "d", "camvid"),
        ("BagDataset", "e", "f", "g", "camvid"),
    ]


def test_sources_with_different_classes_are_refused(camvid: Path) -> None:
    folder = FolderConfig(images=str(camvid / "images"), labels=str(camvid / "labels"), classes="cityscapes")
    with pytest.raises(ValueError, match="has the classes of camvid, but .*images those of cityscapes"):
        open_sources((CamVidConfig(root=str(camvid)), folder), AugmentConfig())


def test_a_selection_is_by_name(camvid: Path) -> None:
    config = CamVidConfig(root=str(camvid), leave_out=("[12]",))
    (samples,) = open_sources((config,), AugmentConfig())
    assert [sample.name for sample in samples] == ["0", "3"]
    drives = Selection(StreetDataset(48, 32, range(1), frames=3), ["street_0_*"], ["street_0_2[01]", "street_0_36"])
    assert [drives.name(index) for index in range(len(drives))] == ["street_0_12", "street_0_24"]
    assert [drives.frames_before(index) for index in range(len(drives))] == [12, 2]
    with pytest.raises(ValueError, match=r"none of the 4 frames of .*camvid has a name like x\*"):
        Selection(CamVid(camvid), ["x*"])
