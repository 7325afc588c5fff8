# SPDX-License-Identifier: Apache-2.0
"""MP4 videos, written image by image."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

try:
    import imageio_ffmpeg
except ImportError:  # it has no rosdep key, so it may be missing where rosdep installed the dependencies
    imageio_ffmpeg = None


class VideoWriter:
    """An MP4 file to write images to; use it in a ``with`` statement.

    The ffmpeg of the package ``imageio-ffmpeg`` writes H.264, which browsers play. Without that package, OpenCV writes
    MPEG-4. The first image sets the size of the video; other images are scaled to it. H.264 requires even sizes, so an
    odd one is extended by repeating the last row or column. Without any image, no file is made.

    Args:
        path: The file, ending in ``.mp4``; overwritten if it exists.
        rate: Frames per second.

    Raises:
        ValueError: If the path does not end in ``.mp4``, or the rate is not > 0.
        FileNotFoundError: If the folder does not exist.
    """

    def __init__(self, path: str | Path, rate: float) -> None:
        self.path, self.rate = Path(path), rate
        if self.path.suffix != ".mp4":
            raise ValueError(f"{self.path} does not end in .mp4, the only format that can be written")
        if not rate > 0:
            raise ValueError(f"rate is {rate}: give frames per second > 0")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"no folder {self.path.parent} to write {self.path.name} to: make it first")
        self._size: tuple[int, int] | None = None
        self._encoder: _Ffmpeg | _OpenCV | None = None

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
    """H.264 through a pipe to ffmpeg. It prints its errors to standard error."""

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
            raise OSError(f"ffmpeg cannot write the video {self._path}: see its message above") from None

    def close(self) -> None:
        self._frames.close()
        if not self._path.is_file():
            raise OSError(f"ffmpeg did not write the video {self._path}: see its message above")


class _OpenCV:
    """MPEG-4, written by OpenCV."""

    def __init__(self, path: Path, rate: float, size: tuple[int, int]) -> None:
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
        if not self._writer.isOpened():
            raise OSError(f"OpenCV cannot write the video {path}: check that its folder exists and is writable")

    def write(self, image: np.ndarray) -> None:
        self._writer.write(image)

    def close(self) -> None:
        self._writer.release()
