# SPDX-License-Identifier: Apache-2.0
"""Losses for semantic segmentation with few and unevenly spread labels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from netwarp_ros.training_config import LossConfig


def class_weights(pixels: np.ndarray, balance: float) -> Tensor:
    """Weights that favour rare classes: (median frequency / frequency) ** balance.

    Args:
        pixels: (K,), how many pixels of each class are seen.
        balance: 0 weighs all classes alike, 1 gives all of them the same total.

    Returns:
        (K,) float32, scaled so that a labelled pixel weighs 1 on average. A class that never occurs weighs as if it
        had one pixel.
    """
    frequency = np.maximum(pixels, 1) / np.maximum(pixels, 1).sum()
    weights = (np.median(frequency) / frequency) ** balance
    return torch.tensor(weights / (weights @ frequency), dtype=torch.float32)


def lovasz_softmax(logits: Tensor, label: Tensor) -> Tensor:
    """Lovász-softmax loss: a surrogate of 1 - IoU, mean over the classes present in the batch.

    Berman, Triki, Blaschko, "The Lovász-Softmax loss", CVPR 2018: eq. 8 for the errors, Alg. 1 for the slope of the
    Lovász extension at the sorted errors, eq. 11 for the mean.

    Args:
        logits: (B, K, H, W).
        label: (B, H, W) class ids; ids of K and above are void.

    Returns:
        Scalar in [0, 1], float32; 0 where nothing is labelled.
    """
    num_classes = logits.shape[1]
    probability = logits.float().softmax(dim=1).permute(0, 2, 3, 1).reshape(-1, num_classes)
    label = label.reshape(-1)
    labelled = label < num_classes
    probability, label = probability[labelled], label[labelled]
    losses = []
    for index in label.unique().tolist():
        foreground = (label == index).float()
        errors, order = (foreground - probability[:, index]).abs().sort(descending=True)
        foreground = foreground[order]
        total = foreground.sum()
        jaccard = 1 - (total - foreground.cumsum(0)) / (total + (1 - foreground).cumsum(0))
        slope = torch.diff(jaccard, prepend=jaccard.new_zeros(1))
        losses.append(errors @ slope)
    return torch.stack(losses).mean() if losses else 0 * logits.sum()


def labelled_weight(label: Tensor, weights: Tensor) -> Tensor:
    """Return what all labelled pixels weigh together, the scalar that cross-entropy is divided by.

    Args:
        label: Any shape, uint8 class ids; ids of K and above are void.
        weights: (K,) class weights.
    """
    return weights @ torch.bincount(label.flatten(), minlength=256)[: len(weights)].to(weights.dtype)


def segmentation_loss(
    logits: Tensor, auxiliary: Tensor | None, label: Tensor, weights: Tensor, total: Tensor, config: LossConfig
) -> Tensor:
    """Cross-entropy at the label's size, plus Lovász-softmax and the auxiliary cross-entropy on the logits' own grids.

    Args:
        logits: (B, K, h, w).
        auxiliary: (B, K, h', w'), or None where there is no auxiliary head.
        label: (B, H, W) uint8 class ids; ids of K and above are void.
        weights: (K,) class weights of the cross-entropies.
        total: Their sum over pixels is divided by this: `labelled_weight` of the labels, for a mean.
        config: Weights of the sum.

    Returns:
        Scalar; 0 where nothing is labelled.
    """
    total = total.clamp(min=torch.finfo(torch.float32).tiny)
    full = F.interpolate(logits.float(), size=label.shape[-2:], mode="bilinear", align_corners=False)
    loss = _cross_entropy(full, label, weights) / total
    if config.lovasz > 0:
        loss = loss + config.lovasz * lovasz_softmax(logits, _subsample(label, like=logits))
    if auxiliary is not None:
        coarse = _subsample(label, like=auxiliary)
        share = coarse[0].numel() / label[0].numel()  # of the total, on the coarser grid
        loss = loss + config.auxiliary * _cross_entropy(auxiliary.float(), coarse, weights) / (share * total)
    return loss


def _cross_entropy(logits: Tensor, label: Tensor, weights: Tensor) -> Tensor:
    void = logits.shape[1]
    return F.cross_entropy(logits, label.long().clamp(max=void), weights, ignore_index=void, reduction="sum")


def _subsample(label: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(label[:, None].float(), size=like.shape[-2:], mode="nearest-exact")[:, 0].to(label.dtype)
