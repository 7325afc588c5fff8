# SPDX-License-Identifier: Apache-2.0
"""Training of NetWarp behind a trained image CNN, on clips of adjacent frames (paper, Sec. 3.2).

The video CNN starts equal to its host. Here the host stays as it is, so what improves is due to NetWarp alone: the
combination weights w1 and w2 of each layer, and the FlowCNN. Clips are stills set in motion and drives down the
synthetic street, and the flow is the one that the segmenter will use, with its errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from netwarp_ros.data.camvid import NUM_CLASSES, VOID, CamVid, Sample
from netwarp_ros.data.motion import Clip, Motion
from netwarp_ros.flow import DisFlow
from netwarp_ros.losses import class_weights, lovasz_softmax
from netwarp_ros.models import ModelSpec, NetWarpSpec, VideoCNN, augment, load_model, save_model
from netwarp_ros.training import STREET_SEED, learning_rate, normalise
from netwarp_ros.training_config import LossConfig, VideoTrainingConfig


def train_netwarp(config: VideoTrainingConfig) -> Path:
    """Train NetWarp behind a host that stays as it is.

    Returns:
        ``video.safetensors`` in the output folder.
    """
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    host = load_model(config.netwarp.host)
    insertion = NetWarpSpec(
        config.netwarp.layers, config.netwarp.flow_cnn, config.netwarp.flow_grid, config.netwarp.remember
    )
    network = insert(host.network, insertion).to(config.device)
    stills = list(CamVid(config.data.camvid))
    weights = class_weights((still.label for still in stills), NUM_CLASSES, config.loss.class_balance)
    weights = weights.to(config.device)
    clips = Clips(stills, street_clips(config) if config.data.street_per_batch else [], config)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=config.optimiser.rate)

    loader = DataLoader(clips, batch_size=config.optimiser.batch, num_workers=config.workers)
    progress = tqdm(loader, unit="step")
    for step, (images, labels, flows) in enumerate(progress):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, config.optimiser)
        images, labels, flows = images.to(config.device), labels.to(config.device), flows.to(config.device)
        with torch.autocast(config.device, torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss = clip_loss(network, images, labels, flows, weights, config.loss)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.optimiser.clip)
        optimiser.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return export(network, host.spec, insertion, output / "video.safetensors")


def insert(host: VideoCNN, insertion: NetWarpSpec) -> VideoCNN:
    """Insert NetWarp into the frozen host of a loaded image CNN."""
    network = augment(
        host.host.requires_grad_(False).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        insertion.layers,
        flow_cnn=insertion.flow_cnn,
        flow_grid=insertion.flow_grid,  # type: ignore[arg-type]
        remember=insertion.remember,  # type: ignore[arg-type]
    )
    return network.eval()


def clip_loss(
    network: VideoCNN, images: Tensor, labels: Tensor, flows: Tensor, weights: Tensor, config: LossConfig
) -> Tensor:
    """Run a batch of clips, with the gradient through the memory, and return the mean loss of all frames but the first.

    Args:
        network: The video CNN.
        images: (B, T, H, W, 3) uint8, BGR.
        labels: (B, T, H, W) uint8.
        flows: (B, T, 2, H, W) float32, from each frame to the one before.
        weights: (K,) class weights.
        config: Weights of the sum.
    """
    memory, losses = None, []
    for t in range(images.shape[1]):
        logits, memory = network(normalise(images[:, t]), flows[:, t], memory)
        if t == 0:
            continue
        full = F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
        losses.append(F.cross_entropy(full, labels[:, t].long(), weights, ignore_index=VOID))
        if config.lovasz > 0:
            losses[-1] = losses[-1] + config.lovasz * lovasz_softmax(full[..., ::2, ::2], labels[:, t, ::2, ::2])
    return torch.stack(losses).mean()


class Clips(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Clip number ``index`` of a training, a function of the seed and the index alone."""

    def __init__(self, stills: Sequence[Sample], street: Sequence[Clip], config: VideoTrainingConfig) -> None:
        self.stills, self.street, self.config = stills, street, config
        height, width = stills[0].label.shape
        self.motion = Motion(config.netwarp.clip_length, height, width)
        self.flow = config.netwarp.flow_preset

    def __len__(self) -> int:
        return self.config.optimiser.steps * self.config.optimiser.batch

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((self.config.seed, index))
        place = index % self.config.optimiser.batch
        if place < self.config.data.street_per_batch:
            clip = self.street[int(rng.integers(len(self.street)))]
        else:
            still = self.stills[int(rng.integers(len(self.stills)))]
            clip = self.motion(still.image, still.label, rng, void=VOID)
        return torch.from_numpy(clip.images), torch.from_numpy(clip.labels), torch.from_numpy(flows(clip, self.flow))


def flows(clip: Clip, preset: str) -> np.ndarray:
    """Return the DIS flow of each frame of a clip to the one before, ``(T, 2, H, W)`` float32; zero for the first."""
    dis = DisFlow(preset)
    greys = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in clip.images]
    fields: list[np.ndarray] = []
    for previous, present in pairwise(greys):
        fields.append(dis(present, previous, start=fields[-1] if fields else None))
    return np.ascontiguousarray(np.stack([np.zeros_like(fields[0]), *fields]).transpose(0, 3, 1, 2))


def street_clips(config: VideoTrainingConfig) -> list[Clip]:
    """Clips of the synthetic street, spread over several streets."""
    from netwarp_ros.data.street import Street

    clips = []
    for seed in range(STREET_SEED, STREET_SEED + config.data.street_seeds):
        street = Street(seed=seed)
        for start in range(0, 40 * config.data.street_frames, 40):
            frames = [street.frame(start + t) for t in range(config.netwarp.clip_length)]
            clips.append(Clip(np.stack([f.image for f in frames]), np.stack([f.label for f in frames])))
    return clips


def export(network: VideoCNN, host: ModelSpec, insertion: NetWarpSpec, path: Path) -> Path:
    """Write the video CNN, its host included."""
    spec = ModelSpec(host.host, host.classes, host.host_arguments, insertion, host.mean, host.std, host.input_height)
    return save_model(path, network, spec)
