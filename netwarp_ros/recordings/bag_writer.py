# SPDX-License-Identifier: Apache-2.0
"""Rosbag2 recordings, written without ROS by ``rosbags``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from netwarp_ros.recordings.atomic import refuse_existing, temporary_folder
from netwarp_ros.recordings.frames import Frame
from netwarp_ros.recordings.messages import IMAGE, LABEL_INFO, header, image_message, typestore

_METADATA_VERSION: Literal[9] = 9  # as Jazzy and later write it; Jazzy cannot read higher versions
_FOREVER = QosTime(*divmod(2**63 - 1, 10**9))
_LATCHED = Qos(
    QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL, _FOREVER, _FOREVER,
    QosLiveliness.AUTOMATIC, _FOREVER, avoid_ros_namespace_conventions=False,
)  # fmt: skip


class BagWriter:
    """A rosbag2 open for writing; use it in a ``with`` statement.

    The storage is MCAP with chunks compressed by zstd. Jazzy and later play it, and Foxglove opens it.

    The bag is written to a folder ``PATH.part-XXXXXXXX`` and renamed to ``PATH`` at the end, or removed after an error.

    Args:
        path: A file ending in ``.mcap``, or a folder, which also gets a ``metadata.yaml``. It must not exist.

    Raises:
        FileExistsError: If the path exists.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        refuse_existing(self.path)
        self._connections: dict[str, Connection] = {}

    def __enter__(self) -> BagWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as ends:
            work = ends.enter_context(temporary_folder(self.path))
            self._bag = work / (self.path.stem if self.path.suffix == ".mcap" else self.path.name)
            self._writer = Writer(self._bag, version=_METADATA_VERSION, storage_plugin=StoragePlugin.MCAP)
            self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
            self._writer.open()
            self._ends = ends.pop_all()
        return self

    def add_topic(self, topic: str, message_type: str) -> None:
        """Add a topic, with or without messages to follow. A ``LabelInfo`` topic is latched, like the node's."""
        self._connections[topic] = self._writer.add_connection(
            topic, message_type, typestore=typestore, offered_qos_profiles=[_LATCHED] * (message_type == LABEL_INFO)
        )

    def write(self, topic: str, message: Any, recorded_ns: int) -> None:
        """Append a message. A new topic is added first."""
        if topic not in self._connections:
            self.add_topic(topic, message.__msgtype__)
        data = typestore.serialize_cdr(message, message.__msgtype__)
        self._writer.write(self._connections[topic], recorded_ns, data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._ends:
            self._writer.__exit__(kind, error, traceback)
            if error is None:
                refuse_existing(self.path)  # it may have been made in the meantime
                (self._bag / f"{self._bag.name}.mcap" if self.path.suffix == ".mcap" else self._bag).rename(self.path)


def write_bag(
    path: str | Path,
    frames: Iterable[Frame],
    *,
    topic: str,
    labels: Callable[[Frame], np.ndarray | None] | None = None,
    label_topic: str = "",
    frame_id: str = "camera_optical_frame",
) -> int:
    """Write frames to a bag as raw ``bgr8`` images, and their label maps as raw ``mono8``, ``mono16`` or ``bgr8``.

    Args:
        path: As for `BagWriter`.
        frames: The frames; one at a time is held in memory. Messages are recorded at the stamps of their frames.
        topic: Topic of the images, for instance ``/camera/image_raw``.
        labels: Returns the label map of a frame, ``(H, W)`` uint8 or uint16, or ``(H, W, 3)`` uint8 BGR, or None.
        label_topic: Topic of the label maps. They have the headers of their images.
        frame_id: For the headers: the camera's optical frame (z forward, x right, y down; REP 103).

    Returns:
        Number of frames written.

    Raises:
        FileExistsError: If the path exists.
    """
    count = 0
    with BagWriter(path) as bag:
        bag.add_topic(topic, IMAGE)
        for frame in frames:
            common = header(frame.stamp_ns, frame_id)
            bag.write(topic, image_message(frame.image, "bgr8", common), frame.stamp_ns)
            if labels and (label := labels(frame)) is not None:
                encoding = "bgr8" if label.ndim == 3 else f"mono{8 * label.itemsize}"
                bag.write(label_topic, image_message(label, encoding, common), frame.stamp_ns)
            count += 1
    return count
