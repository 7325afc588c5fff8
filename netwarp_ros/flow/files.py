# SPDX-License-Identifier: Apache-2.0
"""Optical flow in files of Middlebury's format, ``.flo`` (Baker et al., IJCV 2011).

A file holds 202021.25 as float32 (in ASCII, ``PIEH``), width and height as int32, and then u and v of each pixel as
float32, row by row; all little-endian. A value above 1e9 marks an unknown flow.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

MAX_SIDE = 1 << 16
"""The largest width and height, in pixels, that are accepted."""

_MAGIC = b"PIEH"
_UNKNOWN = 1e9


def read_flo(path: Path) -> np.ndarray:
    """Read a flow ``(H, W, 2)`` float32, u and v in pixels.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not a ``.flo`` file, its width or height is out of range, its length does not fit them, or
            the flow of a pixel is unknown.
    """
    content = path.read_bytes()
    if content[:4] != _MAGIC:
        raise ValueError(f"{path} begins with {content[:4]!r}, not {_MAGIC!r}: give a file in Middlebury's .flo format")
    if len(content) < 12:
        raise ValueError(f"{path} has {len(content)} bytes, less than its header of 12: write it again")
    width, height = (int(side) for side in np.frombuffer(content, "<i4", 2, offset=4))
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise ValueError(f"{path} says {width}x{height} pixels: width and height must be 1 to {MAX_SIDE}")
    expected = 12 + 8 * width * height
    if len(content) != expected:
        raise ValueError(f"{path} has {len(content)} bytes, but {width}x{height} pixels need {expected}: rewrite it")
    flow = np.frombuffer(content, "<f4", offset=12).reshape(height, width, 2).astype(np.float32)
    unknown = np.count_nonzero(~(np.abs(flow) < _UNKNOWN).all(axis=2))  # nan is unknown too: it compares as False
    if unknown:
        raise ValueError(f"{path} has {unknown} pixels of unknown flow: fill them in first")
    return flow


def write_flo(path: Path, flow: np.ndarray) -> None:
    """Write a flow ``(H, W, 2)``, u and v in pixels, as float32.

    Raises:
        ValueError: If the flow has another shape, or no pixels.
    """
    if flow.ndim != 3 or flow.shape[2] != 2 or not flow.size:
        raise ValueError(f"flow is {flow.shape}: give (H, W, 2)")
    height, width = flow.shape[:2]
    path.write_bytes(_MAGIC + np.array([width, height], "<i4").tobytes() + flow.astype("<f4").tobytes())


class FlowFolder:
    """A folder of precomputed reverse flow. ``NAME.flo`` leads from the frame NAME to the frame before it.

    Raises:
        FileNotFoundError: If the folder has no ``.flo`` file.
    """

    def __init__(self, folder: Path) -> None:
        if next(folder.glob("*.flo"), None) is None:
            raise FileNotFoundError(f"{folder} has no .flo file: give a folder of .flo files, named like the frames")
        self.folder = folder

    def path(self, name: str) -> Path:
        """Return the path of a frame's flow; the file need not exist."""
        return self.folder / f"{name}.flo"

    def __call__(self, name: str) -> np.ndarray | None:
        """Read the flow of a frame, ``(H, W, 2)`` float32, or return None if it has no file, like a first frame.

        Raises:
            ValueError: If `read_flo` rejects the file.
        """
        path = self.path(name)
        return read_flo(path) if path.is_file() else None
