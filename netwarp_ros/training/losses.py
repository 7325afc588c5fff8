# SPDX-License-Identifier: Apache-2.0
"""Losses of semantic segmentation for images and clips, with class weights for rare classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from netwarp_ros import ops
from netwarp_ros.engines import PRECISIONS
from netwarp_ros.models import Memory, ModelSpec, VideoCNN, class_scores
from netwarp_ros.models.video_cnn import map_size
from netwarp_ros.training.config import LossConfig, TrainingConfig
from netwarp_ros.training.views import Views


def class_weights(pixels: np.ndarray, balance: float) -> Tensor:
    """Return weights that favour rare classes: (median frequency / frequency) ** balance.

    Args:
        pixels: (K,), number of pixels of each class.
        balance: 0 gives all classes the same weight, 1 the same sum of weights over their pixels.

    Returns:
        (K,) float32, scaled so that the mean weight of a labelled pixel is 1. A class without pixels is weighted as if
        it had one.
    """
    frequency = np.maximum(pixels, 1) / np.maximum(pixels, 1).sum()
    weights = (np.median(frequency) / frequency) ** balance
    return torch.tensor(weights / (weights @ frequency), dtype=torch.float32)


def lovasz_softmax(logits: Tensor, label: Tensor) -> Tensor:
    """Return the Lovász-softmax loss: a surrogate of 1 - IoU, averaged over the classes present in the batch.

    Berman, Triki, Blaschko, "The Lovász-Softmax loss", CVPR 2018: the errors are eq. 8, the slope of the Lovász
    extension at the sorted errors is Alg. 1, the mean is eq. 11.

    Args:
        logits: (B, K, H, W).
        label: (B, H, W) class ids; ids of K and above are void.

    Returns:
        Scalar in [0, 1], float32; 0 if no pixel is labelled.
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
    """Return the sum of the class weights of all labelled pixels, the scalar that cross-entropy is divided by.

    Args:
        label: Any shape, uint8 class ids; ids of K and above are void.
        weights: (K,) class weights.
    """
    return weights @ torch.bincount(label.flatten(), minlength=256)[: len(weights)].to(weights.dtype)


def segmentation_loss(
    logits: Tensor, auxiliary: Tensor | None, label: Tensor, weights: Tensor, total: Tensor, config: LossConfig
) -> Tensor:
    """Return the sum of cross-entropy, Lovász-softmax and auxiliary cross-entropy, weighted by ``config``.

    Cross-entropy is computed at the label's size, the two others on the grids of their logits.

    Args:
        logits: (B, K, h, w).
        auxiliary: (B, K, h', w'), logits of the auxiliary head; None without one.
        label: (B, H, W) uint8 class ids; ids of K and above are void.
        weights: (K,) class weights of both cross-entropies.
        total: Divisor of the cross-entropies' sums over pixels. `labelled_weight` of the label makes them means.
        config: Weights of the three losses.

    Returns:
        Scalar; 0 if no pixel is labelled.
    """
    total = total.clamp(min=torch.finfo(torch.float32).tiny)
    loss = _cross_entropy(_resized(logits, like=label), label, weights) / total
    if config.lovasz > 0:
        loss = loss + config.lovasz * lovasz_softmax(logits, _subsample(label, like=logits))
    if auxiliary is not None:
        coarse = _subsample(label, like=auxiliary)
        scale = coarse[0].numel() / label[0].numel()  # the coarse grid has fewer pixels, so a smaller total
        loss = loss + config.auxiliary * _cross_entropy(auxiliary.float(), coarse, weights) / (scale * total)
    return loss


def consistency_loss(probabilities: Tensor, previous: Tensor, motion: Tensor, trust: Tensor) -> Tensor:
    """Return how much the probabilities of two successive frames differ along the motion, where that is trusted.

    It is the squared difference to the previous probabilities, warped, summed over the classes: in [0, 2].

    Args:
        probabilities: (B, K, h, w) float32, of frame t.
        previous: (B, K, h, w) float32, of frame t-1.
        motion: (B, 2, h, w) float32, reverse flow in pixels of this grid. It must not be the one that the network uses.
        trust: (B, 1, h, w) float32, from 0 to 1: the weight of each pixel.

    Returns:
        Scalar; 0 if no pixel is trusted.
    """
    difference = (probabilities - ops.warp(previous, motion)).square().sum(1, keepdim=True)
    return (difference * trust).sum() / trust.sum().clamp(min=1)


def _cross_entropy(logits: Tensor, label: Tensor, weights: Tensor) -> Tensor:
    void = logits.shape[1]
    return F.cross_entropy(logits, label.long().clamp(max=void), weights, ignore_index=void, reduction="sum")


def _resized(logits: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(logits.float(), size=like.shape[-2:], mode="bilinear", align_corners=False)


def _subsample(label: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(label[:, None].float(), size=like.shape[-2:], mode="nearest-exact")[:, 0].to(label.dtype)


class ClipLoss(nn.Module):
    """The loss of a batch of clips. The gradient goes back through the memory from frame to frame.

    Args:
        network: The video CNN.
        spec: Gives the mean and standard deviation that frames are normalised with.
        weights: (K,) class weights.
        config: The training.
    """

    mean: Tensor
    std: Tensor
    weights: Tensor

    def __init__(self, network: VideoCNN, spec: ModelSpec, weights: Tensor, config: TrainingConfig) -> None:
        super().__init__()
        self.network, self.config = network, config
        length = config.clip.length
        self.scored = {"last": range(length - 1, length), "all-but-first": range(1, length), "all": range(length)}[
            config.clip.loss_on
        ]
        head = getattr(network.host, "auxiliary", None)
        self.with_auxiliary = head is not None and config.model.train_host and config.loss.auxiliary > 0
        self._views = Views(VideoCNN(network.host, {}), spec) if config.loss.distillation else None
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1))
        self.register_buffer("weights", weights)

    def train(self, mode: bool = True) -> ClipLoss:
        """Set training mode; a host that is not trained stays in evaluation mode."""
        super().train(mode)
        self.network.host.train(mode and self.config.model.train_host)
        return self

    def forward(self, images: Tensor, labels: Tensor, flows: Tensor, motion: Tensor, trust: Tensor) -> Tensor:
        """Run a batch of clips; see `netwarp_ros.training.data.Batch` for the shapes.

        Returns:
            Scalar: the loss over the frames that ``config.clip.loss_on`` selects; consistency is that of each of them
            with the frame before. If several processes share a batch, cross-entropy is divided by the mean of their
            `labelled_weight`, so that the mean of their losses is the loss of the whole batch. Lovász-softmax and what
            else there is are computed by each process for its own clips.
        """
        memory: Memory | None = None
        scored_logits, scored_auxiliary, further = [], [], []
        precision, clip, weights = self.config.precision, self.config.clip, self.config.loss
        previous: Tensor | None = None
        with torch.autocast(images.device.type, PRECISIONS[precision], enabled=precision != "float32"):
            for t in range(clip.length):
                flow = flows[:, t - 1] if t else None
                logits, auxiliary, memory = self._run(images[:, t], flow, memory, t in self.scored)
                if weights.consistency:
                    probabilities = _resized(logits, motion).softmax(1)
                    if previous is not None and t in self.scored:
                        along = motion[:, t - 1], trust[:, t - 1]
                        further.append(weights.consistency * consistency_loss(probabilities, previous, *along))
                    previous = probabilities
                if t in self.scored:
                    scored_logits.append(logits)
                    if self._views is not None:
                        further.append(weights.distillation * self._distillation(self._views, images[:, t], logits))
                if auxiliary is not None:
                    scored_auxiliary.append(auxiliary)
                if clip.detach_every and (t + 1) % clip.detach_every == 0:
                    memory = memory.detach()
        label = torch.cat([labels[:, t] for t in self.scored])
        loss = segmentation_loss(
            torch.cat(scored_logits),
            torch.cat(scored_auxiliary) if scored_auxiliary else None,
            label,
            self.weights,
            mean_over_processes(labelled_weight(label, self.weights)),
            weights,
        )
        return loss + torch.stack(further).sum() / len(self.scored) if further else loss

    def _distillation(self, views: Views, image: Tensor, logits: Tensor) -> Tensor:
        """Return the divergence of the network's probabilities for a frame from those of its host's views."""
        targets = views(normalise(image, self.mean, self.std), map_size(logits))
        return F.kl_div(logits.float().log_softmax(1), targets, reduction="none").sum(1).mean()

    def _run(
        self, image: Tensor, flow: Tensor | None, memory: Memory | None, scored: bool
    ) -> tuple[Tensor, Tensor | None, Memory]:
        """Run a frame. With ``config.clip.checkpointing``, the backward pass runs it a second time."""
        if not self.config.clip.checkpointing:
            return self._frame(image, flow, memory, scored)
        return checkpoint(
            self._frame, image, flow, memory, scored,
            use_reentrant=False, context_fn=lambda: (nullcontext(), _frozen_statistics(self.network)),
        )  # fmt: skip

    def _frame(
        self, image: Tensor, flow: Tensor | None, memory: Memory | None, scored: bool
    ) -> tuple[Tensor, Tensor | None, Memory]:
        frame = normalise(image, self.mean, self.std)
        if scored and self.with_auxiliary:
            (logits, auxiliary), memory = self.network(frame, flow, memory, auxiliary=True)
            return logits, auxiliary, memory
        output, memory = self.network(frame, flow, memory)
        return class_scores(output), None, memory


@contextmanager
def _frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Keep norm statistics unchanged while a frame runs a second time: its first run has updated them."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, count) in zip(norms, kept, strict=True):
        norm.momentum, norm.num_batches_tracked = 0.0, None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise images for the network.

    Args:
        images: (B, H, W, 3) uint8, BGR.
        mean: (1, 3, 1, 1), mean of the RGB values in [0, 1].
        std: (1, 3, 1, 1), their standard deviation.

    Returns:
        (B, 3, H, W) float32, RGB, channels last in memory.
    """
    rgb = images.flip(-1).permute(0, 3, 1, 2).float().div_(255)
    return ((rgb - mean) / std).contiguous(memory_format=torch.channels_last)


def mean_over_processes(value: Tensor) -> Tensor:
    """Return the mean of a value over the processes of a training."""
    if not distributed.is_initialized():
        return value
    total = value.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()
