# SPDX-License-Identifier: Apache-2.0
"""The images of a topic, decoded in any order: those of a video from the key frame before them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from netwarp_ros.recordings.bag_file import RecordedMessage
from netwarp_ros.recordings.image_messages import to_writable_bgr
from netwarp_ros.recordings.recorded_images import is_video, read_image
from netwarp_ros.recordings.video_bitstream import MissingImageError, is_key_frame
from netwarp_ros.recordings.video_decoder import VideoDecoder, VideoOrderError, frame_to_bgr

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_FIRST_STEP = 32
"""Messages in which a key frame is first looked for; each next step back is twice as long."""


class TopicImages:
    """Decodes the messages of one image topic. The fastest order is that of their recording.

    Messages of a video depend on those before. Where decoding cannot go on from the message decoded last, it starts at
    the last key frame up to the message asked for, so the same message always gives the same image. After a message
    that is lost or damaged, those up to the next key frame are not decoded.

    Pickled, it starts anew.

    Args:
        read: Returns the message before which the topic has so many others; not called for images that are no video.
    """

    def __init__(self, read: Callable[[int], RecordedMessage]) -> None:
        self._read = read
        self._start()

    def decode(self, number: int, recorded: RecordedMessage) -> tuple[Any, np.ndarray]:
        """Decode a message.

        Args:
            number: Number of earlier messages of the topic.
            recorded: The message.

        Returns:
            What `read_image` returns, and the image: ``(H, W, 3)`` uint8, BGR, contiguous and writable.

        Raises:
            MissingImageError: If an image that it depends on is missing or damaged.
            VideoOrderError: If the video has B-frames.
            ValueError: If the message is lost, or its data cannot be decoded (`ImageError`).
        """
        if not is_video(recorded):
            message = read_image(recorded)
            return message, to_writable_bgr(message)
        if number != self._next and not _is_key(recorded):
            self._catch_up(number)
        message, frame = self._decode_next(number, recorded)
        return message, frame_to_bgr(frame)

    def __getstate__(self) -> dict[str, Any]:
        return {"_read": self._read}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._read = state["_read"]
        self._start()

    def _start(self) -> None:
        self._decoder: VideoDecoder | None = None
        self._next, self._is_broken = 0, True

    def _decode_next(self, number: int, recorded: RecordedMessage) -> tuple[Any, VideoFrame]:
        """Decode the message that follows the one before, or a key frame."""
        is_broken = self._is_broken or number != self._next
        self._next, self._is_broken = number + 1, True
        packet = read_image(recorded)
        codec = packet.codec
        if is_key_frame(codec, packet.data):
            if is_broken or self._decoder is None or self._decoder.codec != codec:
                self._decoder = VideoDecoder(codec)
        elif is_broken or self._decoder is None:
            raise MissingImageError("the images before it, from a key frame on, are missing or damaged")
        frame = self._decoder.decode(packet.data)
        self._is_broken = False
        return packet, frame

    def _catch_up(self, number: int) -> None:
        """Decode what a message depends on, as far as it is not decoded yet."""
        lowest = self._next if self._next < number else 0
        key = self._last_key(lowest, number)
        if key is None and (self._is_broken or lowest != self._next):
            self._next, self._is_broken = number, True
            return
        for earlier in range(lowest if key is None else key, number):
            try:
                self._decode_next(earlier, self._read(earlier))
            except VideoOrderError:
                raise
            except ValueError:
                continue  # the messages after it will not be decoded

    def _last_key(self, lowest: int, end: int) -> int | None:
        """Return the number of the last key frame in a range of messages; None if there is none."""
        step = _FIRST_STEP
        while end > lowest:
            begin = max(lowest, end - step)
            keys = [number for number in range(begin, end) if _is_key(self._read(number))]
            if keys:
                return keys[-1]
            end, step = begin, 2 * step
        return None


def _is_key(recorded: RecordedMessage) -> bool:
    """Return whether a message is a key frame, as far as can be known."""
    try:
        packet = read_image(recorded)
        return is_key_frame(packet.codec, packet.data)
    except ValueError:
        return False
