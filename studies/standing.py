# SPDX-License-Identifier: Apache-2.0
"""Scores of a camera that stands, whose memory sees the same scene again and again.

``python studies/standing.py IMAGES LABELS [--model NAME]``. Every eleventh frame is repeated 200 times, each time with
noise of its own. Training sees clips of a few frames; a memory that outlasts them is trained by nothing, and spoils the
mask of a vehicle that waits at a light.
"""

from __future__ import annotations

if __name__ == "__main__":
    from netwarp_ros.environment import configure_libraries

    configure_libraries()

import argparse
from pathlib import Path

import numpy as np

from netwarp_ros.metrics import ConfusionMatrix
from netwarp_ros.models import DEFAULT_MODEL
from netwarp_ros.recordings.image_files import read_samples
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.segmenter import Segmenter

FIRST, EVERY = 3, 11
SCORED = (1, 5, 20, 60, 200)
NOISE = 2.0  # standard deviation, in grey values
INTERVAL_NS = 66_666_667


def main() -> None:
    """Print the mean IoU after as many repetitions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    arguments = parser.parse_args()
    scenes = [frame.image for frame in open_frames(arguments.images)][FIRST::EVERY]
    labels = [read_samples(path) for path in sorted(arguments.labels.iterdir())][FIRST::EVERY]
    segmenter = Segmenter(arguments.model)
    scores = {count: ConfusionMatrix(len(segmenter.classes), segmenter.classes.void) for count in SCORED}
    rng = np.random.default_rng(0)
    for scene, label in zip(scenes, labels, strict=True):
        stream = segmenter.stream()
        for count in range(1, max(SCORED) + 1):
            image = np.clip(scene + rng.normal(0, NOISE, scene.shape), 0, 255).astype(np.uint8)
            mask = stream.segment(image, count * INTERVAL_NS).mask
            if count in scores:
                scores[count].update(mask, label)
    for count, matrix in scores.items():
        print(f"after {count:3d} frames: {matrix.miou():.2f} mIoU")


if __name__ == "__main__":
    main()
