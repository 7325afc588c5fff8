# SPDX-License-Identifier: Apache-2.0
"""Training of image CNNs and of video CNNs alike.

An image CNN is a `VideoCNN` without insertions, trained on clips of one frame. The paper's training of NetWarp (Sec.
3.2) is on clips of two: both go through the same network, and the gradient through both. Longer clips unroll further.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from netwarp_ros.classes import ClassSet
from netwarp_ros.datasets.samples import SampleFrames, Samples
from netwarp_ros.metrics import ConfusionMatrix
from netwarp_ros.models import Model, ModelSpec, VideoCNN, build, load_model, save_model
from netwarp_ros.models.weights import HOSTS
from netwarp_ros.segmenter import Segmenter
from netwarp_ros.training.config import OptimiserConfig, TrainingConfig, difference
from netwarp_ros.training.data import Batch, Batches, class_pixels, load, open_sources
from netwarp_ros.training.losses import ClipLoss, class_weights, mean_over_processes

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def train(config: TrainingConfig) -> Path:
    """Train a model, going on from ``checkpoint.pt`` of the output folder if it is there.

    Of several processes that torchrun started, each calls this. They share the batches and the output folder, to which
    the first one writes.

    Returns:
        ``model.safetensors`` in the output folder: the averaged weights without auxiliary head, as
        `netwarp_ros.models.load_model` reads them.

    Raises:
        FileNotFoundError: Data are missing.
        ValueError: Data are not what they should be, the configuration does not fit the model, or the checkpoint is of
            another configuration.
    """
    output = Path(config.output)
    checkpoint, weights_file = output / "checkpoint.pt", output / "model.safetensors"
    with contextlib.ExitStack() as stack:
        rank, world = stack.enter_context(processes(config))
        opened, validation = (open_sources(sources, config.augment) for sources in (config.data, config.validation))
        batches = Batches(opened, config, rank=rank, world=world)
        torch.manual_seed(config.seed)
        network, spec = build_network(config, batches.classes, opened[0][0].image.shape[0])
        pixels = class_pixels(opened, config.data) if config.loss.class_balance else np.ones(len(batches.classes))
        state = TrainingState(network, spec, class_weights(pixels, config.loss.class_balance), config)
        if checkpoint.exists():
            state.load(checkpoint)
        output.mkdir(parents=True, exist_ok=True)
        scalars = stack.enter_context(_scalars(output, state.step)) if rank == 0 else None

        remaining = load(batches, start=state.step)
        progress = tqdm(remaining, initial=state.step, total=len(batches), unit="step", disable=rank > 0)
        for batch in progress:
            loss = train_step(state, batch)
            if scalars is None:  # the first process writes for all
                continue
            progress.set_postfix(loss=f"{loss:.3f}", refresh=False)
            scalars.add_scalar("loss", loss, state.step)
            scalars.add_scalar("rate", learning_rate(state.step - 1, config.optimiser), state.step)
            last = state.step == len(batches)
            if last or state.step % config.checkpoint_every == 0:
                state.save(checkpoint)
            if validation and (last or state.step % config.evaluate_every == 0):
                miou = validate(Model(copy.deepcopy(state.average), spec, "average"), validation, config)
                scalars.add_scalar("miou", miou, state.step)
                progress.write(f"step {state.step}: mIoU {miou:.2f}")
        if rank == 0:
            export(state.average, spec, weights_file)
    return weights_file


@contextlib.contextmanager
def processes(config: TrainingConfig) -> Iterator[tuple[int, int]]:
    """Join the other processes of the training, if torchrun started this one as one of several.

    Returns:
        Number of this process, from 0, and number of processes.

    Raises:
        ValueError: If there are too few CUDA devices, or too few clips in a batch, for all of them.
    """
    rank, world, local = 0, 1, 0
    if distributed.is_torchelastic_launched():
        rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if config.device == "cuda" and local >= (count := torch.cuda.device_count()):
        raise ValueError(f"device is cuda, but PyTorch sees {count} CUDA devices for process {local} on this machine")
    if config.batch < world:
        raise ValueError(f"{world} processes share a batch of {config.batch} clips: start fewer, or raise per_batch")
    if config.device == "cuda":
        torch.cuda.set_device(local)
    if world == 1:
        yield 0, 1
        return
    distributed.init_process_group("nccl" if config.device == "cuda" else "gloo", timeout=timedelta(hours=1))
    try:
        yield rank, world
    finally:
        distributed.destroy_process_group()


def _scalars(output: Path, step: int) -> SummaryWriter:
    """Open the folder for TensorBoard, in which nothing counts that was written from this step on."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("training needs tensorboard, which is not installed here: pip install tensorboard") from error
    return SummaryWriter(str(output), purge_step=step)


def build_network(config: TrainingConfig, classes: ClassSet, input_height: int) -> tuple[VideoCNN, ModelSpec]:
    """Build what is trained.

    Args:
        config: The training.
        classes: Of its data.
        input_height: Height of the images in pixels.

    Returns:
        The network, with an auxiliary head where it is trained with one, and the spec of the network without.

    Raises:
        ValueError: Host, model, layers or classes do not fit together, or there is nothing to train.
    """
    model = config.model
    initial = load_model(model.initial) if model.initial else None
    if initial:
        spec = dataclasses.replace(initial.spec, input_height=input_height, notes={})
        classes.check_names(spec.classes, f"model.initial {model.initial}")
        if spec.netwarp and model.netwarp:
            raise ValueError(
                f"model.initial {model.initial} has NetWarp behind {', '.join(spec.netwarp.layers)} already: leave "
                "model.netwarp out to train that, or start from its image CNN"
            )
    else:
        spec = ModelSpec(str(model.host), classes, {"num_classes": len(classes)}, input_height=input_height)
    if model.netwarp:
        spec = dataclasses.replace(spec, netwarp=model.netwarp)
    if spec.netwarp and config.clip.length == 1:
        raise ValueError("clip.length is 1, but the model has NetWarp, which needs a frame before: give at least 2")
    if not spec.netwarp and not model.train_host:
        raise ValueError("model.train_host is false and there is no NetWarp: nothing is left to train")

    trained = spec
    if model.train_host and config.loss.auxiliary > 0 and _can_have_auxiliary(spec.host):
        trained = dataclasses.replace(spec, host_arguments={**spec.host_arguments, "auxiliary": True})
    network = build(trained)
    if initial:
        network.load_state_dict(initial.network.state_dict(), strict=False)  # what is new keeps its start
    network.host.requires_grad_(model.train_host)
    return network, spec


def _can_have_auxiliary(host: str) -> bool:
    return host in HOSTS and "auxiliary" in inspect.signature(HOSTS[host]).parameters


class TrainingState:
    """All that a training changes: the network, its moving average, the optimiser and the number of steps done.

    Args:
        network: What is trained; goes to the device.
        spec: Says how frames are normalised.
        weights: (K,) class weights.
        config: The training.
    """

    def __init__(self, network: VideoCNN, spec: ModelSpec, weights: Tensor, config: TrainingConfig) -> None:
        self.config = config
        self.network = network.to(config.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        if distributed.is_initialized() and config.device == "cuda" and config.model.train_host:
            nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        self.loss: nn.Module = ClipLoss(self.network, spec, weights, config).to(config.device).train()
        if distributed.is_initialized():
            self.loss = DistributedDataParallel(self.loss)
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimiser.kind]
        self.optimiser = kind(parameter_groups(self.network, config.optimiser), lr=config.optimiser.rate, fused=True)
        self.scaler = torch.amp.GradScaler(config.device, enabled=config.precision == "float16")
        self.step = 0

    def save(self, path: Path) -> None:
        """Write a checkpoint, under another name first so that no half-written one is left."""
        partial = path.with_suffix(".partial")
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        torch.save({**parts, "step": self.step, "config": dataclasses.asdict(self.config)}, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: If it is of another configuration; see `netwarp_ros.training.config.FREE_KEYS`.
        """
        stored = torch.load(path, map_location="cpu", weights_only=True)
        if differs := difference(stored.get("config"), dataclasses.asdict(self.config)):
            raise ValueError(
                f"{path} is of another training, where {differs}: give another output folder, or remove the checkpoint"
            )
        for name, part in self._parts().items():
            part.load_state_dict(stored[name])
        self.step = stored["step"]

    def _parts(self) -> dict[str, Any]:
        return {"network": self.network, "average": self.average, "optimiser": self.optimiser, "scaler": self.scaler}


def parameter_groups(network: VideoCNN, config: OptimiserConfig) -> list[dict[str, Any]]:
    """Sort what is trained by weight decay and by factor on the learning rate.

    Raises:
        ValueError: If a factor is given for what the network does not have.
    """
    factors = {
        "host.backbone.": ("backbone_rate", config.backbone_rate),
        "netwarps.": ("netwarp_rate", config.netwarp_rate),
        "flow_cnn.": ("flow_cnn_rate", config.flow_cnn_rate),
    }
    groups = defaultdict(list)
    seen = set()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            key, factor = next((factors[prefix] for prefix in factors if name.startswith(prefix)), ("rate", 1.0))
            seen.add(key)
            groups[factor, config.weight_decay if parameter.ndim > 1 else 0.0].append(parameter)
    for key, factor in factors.values():
        if factor != 1 and key not in seen:
            raise ValueError(f"optimiser.{key} is {factor}, but no such part of the network is trained: leave it out")
    return [{"params": params, "factor": factor, "weight_decay": decay} for (factor, decay), params in groups.items()]


def train_step(state: TrainingState, batch: Batch) -> float:
    """Take one step of the optimiser.

    Returns:
        The loss before the step.
    """
    config = state.config
    # Dropout draws from this. Set anew at each step, it needs no place in the checkpoint.
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    torch.manual_seed(int(np.random.SeedSequence((config.seed, 2, state.step, rank)).generate_state(1)[0]))
    for group in state.optimiser.param_groups:
        group["lr"] = group["factor"] * learning_rate(state.step, config.optimiser)
    loss = state.loss(*(part.to(config.device, non_blocking=True) for part in batch))
    state.optimiser.zero_grad()
    state.scaler.scale(loss).backward()
    state.scaler.unscale_(state.optimiser)
    nn.utils.clip_grad_norm_(state.network.parameters(), config.optimiser.clip)
    state.scaler.step(state.optimiser)
    state.scaler.update()
    # A short average at first, so that the random start is soon forgotten.
    decay = min(config.optimiser.average, (1 + state.step) / (10 + state.step))
    update_average(state.average, state.network, decay)
    state.step += 1
    return mean_over_processes(loss.detach()).item()


def learning_rate(step: int, config: OptimiserConfig) -> float:
    """Linear rise, flat, and a fall that would reach zero one step after the last."""
    rise = (step + 1) / config.warm_up if step < config.warm_up else 1.0
    fall_from = config.decay_from * config.steps
    fall = (config.steps - step) / (config.steps - fall_from) if step > fall_from else 1.0
    return config.rate * min(rise, fall**config.power)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Make the average's weights and norm statistics ``decay * average + (1 - decay) * network``."""
    means, values = (
        [value for value in module.state_dict().values() if value.is_floating_point()] for module in (average, network)
    )
    torch._foreach_lerp_(means, values, 1 - decay)


def validate(model: Model, data: Sequence[Samples], config: TrainingConfig) -> float:
    """Return the mean IoU over labelled frames, in per cent, each led up to by as many frames as clips have.

    Args:
        model: Belongs to this function from then on.
        data: Data sets of the model's classes.
        config: The training.
    """
    classes = data[0].classes
    confusion = ConfusionMatrix(len(classes), classes.void)
    segmenter = Segmenter(model, flow=config.clip.flow, device=config.device, precision=config.precision)
    for samples in data:
        frames, stream = SampleFrames(samples, config.clip.length), segmenter.stream()
        for frame in frames:
            mask, label = stream.segment(frame.image, frame.stamp_ns).mask, frames.label(frame)
            if label is not None:
                confusion.update(mask, label)
    return confusion.miou()


def export(network: VideoCNN, spec: ModelSpec, path: Path) -> Path:
    """Write the weights that a network of the spec has; an auxiliary head that was for training alone is left out."""
    with torch.device("meta"):
        model = build(spec)
    weights = network.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()}, assign=True)
    return save_model(path, model, spec)
