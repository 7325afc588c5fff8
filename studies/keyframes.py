# SPDX-License-Identifier: Apache-2.0
"""Speed over mIoU of frames that skip the network, or a part of it, by several schedules; a table and a plot.

``python studies/keyframes.py IMAGES LABELS -o FOLDER [--model NAME]``. On the frames between two key frames:

* moved scores: those of the key frame, along the flow (`netwarp_ros.segmenter.KeyFrames`), fixed and adaptive;
* stale scores: the scores of the key frame as they are;
* moved features: the map of a layer is moved along the flow, and only what lies behind the layer runs;
* clockwork (Shelhamer et al., "Clockwork Convnets for Video Semantic Segmentation", ECCV 2016 workshops): the map of a
  deep layer is used as it is, with fresh shallow maps, at a fixed rate; or adaptive: the shallow stage runs first, and
  the rest follows if more than a share of the pixels gets another class than in the key frame.

Times are the lower quartiles of key frames and of the others, in turns with the host, weighted by how many there are:
on a machine with other load they are steadier than means.
"""

from __future__ import annotations

if __name__ == "__main__":
    from netwarp_ros.environment import configure_libraries

    configure_libraries()

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter

import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

from netwarp_ros.engines.graph_engine import GraphEngine
from netwarp_ros.engines.graphs import FrameGraph, to_pixels, to_planes
from netwarp_ros.metrics import ConfusionMatrix
from netwarp_ros.models import DEFAULT_MODEL, Memory
from netwarp_ros.models.outputs import class_scores
from netwarp_ros.models.video_cnn import find_layer
from netwarp_ros.recordings.image_files import read_samples
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.segmenter import KeyFrames, Segmenter
from netwarp_ros.segmenter.keyframes import accumulate, move
from netwarp_ros.segmenter.masks import classify

HELD_OUT = 20
"""The last frames, which the shipped weights were not trained on."""


class BehindLayer(FrameGraph):
    """The part of a host that lies behind a layer: frame and the layer's map → scores.

    The rest of the host is traced too, but nothing reads it, so that compilers leave it out.
    """

    def __init__(self, segmenter: Segmenter, layer: str) -> None:
        super().__init__(segmenter.network, segmenter.engine.normalisation)
        self.layer = layer

    def forward(self, frame: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        layer = find_layer(self.network.host, self.layer)
        insertion = layer.forward
        layer.forward = lambda *_inputs: to_planes(features)
        try:
            return to_pixels(class_scores(self.network.host(self.normalisation(to_planes(frame)))))
        finally:
            layer.forward = insertion


Segment = Callable[[np.ndarray, int], tuple[np.ndarray, bool]]
"""Takes an image and its index, and returns its mask and whether it was a key frame."""


def by_stream(segmenter: Segmenter) -> Segment:
    """Segment as the package does."""
    stream = segmenter.stream()

    def segment(image: np.ndarray, index: int) -> tuple[np.ndarray, bool]:
        result = stream.segment(image, index)
        return result.mask, result.is_key

    return segment


class Reuse:
    """Segment with a layer's map, or the scores, of the latest key frame.

    Args:
        segmenter: The model.
        every: Frames from one key frame to the next at the latest.
        layer: The layer; empty for the scores.
        moved: Whether its map is moved along the flow.
        behind: Runs what lies behind the layer.
        most_changed: Share of the pixels whose class may change before the whole network runs.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        every: int,
        layer: str = "",
        *,
        moved: bool = False,
        behind: Callable[..., Sequence[Tensor]] | None = None,
        most_changed: float = 1.0,
    ) -> None:
        self.segmenter, self.every, self.layer, self.moved, self.behind = segmenter, every, layer, moved, behind
        self.most_changed = most_changed
        self.memory: Memory | None = None
        self.since = 0
        self.scores, self.mask, self.grey = torch.empty(0), np.empty(0), np.empty(0)
        self.step: np.ndarray | None = None  # flow to the previous frame
        self.flow: np.ndarray | None = None  # to the key frame

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, index: int) -> tuple[np.ndarray, bool]:
        size, grey = (image.shape[0], image.shape[1]), self.segmenter.grey(image)
        if index > 0:  # NetWarp needs the flow on key frames, whatever is moved meanwhile
            estimator = self.segmenter.flow
            self.step = estimator(grey, self.grey, start=self.step)  # type: ignore[call-arg]
            assert self.step is not None
            self.flow = accumulate(self.step, self.flow)
        else:
            self.memory, self.step, self.flow = None, None, None
        self.grey = grey
        self.since += 1
        is_key = self.memory is None or self.since >= self.every
        if not is_key:
            assert self.memory is not None and self.flow is not None
            kept = self.memory.representations[self.layer] if self.layer else self.scores
            used = move(kept, self.flow) if self.moved else kept
            if self.behind is not None:
                frame = torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))[None]
                used = to_planes(self.behind(frame, *to_pixels(used))[0])
            mask = classify(used, size, None)[0]
            is_key = (mask != self.mask).mean() > self.most_changed
        if is_key:
            along = None if self.flow is None else partial(np.asarray, self.flow)
            self.scores, kept_memory = self.segmenter.infer(self.segmenter.upload(image), along, self.memory)
            assert isinstance(kept_memory, Memory)
            self.memory, self.since, self.flow = kept_memory, 0, None
            mask = self.mask = classify(self.scores, size, None)[0]
        return mask, bool(is_key)


@dataclass
class Curve:
    """The results of one schedule.

    Attributes:
        name: Its name.
        points: Parameter, key frames, mIoU on the first, the last and all frames, and ms of key frames and others.
    """

    name: str
    points: list[tuple[str, int, tuple[float, float, float], tuple[float, float]]] = field(default_factory=list)


def main() -> None:
    """Score and time all schedules."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--layer", default="up8")
    arguments = parser.parse_args()
    images = [frame.image for frame in open_frames(arguments.images)]
    labels = [read_samples(path) for path in sorted(arguments.labels.iterdir())]
    how = {"model": arguments.model, "precision": arguments.precision}
    host, fresh = Segmenter(host_only=True, **how), Segmenter(**how)
    fine = Segmenter(keyframes="2", **how)
    for one in (host, fresh, fine):
        one.warm_up(*images[0].shape[1::-1])
    behind = compile_behind(fine, arguments.layer, images[0])

    def with_keyframes(keyframes: KeyFrames) -> Segment:
        fine.keyframes = keyframes  # read at each frame
        return by_stream(fine)

    def reuse(every: int, layer: str = "", **options: object) -> Segment:
        return Reuse(fine, every, layer, behind=behind if layer else None, **options)  # type: ignore[arg-type]

    layer, steps = arguments.layer, (2, 3, 4, 6, 8)
    schedules: dict[str, dict[str, Callable[[], Segment]]] = {
        "host": {"": lambda: by_stream(host)},
        "NetWarp on every frame": {"": lambda: by_stream(fresh)},
        "moved scores, fixed": {str(n): partial(with_keyframes, KeyFrames(str(n))) for n in steps},
        "moved scores, adaptive": {
            str(s): partial(with_keyframes, KeyFrames("adaptive", most_unseen=s, bound=6))
            for s in (0.025, 0.03, 0.035, 0.04)
        },
        "stale scores": {str(n): partial(reuse, n) for n in steps[:3]},
        f"moved {layer}": {str(n): partial(reuse, n, layer, moved=True) for n in steps[1:]},
        f"clockwork {layer}, fixed": {str(n): partial(reuse, n, layer) for n in steps[:4]},
        f"clockwork {layer}, adaptive": {
            str(s): partial(reuse, 100, layer, most_changed=s) for s in (0.03, 0.04, 0.05)
        },
    }
    curves, baseline = [], 0.0
    print("| schedule | | key frames | mIoU first 50 | last 20 | all | key ms | other ms | mean ms | × host |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, variants in schedules.items():
        curve = Curve(name)
        curves.append(curve)
        for text, make in variants.items():
            keys, scores, times = score(make(), host, images, labels)
            (key_ms, other_ms), host_ms = times[:2], times[2]
            mean = (keys * key_ms + (len(images) - keys) * other_ms) / len(images)
            baseline = mean if name == "host" else baseline
            ratio = host_ms / mean
            curve.points.append((text, keys, scores, (ratio, mean)))
            cells = [f"{value:.2f}" for value in (*scores, key_ms, other_ms, mean, ratio)]
            print(f"| {name} | {text} | {keys} | {' | '.join(cells)} |", flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    draw(curves, arguments.output / "keyframes.png")


def compile_behind(segmenter: Segmenter, layer: str, image: np.ndarray) -> Callable[..., Sequence[Tensor]]:
    """Compile what lies behind a layer, for frames of an image's size."""
    engine = segmenter.engine
    assert isinstance(engine, GraphEngine)
    _, memory = segmenter.infer(segmenter.upload(image))
    assert isinstance(memory, Memory)
    frame = torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))[None]
    graph: nn.Module = BehindLayer(segmenter, layer)
    return engine.compile(graph, [frame, *(z.contiguous() for z in to_pixels(memory.representations[layer]))])


def score(
    segment: Segment, host: Segmenter, images: Sequence[np.ndarray], labels: Sequence[np.ndarray]
) -> tuple[int, tuple[float, float, float], tuple[float, float, float]]:
    """Return the key frames, mIoU of first, last and all frames, and ms of key frames, of others, and of the host."""
    void = host.classes.void
    first, last, every = (ConfusionMatrix(len(host.classes), void) for _ in range(3))
    times: dict[bool | None, list[float]] = {True: [], False: [], None: []}
    alone, keys = host.stream(), 0
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        start = perf_counter()
        mask, is_key = segment(image, index)
        times[is_key].append(1e3 * (perf_counter() - start))
        times[None].append(sum(alone.segment(image, index).stages_ms.values()))
        keys += is_key
        for matrix in (every, last if index >= len(images) - HELD_OUT else first):
            matrix.update(mask, label)
    quartiles = [float(np.quantile(times[kind], 0.25)) if times[kind] else 0.0 for kind in (True, False, None)]
    return keys, (first.miou(), last.miou(), every.miou()), (quartiles[0], quartiles[1], quartiles[2])


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Draw mIoU over frames per second, as a multiple of the host's."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for curve in curves:
        speeds, scores = [point[3][0] for point in curve.points], [point[2][2] for point in curve.points]
        axes.plot(speeds, scores, marker="o", label=curve.name)
        for speed, value, point in zip(speeds, scores, curve.points, strict=True):
            axes.annotate(point[0], (speed, value), textcoords="offset points", xytext=(4, 4), fontsize=8)
    axes.set(xlabel="frames per second, × host on each frame", ylabel="mIoU, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
