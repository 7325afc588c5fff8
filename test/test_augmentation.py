# SPDX-License-Identifier: Apache-2.0
"""Camera motion added to single images, and the augmentation of clips."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from netwarp_ros.datasets.augmentation import Augmentation
from netwarp_ros.datasets.camvid import VOID
from netwarp_ros.datasets.motion import Motion
from netwarp_ros.datasets.samples import Clip

STILL = Motion(approach=(0.0, 0.0), turn=0.0, shift=(0.0, 0.0))
PLAIN = {"min_scale": 1.2, "max_scale": 1.2, "colour": 0.0, "blur": 0.0}


def board() -> Clip:
    """Return one frame of six fields. The red channel is 20 times the class id."""
    y, x = np.mgrid[:80, :120]
    label = (x // 40 + 3 * (y // 40)).astype(np.uint8)
    return Clip(np.stack([40 * label, 255 - 40 * label, 20 * label], axis=-1)[None].astype(np.uint8), label[None])


def moving(length: int = 3, seed: int = 0, motion: Motion = Motion(), **options: Any) -> Clip:  # noqa: B008
    rng = np.random.default_rng(seed)
    augment = Augmentation(64, 96, **{**PLAIN, **options})
    return augment(board(), rng, void=VOID, motion=motion(length, 64, 96, rng))


def classes_shown(clip: Clip) -> np.ndarray:
    """Return the class ids that the red channel shows."""
    return np.round(clip.images[..., 2] / 20).astype(np.uint8)


def test_the_same_seed_gives_the_same_clip() -> None:
    options = {"colour": 0.6, "exposure": 0.03, "noise": 4.0, "blur": 0.5}
    one, same, other = (moving(seed=seed, **options) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.images, same.images)
    np.testing.assert_array_equal(one.labels, same.labels)
    assert (one.images != other.images).any()


@pytest.mark.parametrize("seed", range(3))
def test_label_maps_move_with_their_images(seed: int) -> None:
    clip = moving(length=4, seed=seed, min_scale=0.9, max_scale=1.6)
    assert clip.images.shape == (4, 64, 96, 3) and clip.labels.shape == (4, 64, 96)
    assert (clip.labels[0] != clip.labels[-1]).mean() > 0.01, "it moves"
    assert (classes_shown(clip) == clip.labels)[clip.labels != VOID].mean() > 0.94


def test_motion_is_constant_and_moves_labels_from_frame_to_frame() -> None:
    """The step between two frames is constant, and warping frame 0 by it gives frame 1."""
    matrices = Motion()(4, 64, 96, np.random.default_rng(1))
    np.testing.assert_array_equal(matrices[-1], np.eye(3))
    steps = [matrices[t] @ np.linalg.inv(matrices[t + 1]) for t in range(3)]
    for step in steps:
        np.testing.assert_allclose(step, steps[0], atol=1e-9)
    motion = Motion(shift=(0.1, 0.05))
    clip = moving(length=2, seed=1, motion=motion)
    before, present = motion(2, 64, 96, np.random.default_rng(1))
    back = (before @ np.linalg.inv(present))[:2]
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    carried = cv2.warpAffine(clip.labels[0], back, (96, 64), flags=flags, borderValue=255)
    assert (carried == clip.labels[1])[carried != 255].mean() > 0.97 and (carried != 255).mean() > 0.5
    assert (clip.labels[0] == clip.labels[1]).mean() < 0.9


def test_without_motion_and_noise_all_frames_are_equal() -> None:
    clip = moving(motion=STILL, colour=0.6, blur=1.0)
    for t in (0, 1):
        np.testing.assert_array_equal(clip.images[t], clip.images[-1])
        np.testing.assert_array_equal(clip.labels[t], clip.labels[-1])


def test_exposure_and_noise_differ_from_frame_to_frame() -> None:
    exposed = moving(motion=STILL, exposure=0.1).images.astype(float)
    ratio = (exposed[1] / np.maximum(exposed[0], 1))[exposed[0] > 60]
    assert ratio.std() < 0.02 < abs(ratio.mean() - 1)
    noisy = moving(motion=STILL, noise=8.0).images.astype(float)
    assert abs((noisy[1] - noisy[0]).mean()) < 0.5 < (noisy[1] - noisy[0]).std()


def test_zooming_out_surrounds_the_image_with_void() -> None:
    augment = Augmentation(80, 120, min_scale=0.5, max_scale=0.5, colour=0, blur=0)
    clip = augment(board(), np.random.default_rng(0), void=VOID)
    outside = clip.labels == VOID
    assert outside.mean() == pytest.approx(0.75, abs=0.03)
    assert (clip.images[outside] == (104, 116, 124)).all(axis=-1).mean() > 0.98
    assert (classes_shown(clip) == clip.labels)[~outside].mean() > 0.8


def test_without_color_changes_grey_is_unchanged() -> None:
    grey = Clip(np.full((1, 40, 40, 3), 77, np.uint8), np.zeros((1, 40, 40), np.uint8))
    for colour, expected in ((0.0, True), (0.6, False)):
        augment = Augmentation(40, 40, min_scale=1.1, max_scale=1.5, colour=colour, blur=0.5)
        assert (augment(grey, np.random.default_rng(0), void=VOID).images == 77).all() == expected


def test_half_of_the_clips_are_mirrored() -> None:
    mirrored = [int(clip.labels[0, 40, 20] > clip.labels[0, 40, -20]) for clip in (moving(1, s) for s in range(40))]
    assert 10 < sum(mirrored) < 30
