# SPDX-License-Identifier: Apache-2.0
"""MP4 videos, written image by image."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import cv2
import numpy as np

from netwarp_ros.recordings.videos import load_pyav

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream


class VideoWriter:
    """An MP4 file to write images to; use it in a ``with`` statement.

    PyAV writes H.264, which browsers play. The first image sets the size of the video; other images are scaled to it.
    H.264 requires even sizes, so an odd one is extended by repeating the last row or column. Without any image, no file
    is made.

    Args:
        path: The file, ending in ``.mp4``; overwritten if it exists.
        rate: Frames per second.
        comment: A text in the file's metadata.

    Raises:
        ValueError: If the path does not end in ``.mp4``, the rate is not > 0, or PyAV is not installed.
        FileNotFoundError: If the folder does not exist.
    """

    def __init__(self, path: str | Path, rate: float, comment: str = "") -> None:
        self.path, self.rate, self._comment = Path(path), rate, comment
        if self.path.suffix != ".mp4":
            raise ValueError(f"{self.path} does not end in .mp4, the only format that can be written")
        if not rate > 0:
            raise ValueError(f"rate is {rate}: give frames per second > 0")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"no folder {self.path.parent} to write {self.path.name} to: make it first")
        self._av = load_pyav()
        self._size: tuple[int, int] | None = None
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None

    def write(self, image: np.ndarray) -> None:
        """Append an image, ``(H, W, 3)`` uint8, BGR.

        Raises:
            ValueError: If the array has another shape or type.
            OSError: If the file cannot be written.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"image is {image.shape} {image.dtype}: give (H, W, 3) BGR uint8")
        height, width = image.shape[:2]
        if self._size is None:
            self._size = (width, height)
        elif self._size != (width, height):
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        even = cv2.copyMakeBorder(image, 0, self._size[1] % 2, 0, self._size[0] % 2, cv2.BORDER_REPLICATE)
        self._encode(self._av.VideoFrame.from_ndarray(even, format="bgr24"))

    def close(self) -> None:
        """Finish the file.

        Raises:
            OSError: If it cannot be written.
        """
        if self._container is not None:
            try:
                self._encode(None)
            finally:
                container, self._container = self._container, None
                container.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _encode(self, frame: VideoFrame | None) -> None:
        """Write a frame, which must have even sizes; None writes what the encoder holds back."""
        try:
            if self._container is None or self._stream is None:
                assert frame is not None
                self._container, self._stream = self._open(frame)
            self._container.mux(self._stream.encode(frame))
        except self._av.FFmpegError as error:
            raise OSError(f"the video {self.path} cannot be written: {error}") from error

    def _open(self, frame: VideoFrame) -> tuple[OutputContainer, VideoStream]:
        """Open the file for frames of this size."""
        # With +faststart, the index comes first, so the film plays before it is fully downloaded.
        container = self._av.open(f"file:{self.path}", "w", format="mp4", options={"movflags": "+faststart"})
        container.metadata["comment"] = self._comment
        rate = max(Fraction(self.rate).limit_denominator(10_000), Fraction(1, 10_000))
        stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
        return container, stream
