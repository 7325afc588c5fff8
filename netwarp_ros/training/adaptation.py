# SPDX-License-Identifier: Apache-2.0
"""Training of NetWarp without labels, on drives that nobody annotated: what `netwarp adapt` does.

The host stays as it is. The blend weights and Λ learn the soft targets that the host itself gives (`Teacher`), and
that successive frames agree along the optical flow. Agreement alone has a trivial solution: a smear, which never
changes. So the first fifth of each run of frames is kept out of the training, and the network is compared there with
the targets, on static and on moving pixels. The state that agrees best with the targets is kept.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from netwarp_ros.classes import VOID
from netwarp_ros.engines import PRECISIONS
from netwarp_ros.engines.bfloat16 import cpu_computes_bfloat16
from netwarp_ros.engines.choice import torch_device
from netwarp_ros.metrics import ConfusionMatrix, TemporalConsistency
from netwarp_ros.models import Memory, Model, VideoCNN, class_scores, save_model
from netwarp_ros.models.float32 import full_float32
from netwarp_ros.models.weights import MODEL_MARK, stored_type
from netwarp_ros.recordings.atomic import refuse_foreign
from netwarp_ros.resources import Checked
from netwarp_ros.training.agreement import MOVING, Agreement, Guard
from netwarp_ros.training.losses import consistency_loss, lovasz_softmax, normalise
from netwarp_ros.training.soft_targets import Drive, Recording, Run, Teacher, read_runs

RATE = 0.02
"""Highest learning rate of the blend weights."""

FLOW_CNN_RATE = 0.001
"""That of Λ, which a rate for blend weights would ruin."""

BATCH = 2
"""Clips in a batch."""

LOVASZ = 1.0
"""Weight of the Lovász-softmax loss, relative to the divergence from the targets."""

CONSISTENCY = 1.0
"""Weight of the disagreement of successive frames, likewise."""

CHECKS = 10
"""How often the network is compared with the targets."""

LEAST_CHECKED = 3
"""Least number of frames of a run that are kept out of the training."""

ALL = 0.99
"""Trust from which on a whole pixel of the targets' grid is trusted."""

_RISE = 5
_FALL_FROM = 0.3
_MOST_GRADIENT = 5.0


@checked_dataclass(frozen=True)
class AdaptConfig(Checked):
    """Settings of an adaptation.

    Attributes:
        steps: Length of the training, in batches of `BATCH` clips.
        clip: Frames of a clip; the first one has no memory and does not count.
        frames: Most frames that are used; of more, evenly spaced sections.
        seed: Seed of every random choice.
        device: A torch device.
        precision: Type that autocast computes in; ``auto`` is bfloat16 where the device computes in it.
    """

    steps: Annotated[int, Field(ge=1, le=100_000)] = 100
    clip: Annotated[int, Field(ge=2, le=32)] = 5
    frames: Annotated[int, Field(ge=10, le=10_000)] = 500
    seed: Annotated[int, Field(ge=0)] = 0
    device: str = "cpu"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


@dataclass(frozen=True)
class AdaptReport:
    """The result of an adaptation.

    Attributes:
        trained: Number of frames that were trained on.
        checked: Number of frames that all comparisons are made on.
        labelled: How many of the frames that were trained on had a label map.
        host: The image CNN by itself.
        checks: The video CNN by number of steps; 0 is the model as it was given.
        kept: The number of steps whose state was saved.
        seconds: Duration of preparation and training.
    """

    trained: int
    checked: int
    labelled: int
    host: Agreement
    checks: dict[int, Agreement]
    kept: int
    seconds: float

    @property
    def adapted(self) -> Agreement:
        """The model that was saved."""
        return self.checks[self.kept]


def adapt(
    model: Model, recordings: Sequence[Recording], output: str | Path, config: AdaptConfig | None = None
) -> AdaptReport:
    """Train the NetWarp of a model on recordings without labels, and save the model.

    Labels are used where there are any. The given model stays as it is, and so do the weights of its host.

    Args:
        model: A video CNN; its NetWarp may be untrained.
        recordings: Drives of the cameras that the model is meant for.
        output: The ``.safetensors`` file to write.
        config: The settings.

    Raises:
        FileExistsError: The output is there already, and is no model.
        ValueError: The model has no NetWarp; the recordings are too short; or something in them, the device or the
            precision is not valid.
    """
    began, output, config = time.monotonic(), Path(output), config or AdaptConfig()
    check_adaptable(model, output)
    torch.manual_seed(config.seed)
    student = Student(model, config)
    runs = read_runs(recordings, model.spec, config.frames)
    parts = split(runs, config.clip)
    labelled = sum(label is not None for run in parts[0] for label in run.labels)
    trained, checked = make_targets(student.teacher(), parts)
    kind = f"with {labelled} label maps" if labelled else "without labels"
    frames = sum(len(drive.images) for drive in trained)
    notes = {**model.spec.notes, "netwarp": f"adapted {kind} to {frames} frames"}
    spec = replace(model.spec, notes=notes)

    guard = Guard(measure(student, checked, host_only=True))
    train(student, trained, checked, guard, config)
    output.parent.mkdir(parents=True, exist_ok=True)
    refuse_foreign(output, MODEL_MARK)  # something may have been put there in the meantime
    save_model(
        output, student.network.cpu(), spec, dtype=torch.float32 if model.file is None else stored_type(model.file)
    )
    return AdaptReport(
        trained=frames,
        checked=sum(len(drive.images) for drive in checked),
        labelled=labelled,
        host=guard.host,
        checks=guard.checks,
        kept=guard.kept,
        seconds=time.monotonic() - began,
    )


def check_adaptable(model: Model, output: Path) -> None:
    """Check the arguments of `adapt` before the work begins.

    Raises:
        FileExistsError: The output is there already, and is no model.
        ValueError: The model has no NetWarp, or the output has another ending than ``.safetensors``.
    """
    refuse_foreign(output, MODEL_MARK)
    if output.suffix != ".safetensors":
        raise ValueError(f"{output} does not end in .safetensors, the only format of models")
    if not model.network.layers:
        raise ValueError(
            f"{model.name} is an image CNN: insert NetWarp first, by `netwarp insert {model.file or model.name} -o "
            "MODEL.safetensors`"
        )


def split(runs: Sequence[Run], clip: int) -> tuple[list[Run], list[Run]]:
    """Split each run: its first fifth is kept out of the training. One that is too short is trained on as a whole.

    Args:
        runs: The runs. Those with fewer frames than a clip are left out.
        clip: Frames of a clip.

    Returns:
        What is trained on, and what is kept out.

    Raises:
        ValueError: If there is none that can be split.
    """
    trained, checked = [], []
    for run in runs:
        begin = max(LEAST_CHECKED, len(run) // 5)
        if len(run) - begin >= clip:
            checked.append(run.part(0, begin))
            trained.append(run.part(begin, len(run)))
        elif len(run) >= clip:
            trained.append(run)
    if not checked:
        raise ValueError(
            f"the longest run of frames without a gap has {max(map(len, runs))}: give one with {clip + LEAST_CHECKED} "
            f"or more, as clips have {clip} frames and {LEAST_CHECKED} frames are kept out of the training"
        )
    return trained, checked


def make_targets(teacher: Teacher, parts: Sequence[Sequence[Run]]) -> list[list[Drive]]:
    """Make the targets of runs in several parts, and show the progress."""
    with tqdm(total=sum(len(run) for runs in parts for run in runs), unit="frame") as progress:
        return [[teacher.prepare(run, progress.update) for run in runs] for runs in parts]


class Student:
    """The video CNN that is trained.

    Args:
        model: The model; its network is copied.
        config: Gives device and precision.

    Attributes:
        network: The copy. Its host is frozen, and in evaluation mode.
        spec: The model's spec.
        device: Where the network is.
        precision: Type that autocast computes in.

    Raises:
        ValueError: If the device is not available.
    """

    def __init__(self, model: Model, config: AdaptConfig) -> None:
        self.spec, self.device = model.spec, torch_device(config.device)
        network = copy.deepcopy(model.network).eval()
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(not name.startswith("host."))
        self.precision = _precision(config.precision, self.device)
        self._mean, self._std = (
            torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (model.spec.mean, model.spec.std)
        )

    def teacher(self) -> Teacher:
        """Return the teacher that its host is."""
        return Teacher(VideoCNN(self.network.host, {}), self.spec, self.device, self.precision)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return what is trained, by name."""
        return {name: value for name, value in self.network.named_parameters() if value.requires_grad}

    def scores(
        self, images: Tensor, flows: Tensor, memory: Memory | None, grid: tuple[int, int]
    ) -> tuple[Tensor, Memory]:
        """Run a frame of each clip of a batch.

        Args:
            images: ``(B, H, W, 3)`` uint8, BGR.
            flows: ``(B, 2, h', w')`` float32, flow to the frame before; not used without memory.
            memory: That of the frame before.
            grid: The grid ``(h, w)`` of the targets.

        Returns:
            The class scores ``(B, K, h, w)`` float32, and the memory for the next frame.
        """
        frames = normalise(images, self._mean, self._std)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            output, memory = self.network(frames, flows, memory)
        scores = class_scores(output).float()
        return F.interpolate(scores, size=grid, mode="bilinear", align_corners=False), memory


def _precision(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        name = "bfloat16" if device.type != "cpu" or cpu_computes_bfloat16() else "float32"
    return PRECISIONS[name]


def clip_loss(student: Student, clips: Drive) -> Tensor:
    """Return the loss of a batch of clips, averaged over all frames but the first.

    It is the divergence from the targets, the Lovász-softmax loss with their most probable classes as labels, and the
    squared difference to the probabilities of the frame before, along the motion as far as it is trusted.
    """
    images, flows, targets, _, motion, trust = clips
    grid = (targets.shape[-2], targets.shape[-1])
    memory: Memory | None = None
    previous = torch.empty(0)
    losses = []
    for t in range(images.shape[1]):
        scores, memory = student.scores(images[:, t], flows[:, t], memory, grid)
        probabilities = scores.softmax(1)
        if t:
            consistency = consistency_loss(probabilities, previous, motion[:, t], trust[:, t])
            losses.append(target_loss(scores, targets[:, t].float()) + CONSISTENCY * consistency)
        previous = probabilities
    return torch.stack(losses).mean()


def target_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of one frame of each clip, without consistency.

    Args:
        scores: ``(B, K, h, w)``.
        targets: ``(B, K, h, w)``, probabilities; all zero where a pixel is void, which does not count.
    """
    most, label = targets.max(1)
    label[most == 0] = VOID
    divergence = F.kl_div(scores.log_softmax(1), targets, reduction="sum") / (most > 0).sum().clamp(min=1)
    return divergence + LOVASZ * lovasz_softmax(scores, label)


@torch.no_grad()
def measure(student: Student, drives: Sequence[Drive], *, host_only: bool = False) -> Agreement:
    """Compare a network with the targets of drives, frame by frame as in a stream; first frames do not count.

    Args:
        student: The network.
        drives: The drives.
        host_only: Whether each frame is run without memory: then it is the host that is compared.
    """
    classes = student.spec.classes
    temporal = TemporalConsistency(len(classes))
    confusion = ConfusionMatrix(len(classes), VOID)
    wrong, counted = [0, 0], [0, 0]
    for drive in drives:
        memory: Memory | None = None
        previous = np.empty(0)
        for t in range(len(drive.images)):
            frame = Drive(*(values.to(student.device) for values in drive.part(t, t + 1)))
            grid = (frame.targets.shape[-2], frame.targets.shape[-1])
            scores, memory = student.scores(frame.images, frame.flows, None if host_only else memory, grid)
            mask = scores.argmax(1)
            present = mask[0].byte().cpu().numpy()
            if t:
                most, target = frame.targets.max(1)
                moves = 2 * torch.linalg.vector_norm(frame.motion, dim=1) > MOVING
                for index, where in enumerate(((most > 0) & ~moves, (most > 0) & moves)):
                    wrong[index] += int((where & (mask != target)).sum())
                    counted[index] += int(where.sum())
                flow = np.ascontiguousarray(drive.motion[t].permute(1, 2, 0).numpy())
                temporal.update(present, previous, flow, where=drive.trust[t, 0].numpy() > ALL)
                confusion.update(present, drive.labels[t].numpy())
            previous = present
    static, moving = (100 * part / whole if whole else math.nan for part, whole in zip(wrong, counted, strict=True))
    return Agreement(temporal.miou(), static, moving, confusion.miou())


@full_float32()
def train(
    student: Student, trained: Sequence[Drive], checked: Sequence[Drive], guard: Guard, config: AdaptConfig
) -> None:
    """Train until the steps are done or the guard stops it. The student is left in the best state.

    Args:
        student: The network.
        trained: The drives to train on.
        checked: The drives to compare on.
        guard: Decides which state is kept.
        config: The settings.
    """
    state = student.parameters()
    groups = [
        {"params": [value for name, value in state.items() if name.startswith(prefix)], "peak": rate}
        for prefix, rate in (("netwarps.", RATE), ("flow_cnn.", FLOW_CNN_RATE))
    ]
    optimiser = torch.optim.Adam([group for group in groups if group["params"]], lr=RATE)
    every = max(1, config.steps // CHECKS)
    guard.check(0, measure(student, checked), state)
    progress = tqdm(batches(trained, config), total=config.steps, unit="step")
    for step, clips in enumerate(progress, start=1):
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * _rate(step, config.steps)
        optimiser.zero_grad()
        loss = clip_loss(student, Drive(*(values.to(student.device) for values in clips)))
        loss.backward()
        nn.utils.clip_grad_norm_(state.values(), _MOST_GRADIENT)
        optimiser.step()
        if step % every == 0 or step == config.steps:
            agreement = measure(student, checked)
            progress.set_postfix_str(f"consistency {agreement.consistency:.1f}, wrong {agreement.disagreement:.2f} %")
            if not guard.check(step, agreement, state):
                break
    guard.restore(state)


def _rate(step: int, steps: int) -> float:
    """Return the fraction of the highest rate that a step has: it rises, stays, and falls to zero after the last."""
    return min(1.0, step / _RISE, (steps - step + 1) / ((1 - _FALL_FROM) * steps))


def batches(drives: Sequence[Drive], config: AdaptConfig) -> Iterator[Drive]:
    """Yield a batch of clips for each step.

    The clips of a batch are of one drive, as drives may have images of different sizes. Each clip comes once per epoch.
    """
    rng = np.random.default_rng(config.seed)
    left: list[tuple[Drive, np.ndarray]] = []
    for _ in range(config.steps):
        if not left:
            for drive in drives:
                order = rng.permutation(len(drive.images) - config.clip + 1)
                left += [(drive, order[begin : begin + BATCH]) for begin in range(0, len(order), BATCH)]
            rng.shuffle(left)
        drive, begins = left.pop()
        parts = [drive.part(begin, begin + config.clip) for begin in begins.tolist()]
        yield Drive(*(torch.stack(values) for values in zip(*parts, strict=True)))
