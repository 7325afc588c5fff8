# SPDX-License-Identifier: Apache-2.0
"""Where the time of a frame goes: each part of it, with OpenVINO, beside the whole frame and the host's.

``python studies/frame_parts.py IMAGES [--model NAME] [--precision float32]``. Parts, whole frame and host take turns on
every frame; prints medians in ms. With --load, another process keeps one core busy.
"""

from __future__ import annotations

if __name__ == "__main__":
    from netwarp_ros.environment import configure_libraries

    configure_libraries()

import argparse
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import torch

from netwarp_ros import ops
from netwarp_ros.engines.graph_engine import GraphEngine
from netwarp_ros.engines.graphs import to_pixels, to_planes
from netwarp_ros.models import DEFAULT_MODEL, Memory
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.segmenter import Segmenter
from netwarp_ros.timing import Stopwatch, timed

PASSES = 3


def step(
    segmenter: Segmenter, image: np.ndarray, previous: tuple[np.ndarray, np.ndarray | None, Memory], watch: Stopwatch
) -> tuple[np.ndarray, np.ndarray, Memory]:
    """Segment a frame as `Segmenter` and its engine do, and time the parts."""
    engine, (grey_before, start, memory) = segmenter.engine, previous
    assert isinstance(engine, GraphEngine)
    watch.restart()
    grey = segmenter.grey(image)
    frame = torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)).permute(2, 0, 1).unsqueeze(0)
    watch.lap("grey and RGB")
    flow = segmenter.flow(grey, grey_before, start=start)  # type: ignore[call-arg]
    watch.lap("DIS")
    graphs, (pixels,) = engine.graphs(frame), to_pixels(frame)
    motion = torch.from_numpy(flow).permute(2, 0, 1).unsqueeze(0)
    flows = engine.network.flow_on_grids(motion, graphs.size, graphs.sizes)
    count = len(graphs.grids)
    maps = graphs.flow(*to_pixels(*flows.values(), frame, *(memory.frames[grid] for grid in graphs.grids)))
    watch.lap("averages, Λ, scaling of the flow")
    along = zip(graphs.sizes, map(to_planes, maps[count:]), strict=True)
    warped = [ops.warp(memory.representations[name], motion) for name, motion in along]
    watch.lap("warps")
    scores, *kept = graphs.step(pixels, *to_pixels(*warped))
    watch.lap("host and blends")
    ops.resize_argmax(to_planes(scores), image.shape[:2])
    watch.lap("mask")
    frames = dict(zip(graphs.grids, map(to_planes, maps[:count]), strict=True))
    representations = dict(zip(graphs.sizes, map(to_planes, kept), strict=True))
    return grey, flow, Memory(tuple(frame.shape), frames, representations)


def main() -> None:
    """Time all frames of a folder, several times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--load", action="store_true")
    arguments = parser.parse_args()
    how = {"engine": arguments.engine, "precision": arguments.precision}
    segmenter, host = (Segmenter(arguments.model, host_only=alone, **how) for alone in (False, True))
    images = [segmenter.frames.frame(frame.image) for frame in open_frames(arguments.images)]
    streams, times = {"whole frame": segmenter.stream(), "host": host.stream()}, defaultdict(list)
    for stream in streams.values():
        stream.segmenter.warm_up(*images[0].shape[1::-1])
    load = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if arguments.load else None
    with torch.inference_mode():
        for _ in range(PASSES):
            previous: tuple[np.ndarray, np.ndarray | None, Memory] | None = None
            for index, image in enumerate(images):
                laps: dict[str, float] = {}
                if previous is None:
                    frame = torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)).permute(2, 0, 1).unsqueeze(0)
                    previous = (segmenter.grey(image), None, segmenter.engine(frame)[1])
                elif isinstance(segmenter.engine, GraphEngine):
                    watch = Stopwatch()
                    previous = step(segmenter, image, previous, watch)
                    laps = {name: 1e3 * taken for name, taken in watch.laps.items()}
                for name, stream in streams.items():
                    if index == 0:
                        stream.reset()
                    with timed(laps, name):
                        stream.segment(image, index + 1)
                for name, taken in laps.items() if index > 0 else ():
                    times[name].append(taken)
    if load is not None:
        load.kill()
    print(f"{arguments.model}, {segmenter.engine.name}, {segmenter.precision}")
    for name, ms in times.items():
        print(f"{name:34} median {np.median(ms):6.2f}   p99 {np.percentile(ms, 99):6.2f} ms")
    overhead = np.median(np.array(times["whole frame"]) / np.array(times["host"])) - 1
    print(f"overhead of NetWarp {100 * overhead:.1f} %")


if __name__ == "__main__":
    main()
