# SPDX-License-Identifier: Apache-2.0
"""Messages that hold one packet of a video each: Foxglove's ``CompressedVideo``, and the packets of image transports.

The definitions are those of ``foxglove_msgs`` and ``ffmpeg_image_transport_msgs``, not those in the bag (`messages`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rosbags.serde import SerdeError
from rosbags.typesys import get_types_from_msg

from netwarp_ros.recordings.image_codecs import ImageError
from netwarp_ros.recordings.messages import header, typestore
from netwarp_ros.resources import cut, quote

COMPRESSED_VIDEO = "foxglove_msgs/msg/CompressedVideo"
FFMPEG_PACKET = "ffmpeg_image_transport_msgs/msg/FFMPEGPacket"
FOXGLOVE_COMPRESSED_VIDEO = "foxglove.CompressedVideo"
VIDEOS = (COMPRESSED_VIDEO, FFMPEG_PACKET, FOXGLOVE_COMPRESSED_VIDEO)

_DEFINITIONS = {
    COMPRESSED_VIDEO: "builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format",
    FFMPEG_PACKET: """
        std_msgs/Header header
        int32 width
        int32 height
        string encoding
        uint64 pts
        uint8 flags
        bool is_bigendian
        uint8[] data
        """,
}
for _name, _text in _DEFINITIONS.items():
    typestore.register(get_types_from_msg(_text, _name))

_NAMES = {
    "h264": ("h264", "libx264", "libopenh264"),
    "hevc": ("hevc", "h265", "libx265"),
    "vp9": ("vp9", "libvpx-vp9"),
    "av1": ("av1", "libsvtav1", "libaom-av1"),
}
"""Names of a codec in messages: Foxglove's, FFmpeg's, and those of FFmpeg's encoders, which older messages hold."""


@dataclass(frozen=True)
class VideoPacket:
    """A packet of a video: one image, which depends on the images before it unless it is a key frame.

    Attributes:
        header: A ``std_msgs/Header``: the message's stamp and frame_id.
        format: The codec and more, as the message says it: ``h264``, ``hevc;yuv420p;bgr8;bgr8``.
        data: The packet.
    """

    header: Any
    format: str
    data: bytes

    @property
    def codec(self) -> str:
        """The codec: ``h264``, ``hevc``, ``vp9`` or ``av1``.

        Raises:
            ImageError: If the format is unknown, or the video's pixels are not colors.
        """
        name, *pixels = self.format.lower().split(";")
        if any(pixel.startswith("bayer_") for pixel in pixels[:2]):
            raise ImageError(
                f"its format is {quote(self.format, 80)}, a video of a Bayer mosaic: record it with another "
                "cv_bridge_target_format, such as bgr8"
            )
        for codec, names in _NAMES.items():
            if name in names or name.partition("_")[0] in names:  # h264_nvenc
                return codec
        raise ImageError(
            f"its format is {quote(self.format, 80)}: expected a video in h264, h265, vp9 or av1; convert it to one of "
            "these, or record images"
        )


def read_ros_packet(message_type: str, data: bytes | memoryview) -> VideoPacket:
    """Deserialize a `COMPRESSED_VIDEO` or `FFMPEG_PACKET` of ROS 2.

    Raises:
        ImageError: If the data are not such a message.
    """
    try:
        message: Any = typestore.deserialize_cdr(data, message_type)
    except SerdeError as error:
        raise ImageError(f"{len(data)} bytes are not a {message_type}: {error}") from error
    if message_type == FFMPEG_PACKET:
        return VideoPacket(message.header, message.encoding, message.data.tobytes())
    time = message.timestamp
    common = header(time.sec * 10**9 + time.nanosec, message.frame_id)
    return VideoPacket(common, message.format, message.data.tobytes())


def read_foxglove_packet(message_type: str, data: bytes | memoryview) -> VideoPacket:
    """Read a `FOXGLOVE_COMPRESSED_VIDEO` in protobuf.

    Raises:
        ValueError: If the package that describes it is not installed.
        ImageError: If the data are not such a message.
    """
    try:
        from foxglove_schemas_protobuf.CompressedVideo_pb2 import CompressedVideo
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ValueError(f"{cut(message_type)} needs more packages: pip install 'netwarp_ros[foxglove]'") from error
    message: Any = CompressedVideo()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ImageError(f"{len(data)} bytes are not a {message_type}: {error}") from error
    stamp_ns = message.timestamp.seconds * 10**9 + message.timestamp.nanos
    return VideoPacket(header(stamp_ns, message.frame_id), message.format, message.data)
