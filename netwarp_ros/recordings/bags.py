# SPDX-License-Identifier: Apache-2.0
"""Frames and label maps of bags (rosbag2, MCAP, ROS 1), read without ROS."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from netwarp_ros.recordings.bag_file import RecordedMessage
from netwarp_ros.recordings.bag_reader import BagReader, named_in_errors
from netwarp_ros.recordings.frames import DEFAULT_RATE, Frame, FrameSource, stamp
from netwarp_ros.recordings.image_messages import to_label, to_writable_bgr
from netwarp_ros.recordings.messages import stamp_of
from netwarp_ros.recordings.recorded_images import is_raw_image, read_image

_NAMED = 10
"""Most unreadable images of a topic that are reported one by one."""


class BagFrames(FrameSource):
    """The images of one or more topics of a bag, in the order of their recording.

    Frames have the stamps of the message headers; if a stamp is 0, the frame has the time of recording. An
    image that cannot be read is noted as damage and left out; the index still counts it.

    Args:
        path: The bag's folder, or a ``.mcap``, ``.db3`` or ``.bag`` file.
        topics: Topics of images (`recorded_images`). May be left out if the bag has only one.
        rate: Frames per second. Each topic's frames are then stamped at this rate from 0, not by their headers.
        leave_out: Topics not to choose if no topics are given.

    Raises:
        ValueError: If the bag cannot be read, a topic is missing or has another type, or no topic is given and the bag
            has several. While iterating: if none of the images can be read.
    """

    def __init__(
        self,
        path: Path,
        *,
        topics: Sequence[str] = (),
        rate: float | None = None,
        leave_out: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.path = path
        with BagReader(path, self.damage.append) as bag:
            self.cameras = topics or [bag.only_image_topic(leave_out)]
            for topic in self.cameras:
                bag.check_image_topic(topic)
            self._count = sum(bag.topics[topic].count for topic in self.cameras)
            seconds, count = bag.duration_ns * 1e-9, self._count / len(self.cameras)
        if not self._count:
            reason = f": {self.damage[0]}" if self.damage else ""
            raise ValueError(f"{path} holds no message on its image topic {', '.join(self.cameras)}{reason}")
        self._keeps_stamps = rate is None
        # There is one interval fewer than there are images.
        self.rate = rate or ((count - 1) / seconds if count > 1 and seconds > 0 else DEFAULT_RATE)

    def __len__(self) -> int:
        return self._count

    def read(self, begin: int = 0, end: int | None = None) -> Iterator[Frame]:
        self.damage = []
        counts: Counter[str] = Counter()
        late_counts: Counter[str] = Counter()
        unreadable_counts: Counter[str] = Counter()
        last_ns: dict[str, int] = {}
        with BagReader(self.path, self.note_damage) as bag:
            for index, (number, recorded) in enumerate(bag.messages(self.cameras, begin), begin):
                if index == end:
                    break
                if recorded.data is None:  # the bag's reader has reported it
                    continue
                topic, recorded_ns = recorded.topic, recorded.recorded_ns
                counts[topic] += 1
                try:
                    with named_in_errors(f"{self.path}: image {number} of {topic}"):
                        message = read_image(recorded)
                        image = to_writable_bgr(message)
                except ValueError as error:
                    unreadable_counts[topic] += 1
                    if unreadable_counts[topic] <= _NAMED:
                        self.note_damage(str(error))
                    continue
                stamp_ns = stamp_of(message, recorded_ns) if self._keeps_stamps else stamp(number, self.rate)
                late_counts[topic] += stamp_ns <= last_ns.get(topic, -1)
                last_ns[topic] = stamp_ns
                yield Frame(
                    index,
                    stamp_ns,
                    f"{index:06d}",
                    image,
                    topic,
                    message.header.frame_id,
                    getattr(message, "encoding", "") or message.format,
                    recorded_ns if self._keeps_stamps else stamp_ns,
                )
        if not last_ns and begin == 0 and end is None:
            raise ValueError(f"none of the {self._count} images in {self.path} can be read. {self.damage[0]}")
        for topic, count in unreadable_counts.items():
            if count > _NAMED:
                self.note_damage(f"{self.path}: {count - _NAMED} more images of {topic} cannot be read")
        for topic, count in (+late_counts).items():
            self.note_damage(
                f"{self.path}: {count} of the {counts[topic]} images of {topic} have a stamp that is not later than "
                "the one before"
            )


class BagLabels:
    """Label maps of a bag, looked up by the stamps of frames; held in memory, compressed.

    Args:
        path: The bag's folder, or a ``.mcap``, ``.db3`` or ``.bag`` file; the bag of the images or another one.
        topics: For each camera, the topic of its label maps (``sensor_msgs/Image`` with encoding ``mono8``).

    Attributes:
        damage: What could not be read, one sentence each.

    Raises:
        ValueError: If the bag cannot be read, or a topic is missing or has another type.
    """

    def __init__(self, path: str | Path, topics: Mapping[str, str]) -> None:
        self.path, self.topics = Path(path), topics
        self.damage: list[str] = []
        self._compressed: dict[tuple[str, int], RecordedMessage] = {}
        self._requested: set[tuple[str, int]] = set()
        with BagReader(self.path, self.damage.append) as bag:
            for topic in topics.values():
                bag.check_image_topic(topic)
                if not is_raw_image(bag.topics[topic]):
                    raise ValueError(f"{path}: {topic} is compressed; label maps must be sensor_msgs/Image with mono8")
            for number, recorded in bag.messages(set(topics.values())):
                if recorded.data is None:
                    continue
                try:
                    with named_in_errors(f"{self.path}: label map {number} of {recorded.topic}"):
                        stamp_ns = stamp_of(read_image(recorded), recorded.recorded_ns)
                except ValueError as error:
                    self.damage.append(str(error))
                    continue
                compressed = recorded._replace(data=zlib.compress(recorded.data, level=1))
                self._compressed[recorded.topic, stamp_ns] = compressed

    def __call__(self, frame: Frame) -> np.ndarray | None:
        """Return the label map of a frame, ``(H, W)`` uint8, or None if the bag has none.

        Raises:
            ValueError: If the message is not a label map of the frame's size.
        """
        key = self.topics[frame.camera], frame.stamp_ns
        if key not in self._compressed:
            return None
        self._requested.add(key)
        recorded = self._compressed[key]
        assert recorded.data is not None
        with named_in_errors(f"{self.path}: the label map of image {frame.name}, on {key[0]},"):
            message = read_image(recorded._replace(data=zlib.decompress(recorded.data)))
            return to_label(message, frame.image.shape[:2])

    def unmatched(self) -> list[str]:
        """Return one sentence for each topic that has unmatched label maps: their number."""
        counts = Counter(topic for topic, _ in self._compressed)
        unmatched = Counter(topic for topic, _ in self._compressed.keys() - self._requested)
        return [
            f"{self.path}: {unmatched[topic]} of the {counts[topic]} label maps of {topic} match no image by stamp"
            for topic in unmatched
        ]
