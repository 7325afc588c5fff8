# SPDX-License-Identifier: Apache-2.0
"""Copy-paste of rare classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from netwarp_ros.classes import load_classes
from netwarp_ros.datasets.pasting import indices_by_class, paste
from netwarp_ros.datasets.samples import Clip, Sample, Samples
from netwarp_ros.training.config import (
    AugmentConfig,
    ClipConfig,
    ModelConfig,
    PasteConfig,
    StreetConfig,
    TrainingConfig,
)
from netwarp_ros.training.data import Batches

ROAD, SIGN, BICYCLIST = 3, 6, 10


def frame(class_id: int, height: int = 40, width: int = 60) -> Sample:
    """A grey road; in its middle a square of 12 pixels of a class, whose color is ten times its id."""
    image, label = np.full((height, width, 3), 128, np.uint8), np.full((height, width), ROAD, np.uint8)
    square = np.s_[height // 2 - 6 : height // 2 + 6, width // 2 - 6 : width // 2 + 6]
    image[square], label[square] = 10 * class_id, class_id
    return Sample(str(class_id), image, label)


class Frames(Samples):
    """One frame with bicyclists among many without."""

    def __init__(self, ids: list[int]) -> None:
        self.classes, self.ids = load_classes("camvid"), ids

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, index: int, before: int = 0) -> str:
        return str(index)

    def read(self, index: int, before: int = 0) -> Sample:
        return frame(self.ids[index])


def clip(class_id: int, height: int = 40, width: int = 60) -> Clip:
    sample = frame(class_id, height, width)
    return Clip(sample.image[None], sample.label[None])


def recipe(paste: PasteConfig, length: int = 1) -> TrainingConfig:
    return TrainingConfig(
        model=ModelConfig(host="ddrnet23slim"), data=(StreetConfig(),), paste=paste, clip=ClipConfig(length=length),
        augment=AugmentConfig(height=40, width=60, min_scale=1.0, max_scale=1.0, colour=0.0, blur=0.0),
    )  # fmt: skip


def test_frames_are_found_by_their_classes() -> None:
    frames = Frames([SIGN, ROAD, BICYCLIST, SIGN])
    assert indices_by_class(frames, [SIGN, BICYCLIST]) == [[0, 3], [2]]
    assert indices_by_class(frames, [1]) == []


def test_pixels_of_the_classes_are_put_over_the_image_and_no_others() -> None:
    rng = np.random.default_rng(0)
    pasted = [paste(clip(SIGN), clip(BICYCLIST), [BICYCLIST], rng) for _ in range(20)]
    areas = []
    for result in pasted:
        label, image = result.labels[0], result.images[0]
        assert set(np.unique(label)) <= {ROAD, SIGN, BICYCLIST}
        inner = label == BICYCLIST
        areas.append(inner.sum())
        assert (image[label == SIGN] == 10 * SIGN).all()
        assert np.median(image[inner]) == 10 * BICYCLIST
    assert min(areas) >= 50 and max(areas) <= 18 * 18 + 40  # 12 pixels, zoomed by up to 1.5
    assert len({result.labels.tobytes() for result in pasted}) == 20
    only_road = paste(clip(SIGN), clip(BICYCLIST), [SIGN], rng)  # the donor has no sign
    assert np.array_equal(only_road.labels, clip(SIGN).labels)


def test_a_donor_of_another_size_is_scaled_to_the_image() -> None:
    result = paste(clip(ROAD), clip(BICYCLIST, 80, 120), [BICYCLIST], np.random.default_rng(1))
    assert result.labels.shape == (1, 40, 60)
    assert 10 <= (result.labels == BICYCLIST).sum() <= 9 * 9 + 20  # 6 pixels, zoomed by up to 1.5


def test_a_rare_class_is_seen_as_often_as_it_is_pasted() -> None:
    frames = Frames([ROAD] * 30 + [BICYCLIST])
    shares = []
    for probability, classes in ((0.0, ()), (1.0, ("bicyclist",))):
        batches = Batches([frames], recipe(PasteConfig(probability, classes)))
        seen = [(batches.clip(step, 0).labels == BICYCLIST).any() for step in range(60)]
        shares.append(np.mean(seen))
    assert shares[0] < 0.1 and shares[1] > 0.9


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="paste.classes has tram: the data have sky, building"):
        Batches([Frames([ROAD])], recipe(PasteConfig(0.5, ("tram",))))
    with pytest.raises(ValueError, match="give both or neither"):
        PasteConfig(0.5)
    with pytest.raises(ValueError, match="paste is for single images, but clip.length is 2"):
        recipe(PasteConfig(0.5, ("sign",)), length=2)
    assert replace(recipe(PasteConfig()), seed=1).paste.classes == ()
