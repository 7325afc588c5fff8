# SPDX-License-Identifier: Apache-2.0
"""Optical flow in files: Middlebury's ``.flo`` (Baker et al., IJCV 2011).

A file holds the number 202021.25 as float32 (in ASCII, ``PIEH``), width and height as int32, and u and v of each pixel
by turns, row by row, as float32; all little-endian. A displacement beyond 1e9 stands for one that is not known.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

MAX_SIDE = 1 << 16
"""The largest width and height in pixels that are read."""

_MAGIC = b"PIEH"
_UNKNOWN = 1e9


def read_flo(path: Path) -> np.ndarray:
    """Read a flow ``(H, W, 2)`` float32, u and v in pixels.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no ``.flo`` file, has a size that cannot be, is shorter or longer than its size says,
            or leaves out the flow of a pixel.
    """
    content = path.read_bytes()
    if content[:4] != _MAGIC:
        raise ValueError(f"{path} begins with {content[:4]!r}, not with {_MAGIC!r}: give a .flo file of Middlebury's")
    if len(content) < 12:
        raise ValueError(f"{path} ends within its head: it has {len(content)} bytes of 12")
    width, height = (int(side) for side in np.frombuffer(content, "<i4", 2, offset=4))
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise ValueError(f"{path} is of {width}x{height} pixels: a flow has 1 to {MAX_SIDE} a side")
    expected = 12 + 8 * width * height
    if len(content) != expected:
        raise ValueError(f"{path} has {len(content)} bytes, but {width}x{height} pixels take {expected}")
    flow = np.frombuffer(content, "<f4", offset=12).reshape(height, width, 2).astype(np.float32)
    unknown = np.count_nonzero(~(np.abs(flow) < _UNKNOWN).all(axis=2))  # nan is not less either
    if unknown:
        raise ValueError(f"{path} leaves out the flow of {unknown} pixels: fill them in before")
    return flow


def write_flo(path: Path, flow: np.ndarray) -> None:
    """Write a flow ``(H, W, 2)``, u and v in pixels, as float32.

    Raises:
        ValueError: If the flow is not of this shape.
    """
    if flow.ndim != 3 or flow.shape[2] != 2 or not flow.size:
        raise ValueError(f"flow is {flow.shape}: give (H, W, 2)")
    height, width = flow.shape[:2]
    path.write_bytes(_MAGIC + np.array([width, height], "<i4").tobytes() + flow.astype("<f4").tobytes())


class FlowFolder:
    """Flow that is known beforehand: a folder of files ``NAME.flo``, each from the frame NAME to the one before it.

    Args:
        folder: The folder.

    Raises:
        FileNotFoundError: If there is no ``.flo`` file in it.
    """

    def __init__(self, folder: Path) -> None:
        if next(folder.glob("*.flo"), None) is None:
            raise FileNotFoundError(f"{folder} holds no flow: give a folder of .flo files, named like the frames")
        self.folder = folder

    def path(self, name: str) -> Path:
        """Return where the flow of a frame lies, if it does."""
        return self.folder / f"{name}.flo"

    def __call__(self, name: str) -> np.ndarray | None:
        """Read the flow of a frame, ``(H, W, 2)`` float32; None where there is none, as for a first frame.

        Raises:
            ValueError: If the file cannot be used; see `read_flo`.
        """
        path = self.path(name)
        return read_flo(path) if path.is_file() else None
