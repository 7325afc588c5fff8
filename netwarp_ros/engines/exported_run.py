# SPDX-License-Identifier: Apache-2.0
"""Segment a video or a folder of images by ONNX Runtime: python run.py VIDEO_OR_FOLDER MASKS_FOLDER."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

FOLDER = Path(__file__).parent


def load(file: str) -> Callable[[dict[str, Any]], list[Any]]:
    """Return a function that runs a graph: it takes the inputs by name, and returns the outputs in their order."""
    session = onnxruntime.InferenceSession(FOLDER / file, providers=["CPUExecutionProvider"])
    return lambda maps: session.run(None, maps)


def read(source: Path) -> Iterator[tuple[str, Any]]:
    """Yield the name and the image, (H, W, 3) BGR, of each frame; of images, frame_2 before frame_10."""
    if source.is_dir():
        files = [path for path in source.iterdir() if cv2.haveImageReader(str(path))]
        for path in sorted(files, key=lambda path: re.sub("[0-9]+", lambda number: number[0].zfill(20), path.stem)):
            yield path.stem, cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    else:
        video = cv2.VideoCapture(str(source))
        for index in count():
            found, image = video.read()
            if not found:
                return
            yield f"{index:06d}", image


def warp(maps: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Sample maps (1, h, w, C) at every pixel plus its flow (1, h, w, 2): bilinear, clamped to the border."""
    height, width = maps.shape[1:3]
    x = np.clip(np.arange(width, dtype=np.float32) + flow[0, ..., 0], 0, width - 1)
    y = np.clip(np.arange(height, dtype=np.float32)[:, None] + flow[0, ..., 1], 0, height - 1)
    left, top = x.astype(int), y.astype(int)
    right, below = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    a, b = (x - np.floor(x))[..., None], (y - np.floor(y))[..., None]
    upper = maps[:, top, left] * (1 - a) + maps[:, top, right] * a
    lower = maps[:, below, left] * (1 - a) + maps[:, below, right] * a
    return upper * (1 - b) + lower * b


def main(source: Path, masks: Path) -> None:
    """Write a mask of class ids, NAME.png, for each frame."""
    masks.mkdir(parents=True, exist_ok=True)
    model = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))
    height, width, layers = model["input"]["height"], model["input"]["width"], model["layers"]
    graphs = {name: (load(graph["file"]), graph["inputs"], graph["outputs"]) for name, graph in model["graphs"].items()}
    zeros = {port["name"]: np.zeros(port["shape"], port["type"]) for _, ports, _ in graphs.values() for port in ports}
    cold, warm = (cv2.DISOpticalFlow.create(getattr(cv2, model["flow"]["preset"])) for _ in range(2))
    for dis in (cold, warm):  # it gets halved images
        dis.setFinestScale(dis.getFinestScale() - 1)

    def run(name: str, maps: dict[str, Any]) -> dict[str, Any]:
        graph, inputs, outputs = graphs[name]
        results = graph({port["name"]: maps[port["name"]] for port in inputs})
        return {port["name"]: result for port, result in zip(outputs, results, strict=True)}

    previous: dict[str, Any] = {}
    for name, image in read(source):
        if image is None:
            sys.exit(f"{source}: {name} cannot be read")
        scaling = cv2.INTER_AREA if image.shape[0] > height else cv2.INTER_LINEAR
        scaled = cv2.resize(image, (width, height), interpolation=scaling)
        maps = {**zeros, "frame": cv2.cvtColor(scaled, cv2.COLOR_BGR2RGB)[None]}
        grey, half = cv2.cvtColor(scaled, cv2.COLOR_BGR2GRAY), ((width + 1) // 2, (height + 1) // 2)
        grey = cv2.resize(grey, half, interpolation=cv2.INTER_AREA)
        flow, has_memory = None, previous.get("shape") == image.shape
        if has_memory:  # the flow is estimated from the present frame to the previous one
            start = previous["flow"]
            flow = (cold if start is None else warm).calc(grey, previous["grey"], start)
            maps |= {"flow": flow[None], **{grid["previous"]: previous[grid["frame"]] for grid in model["grids"]}}
        transformed = run("flow", maps) if layers else {}
        if has_memory:
            maps |= transformed  # of these, `step` takes the gates, if there are any
            maps |= {layer["warped"]: warp(previous[layer["memory"]], transformed[layer["flow"]]) for layer in layers}
        results = run("step" if has_memory else "first", maps)
        if layers:
            previous = {"shape": image.shape, "grey": grey, "flow": flow, **transformed, **results}
        scores = [cv2.resize(score, (width, height)) for score in results["scores"][0].transpose(2, 0, 1)]
        mask = np.argmax(scores, axis=0).astype(np.uint8)
        mask = cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(masks / f"{name}.png"), mask)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
