# SPDX-License-Identifier: Apache-2.0
"""Batches of augmented clips and their flow, from all sources of a training.

A batch depends on the seed and the step alone, so that a resumed training sees the same batches
as an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from netwarp_ros.classes import ClassSet, load_classes
from netwarp_ros.datasets.augmentation import Augmentation
from netwarp_ros.datasets.bag import BagDataset
from netwarp_ros.datasets.camvid import CamVid
from netwarp_ros.datasets.cityscapes import Cityscapes
from netwarp_ros.datasets.folder import ImageFolder
from netwarp_ros.datasets.motion import Motion
from netwarp_ros.datasets.pasting import indices_by_class, paste
from netwarp_ros.datasets.samples import Clip, Samples, Selection, clips
from netwarp_ros.datasets.street import StreetDataset
from netwarp_ros.flow import DisFlow
from netwarp_ros.models import resize_flow
from netwarp_ros.training.config import (
    AugmentConfig,
    BagConfig,
    CamVidConfig,
    CityscapesConfig,
    FolderConfig,
    Source,
    TrainingConfig,
)
from netwarp_ros.training.soft_targets import estimate_motion, half

COUNTED = 500
"""Largest number of label maps of each source, evenly spaced, that class frequencies are computed from."""


class Batch(NamedTuple):
    """Clips of adjacent frames.

    Attributes:
        images: (B, T, H, W, 3) uint8, BGR.
        labels: (B, T, H, W) uint8 class ids or void.
        flows: (B, T - 1, 2, H, W) float32, from each frame except the first to the previous one.
        motion: (B, T - 1, 2, h, w) float32, the same, exact or at least more accurate, at half the size and in pixels
            of that grid; of size (0, 0) if ``loss.consistency`` is 0.
        trust: (B, T - 1, 1, h, w) float32, fraction of each of its pixels in which it can be trusted.
    """

    images: Tensor
    labels: Tensor
    flows: Tensor
    motion: Tensor
    trust: Tensor


def open_sources(sources: Sequence[Source], augment: AugmentConfig, *, with_motion: bool = False) -> list[Samples]:
    """Open the data set of each source; with its exact motion if it is wanted and the source has it.

    Raises:
        FileNotFoundError: A folder or file is missing.
        ValueError: A data set is not valid, or the data sets have different classes.
    """
    datasets = [_open(source, augment, with_motion) for source in sources]
    for samples in datasets:
        first, classes = datasets[0].classes, samples.classes
        if (classes.names, classes.void) != (first.names, first.void):
            raise ValueError(f"{datasets[0]} has the classes of {first.name}, but {samples} those of {classes.name}")
    return datasets


def _open(source: Source, augment: AugmentConfig, with_motion: bool) -> Samples:
    samples: Samples
    match source:
        case CamVidConfig():
            samples = CamVid(source.root, source.split)
        case CityscapesConfig():
            samples = Cityscapes(source.root, source.split)
        case FolderConfig():
            samples = ImageFolder(source.images, source.labels, load_classes(source.classes))
        case BagConfig():
            samples = BagDataset(source.path, source.image_topic, source.label_topic, load_classes(source.classes))
        case _:
            seeds = range(source.first_seed, source.first_seed + source.seeds)
            samples = StreetDataset(
                augment.width, augment.height, seeds, source.frames, source.rate, with_motion=with_motion
            )
    return Selection(samples, source.names, source.leave_out) if source.names or source.leave_out else samples


def class_pixels(datasets: Sequence[Samples], sources: Sequence[Source]) -> np.ndarray:
    """Count the pixels of each class in an average batch, before augmentation.

    Returns:
        (K,) float64: mean number of pixels per label map times the source's ``per_batch``, summed over the sources. At
        most `COUNTED` label maps of each source are read.
    """
    classes = datasets[0].classes
    pixels = np.zeros(len(classes))
    for samples, source in zip(datasets, sources, strict=True):
        indices = np.unique(np.linspace(0, len(samples) - 1, COUNTED).round().astype(int)).tolist()
        for index in indices:
            counts = np.bincount(samples[index].label.ravel(), minlength=256)[: len(classes)]
            pixels += counts * source.per_batch / len(indices)
    return pixels


class Batches(Dataset[Batch]):
    """The batches of a training, indexed by step; with several processes, this process's part of each batch.

    Each source's clips are drawn without replacement in each epoch. A clip depends only on the seed, the step and its
    place in the batch, so that the number of processes does not change it.

    Args:
        datasets: The data sets of ``config.data``, as `open_sources` returns them.
        config: The training.
        rank: Rank of this process.
        world: Number of processes.

    Raises:
        ValueError: A source has no clip of ``config.clip.length`` frames, or a class to paste is unknown.
    """

    def __init__(self, datasets: Sequence[Samples], config: TrainingConfig, *, rank: int = 0, world: int = 1) -> None:
        self.config, self.rank, self.world = config, rank, world
        self.classes: ClassSet = datasets[0].classes
        self.augment = Augmentation(**dataclasses.asdict(config.augment))
        self.motion = Motion()
        self.clips = [_clips(samples, source, config) for samples, source in zip(datasets, config.data, strict=True)]
        self.pasted = _class_ids(self.classes, config.paste.classes)
        self._donors = [indices_by_class(samples, self.pasted) if self.pasted else [] for samples in datasets]
        self.slots = [(number, place) for number, source in enumerate(config.data) for place in range(source.per_batch)]

    def __len__(self) -> int:
        return self.config.optimiser.steps

    def __getitem__(self, step: int) -> Batch:
        chosen = [self.clip(step, slot) for slot in range(self.rank, len(self.slots), self.world)]
        images, labels = (np.stack([getattr(clip, part) for clip in chosen]) for part in ("images", "labels"))
        displacements = np.stack([flows(clip, self.config.clip.flow) for clip in chosen])
        motions = [true_motion(clip) if self.config.loss.consistency else _no_motion(clip) for clip in chosen]
        return Batch(
            *map(torch.from_numpy, (images, labels, displacements)),
            *(torch.stack(parts) for parts in zip(*motions, strict=True)),
        )

    def clip(self, step: int, slot: int) -> Clip:
        """Return the augmented clip at one place of a batch."""
        number, place = self.slots[slot]
        source, available = self.config.data[number], self.clips[number]
        epoch, position = divmod(step * source.per_batch + place, len(available))
        order = np.random.default_rng((self.config.seed, 0, number, epoch)).permutation(len(available))
        clip = available[int(order[position])]
        rng = np.random.default_rng((self.config.seed, 1, step, slot))
        motion, length = None, self.config.clip.length
        if len(clip.images) < length:
            motion = self.motion(length, self.augment.height, self.augment.width, rng)
        donors = self._donors[number]
        if donors and rng.random() < self.config.paste.probability:
            having = donors[int(rng.integers(len(donors)))]
            clip = paste(clip, available[having[int(rng.integers(len(having)))]], self.pasted, rng)
        return self.augment(clip, rng, void=self.classes.void, motion=motion)


def _class_ids(classes: ClassSet, names: Sequence[str]) -> list[int]:
    """Return the ids of classes by their names."""
    if unknown := [name for name in names if name not in classes.names]:
        raise ValueError(f"paste.classes has {', '.join(unknown)}: the data have {', '.join(classes.names)}")
    return [classes.names.index(name) for name in names]


def _clips(samples: Samples, source: Source, config: TrainingConfig) -> Sequence[Clip]:
    try:
        return clips(samples, 1 if source.stills else config.clip.length)
    except ValueError as error:
        raise ValueError(
            f"{error}: give a shorter clip.length, or stills: true to set single images in motion"
        ) from None


def flows(clip: Clip, preset: str) -> np.ndarray:
    """Return the DIS flow of each frame of a clip, except the first, to the previous one: (T - 1, 2, H, W) float32.

    As in the segmenter, each search starts from the previous flow.
    """
    length, height, width, _ = clip.images.shape
    fields = np.empty((length - 1, height, width, 2), np.float32)
    if length > 1:
        dis = DisFlow(preset)
        greys = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in clip.images]
        for t, (previous, present) in enumerate(pairwise(greys)):
            fields[t] = dis(present, previous, start=fields[t - 1] if t else None)
    return np.ascontiguousarray(fields.transpose(0, 3, 1, 2))


def true_motion(clip: Clip) -> tuple[Tensor, Tensor]:
    """Return the motion of each frame of a clip, except the first, to the previous one, at half the size.

    It is the clip's own exact motion; without that, a better DIS flow than `flows`, see `estimate_motion`.

    Returns:
        (T - 1, 2, h, w) float32 in pixels of this grid, and (T - 1, 1, h, w) float32, the trust in it: the fraction of
        each pixel where the motion is known and does not lead out of the frame.
    """
    size = half(clip.images.shape[1:3])
    if clip.motion is None:
        before, _ = estimate_motion(list(clip.images), size)
        return before.flow[1:], before.trust[1:]
    flow = torch.from_numpy(clip.motion[1:])
    height, width = flow.shape[1:3]
    x, y = torch.arange(width) + flow[..., 0], torch.arange(height).view(-1, 1) + flow[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)  # NaN is not
    trust = F.interpolate(inside[:, None].float(), size=size, mode="area")
    known = torch.where(inside[..., None], flow, 0.0).permute(0, 3, 1, 2)
    return resize_flow(known, size) / trust.clamp(min=1e-6), trust


def _no_motion(clip: Clip) -> tuple[Tensor, Tensor]:
    frames = len(clip.images) - 1
    return torch.zeros(frames, 2, 0, 0), torch.zeros(frames, 1, 0, 0)


class _WithErrors(Dataset[Batch | Exception]):
    """The batches, or the error of one that cannot be read. An error that a worker raises would lose its type."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __getitem__(self, step: int) -> Batch | Exception:
        try:
            return self._batches[step]
        except (OSError, ValueError) as error:
            return error


def data_loader(batches: Batches, *, start: int) -> Iterator[Batch]:
    """Yield the batches from step ``start`` on. ``config.workers`` processes prepare them ahead.

    Raises:
        OSError: A file of the data cannot be read.
        ValueError: A file of the data is not valid.
    """
    workers = batches.config.workers
    loader = DataLoader(
        _WithErrors(batches),
        batch_size=None,
        sampler=range(start, len(batches)),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=batches.config.device == "cuda",
        worker_init_fn=_use_one_thread,
    )
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        yield batch


def _use_one_thread(_worker: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
