# SPDX-License-Identifier: Apache-2.0
"""Train the rival ``vpn`` on the frames of a labelled video: ``python studies/vpn.py FOLDER --frames 50``.

FOLDER holds images/ and labels/ of adjacent frames at the size that the model sees. The host stays as it is. The result
is a file for ``netwarp_ros/rivals/vpn.safetensors``.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, NamedTuple

import cv2
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from netwarp_ros.engines import Engine
from netwarp_ros.models import Memory
from netwarp_ros.recordings.image_files import LabelFolder
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.rivals.vpn import FRAMES, Propagation, Vpn
from netwarp_ros.segmenter import Segmenter
from netwarp_ros.training.losses import lovasz_softmax

CLIP = FRAMES + 3
"""Frames of a clip. Its first frame has no memory and is not learnt from."""


class Seen(NamedTuple):
    """A frame, what the host says of it, the flow to the frame before it, and its labels."""

    frame: Tensor
    scores: Tensor
    flow: Tensor
    label: Tensor


class Replay(Engine):
    """Returns the scores that a host gave, whatever the frame.

    Args:
        engine: The engine that ran the host.
    """

    def __init__(self, engine: Engine) -> None:
        self.name, self.precision = engine.name, engine.precision
        self.device, self.normalisation = torch.device("cpu"), engine.normalisation
        self.scores = torch.empty(0)

    def __call__(self, frame: Tensor, flow: object = None, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        return self.scores, Memory(tuple(frame.shape), {}, {})


def see(folder: Path, segmenter: Segmenter, count: int) -> list[Seen]:
    """Run the host and the flow on the first frames of a video."""
    labels = LabelFolder(folder / "labels", segmenter.classes)
    seen, previous = [], None
    for frame in islice(open_frames(folder / "images"), count):
        image = segmenter.frames.frame(frame.image)
        grey, label = segmenter.grey(image), labels(frame)
        if label is None or label.shape != image.shape[:2]:
            raise ValueError(f"{frame.name}: give a label map of {image.shape[1]}x{image.shape[0]} pixels")
        pixels = torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)).permute(2, 0, 1).unsqueeze(0)
        flow = segmenter.flow(grey, grey if previous is None else previous)
        scores = segmenter.engine(pixels)[0].float().cpu().clone()
        seen.append(Seen(pixels, scores, torch.from_numpy(flow).permute(2, 0, 1).unsqueeze(0), torch.from_numpy(label)))
        previous = grey
    return seen


def _on_grid(label: Tensor, scores: Tensor) -> Tensor:
    """Return the labels of the pixels in the middle of the cells of the scores' grid, ``(1, h, w)``."""
    size = (scores.shape[2], scores.shape[3])
    return F.interpolate(label[None, None].float(), size, mode="nearest-exact")[0].to(torch.uint8)


def main(
    folder: Annotated[Path, typer.Argument(help="Folder with images/ and labels/.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o")] = Path("vpn.safetensors"),
    model: Annotated[str, typer.Option("--model")] = "swiftnet-lite0-camvid",
    frames: Annotated[int, typer.Option("--frames", help="Train on the first N frames.")] = 50,
    epochs: Annotated[int, typer.Option("--epochs")] = 4,
    rate: Annotated[float, typer.Option("--rate")] = 0.02,
) -> None:
    """Train on clips in random order, by cross-entropy and Lovász-softmax."""
    torch.manual_seed(0)
    segmenter = Segmenter(model, host_only=True)
    seen, classes = see(folder, segmenter, frames), len(segmenter.classes)
    propagation, host = Propagation(classes), Replay(segmenter.engine)
    rival = Vpn(host, "vpn", propagation)
    optimiser = torch.optim.Adam(propagation.parameters(), rate)
    starts = torch.arange(0, len(seen) - CLIP + 1)
    steps = epochs * len(seen) // CLIP
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        begin = int(starts[torch.randint(len(starts), ())])
        memory, losses = None, []
        for number, one in enumerate(seen[begin : begin + CLIP]):
            host.scores = one.scores
            scores, memory = rival(one.frame, one.flow, memory)
            memory = memory.detach()
            if number:
                label = _on_grid(one.label, scores)
                void = label >= classes
                entropy = F.cross_entropy(scores, label.long().masked_fill(void, -100), ignore_index=-100)
                loss = (entropy + lovasz_softmax(scores, label)) / (CLIP - 1)
                loss.backward()
                losses.append(loss.item())
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        print(f"step {step + 1} of {steps}, loss {sum(losses):.3f}", flush=True)
    for name, values in propagation.state_dict().items():
        print(name, values.tolist())
    save_file(propagation.state_dict(), output, {"made by": f"studies/vpn.py, {model}, first {frames} frames"})


if __name__ == "__main__":
    typer.run(main)
