# SPDX-License-Identifier: Apache-2.0
"""Flow estimators on the synthetic street, whose flow is exact, and on labels that they carry: error and time.

``python studies/flow.py`` prints the errors and times that docs/benchmarks.md has, and with a folder that holds
images/ and labels/ of adjacent frames, ``--video FOLDER``, the labels' part. Warm means that the flow of the pair
before is handed to DIS as its start. Beside the package's estimators there are DIS at full resolution and what else
OpenCV's contributed modules have, but for Dual TV-L1 and SimpleFlow, which take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Annotated

import cv2
import numpy as np
import typer

from netwarp_ros.classes import load_classes
from netwarp_ros.flow import PRESETS, DisFlow, FlowEstimator, create_estimator
from netwarp_ros.flow.dis import grey_pair
from netwarp_ros.recordings.images import LabelFolder
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.street import Street

FRAMES = 40

Flows = Callable[[Sequence[np.ndarray]], Iterator[np.ndarray]]
"""Gives the flow of each BGR image but the first."""


def each(make: Callable[[], FlowEstimator]) -> Flows:
    """Estimate the flow of each pair by itself."""

    def flows(images: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        estimate = make()
        for present, previous in zip(images[1:], images, strict=False):
            yield estimate(present, previous)

    return flows


def warm(preset: str) -> Flows:
    """Start each search of DIS from the flow of the pair before."""

    def flows(images: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        dis, flow = DisFlow(preset), None
        for present, previous in zip(images[1:], images, strict=False):
            flow = dis(present, previous, start=flow)
            yield flow

    return flows


def full_resolution() -> FlowEstimator:
    """Return DIS whose presets stop short of the last scale, with that scale."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(0)
    return lambda present, previous: dis.calc(*grey_pair(present, previous), None)


def rlof() -> FlowEstimator:
    """Return robust local flow, interpolated along edges and refined."""
    refined = cv2.optflow.DenseRLOFOpticalFlow.create()
    refined.setUseVariationalRefinement(True)
    return lambda present, previous: refined.calc(present, previous, None)


def pca() -> FlowEstimator:
    """Return flow from a basis of whole flow fields."""
    flow = cv2.optflow.createOptFlow_PCAFlow()
    return lambda present, previous: flow.calc(*grey_pair(present, previous), None)


CANDIDATES: dict[str, Flows] = {
    **{f"DIS {preset}, cold": each(lambda preset=preset: DisFlow(preset)) for preset in PRESETS},
    **{f"DIS {preset}, warm": warm(preset) for preset in PRESETS},
    "deepflow": each(lambda: create_estimator("deepflow")),
    "DIS at full resolution, cold": each(full_resolution),
    "RLOF, refined": each(rlof),
    "sparse to dense": each(lambda: cv2.optflow.calcOpticalFlowSparseToDense),
    "PCA flow": each(pca),
}


def errors_on_street() -> None:
    """Print the distance to the exact flow, where it can be found: in both frames, and not in the sky."""
    street = Street(seed=1, rate=10.0)
    frames = [street.frame(index) for index in range(FRAMES)]
    print("| estimator | mean error, px | median error, px | > 3 px | ms |\n|---|---|---|---|---|")
    for name, flows in CANDIDATES.items():
        errors, times, begun = [], [], perf_counter()
        for frame, flow in zip(frames[1:], flows([frame.image for frame in frames]), strict=True):
            times.append(perf_counter() - begun)
            errors.append(np.linalg.norm(flow - frame.flow, axis=2)[frame.valid & (frame.label > 0)])
            begun = perf_counter()
        error = np.concatenate(errors)
        cells = [f"{error.mean():.2f}", f"{np.median(error):.2f}", f"{100 * (error > 3).mean():.1f} %"]
        print(f"| {name} | {' | '.join(cells)} | {1e3 * np.median(times):.1f} |", flush=True)


def labels_carried(video: Path) -> None:
    """Print the part of the labelled pixels that a label carried along the flow agrees with."""
    void = load_classes("camvid").void
    source, labels = open_frames(video / "images"), LabelFolder(video / "labels")
    frames = [(frame.image, label) for frame in source if (label := labels(frame)) is not None]
    height, width = frames[0][1].shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    print("| estimator | every frame | every second |\n|---|---|---|")
    for name, flows in CANDIDATES.items():
        shares = []
        for step in (1, 2):
            images, truth = ([frame[part] for frame in frames[::step]] for part in (0, 1))
            right = total = 0
            for index, flow in enumerate(flows(images), 1):
                carried = cv2.remap(
                    truth[index - 1], x + flow[..., 0], y + flow[..., 1], cv2.INTER_NEAREST, borderValue=void
                )
                labelled = (carried != void) & (truth[index] != void)
                right += np.count_nonzero((carried == truth[index])[labelled])
                total += np.count_nonzero(labelled)
            shares.append(f"{100 * right / total:.2f} %")
        print(f"| {name} | {' | '.join(shares)} |", flush=True)


def main(
    video: Annotated[Path | None, typer.Option(help="Holds images/ and labels/ of adjacent frames.")] = None,
) -> None:
    """Hold flow estimators against exact flow, or against labels."""
    if video:
        labels_carried(video)
    else:
        errors_on_street()


if __name__ == "__main__":
    typer.run(main)
