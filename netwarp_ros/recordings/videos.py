# SPDX-License-Identifier: Apache-2.0
"""Video files as recordings, read by OpenCV."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import cv2

from netwarp_ros.recordings.frames import DEFAULT_RATE, Frame, FrameSource, stamp


class VideoFile(FrameSource):
    """A video file.

    Args:
        path: The file, in any format that OpenCV reads.
        rate: Frames per second. Frames are then stamped at this rate from 0, not by the container.

    Raises:
        ValueError: If the file cannot be opened. While iterating: if it holds no frame.
    """

    def __init__(self, path: Path, rate: float | None = None) -> None:
        super().__init__()
        self.path = path
        capture = self._open()
        declared = capture.get(cv2.CAP_PROP_FPS)
        self._count = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        capture.release()
        self._keeps_stamps = rate is None
        self.rate = rate or (declared if math.isfinite(declared) and declared > 0 else DEFAULT_RATE)

    def __len__(self) -> int:
        return self._count

    def read(self, begin: int = 0, end: int | None = None) -> Iterator[Frame]:
        capture, index, last_ns = self._open(), 0, -1
        self.damage = []
        try:
            while end is None or index < end:
                if not capture.grab():
                    break
                stamp_ns = stamp(index, self.rate)
                if self._keeps_stamps:
                    stamp_ns = round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
                    # Some containers have no stamps, or repeat one.
                    if stamp_ns <= last_ns:
                        stamp_ns = last_ns + stamp(1, self.rate)
                if index >= begin:
                    read, image = capture.retrieve()
                    if not read:
                        break
                    yield Frame(index, stamp_ns, f"{index:06d}", image)
                index, last_ns = index + 1, stamp_ns
        finally:
            capture.release()
        if index == 0:
            raise ValueError(f"{self.path} holds no frame that OpenCV can decode: convert it to MP4 or MKV")
        if index < (self._count if end is None else min(end, self._count)):
            self.note_damage(f"{self.path} ended after {index} of the {self._count} frames that it declares")

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self.path))
        if not capture.isOpened():
            raise ValueError(
                f"{self.path} cannot be opened as a video: give a video, an image, a folder of images, or a bag "
                "(its folder, .mcap or .db3)"
            )
        return capture
