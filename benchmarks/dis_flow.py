# SPDX-License-Identifier: Apache-2.0
"""DIS presets on the synthetic street, whose flow is exact: error and time, started cold and warm.

``python benchmarks/dis_flow.py`` prints the table of docs/benchmarks.md. Warm means that the flow of the pair before is
handed to DIS as its start.
"""

from __future__ import annotations

from time import perf_counter

import cv2
import numpy as np

from netwarp_ros.data.street import Street
from netwarp_ros.flow import PRESETS, DisFlow

FRAMES = 40


def main() -> None:
    """Render the frames once, and run every preset on them, started cold and warm."""
    street = Street(seed=1, rate=10.0)
    frames = [street.frame(index) for index in range(FRAMES)]
    greys = [cv2.cvtColor(frame.image, cv2.COLOR_BGR2GRAY) for frame in frames]
    print("| preset | start | mean error, px | median error, px | > 3 px | ms |\n|---|---|---|---|---|---|")
    for preset in PRESETS:
        for start in ("cold", "warm"):
            dis, flow = DisFlow(preset), None
            errors, times = [], []
            for t in range(1, FRAMES):
                begun = perf_counter()
                flow = dis(greys[t], greys[t - 1], start=flow if start == "warm" else None)
                times.append(perf_counter() - begun)
                distance = np.linalg.norm(flow - frames[t].flow, axis=2)
                errors.append(distance[frames[t].valid & (frames[t].label > 0)])  # the sky has no texture to follow
            error = np.concatenate(errors)
            cells = [f"{error.mean():.2f}", f"{np.median(error):.2f}", f"{100 * (error > 3).mean():.1f} %"]
            print(f"| {preset} | {start} | {' | '.join(cells)} | {1e3 * np.median(times):.1f} |")


if __name__ == "__main__":
    main()
