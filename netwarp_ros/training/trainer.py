# SPDX-License-Identifier: Apache-2.0
"""Training of image CNNs and video CNNs.

An image CNN is trained as a `VideoCNN` without insertions, on clips of one frame. The paper trains NetWarp on clips of
two frames (Sec. 3.2): the same network runs on both, and the gradient goes back through both. Clips can be longer.
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
from netwarp_ros.models.checkpoints import load_checkpoint
from netwarp_ros.models.float32 import full_float32
from netwarp_ros.models.hosts import HOSTS
from netwarp_ros.models.netwarp import NetWarp
from netwarp_ros.models.others.onnx_host import refuse_onnx
from netwarp_ros.recordings.atomic import replacing
from netwarp_ros.resources import cut
from netwarp_ros.segmenter import Segmenter
from netwarp_ros.training.config import OptimiserConfig, TrainingConfig, difference
from netwarp_ros.training.data import Batch, Batches, class_pixels, data_loader, open_sources
from netwarp_ros.training.losses import ClipLoss, class_weights, mean_over_processes

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def train(config: TrainingConfig) -> Path:
    """Train a model. If the output folder has a ``checkpoint.pt``, resume from it.

    With torchrun, every process calls this function. The processes share each batch; the first one writes the output
    folder.

    Returns:
        Path of ``model.safetensors`` in the output folder: the averaged weights without auxiliary head, for
        `netwarp_ros.models.load_model`.

    Raises:
        FileExistsError: The output folder has a ``model.safetensors``, but no ``checkpoint.pt``.
        FileNotFoundError: A file or folder of the data is missing.
        ValueError: The data are not valid, the configuration does not fit the model, or the checkpoint belongs to
            another configuration.
    """
    output = Path(config.output)
    checkpoint, weights_file = output / "checkpoint.pt", output / "model.safetensors"
    if weights_file.exists() and not checkpoint.exists():
        raise FileExistsError(
            f"{weights_file} exists already, without the checkpoint of its training: remove it, or "
            "give another output folder"
        )
    with contextlib.ExitStack() as stack:
        rank, world = stack.enter_context(process_group(config))
        datasets = open_sources(config.data, config.augment, with_motion=config.loss.consistency > 0)
        validation = open_sources(config.validation, config.augment)
        batches = Batches(datasets, config, rank=rank, world=world)
        torch.manual_seed(config.seed)
        network, spec = build_network(config, batches.classes, datasets[0][0].image.shape[0])
        pixels = class_pixels(datasets, config.data) if config.loss.class_balance else np.ones(len(batches.classes))
        state = TrainingState(network, spec, class_weights(pixels, config.loss.class_balance), config)
        stack.callback(state.leave_group)
        if checkpoint.exists():
            state.load(checkpoint)
        output.mkdir(parents=True, exist_ok=True)
        scalars = stack.enter_context(_open_scalars(output, state.step)) if rank == 0 else None

        remaining = data_loader(batches, start=state.step)
        progress = tqdm(remaining, initial=state.step, total=len(batches), unit="step", disable=rank > 0)
        for batch in progress:
            loss = train_step(state, batch)
            if scalars is None:  # only the first process writes
                continue
            progress.set_postfix(loss=f"{loss:.3f}", refresh=False)
            scalars.add_scalar("loss", loss, state.step)
            scalars.add_scalar("rate", learning_rate(state.step - 1, config.optimiser), state.step)
            last = state.step == len(batches)
            if last or state.step % config.checkpoint_every == 0:
                state.save(checkpoint)
            if validation and (last or state.step % config.evaluate_every == 0):
                miou = validate(Model(state.average, spec, "average"), validation, config)
                scalars.add_scalar("miou", miou, state.step)
                progress.write(f"step {state.step}: mIoU {miou:.2f}")
        if rank == 0:
            export(state.average, spec, weights_file)
    return weights_file


@contextlib.contextmanager
def process_group(config: TrainingConfig) -> Iterator[tuple[int, int]]:
    """Join the process group of the training if torchrun started several processes.

    Yields:
        Rank of this process, and number of processes.

    Raises:
        ValueError: There are fewer CUDA devices, or fewer clips in a batch, than processes.
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


def _open_scalars(output: Path, step: int) -> SummaryWriter:
    """Open the folder for TensorBoard. Scalars in it from this step on are discarded."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("training needs tensorboard, which is not installed here: pip install tensorboard") from error
    return SummaryWriter(str(output), purge_step=step)


def build_network(config: TrainingConfig, classes: ClassSet, input_height: int) -> tuple[VideoCNN, ModelSpec]:
    """Build the network to train.

    Args:
        config: The training.
        classes: Class set of the data.
        input_height: Height of the images in pixels.

    Returns:
        The network, with an auxiliary head if the training uses one, and the spec of the network without that head.

    Raises:
        ValueError: Host, initial model, layers or classes do not fit together, or there is nothing to train.
    """
    model = config.model
    initial = load_model(model.initial) if model.initial else None
    if initial:
        refuse_onnx(initial.spec, f"model.initial {model.initial}", "it cannot be trained")
        spec = dataclasses.replace(initial.spec, input_height=input_height, notes={})
        classes.check_names(spec.classes, f"model.initial {model.initial}")
        if spec.netwarp and model.netwarp and model.netwarp != dataclasses.replace(spec.netwarp, blend="gated"):
            raise ValueError(
                f"model.initial {model.initial} already has NetWarp behind {', '.join(spec.netwarp.layers)}: leave "
                "model.netwarp out to train it, give the same with blend: gated to add a gate, or start from its image "
                "CNN"
            )
    else:
        spec = ModelSpec(str(model.host), classes, {"num_classes": len(classes)}, input_height=input_height)
    if model.netwarp:
        spec = dataclasses.replace(spec, netwarp=model.netwarp)
    crop = (config.augment.height, config.augment.width)
    if spec.input_size.padded(crop) != crop:
        raise ValueError(f"augment is {crop[1]}x{crop[0]}, and the network takes {spec.input_size}: give such a size")
    if spec.netwarp and config.clip.length == 1:
        raise ValueError("clip.length is 1, but the model has NetWarp, which needs a previous frame: give at least 2")
    if not spec.netwarp and not model.train_host:
        raise ValueError("model.train_host is false and the model has no NetWarp: there is nothing to train")

    trained = spec
    if model.train_host and config.loss.auxiliary > 0 and _can_have_auxiliary(spec.host):
        trained = dataclasses.replace(spec, host_arguments={**spec.host_arguments, "auxiliary": True})
    network = build(trained)
    if initial:
        network.load_state_dict(initial.network.state_dict(), strict=False)  # NetWarp, gate and auxiliary head are new
    network.host.requires_grad_(model.train_host)
    return network, spec


def _can_have_auxiliary(host: str) -> bool:
    return host in HOSTS and "auxiliary" in inspect.signature(HOSTS[host]).parameters


class TrainingState:
    """What a checkpoint stores: the network, its moving average, the optimiser, and the number of steps done.

    Args:
        network: The network to train; it is moved to the device.
        spec: Gives the mean and standard deviation that frames are normalised with.
        weights: (K,) class weights.
        config: The training.
    """

    def __init__(self, network: VideoCNN, spec: ModelSpec, weights: Tensor, config: TrainingConfig) -> None:
        self.config = config
        self.network = network.to(config.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        if distributed.is_initialized() and config.device == "cuda" and config.model.train_host:
            nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
            self.network.insert()  # the new modules have a forward of their own
        self.loss: nn.Module = ClipLoss(self.network, spec, weights, config).to(config.device).train()
        if distributed.is_initialized():
            self.loss = DistributedDataParallel(self.loss)
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimiser.kind]
        self.optimiser = kind(parameter_groups(self.network, config.optimiser), lr=config.optimiser.rate, fused=True)
        self.scaler = torch.amp.GradScaler(config.device, enabled=config.precision == "float16")
        self.step = 0

    def leave_group(self) -> None:
        """Free what PyTorch shares gradients with, before the process group is destroyed.

        If it were the last to hold the group, it would join the group's thread with Python locked, and that thread may
        wait for Python: neither would ever end.
        """
        self.loss = nn.Identity()

    def save(self, path: Path) -> None:
        """Write a checkpoint. It is renamed into place, so that the file is always complete."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        with replacing(path) as temporary:
            torch.save({**parts, "step": self.step, "config": dataclasses.asdict(self.config)}, temporary)

    def load(self, path: Path) -> None:
        """Resume from a checkpoint.

        Raises:
            ValueError: It is damaged, or belongs to another configuration; see
                `netwarp_ros.training.config.FREE_KEYS`.
        """
        stored = load_checkpoint(path, {*self._parts(), "step", "config"})
        if text := difference(stored["config"], dataclasses.asdict(self.config)):
            raise ValueError(
                f"{path} belongs to another training: {text}. Give another output folder, or remove the checkpoint"
            )
        try:
            for name, part in self._parts().items():
                part.load_state_dict(stored[name])
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path} does not fit the network ({cut(str(error))}). To start anew, remove the checkpoint"
            ) from error
        self.step = stored["step"]

    def _parts(self) -> dict[str, Any]:
        return {"network": self.network, "average": self.average, "optimiser": self.optimiser, "scaler": self.scaler}


def parameter_groups(network: VideoCNN, config: OptimiserConfig) -> list[dict[str, Any]]:
    """Group the trained parameters by weight decay and by factor on the learning rate.

    Raises:
        ValueError: A factor is given for a part that the network does not have, or that is not trained.
    """
    factors = {
        "host.backbone.": ("backbone_rate", config.backbone_rate),
        "netwarps.": ("netwarp_rate", config.netwarp_rate),
        "flow_cnn.": ("flow_cnn_rate", config.flow_cnn_rate),
        "gate.": ("gate_rate", config.gate_rate),
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
            raise ValueError(f"optimiser.{key} is {factor}, but the network has no such part to train: leave it out")
    return [{"params": params, "factor": factor, "weight_decay": decay} for (factor, decay), params in groups.items()]


@full_float32()
def train_step(state: TrainingState, batch: Batch) -> float:
    """Do one step of the optimiser, without TensorFloat-32: what autocast leaves in float32, such as Λ, needs float32.

    Returns:
        The loss before the step.
    """
    config = state.config
    # For dropout. The seed is set at each step, so that checkpoints need not store the state of the generator.
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    torch.manual_seed(int(np.random.SeedSequence((config.seed, 2, state.step, rank)).generate_state(1)[0]))
    for group in state.optimiser.param_groups:
        group["lr"] = group["factor"] * learning_rate(state.step, config.optimiser)
    loss = state.loss(*(part.to(config.device, non_blocking=True) for part in batch))
    state.optimiser.zero_grad()
    state.scaler.scale(loss).backward()
    state.scaler.unscale_(state.optimiser)
    if config.optimiser.clip:
        nn.utils.clip_grad_norm_(state.network.parameters(), config.optimiser.clip)
    state.scaler.step(state.optimiser)
    state.scaler.update()
    limit_memory(state.network, config.clip.length)
    # A small decay at first, so that the average soon forgets the random weights of the start.
    decay = min(config.optimiser.average, (1 + state.step) / (10 + state.step))
    update_average(state.average, state.network, decay)
    state.step += 1
    return mean_over_processes(loss.detach()).item()


def learning_rate(step: int, config: OptimiserConfig) -> float:
    """Return the learning rate of a step. It rises linearly, stays constant, and falls.

    It would reach zero one step after the last.
    """
    rise = (step + 1) / config.warm_up if step < config.warm_up else 1.0
    fall_from = config.decay_from * config.steps
    fall = (config.steps - step) / (config.steps - fall_from) if step > fall_from else 1.0
    return config.rate * min(rise, fall**config.power)


@torch.no_grad()
def limit_memory(network: VideoCNN, frames: int) -> None:
    """Limit w2 to ±(1 - 1 / frames), so that a memory does not outlast the clips that it is trained on.

    A memory that holds the blend is a sum over about 1 / (1 - w2) frames: while z_t stays the same, as in front of a
    red light, the blend approaches w1 / (1 - w2) times z_t. Clips of fewer frames do not see where that leads, and a
    consistency loss asks for more and more of it.

    Args:
        network: The network. If it remembers z_t from before the blend, nothing is summed up, and nothing limited.
        frames: Length of the clips, at least 2.
    """
    most = 1 - 1 / frames
    for netwarp in network.netwarps:
        if network.remember == "after" and isinstance(netwarp, NetWarp):
            netwarp.w2.clamp_(-most, most)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Set the average's weights and norm statistics to ``decay * average + (1 - decay) * network``."""
    means, values = (
        [value for value in module.state_dict().values() if value.is_floating_point()] for module in (average, network)
    )
    torch._foreach_lerp_(means, values, 1 - decay)


def validate(model: Model, data: Sequence[Samples], config: TrainingConfig) -> float:
    """Return the mean IoU over the labelled frames, in per cent.

    The memory is reset before each clip of ``config.clip.length`` frames; its last frame is the labelled one.

    Args:
        model: The model.
        data: Data sets with the model's classes.
        config: The training.
    """
    classes = data[0].classes
    confusion = ConfusionMatrix(len(classes), classes.void)
    # Another engine would compile the network each time that it is scored.
    segmenter = Segmenter(
        model, engine="torch", flow=config.clip.flow, device=config.device, precision=config.precision
    )
    for samples in data:
        frames, stream = SampleFrames(samples, config.clip.length), segmenter.stream()
        for frame in frames:
            mask, label = stream.segment(frame.image, frame.stamp_ns).mask, frames.label(frame)
            if label is not None:
                confusion.update(mask, label)
    return confusion.miou()


def export(network: VideoCNN, spec: ModelSpec, path: Path) -> Path:
    """Write the weights that a network of this spec has; an auxiliary head used only for training is left out."""
    model = build(spec)
    weights = network.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()}, assign=True)
    return save_model(path, model, spec)
