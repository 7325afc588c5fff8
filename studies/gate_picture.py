# SPDX-License-Identifier: Apache-2.0
"""Draw the gate of a model on the synthetic street, where something is uncovered.

    python studies/gate_picture.py MODEL docs/images/gate.png

Of a drive, it takes the frame in which most pixels were hidden in the frame before (by the street's exact flow), and
draws side by side: the frame, with those pixels in red; the mask; and the gate, white where it is 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import torch

from netwarp_ros.models import load_model
from netwarp_ros.models.gate import resize_gate
from netwarp_ros.segmenter import Segmenter
from netwarp_ros.street import Street

SEED, FRAMES, RATE, SIZE = 5, 12, 10.0, (360, 480)
BORDER = 12  # pixels: what comes into view at the border is not uncovered


def main(name: str, file: Path) -> None:
    """Write the picture."""
    model = load_model(name)
    gate = model.network.gate
    if gate is None:
        sys.exit(f"{name} has no gate: give a model with blend: gated")
    gates: list[torch.Tensor] = []
    gate.register_forward_hook(lambda _module, _inputs, g: gates.append(g.detach()))
    stream = Segmenter(model, engine="torch", precision="float32").stream()
    street = Street(SIZE[1], SIZE[0], SEED, RATE)
    best: tuple[int, list[np.ndarray]] = (0, [])
    closed = np.zeros((2, 2))  # hidden or not: sum of g, pixels
    for index in range(FRAMES):
        frame = street.frame(index)
        mask = stream.segment(frame.image, int((index + 1) * 1e9 / RATE)).mask
        if not gates:
            continue
        g = resize_gate(gates.pop(), SIZE)[0, 0].numpy()
        hidden = ~frame.valid
        hidden[:BORDER], hidden[-BORDER:], hidden[:, :BORDER], hidden[:, -BORDER:] = (False,) * 4
        closed += [[g[where].sum(), where.sum()] for where in (hidden, ~hidden)]
        if hidden.sum() > best[0]:
            marked = frame.image.copy()
            marked[hidden] = (0, 0, 255)
            color = cv2.cvtColor(model.spec.classes.palette[mask], cv2.COLOR_RGB2BGR)
            best = int(hidden.sum()), [marked, color, cv2.cvtColor((255 * g).astype(np.uint8), cv2.COLOR_GRAY2BGR)]
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), cv2.resize(np.hstack(best[1]), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    means = closed[:, 0] / closed[:, 1]
    print(f"mean gate: {means[0]:.2f} where it was hidden in the frame before, {means[1]:.2f} elsewhere")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
