# SPDX-License-Identifier: Apache-2.0
"""MP4 videos, written picture by picture."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

try:
    import imageio_ffmpeg
except ImportError:  # where ROS brings the dependencies, this one may be absent
    imageio_ffmpeg = None


class VideoWriter:
    """An MP4 written picture by picture; use it in a ``with`` statement.

    It is H.264, which browsers play, by the ffmpeg that the package ``imageio-ffmpeg`` brings; without that package it
    is OpenCV's MPEG-4. The first picture sets the size (made even, as H.264 wants it, by repeating the last row and
    column); later ones of another size are scaled to it. With no picture there is no file.

    Args:
        path: Ends in ``.mp4``; overwritten if it exists.
        rate: Pictures per second.

    Raises:
        ValueError: If the path ends otherwise, or the rate is not > 0.
        FileNotFoundError: If its folder does not exist.
    """

    def __init__(self, path: str | Path, rate: float) -> None:
        self.path, self.rate = Path(path), rate
        if self.path.suffix != ".mp4":
            raise ValueError(f"{self.path} does not end in .mp4, the only format that is written")
        if not rate > 0:
            raise ValueError(f"rate is {rate}: give pictures per second > 0")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"no folder {self.path.parent} to write {self.path.name} to: make it first")
        self._size: tuple[int, int] | None = None
        self._encoder: _Ffmpeg | _OpenCV | None = None

    def write(self, image: np.ndarray) -> None:
        """Append a picture ``(H, W, 3)`` uint8, BGR.

        Raises:
            ValueError: If it is no such array.
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
        if self._encoder is None:
            encoder = _OpenCV if imageio_ffmpeg is None else _Ffmpeg
            self._encoder = encoder(self.path, self.rate, (even.shape[1], even.shape[0]))
        self._encoder.write(even)

    def close(self) -> None:
        """Finish the file.

        Raises:
            OSError: If the encoder failed.
        """
        if self._encoder is not None:
            self._encoder.close()
            self._encoder = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Ffmpeg:
    """H.264 through a pipe to ffmpeg, which tells on standard error what goes wrong."""

    def __init__(self, path: Path, rate: float, size: tuple[int, int]) -> None:
        self._path = path
        path.unlink(missing_ok=True)
        self._frames: Generator[None, np.ndarray, None] = imageio_ffmpeg.write_frames(
            str(path),
            size,
            fps=rate,
            pix_fmt_in="bgr24",
            codec="libx264",
            quality=None,
            macro_block_size=1,
            output_params=["-preset", "veryfast", "-crf", "20", "-movflags", "+faststart"],
        )
        next(self._frames)

    def write(self, image: np.ndarray) -> None:
        try:
            self._frames.send(np.ascontiguousarray(image))
        except OSError:
            raise OSError(f"ffmpeg cannot write the video {self._path}: its reason is above") from None

    def close(self) -> None:
        self._frames.close()
        if not self._path.is_file():
            raise OSError(f"ffmpeg did not write the video {self._path}: its reason is above")


class _OpenCV:
    """MPEG-4 by OpenCV."""

    def __init__(self, path: Path, rate: float, size: tuple[int, int]) -> None:
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
        if not self._writer.isOpened():
            raise OSError(f"OpenCV cannot write the video {path}: does its folder exist, and may it be written to?")

    def write(self, image: np.ndarray) -> None:
        self._writer.write(image)

    def close(self) -> None:
        self._writer.release()
