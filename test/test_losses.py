# SPDX-License-Identifier: Apache-2.0
"""The losses of the training, compared with values worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from netwarp_ros.training.config import LossConfig
from netwarp_ros.training.losses import class_weights, labelled_weight, lovasz_softmax, segmentation_loss


def test_class_weights_are_as_worked_out_by_hand() -> None:
    weights = class_weights(np.array([8, 2, 2]), balance=1.0)
    # Frequencies 2/3, 1/6, 1/6 have the median 1/6; raw weights 1/4, 1, 1 weigh a pixel 1/2 on average.
    torch.testing.assert_close(weights, torch.tensor([0.5, 2.0, 2.0]))
    torch.testing.assert_close(class_weights(np.array([8, 2, 2]), balance=0.0), torch.ones(3))
    assert class_weights(np.array([8, 0, 2]), balance=1.0).isfinite().all()


def test_labelled_weight_ignores_void() -> None:
    label = torch.tensor([[0, 1, 1, 255, 2]], dtype=torch.uint8)
    assert labelled_weight(label, torch.tensor([0.5, 2.0])).item() == 4.5


def jaccard_loss(prediction: tuple[int, ...], label: tuple[int, ...], classes: set[int]) -> float:
    """Mean of 1 - IoU over the classes of the label."""
    losses = []
    for index in classes:
        both = sum(p == index and t == index for p, t in zip(prediction, label, strict=True))
        either = sum(p == index or t == index for p, t in zip(prediction, label, strict=True))
        losses.append(1 - both / either)
    return sum(losses) / len(losses)


def test_lovasz_equals_one_minus_iou_on_hard_predictions() -> None:
    label = (0, 0, 1, 2)
    for prediction in itertools.product(range(3), repeat=4):
        logits = 200.0 * F.one_hot(torch.tensor(prediction), 3).T.reshape(1, 3, 2, 2).float()
        loss = lovasz_softmax(logits, torch.tensor(label, dtype=torch.uint8).reshape(1, 2, 2))
        assert loss.item() == pytest.approx(jaccard_loss(prediction, label, set(label)), abs=1e-6)


def test_lovasz_ignores_void() -> None:
    logits = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(1, 4, 4, dtype=torch.uint8)
    label[0, :2] = 1
    padded = F.pad(label, (0, 4), value=3)
    noise = torch.cat([logits, 50 * torch.ones_like(logits)], dim=3)
    torch.testing.assert_close(lovasz_softmax(noise, padded), lovasz_softmax(logits, label))
    assert lovasz_softmax(logits, torch.full_like(label, 3)).item() == 0.0


@pytest.mark.parametrize("void", [3, 255])
def test_loss_is_the_weighted_sum_of_its_terms(void: int) -> None:
    logits, auxiliary = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    label = torch.tensor([[[0, 1, 2, void]] * 4], dtype=torch.uint8)
    entropy = np.log(3)

    def loss(lovasz: float, auxiliary_weight: float, total: float = 12.0) -> float:
        config = LossConfig(lovasz=lovasz, auxiliary=auxiliary_weight)
        return segmentation_loss(logits, auxiliary, label, torch.ones(3), torch.tensor(total), config).item()

    assert loss(0.0, 0.0) == pytest.approx(entropy)
    assert loss(0.0, 0.0, total=24.0) == pytest.approx(entropy / 2)
    # On the coarser grids two pixels are class 1 and two void, while a quarter of the total of 12 is 3.
    assert loss(0.0, 0.5) == pytest.approx(entropy + 0.5 * entropy * 2 / 3)
    # At 1/3 for each class, class 1 errs by 2/3 everywhere.
    assert loss(1.0, 0.0) == pytest.approx(entropy + 2 / 3)


def test_without_labels_loss_and_gradient_are_zero() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    label = torch.full((1, 4, 4), 3, dtype=torch.uint8)
    loss = segmentation_loss(logits, logits, label, torch.ones(3), torch.tensor(0.0), LossConfig())
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()
