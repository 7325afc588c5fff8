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
from torch.utils.data import DataLoader, Dataset

from netwarp_ros.classes import ClassSet, load_classes
from netwarp_ros.datasets.augmentation import Augmentation
from netwarp_ros.datasets.bag import BagDataset
from netwarp_ros.datasets.camvid import CamVid
from netwarp_ros.datasets.cityscapes import Cityscapes
from netwarp_ros.datasets.folder import ImageFolder
from netwarp_ros.datasets.motion import Motion
from netwarp_ros.datasets.samples import Clip, Samples, Selection, clips
from netwarp_ros.datasets.street import StreetDataset
from netwarp_ros.flow import DisFlow
from netwarp_ros.training.config import (
    AugmentConfig,
    BagConfig,
    CamVidConfig,
    CityscapesConfig,
    FolderConfig,
    Source,
    TrainingConfig,
)

COUNTED = 500
"""Largest number of label maps of each source, evenly spaced, that class frequencies are computed from."""


class Batch(NamedTuple):
    """Clips of adjacent frames.

    Attributes:
        images: (B, T, H, W, 3) uint8, BGR.
        labels: (B, T, H, W) uint8 class ids or void.
        flows: (B, T - 1, 2, H, W) float32, from each frame except the first to the previous one.
    """

    images: Tensor
    labels: Tensor
    flows: Tensor


def open_sources(sources: Sequence[Source], augment: AugmentConfig) -> list[Samples]:
    """Open the data set of each source.

    Raises:
        FileNotFoundError: A folder or file is missing.
        ValueError: A data set is not valid, or the data sets have different classes.
    """
    datasets = [_open(source, augment) for source in sources]
    for samples in datasets:
        first, classes = datasets[0].classes, samples.classes
        if (classes.names, classes.void) != (first.names, first.void):
            raise ValueError(f"{datasets[0]} has the classes of {first.name}, but {samples} those of {classes.name}")
    return datasets


def _open(source: Source, augment: AugmentConfig) -> Samples:
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
            samples = StreetDataset(augment.width, augment.height, seeds, source.frames, source.rate)
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
        ValueError: A source has no clip of ``config.clip.length`` frames.
    """

    def __init__(self, datasets: Sequence[Samples], config: TrainingConfig, *, rank: int = 0, world: int = 1) -> None:
        self.config, self.rank, self.world = config, rank, world
        self.classes: ClassSet = datasets[0].classes
        self.augment = Augmentation(**dataclasses.asdict(config.augment))
        self.motion = Motion()
        self.clips = [_clips(samples, source, config) for samples, source in zip(datasets, config.data, strict=True)]
        self.slots = [(number, place) for number, source in enumerate(config.data) for place in range(source.per_batch)]

    def __len__(self) -> int:
        return self.config.optimiser.steps

    def __getitem__(self, step: int) -> Batch:
        chosen = [self.clip(step, slot) for slot in range(self.rank, len(self.slots), self.world)]
        images, labels = (np.stack([getattr(clip, part) for clip in chosen]) for part in ("images", "labels"))
        displacements = np.stack([flows(clip, self.config.clip.flow) for clip in chosen])
        return Batch(*map(torch.from_numpy, (images, labels, displacements)))

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
        return self.augment(clip, rng, void=self.classes.void, motion=motion)


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
