# SPDX-License-Identifier: Apache-2.0
"""Training of the image CNN on labelled stills: CamVid, with frames of the synthetic street mixed in if asked for.

A batch is a function of the seed and the step, so a training that was stopped and resumed sees the same batches as one
that was not, and ends with the same weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from netwarp_ros.data.augment import Augmentation
from netwarp_ros.data.camvid import NUM_CLASSES, VOID, CamVid, Sample
from netwarp_ros.data.street import Street
from netwarp_ros.losses import class_weights, segmentation_loss
from netwarp_ros.models import ModelSpec, VideoCNN, save_model
from netwarp_ros.models.hosts import DDRNet23Slim
from netwarp_ros.training_config import OptimiserConfig, TrainingConfig

STREET_SEED = 1000
"""First seed of the streets that are trained on; judge on lower ones."""


def train(config: TrainingConfig, evaluate: Callable[[nn.Module, int], None] | None = None) -> Path:
    """Train the host, resuming from ``checkpoint.pt`` of the output folder if it is there.

    Args:
        config: The training.
        evaluate: Called every `TrainingConfig.evaluate_every` steps, and after the last, with the averaged network in
            evaluation mode and the number of steps done.

    Returns:
        ``host.safetensors`` in the output folder: the averaged weights without the auxiliary head, as
        `netwarp_ros.models.load_model` reads them.

    Raises:
        FileNotFoundError: The CamVid folder, or a label in it, is missing.
        ValueError: A file in it is not what it should be.
    """
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    stills = list(CamVid(config.data.camvid))
    street = street_samples(config) if config.data.street_per_batch else []

    torch.manual_seed(config.seed)
    state = TrainingState(config)
    checkpoint = output / "checkpoint.pt"
    if checkpoint.exists():
        state.load(checkpoint)
    weights = class_weights((still.label for still in stills), NUM_CLASSES, config.loss.class_balance)
    batches = Batches(stills, street, config)

    remaining = load(batches, config.workers, start=state.step)
    progress = tqdm(remaining, initial=state.step, total=len(batches), unit="step")
    for images, labels in progress:
        loss = train_step(state, images, labels, weights.to(config.device))
        progress.set_postfix(loss=f"{loss:.3f}", refresh=False)
        last = state.step == len(batches)
        if last or state.step % config.checkpoint_every == 0:
            state.save(checkpoint)
        if evaluate is not None and (last or state.step % config.evaluate_every == 0):
            evaluate(state.average, state.step)
    return export(state.average, output / "host.safetensors", config)


class TrainingState:
    """All that a training changes: the network, its moving average, the optimiser and the number of steps done."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.network = self._network().train()
        self.average = self._network().eval()
        self.average.load_state_dict(self.network.state_dict())
        parameters = list(self.network.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.optimiser.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=config.optimiser.rate, fused=True)
        self.step = 0

    def save(self, path: Path) -> None:
        """Write a checkpoint, under another name first so that no half-written one is left."""
        partial = path.with_suffix(".partial")
        torch.save({**{name: part.state_dict() for name, part in self._parts().items()}, "step": self.step}, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        stored = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in self._parts().items():
            part.load_state_dict(stored[name])
        self.step = stored["step"]

    def _network(self) -> nn.Module:
        network = DDRNet23Slim(NUM_CLASSES, auxiliary=True).to(self.config.device)
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it

    def _parts(self) -> dict[str, Any]:
        return {"model": self.network, "average": self.average, "optimiser": self.optimiser}


def train_step(state: TrainingState, images: Tensor, labels: Tensor, weights: Tensor) -> float:
    """One step of the optimiser.

    Args:
        state: Is changed.
        images: (B, H, W, 3) uint8, BGR.
        labels: (B, H, W) uint8.
        weights: Class weights.

    Returns:
        The loss before the step.
    """
    config = state.config
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(state.step, config.optimiser)
    frames = normalise(images.to(config.device))
    with torch.autocast(config.device, torch.bfloat16, enabled=config.precision == "bfloat16"):
        logits, auxiliary = state.network(frames, auxiliary=True)
    loss = segmentation_loss(logits, auxiliary, labels.to(config.device), weights, config.loss)
    state.optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(state.network.parameters(), config.optimiser.clip)
    state.optimiser.step()
    # A short average at first, so that the random start is soon forgotten.
    decay = min(config.optimiser.average, (1 + state.step) / (10 + state.step))
    update_average(state.average, state.network, decay)
    state.step += 1
    return loss.item()


def learning_rate(step: int, config: OptimiserConfig) -> float:
    """Linear rise, flat, linear fall that would reach zero one step after the last."""
    rise = (step + 1) / config.warm_up if step < config.warm_up else 1.0
    fall_from = config.decay_from * config.steps
    fall = (config.steps - step) / (config.steps - fall_from) if step > fall_from else 1.0
    return config.rate * min(rise, fall)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Make the average's weights and norm statistics ``decay * average + (1 - decay) * network``."""
    means, values = (
        [value for value in module.state_dict().values() if value.is_floating_point()] for module in (average, network)
    )
    torch._foreach_lerp_(means, values, 1 - decay)


def normalise(images: Tensor) -> Tensor:
    """Images as the network wants them.

    Args:
        images: (B, H, W, 3) uint8, BGR.

    Returns:
        (B, 3, H, W) float32, RGB, less the mean and over the deviation that a `ModelSpec` has by default.
    """
    rgb = images.flip(-1).permute(0, 3, 1, 2).float().div_(255)
    mean, std = (rgb.new_tensor(values).view(1, 3, 1, 1) for values in (ModelSpec.mean, ModelSpec.std))
    return ((rgb - mean) / std).contiguous(memory_format=torch.channels_last)


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Batch number ``step`` of a training: images (B, H, W, 3) uint8 BGR and labels (B, H, W) uint8.

    A function of the seed and the step alone, whatever was drawn before. Stills are drawn without replacement, epoch
    after epoch, street frames with replacement.
    """

    def __init__(self, stills: Sequence[Sample], street: Sequence[Sample], config: TrainingConfig) -> None:
        self.stills = stills
        self.street = street
        self.config = config
        self.augment = Augmentation(**dataclasses.asdict(config.augment))

    def __len__(self) -> int:
        return self.config.optimiser.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.config.seed, 1, step))
        first = step * self.config.optimiser.batch
        samples = [self._still(first + slot) for slot in range(self.config.optimiser.batch)]
        samples += [self.street[int(rng.integers(len(self.street)))] for _ in range(self.config.data.street_per_batch)]
        pairs = [self.augment(sample.image, sample.label, rng, void=VOID) for sample in samples]
        images, labels = (torch.from_numpy(np.stack(maps)) for maps in zip(*pairs, strict=True))
        return images, labels

    def _still(self, position: int) -> Sample:
        epoch, place = divmod(position, len(self.stills))
        order = np.random.default_rng((self.config.seed, 0, epoch)).permutation(len(self.stills))
        return self.stills[int(order[place])]


def street_samples(config: TrainingConfig) -> list[Sample]:
    """Frames of the synthetic street at the crop's size, spread over several streets and the drive down each."""
    samples = []
    for seed in range(STREET_SEED, STREET_SEED + config.data.street_seeds):
        street = Street(config.augment.width, config.augment.height, seed=seed)
        for index in range(0, 12 * config.data.street_frames, 12):
            frame = street.frame(index)
            samples.append(Sample(f"street_{seed}_{index}", frame.image, frame.label))
    return samples


def load(batches: Batches, workers: int, *, start: int) -> Iterable[tuple[Tensor, Tensor]]:
    """The batches from ``start`` on, made ahead by worker processes if there are any."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, len(batches)),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_cores_alone,
    )


def _leave_cores_alone(_worker: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def export(network: nn.Module, path: Path, config: TrainingConfig) -> Path:
    """Write the weights without the auxiliary head, as a model that `netwarp_ros.models.load_model` reads."""
    host = DDRNet23Slim(NUM_CLASSES)
    host.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("auxiliary.")})
    spec = ModelSpec(
        host="ddrnet23slim",
        classes="camvid",
        host_arguments={"num_classes": NUM_CLASSES},
        input_height=config.augment.height,
    )
    return save_model(path, VideoCNN(host, {}), spec)
