# SPDX-License-Identifier: Apache-2.0
"""Compare flow estimators: error and time on the synthetic street, or how well they carry labels along.

``python studies/flow.py`` prints the table of errors and times in docs/benchmarks.md. With ``--video FOLDER``, which
holds images/ and labels/ of adjacent frames, it prints the table of labels. "Warm" means that DIS starts from the flow
of the pair before. Besides the package's estimators, it runs DIS at full resolution and the others of OpenCV's
contributed modules, except Dual TV-L1 and SimpleFlow, which take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated

import cv2
import numpy as np
import typer

from netwarp_ros.classes import load_classes
from netwarp_ros.flow import PRESETS, DisFlow, FlowEstimator, create_estimator
from netwarp_ros.flow.dis import grey_pair
from netwarp_ros.recordings.image_files import LabelFolder
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.street import Street

FRAMES = 40

VideoFlow = Callable[[Sequence[np.ndarray]], Iterator[np.ndarray]]
"""Yields the reverse flow of each BGR image except the first."""


def cold(create: Callable[[], FlowEstimator]) -> VideoFlow:
    """Estimate the flow of each pair by itself."""

    def flows(images: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        estimate = create()
        for present, previous in zip(images[1:], images, strict=False):
            yield estimate(present, previous)

    return flows


def warm(preset: str) -> VideoFlow:
    """Start DIS from the flow of the pair before."""

    def flows(images: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        dis, flow = DisFlow(preset), None
        for present, previous in zip(images[1:], images, strict=False):
            flow = dis(present, previous, start=flow)
            yield flow

    return flows


def run(estimator: cv2.DenseOpticalFlow, *images: np.ndarray) -> np.ndarray:
    """Let an estimator of OpenCV begin anew."""
    return estimator.calc(*images, None)  # type: ignore[call-overload]  # the stub omits None


def full_resolution() -> FlowEstimator:
    """Return DIS with the finest scale, which its presets leave out."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(0)
    return lambda present, previous: run(dis, *grey_pair(present, previous))


def rlof() -> FlowEstimator:
    """Return robust local optical flow, interpolated and refined."""
    refined = cv2.optflow.DenseRLOFOpticalFlow.create()
    refined.setUseVariationalRefinement(True)
    return lambda present, previous: run(refined, present, previous)


def pca() -> FlowEstimator:
    """Return PCA-Flow: a combination of learned flow fields."""
    flow = cv2.optflow.createOptFlow_PCAFlow()
    return lambda present, previous: run(flow, *grey_pair(present, previous))


CANDIDATES: dict[str, VideoFlow] = {
    **{f"DIS {preset}, cold": cold(partial(DisFlow, preset)) for preset in PRESETS},
    **{f"DIS {preset}, warm": warm(preset) for preset in PRESETS},
    "deepflow": cold(lambda: create_estimator("deepflow")),
    "DIS at full resolution, cold": cold(full_resolution),
    "RLOF, refined": cold(rlof),
    "sparse to dense": cold(lambda: cv2.optflow.calcOpticalFlowSparseToDense),
    "PCA flow": cold(pca),
}


def errors_on_street() -> None:
    """Print the distance to the exact flow over pixels that are visible in both frames and are not sky."""
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


def carry_labels(video: Path) -> None:
    """Print the percentage of labelled pixels whose label equals that of the frame before, warped along the flow."""
    void = load_classes("camvid").void
    source, read_label = open_frames(video / "images"), LabelFolder(video / "labels")
    frames = [(frame.image, label) for frame in source if (label := read_label(frame)) is not None]
    height, width = frames[0][1].shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    print("| estimator | every frame | every second |\n|---|---|---|")
    for name, flows in CANDIDATES.items():
        cells = []
        for step in (1, 2):
            images, labels = zip(*frames[::step], strict=True)
            correct = total = 0
            for index, flow in enumerate(flows(images), 1):
                present, map_x, map_y = labels[index], x + flow[..., 0], y + flow[..., 1]
                carried = cv2.remap(labels[index - 1], map_x, map_y, cv2.INTER_NEAREST, borderValue=void)
                labelled = (carried != void) & (present != void)
                correct += int(np.count_nonzero((carried == present)[labelled]))
                total += int(np.count_nonzero(labelled))
            cells.append(f"{100 * correct / total:.2f} %")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main(
    video: Annotated[Path | None, typer.Option(help="Holds images/ and labels/ of adjacent frames.")] = None,
) -> None:
    """Compare flow estimators by exact flow, or by labels."""
    if video:
        carry_labels(video)
    else:
        errors_on_street()


if __name__ == "__main__":
    typer.run(main)
