# SPDX-License-Identifier: Apache-2.0
"""Instance IoU: numbers worked out by hand, and comparison with Cityscapes' own scripts."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling import args, evaluateImgLists

from netwarp_ros.classes import load_classes
from netwarp_ros.datasets.cityscapes import INSTANCE_SIZES, TRAIN_IDS, Cityscapes
from netwarp_ros.metrics import ConfusionMatrix, InstanceIoU

K, VOID = 3, 9


def score(
    prediction: list[int], label: list[int], instances: list[int], sizes: dict[int, float] | None = None
) -> InstanceIoU:
    metric = InstanceIoU(K, VOID, sizes)
    metric.update(*(np.array([row]) for row in (prediction, label, instances)))
    return metric


def test_a_small_object_counts_as_much_as_a_large_one() -> None:
    """Class 1 has an object of six pixels, found, and one of two, missed; and one false positive."""
    label = [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    instances = [1, 1, 1, 1, 1, 1, 2, 2, 0, 0]
    prediction = [1, 1, 1, 1, 1, 1, 0, 0, 1, 0]
    # Average size 4: the objects weigh 4 each, so iTP = 4, iFN = 4, FP = 1. The IoU is 6 / 9.
    metric = score(prediction, label, instances)
    np.testing.assert_allclose(metric.iou(), [np.nan, 100 * 4 / 9, np.nan])
    assert metric.miou() == pytest.approx(100 * 4 / 9)
    # With a prescribed size of 10 they weigh 10 each.
    np.testing.assert_allclose(score(prediction, label, instances, {1: 10.0}).iou()[1], 100 * 10 / 21)


def test_objects_of_different_classes_may_share_a_number() -> None:
    metric = score([1, 0, 2, 2], [1, 1, 2, 2], [7, 7, 7, 7])
    np.testing.assert_allclose(metric.iou(), [np.nan, 50, 100])
    assert metric.miou() == 75


def test_false_positives_on_groups_count_but_not_those_on_void() -> None:
    label = [1, 1, 1, VOID, 2, 1]
    instances = [1, 1, 0, 5, 0, 0]
    prediction = [1, 1, 0, 1, 1, 1]
    # One object of two pixels, found. Outside it, class 1 is predicted on void, on class 2, and on a group of class 1.
    np.testing.assert_allclose(score(prediction, label, instances).iou(), [np.nan, 200 / 3, np.nan])


def test_pixels_without_a_predicted_class_count_neither_way() -> None:
    """As if they were not there: the object has two pixels, and one of them is found."""
    metric = score([1, 0, 255, 255], [1, 1, 1, 0], [1, 1, 1, 0], {1: 10.0})
    np.testing.assert_array_equal(metric.totals, [[0, 1, 0], [0, 2, 0], [0, 0.5, 0]])
    assert metric.matrix.counts.sum() == 2


def test_the_sums_are_over_all_frames() -> None:
    metric = InstanceIoU(K, VOID)
    for found, size in ((1, 2), (0, 6)):
        metric.update(np.full((1, size), found), np.ones((1, size), int), np.ones((1, size), int))
    assert metric.iou()[1] == 50  # by pixels it is 25


def test_a_class_with_a_size_that_is_only_predicted_scores_0() -> None:
    metric = score([1, 2], [2, 2], [1, 1], {1: 5.0, 2: 2.0})
    np.testing.assert_allclose(metric.iou(), [np.nan, 0, 50])
    assert metric.miou() == 50


def test_the_score_is_nan_before_the_first_object() -> None:
    assert np.isnan(InstanceIoU(K, VOID).iou()).all() and math.isnan(InstanceIoU(K, VOID).miou())
    assert math.isnan(score([0, 1], [0, 0], [0, 0]).miou())


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        (np.zeros((2, 3), int), r"instances is \(2, 3\), label is \(2, 2\)"),
        (np.zeros((2, 2)), "instances is .* float64"),
        (np.full((2, 2), -1), "instances holds -1: give numbers > 0 for objects"),
    ],
)
def test_bad_instances_are_rejected(instances: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InstanceIoU(K, VOID).update(np.zeros((2, 2), int), np.zeros((2, 2), int), instances)


@pytest.mark.parametrize("sizes", [{3: 1.0}, {1: 0.0}])
def test_bad_sizes_are_rejected(sizes: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="give pixels > 0, for classes 0 to 2"):
        InstanceIoU(K, VOID, sizes)


def scene(rng: np.random.Generator, height: int = 60, width: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Return label ids and instance ids of random rectangles of every id of Cityscapes, over one another."""
    ids = np.full((height, width), 7, np.uint8)
    instances = np.full((height, width), 7, np.uint16)
    for number in range(150):
        value = int(rng.integers(0, 34))
        top, left = int(rng.integers(-5, height)), int(rng.integers(-5, width))
        bottom, right = top + int(rng.integers(2, 30)), left + int(rng.integers(2, 30))
        area = np.s_[max(top, 0) : bottom, max(left, 0) : right]
        ids[area] = value
        told_apart = value >= 24 and rng.random() < 0.8  # the rest are groups
        instances[area] = 1000 * value + number if told_apart else value
    return ids, instances


def test_scores_equal_those_of_cityscapes_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # which NumPy no longer has
    monkeypatch.setattr(args, "quiet", True)
    monkeypatch.setattr(args, "JSONOutput", False)
    rng = np.random.default_rng(0)
    labels, images = (tmp_path / folder / "val" / "ulm" for folder in ("gtFine", "leftImg8bit"))
    for folder in (labels, images):
        folder.mkdir(parents=True)
    for number in range(3):
        ids, instances = scene(rng)
        cv2.imwrite(str(images / f"ulm_{number:06d}_000019_leftImg8bit.png"), np.zeros((*ids.shape, 3), np.uint8))
        cv2.imwrite(str(labels / f"ulm_{number:06d}_000019_gtFine_labelIds.png"), ids)
        cv2.imwrite(str(labels / f"ulm_{number:06d}_000019_gtFine_instanceIds.png"), instances)

    source = Cityscapes(tmp_path, "val")
    num_classes, void = len(source.classes), source.classes.void
    iou, instance_iou = ConfusionMatrix(num_classes, void), InstanceIoU(num_classes, void, INSTANCE_SIZES)
    id_of = np.array([value for value, _ in sorted(TRAIN_IDS.items(), key=lambda pair: pair[1])], np.uint8)
    predictions = []
    for index, sample in enumerate(source):
        guess = rng.integers(0, num_classes, sample.label.shape)
        prediction = np.where((sample.label == void) | (rng.random(guess.shape) < 0.4), guess, sample.label)
        iou.update(prediction, sample.label)
        instance_iou.update(prediction, sample.label, source.instances(index))
        predictions.append(str(tmp_path / f"{sample.name}.png"))
        cv2.imwrite(predictions[-1], id_of[prediction])
    result = evaluateImgLists(predictions, sorted(str(path) for path in labels.glob("*_labelIds.png")), args)

    for metric, by_class, mean in (
        (iou, "classScores", "averageScoreClasses"),
        (instance_iou, "classInstScores", "averageScoreInstClasses"),
    ):
        expected = [100 * result[by_class][name] for name in source.classes.names]
        np.testing.assert_allclose(metric.iou(), expected, rtol=1e-12)
        assert metric.miou() == pytest.approx(100 * result[mean], rel=1e-12)
    assert np.flatnonzero(np.isfinite(instance_iou.iou())).tolist() == list(INSTANCE_SIZES)


def test_sizes_equal_those_of_cityscapes_scripts() -> None:
    names = load_classes("cityscapes").names
    prescribed = args.avgClassSize
    assert {names[k]: size for k, size in INSTANCE_SIZES.items()} == {
        name: size for name, size in prescribed.items() if name in names
    }
