# SPDX-License-Identifier: Apache-2.0
"""Packets of a video decoded to images by PyAV (FFmpeg): exactly one image for each packet, at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from netwarp_ros.recordings.image_codecs import ImageError, most_pixels
from netwarp_ros.recordings.video_bitstream import MissingImageError, PacketCheck
from netwarp_ros.recordings.videos import load_pyav

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_DECODERS = {"h264": "h264", "hevc": "hevc", "vp9": "vp9", "av1": "libdav1d"}
"""FFmpeg's name of the decoder of each codec. Its own decoder of AV1 needs a GPU."""


class VideoOrderError(ValueError):
    """The images of a video do not come in the order of its packets. No packet of it should be decoded."""


class VideoDecoder:
    """Decodes the packets of one stream in their order, from a key frame on.

    It has one thread: more would delay images, and would not survive a fork.

    Args:
        codec: ``h264``, ``hevc``, ``vp9`` or ``av1``.

    Raises:
        ValueError: If PyAV is not installed, or has no decoder for the codec.
    """

    def __init__(self, codec: str) -> None:
        self._av = load_pyav()
        self.codec = codec
        try:
            self._context = self._av.CodecContext.create(_DECODERS[codec], "r")
        except ValueError as error:  # PyAV's error for an unknown codec
            raise ImageError(
                f"this PyAV has no decoder {_DECODERS[codec]}: install PyAV's own build (pip install av), or convert "
                "the video to another codec"
            ) from error
        self._context.thread_type, self._context.thread_count = "NONE", 1
        self._context.flags |= self._av.codec.context.Flags.low_delay
        self._context.options = {"max_pixels": str(most_pixels())}
        self._check = PacketCheck(codec)
        self._count = 0

    def decode(self, data: bytes) -> VideoFrame:
        """Decode the next packet. After an error, only another decoder can go on, at a key frame.

        Raises:
            VideoOrderError: If the decoder waits for later packets, or returns the image of another packet.
            MissingImageError: If the image depends on one that is missing.
            ImageError: If the packet is damaged, holds no image or several, or claims too many pixels.
        """
        self._check.check(data)
        packet = self._av.Packet(data)
        packet.pts = self._count
        self._count += 1
        try:
            frames = self._context.decode(packet)
        except self._av.FFmpegError as error:
            raise ImageError(f"{len(data)} bytes of {self.codec} cannot be decoded: {error.strerror}") from error
        if (not frames and self._context.has_b_frames) or any(frame.pts != packet.pts for frame in frames):
            raise VideoOrderError(
                f"its images do not come in the order of its packets, because the {self.codec} video has or announces "
                "B-frames: encode it without them, for instance with -bf 0 or -tune zerolatency"
            )
        if not frames:
            raise MissingImageError("images before it are missing")
        if len(frames) > 1:
            raise ImageError(f"it holds {len(frames)} images: expected one in each message")
        if frames[0].is_corrupt:
            raise ImageError(f"{len(data)} bytes of {self.codec} are damaged: FFmpeg finds only parts of the image")
        return frames[0]


def frame_to_bgr(frame: VideoFrame) -> np.ndarray:
    """Convert a decoded image to BGR with the stream's own range and matrix of colors.

    A stream that does not say them is in BT.601 in video range, as other image messages are. Samples of more bits are
    converted to 8 bits.

    Returns:
        ``(H, W, 3)`` uint8, BGR, contiguous and writable.

    Raises:
        ImageError: If FFmpeg has no conversion of the pixel format, or of the range and matrix.
    """
    try:
        image: np.ndarray = frame.to_ndarray(format="bgr24")
    except (ValueError, load_pyav().FFmpegError) as error:
        kind = f"{frame.format.name} (color matrix {int(frame.colorspace)}, range {int(frame.color_range)})"
        raise ImageError(f"its pixels are {kind}, which FFmpeg cannot convert: {error}") from error
    return np.require(image, requirements=["C", "W"])
