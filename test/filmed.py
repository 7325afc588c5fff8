# SPDX-License-Identifier: Apache-2.0
"""Packets of video for tests, encoded by FFmpeg, and what FFmpeg decodes from them."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from functools import cache
from typing import Any

import av
import cv2
import numpy as np
from recorded import noise

HEIGHT, WIDTH, COUNT, KEYS = 96, 128, 45, 12
"""Every twelfth image is a key frame."""

X265 = "log-level=none:repeat-headers=1:bframes=0:min-keyint=12:keyint=12:scenecut=0"
ENCODERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264": ("libx264", "h264", {"tune": "zerolatency", "x264-params": "scenecut=0"}),
    "h265": ("libx265", "hevc", {"x265-params": X265}),
    "vp9": ("libvpx-vp9", "vp9", {"deadline": "realtime", "lag-in-frames": "0", "auto-alt-ref": "0"}),
    "av1": ("libsvtav1", "libdav1d", {"svtav1-params": "pred-struct=1:lookahead=0", "preset": "11"}),
}
"""By Foxglove's format: FFmpeg's encoder, its decoder, and options for video without delay."""


@cache
def pictures(count: int = COUNT, seed: int = 0) -> list[np.ndarray]:
    """Return images of a texture that moves by three pixels from one to the next."""
    texture = cv2.GaussianBlur(noise(seed, HEIGHT, WIDTH + 3 * count), (0, 0), 2)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    return [np.ascontiguousarray(texture[:, 3 * index : 3 * index + WIDTH]) for index in range(count)]


def encode(
    encoder: str, frames: Iterable[av.VideoFrame], options: dict[str, str], pixels: str = "yuv420p", **changes: Any
) -> list[bytes]:
    context: Any = av.CodecContext.create(encoder, "w")
    context.pix_fmt, context.framerate, context.time_base, context.gop_size = pixels, 30, Fraction(1, 30), KEYS
    context.options = options
    packets = []
    for index, frame in enumerate(frames):
        if not index:
            for name, value in ({"width": frame.width, "height": frame.height} | changes).items():
                setattr(context, name, value)
        frame.pts = index
        packets += context.encode(frame)
    return [bytes(packet) for packet in packets + context.encode(None)]


@cache
def packets(form: str, seed: int = 0) -> list[bytes]:
    encoder, _, options = ENCODERS[form]
    frames = [av.VideoFrame.from_ndarray(picture, format="bgr24") for picture in pictures(seed=seed)]
    return encode(encoder, frames, options)


@cache
def decoded(form: str, seed: int = 0) -> list[np.ndarray]:
    """Return what FFmpeg decodes from all packets, without any of the options that are used here."""
    context: Any = av.CodecContext.create(ENCODERS[form][1], "r")
    frames = [frame for packet in packets(form, seed) for frame in context.decode(av.Packet(packet))]
    frames += context.decode(None)
    return [frame.to_ndarray(format="bgr24") for frame in frames]
