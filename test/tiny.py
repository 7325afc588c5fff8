# SPDX-License-Identifier: Apache-2.0
"""A host with a few hundred parameters. Run as a program, it trains that host in one of several processes.

    torchrun --nproc-per-node 2 test/tiny.py CONFIG.yaml

Each process writes its final weights beside the configuration: rank0.pt, rank1.pt.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TinyHost(nn.Module):
    """A host with a backbone and, on request, an auxiliary head; ``random`` adds batch norm and dropout."""

    def __init__(self, num_classes: int, *, auxiliary: bool = False, random: bool = True) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(8) if random else nn.Identity()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), norm, nn.ReLU())
        self.features = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Dropout2d(0.1 if random else 0.0))
        self.classifier = nn.Conv2d(8, num_classes, 1)
        self.auxiliary = nn.Conv2d(8, num_classes, 1) if auxiliary else None

    def forward(self, frame: Tensor, *, auxiliary: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        early = self.backbone(frame)
        logits = self.classifier(F.relu(self.features(early)))
        if auxiliary:
            assert self.auxiliary is not None
            return logits, self.auxiliary(early)
        return logits


HOSTS = {"tiny": TinyHost, "tiny-plain": partial(TinyHost, random=False)}


def main(config: Path) -> None:
    from netwarp_ros.cli.app import app
    from netwarp_ros.models import hosts
    from netwarp_ros.training import trainer as training

    hosts.HOSTS.update(HOSTS)
    step, states = training.train_step, []

    def train_step(state: training.TrainingState, batch: training.Batch) -> float:
        states.append(state)
        return step(state, batch)

    training.train_step = train_step
    app(["train", str(config)], standalone_mode=False)
    torch.save(states[-1].network.state_dict(), config.with_name(f"rank{os.environ['RANK']}.pt"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
