# SPDX-License-Identifier: Apache-2.0
"""Small recordings for tests: image folders, videos and bags, made without this package's own writers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from netwarp_ros.recordings.frames import Frame, stamp
from netwarp_ros.recordings.messages import COMPRESSED_IMAGE, IMAGE

HEIGHT, WIDTH = 48, 64
T0 = 1_700_000_000_000_000_000
"""Stamp of the first message, in ns."""

typestore = get_typestore(Stores.ROS2_JAZZY)


def noise(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_images(folder: Path, *names: str) -> Path:
    """Write noise of seed 0, 1, … under these names."""
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        assert cv2.imwrite(str(folder / name), noise(seed))
    return folder


def write_video(path: Path, count: int = 6, rate: float = 10.0) -> Path:
    """Write grey images, each 40 levels brighter than the one before."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (WIDTH, HEIGHT))
    for index in range(count):
        writer.write(np.full((HEIGHT, WIDTH, 3), 40 * index, np.uint8))
    writer.release()
    return path


def write_film(path: Path, stamps_ms: Iterable[int], codec: str, **options: str) -> Path:
    """Write grey images with these stamps, each 4 levels brighter than the one before; no WebM has a frame rate."""
    milliseconds = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=1000, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = milliseconds
        for index, stamp_ms in enumerate(stamps_ms):
            frame = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH, 3), 4 * index, np.uint8), format="bgr24")
            frame.pts, frame.time_base = stamp_ms, milliseconds
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def noise_frames(count: int) -> Iterator[Frame]:
    """Yield frames of noise of seed 0, 1, …, 0.1 s apart."""
    for index in range(count):
        yield Frame(index, T0 + stamp(index, 10), "", noise(index))


def header(stamp_ns: int = T0) -> Any:
    types = typestore.types
    time = types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return types["std_msgs/msg/Header"](stamp=time, frame_id="camera")


def image_message(
    image: np.ndarray, encoding: str, stamp_ns: int = T0, /, *, padding: int = 0, **changes: object
) -> Any:
    """Return a raw image message; each row is followed by some bytes of padding."""
    height, width = image.shape[:2]
    rows = np.ascontiguousarray(image).reshape(height, -1).view(np.uint8)
    data = np.pad(rows, ((0, 0), (0, padding)), constant_values=7)
    fields = {"header": header(stamp_ns), "height": height, "width": width, "encoding": encoding, "is_bigendian": 0}
    fields |= {"step": data.shape[1], "data": data.reshape(-1)} | changes
    return typestore.types[IMAGE](**fields)


def compressed_message(image: np.ndarray, suffix: str, stamp_ns: int = T0) -> Any:
    data = cv2.imencode(suffix, image)[1].reshape(-1)
    return typestore.types[COMPRESSED_IMAGE](header=header(stamp_ns), format=suffix.strip("."), data=data)


def write_messages(
    path: Path,
    messages: Iterable[tuple[str, Any]],
    *,
    storage: StoragePlugin = StoragePlugin.MCAP,
    compression: CompressionMode = CompressionMode.NONE,
) -> Path:
    """Write a bag of (topic, message) pairs, recorded 0.1 s apart."""
    writer = Writer(path, version=9, storage_plugin=storage)
    writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        connections: dict[str, Any] = {}
        for index, (topic, message) in enumerate(messages):
            message_type = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, message_type, typestore=typestore)
            data = typestore.serialize_cdr(message, message_type)
            writer.write(connections[topic], T0 + stamp(index, 10), data)
    return path
