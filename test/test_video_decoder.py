# SPDX-License-Identifier: Apache-2.0
"""Packets of video decoded to images: which are key frames, and the colors."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import pytest
from filmed import ENCODERS, X265, encode, packets

from netwarp_ros.recordings.image_codecs import ImageError
from netwarp_ros.recordings.video_bitstream import is_key_frame
from netwarp_ros.recordings.video_decoder import VideoDecoder, frame_to_bgr


@pytest.mark.parametrize("form", ENCODERS)
def test_key_frames_are_those_of_the_decoder(form: str) -> None:
    context: Any = av.CodecContext.create(ENCODERS[form][1], "r")
    frames = [frame for packet in packets(form) for frame in context.decode(av.Packet(packet))] + context.decode(None)
    codec = {"h265": "hevc"}.get(form, form)
    assert [is_key_frame(codec, packet) for packet in packets(form)] == [bool(frame.key_frame) for frame in frames]
    assert sum(frame.key_frame for frame in frames) > 2


MATRICES = {
    "bt709": (1, 0.2126, 0.0722),
    "bt601": (6, 0.299, 0.114),
    "bt2020": (9, 0.2627, 0.0593),
    "": (2, 0.299, 0.114),
}
"""By name, empty for a stream that names none: its number in the stream, and the weights of red and blue."""


def patches() -> np.ndarray:
    """Return ``(96, 128, 3)`` squares of one color each, black, white and pure colors among them."""
    colors = np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8)
    colors[0, :6] = [[0, 0, 0], [255, 255, 255], [0, 0, 255], [0, 255, 0], [255, 0, 0], [128, 128, 128]]
    return np.repeat(np.repeat(colors, 16, 0), 16, 1)


def yuv(image: np.ndarray, pixels: str, red: float, blue: float, is_full: bool) -> av.VideoFrame:
    """Convert BGR to YUV by the definition of the matrices."""
    bits = 10 if "10" in pixels else 8
    unit = 1 << (bits - 8)
    b, g, r = np.moveaxis(image / 255, 2, 0)
    luma = red * r + blue * b + (1 - red - blue) * g
    chroma = (b - luma) / (2 - 2 * blue), (r - luma) / (2 - 2 * red)
    most = (1 << bits) - 1
    scales = (most, 0, most) if is_full else (219 * unit, 16 * unit, 224 * unit)
    planes = [luma * scales[0] + scales[1], *(plane * scales[2] + 128 * unit for plane in chroma)]
    frame = av.VideoFrame(image.shape[1], image.shape[0], pixels)
    for plane, values in zip(frame.planes, planes, strict=True):
        step = image.shape[0] // plane.height
        samples = np.clip(np.rint(values[::step, ::step]), 0, most).astype("<u2" if bits > 8 else np.uint8)
        rows = np.ascontiguousarray(samples).view(np.uint8)
        plane.update(np.pad(rows, ((0, 0), (0, plane.line_size - rows.shape[1]))).tobytes())
    return frame


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("form", ["h264", "h265"])
def test_colors_are_those_that_the_stream_declares(form: str, pixels: str, matrix: str, is_full: bool) -> None:
    """Without loss, so that nothing but the rounding of YUV and of the conversion is left. A wrong matrix costs 20."""
    number, red, blue = MATRICES[matrix]
    frame = yuv(patches(), pixels, red, blue, is_full)
    frame.colorspace, frame.color_range = number, 2 if is_full else 1
    lossless = {"libx264": {"qp": "0", "tune": "zerolatency"}, "libx265": {"x265-params": X265 + ":lossless=1"}}
    encoder = ENCODERS[form][0]
    tags = {"colorspace": number, "color_range": 2 if is_full else 1}
    data = encode(encoder, [frame], lossless[encoder], pixels, **tags)
    image = frame_to_bgr(VideoDecoder("hevc" if form == "h265" else form).decode(data[0]))
    assert image.dtype == np.uint8
    difference = np.abs(image.astype(int) - patches())[8::16, 8::16]
    assert difference.max() <= 3 and difference.mean() < 1.5


def test_a_color_matrix_that_ffmpeg_cannot_convert_is_an_error_of_the_image() -> None:
    options = {"qp": "0", "tune": "zerolatency"}
    frame = yuv(patches(), "yuv420p", 0.299, 0.114, False)
    data = encode("libx264", [frame], options, colorspace=14)  # ICtCp, ITU-R BT.2100
    with pytest.raises(ImageError, match=r"yuv420p \(color matrix 14, range [0-2]\), which FFmpeg cannot convert"):
        frame_to_bgr(VideoDecoder("h264").decode(data[0]))
