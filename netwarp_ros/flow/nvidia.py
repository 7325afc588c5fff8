# SPDX-License-Identifier: Apache-2.0
"""Optical flow by NVIDIA's accelerator: the OFA of a Jetson Orin, or NVOFA in a GPU from Turing on.

It leaves the GPU's cores and the CPU to the network. The hardware gives one vector for a block of pixels, in S10.5: 16
bits, of which 5 are the fraction. There are two ways to it:

- VPI's dense optical flow (https://docs.nvidia.com/vpi/algo_optflow_dense.html), which JetPack brings for Jetson;
- ``cv::cuda::NvidiaOpticalFlow_2_0``, if OpenCV was built with CUDA and opencv_contrib.
"""

from __future__ import annotations

import importlib
from threading import Lock
from typing import Any

import cv2
import numpy as np

from netwarp_ros.flow.dis import grey_pair

GRID = 4
"""Side of the block of pixels that gets one vector. Turing has no other; it is VPI's default."""

MIN_SIDE = 64
"""Images with a smaller side are padded to this many pixels. The hardware takes 32 to 8192."""

SIDE_MULTIPLE = 8
"""Sides are padded to a multiple of this, so that every grid of the hardware (1, 2, 4 and 8) divides them."""

MAX_SESSIONS = 4
"""OpenCV's objects are made for one image size. Beyond this many, the oldest is freed."""

_ONE_PIXEL = 32
"""One pixel in S10.5."""


class NvidiaFlow:
    """Reverse flow between two frames by NVIDIA's hardware. It keeps buffers between calls, but no results.

    The constructor tries both backends on a blank image, VPI first, and takes the first that works: VPI can be
    installed where there is no OFA, and OpenCV can have CUDA without the optical flow. Threads may share the object.

    Attributes:
        backend: The name of the backend in use.

    Raises:
        ValueError: If neither backend works here.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        blank, failures = np.zeros((MIN_SIDE, MIN_SIDE), np.uint8), []
        for backend in (_Vpi, _OpenCvCuda):
            try:
                self._estimate = backend()
                self._estimate(blank, blank)
            except Exception as error:  # what VPI raises is not documented
                failures.append(f"{backend.name} ({_line(error)})")
            else:
                self.backend = backend.name
                return
        raise ValueError(
            f"no NVIDIA optical flow hardware in reach: tried {' and '.join(failures)}. Install VPI and its Python "
            "package from JetPack, or an OpenCV built with WITH_CUDA and opencv_contrib; or choose the flow fast"
        )

    def __call__(self, present: np.ndarray, previous: np.ndarray) -> np.ndarray:
        """Estimate the flow from the present frame back to the previous one.

        Args:
            present: ``(H, W)`` grey or ``(H, W, 3)`` BGR, uint8.
            previous: The frame before it, of the same height and width.

        Returns:
            ``(H, W, 2)`` float32, in pixels: pixel (x, y) of ``present`` is at (x + u, y + v) in ``previous``. Between
            the centres of the hardware's blocks, it is interpolated bilinearly.

        Raises:
            ValueError: If a frame has another shape or type.
            RuntimeError: If the hardware or its driver fails, as it does with more than 8192 pixels a side.
        """
        present, previous = grey_pair(present, previous)
        height, width = present.shape
        padded_height, padded_width = _padded(height), _padded(width)
        present, previous = (
            cv2.copyMakeBorder(image, 0, padded_height - height, 0, padded_width - width, cv2.BORDER_REPLICATE)
            for image in (present, previous)
        )
        try:
            with self._lock:  # OpenCV asks for this
                vectors = self._estimate(present, previous)
        except Exception as error:  # what VPI raises is not documented
            raise RuntimeError(
                f"NVIDIA's optical flow failed in {self.backend}, on frames of {width}x{height}: {_line(error)}. "
                "If it stays so, choose the flow fast"
            ) from error
        # The vectors are in pixels of the image already, whatever the grid is: only their number changes.
        flow = vectors.astype(np.float32) / _ONE_PIXEL
        return cv2.resize(flow, (padded_width, padded_height), interpolation=cv2.INTER_LINEAR)[:height, :width]


class _Vpi:
    """VPI on the OFA. VPI's Python package reuses its buffers itself."""

    name = "VPI on the OFA"

    LEVELS = 5
    """Most levels of the image pyramid, which extends the search to large motion. Until VPI 2.3, 5 was the limit."""
    COARSEST = 32
    """Least side of the pyramid's coarsest level: the hardware's limit."""

    def __init__(self) -> None:
        self._vpi: Any = importlib.import_module("vpi")  # comes with JetPack: not on PyPI, and without types
        self._stream = self._vpi.Stream()

    def __call__(self, image: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return the vectors ``(H / grid, W / grid, 2)`` int16, in S10.5, from the image to the target."""
        vpi = self._vpi
        with self._stream:
            # VPI calls them previous and current, and measures the motion from its first argument to its second. The
            # grid is left at its default: VPI's manual calls the argument gridSize, programs for Jetson gridsize.
            motion = vpi.optflow_dense(
                self._pyramid(image),
                self._pyramid(target),
                quality=vpi.OptFlowQuality.MEDIUM,
                backend=vpi.Backend.OFA,
            )
            self._stream.sync()
        with motion.rlock_cpu() as vectors:
            return np.array(vectors)  # a copy: the buffer is only valid while it is locked

    def _pyramid(self, image: np.ndarray) -> Any:
        """Return a pyramid in block-linear layout, the only one that the OFA reads."""
        vpi = self._vpi
        levels = min(self.LEVELS, (min(image.shape) // self.COARSEST).bit_length())
        pyramid = vpi.asimage(image, vpi.Format.Y8_ER).gaussian_pyramid(levels, backend=vpi.Backend.CUDA)
        return pyramid.convert(vpi.Format.Y8_ER_BL, backend=vpi.Backend.VIC)


class _OpenCvCuda:
    """OpenCV's NvidiaOpticalFlow_2_0."""

    name = "OpenCV's NvidiaOpticalFlow_2_0"

    MEDIUM = 10
    """NV_OF_PERF_LEVEL_MEDIUM, as a number: OpenCV takes it in Python."""

    def __init__(self) -> None:
        cuda = getattr(cv2, "cuda", None)
        kind = getattr(cuda, "NvidiaOpticalFlow_2_0", None) or getattr(cv2, "cuda_NvidiaOpticalFlow_2_0", None)
        if cuda is None or kind is None:
            raise RuntimeError(f"OpenCV {cv2.__version__} is built without it")
        if (devices := cuda.getCudaEnabledDeviceCount()) <= 0:
            raise RuntimeError(f"OpenCV {cv2.__version__} has it, but finds no CUDA device: its count is {devices}")
        self._cuda, self._kind = cuda, kind
        self._sessions: dict[tuple[int, ...], Any] = {}

    def __call__(self, image: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return the vectors ``(H / grid, W / grid, 2)`` int16, in S10.5, from the image to the target."""
        if image.shape not in self._sessions:
            if len(self._sessions) == MAX_SESSIONS:
                oldest = self._sessions.pop(next(iter(self._sessions)))
                oldest.collectGarbage()  # older versions of OpenCV do not do so themselves
            self._sessions[image.shape] = self._create(image.shape)
        vectors, _ = self._sessions[image.shape].calc(image, target, None)  # and the costs, which are off
        return vectors

    def _create(self, size: tuple[int, ...]) -> Any:
        return self._kind.create(
            size[::-1],
            perfPreset=self.MEDIUM,
            outputGridSize=GRID,
            enableTemporalHints=False,  # these are the vectors of the call before, which may be another camera's
            gpuId=self._cuda.getDevice(),  # it becomes the thread's device, also PyTorch's
        )


def _padded(side: int) -> int:
    """Return the side that the hardware is given, in pixels."""
    return max(MIN_SIDE, -(-side // SIDE_MULTIPLE) * SIDE_MULTIPLE)


def _line(error: Exception) -> str:
    """Return the message of an error in one line: OpenCV's has several."""
    return " ".join(str(error).split()) or type(error).__name__
