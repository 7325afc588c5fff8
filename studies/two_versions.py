# SPDX-License-Identifier: Apache-2.0
"""Two versions of this package segment the same video, in turns, each in a process of its own.

``python studies/two_versions.py OLD_TREE IMAGES [NAME=VALUE ...]``: OLD_TREE is a checkout whose operator is built in
place; NAME=VALUE are further arguments of the new version's `Segmenter`, such as precision=int8. Prints the median time
of a whole frame (image to mask, flow included) in both, the median of the ratio frame by frame, and how many pixels
differ.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

PASSES = 3

CHILD = """
import sys, time
from netwarp_ros.environment import configure_libraries
configure_libraries()
import cv2
import numpy as np
from netwarp_ros import Segmenter
arguments = dict(pair.split("=") for pair in sys.argv[2:])
stream = Segmenter(**arguments).stream()
files = sorted(__import__("pathlib").Path(sys.argv[1]).iterdir())
images = [cv2.imread(str(file)) for file in files]
stream.segmenter.warm_up(images[0].shape[1], images[0].shape[0])
print(stream.segmenter.precision, flush=True)
for line in sys.stdin:
    index = int(line)
    if index == 0:
        stream.reset()
    start = time.perf_counter()
    mask = stream.segment(images[index], index + 1).mask
    print(1e3 * (time.perf_counter() - start), flush=True)
    sys.stdout.buffer.write(mask.tobytes())
    sys.stdout.buffer.flush()
"""


def start(tree: str, images: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start a process that segments a frame whenever it is told its number."""
    environment = {**os.environ, "PYTHONPATH": tree} if tree else dict(os.environ)
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(images), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def main() -> None:
    """Let both versions take turns."""
    tree, images = sys.argv[1], Path(sys.argv[2])
    files = sorted(images.iterdir())
    first = cv2.imread(str(files[0]))
    assert first is not None, f"{files[0]} is not an image"
    height, width = first.shape[:2]
    processes = {"old": start(tree, images, []), "new": start("", images, sys.argv[3:])}
    precisions = {name: process.stdout.readline().decode().strip() for name, process in processes.items()}  # type: ignore[union-attr]
    times: dict[str, list[float]] = {name: [] for name in processes}
    differing = []
    for _ in range(PASSES):
        for index in range(len(files)):
            masks = []
            for name, process in processes.items():
                assert process.stdin and process.stdout
                process.stdin.write(f"{index}\n".encode())
                process.stdin.flush()
                taken = float(process.stdout.readline())
                masks.append(np.frombuffer(process.stdout.read(height * width), np.uint8))
                if index > 0:
                    times[name].append(taken)
            differing.append((masks[0] != masks[1]).mean())
    for process in processes.values():
        assert process.stdin
        process.stdin.close()
        process.wait(30)
    for name, ms in times.items():
        print(f"{name} ({precisions[name]}): median {np.median(ms):.1f} ms, p99 {np.percentile(ms, 99):.1f} ms")
    ratios = np.array(times["old"]) / np.array(times["new"])
    print(f"old / new: {np.median(ratios):.2f}; {100 * np.mean(differing):.4f} % of the pixels differ")


if __name__ == "__main__":
    main()
