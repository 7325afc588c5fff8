# SPDX-License-Identifier: Apache-2.0
"""Scores of a model along the flow of our operator, beside those along OpenCV's.

``python studies/device_flow.py IMAGES LABELS [--model NAME]``. The operator's reference runs on the CPU here. Its CUDA
kernels equal it bit for bit, so these are the scores on a GPU, but for the precision of the network.
"""

from __future__ import annotations

if __name__ == "__main__":
    from netwarp_ros.environment import configure_libraries

    configure_libraries()

import argparse
from pathlib import Path

from netwarp_ros.evaluation.scoring import evaluate
from netwarp_ros.flow import PRESETS, TensorDis
from netwarp_ros.models import DEFAULT_MODEL
from netwarp_ros.recordings.image_files import LabelFolder
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.segmenter import Segmenter


def main() -> None:
    """Print a table of mean IoU, trimap IoU and temporal consistency."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--precision", default="float32")
    arguments = parser.parse_args()
    print(
        "| preset | OpenCV: mIoU | trimap IoU | consistency | ours: mIoU | trimap IoU | consistency |\n|---|"
        + 6 * "---:|"
    )
    for preset in PRESETS:
        cells = []
        for flow in (preset, TensorDis(preset, "cpu")):
            segmenter = Segmenter(arguments.model, flow=flow, precision=arguments.precision)
            labels = LabelFolder(arguments.labels, segmenter.classes)
            scores = evaluate(open_frames(arguments.images), labels, segmenter, segmenter.classes, widths=[2]).to_json()
            cells += [f"{score:.2f}" for score in (scores["miou"], scores["tiou"]["2"], scores["tc"])]
        print(f"| {preset} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
