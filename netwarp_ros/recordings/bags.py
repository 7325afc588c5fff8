# SPDX-License-Identifier: Apache-2.0
"""Frames and label maps of bags (rosbag2, MCAP, ROS 1), read without ROS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from netwarp_ros.classes import ClassSet
from netwarp_ros.recordings.bag_messages import BagMessages
from netwarp_ros.recordings.bag_reader import BagReader, named_in_errors
from netwarp_ros.recordings.frames import DEFAULT_RATE, Frame, FrameSource, stamp
from netwarp_ros.recordings.image_messages import to_label
from netwarp_ros.recordings.messages import stamp_of
from netwarp_ros.recordings.recorded_images import is_raw_image, read_image
from netwarp_ros.recordings.topic_images import TopicImages
from netwarp_ros.recordings.video_bitstream import MissingImageError
from netwarp_ros.recordings.video_decoder import VideoOrderError

_NAMED = 10
"""Most unreadable images of a topic that are reported one by one."""


class BagFrames(FrameSource):
    """The images of one or more topics of a bag, in the order of their recording.

    Frames have the stamps of the message headers; if a stamp is 0, the frame has the time of recording. An image that
    cannot be read is noted as damage and left out; the index still counts it. The images of a video that depend on it
    are left out, too, and counted in one sentence.

    Args:
        path: The bag's folder, or a ``.mcap``, ``.db3`` or ``.bag`` file.
        topics: Topics of images or of videos (`recorded_images`). May be left out if the bag has only one.
        rate: Frames per second. Each topic's frames are then stamped at this rate from 0, not by their headers.
        leave_out: Topics not to choose if no topics are given.

    Raises:
        ValueError: If the bag cannot be read, a topic is missing or has another type, or no topic is given and the bag
            has several. While iterating: if none of the images can be read, or a video has B-frames.
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
            self.rate = rate or bag.rate(self.cameras) or DEFAULT_RATE
        if not self._count:
            reason = f": {self.damage[0]}" if self.damage else ""
            raise ValueError(f"{path} holds no message on its image topic {', '.join(self.cameras)}{reason}")
        self._keeps_stamps = rate is None

    def __len__(self) -> int:
        return self._count

    def read(self, begin: int = 0, end: int | None = None) -> Iterator[Frame]:
        self.damage = []
        counts: Counter[str] = Counter()
        late_counts: Counter[str] = Counter()
        unreadable_counts: Counter[str] = Counter()
        dependent_counts: Counter[str] = Counter()
        last_ns: dict[str, int] = {}
        earlier = BagMessages(self.path, _ignore)  # opened if a video is not decoded in its order
        images = {topic: TopicImages(partial(earlier.read, topic)) for topic in self.cameras}
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
                        message, image = images[topic].decode(number, recorded)
                except ValueError as error:
                    if isinstance(error.__cause__, VideoOrderError):
                        raise
                    if isinstance(error.__cause__, MissingImageError):
                        dependent_counts[topic] += 1
                        continue
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
        for topic, count in dependent_counts.items():
            self.note_damage(
                f"{self.path}: {count} of the {counts[topic]} images of {topic} are left out: they depend on images of "
                "the video that are missing or damaged"
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
    """Label maps of a bag, looked up by the stamps of frames, and read when they are asked for.

    Opening checks the topics. `index` reads the stamps of all label maps, at the latest when the first label map is
    asked for, and only these are kept in memory.

    Args:
        path: The bag's folder, or a ``.mcap``, ``.db3`` or ``.bag`` file; the bag of the images or another one.
        topics: For each camera, the topic of its label maps (``sensor_msgs/Image``, `to_label`).
        classes: What the label maps hold. None returns them as they are stored.

    Attributes:
        damage: What `index` could not read, one sentence each.

    Raises:
        ValueError: If the bag cannot be read, or a topic is missing or has another type.
    """

    def __init__(self, path: str | Path, topics: Mapping[str, str], classes: ClassSet | None = None) -> None:
        self.path, self.topics, self.classes = Path(path), topics, classes
        self.damage: list[str] = []
        self._numbers: dict[str, dict[int, int]] = {}
        self._requested: dict[str, set[int]] = {topic: set() for topic in topics.values()}
        self._messages = BagMessages(self.path, _ignore)
        with BagReader(self.path, _ignore) as bag:
            for topic in topics.values():
                bag.check_image_topic(topic)
                if not is_raw_image(bag.topics[topic]):
                    raise ValueError(
                        f"{path}: {topic} is compressed; label maps must be sensor_msgs/Image, such as mono8"
                    )

    def index(self) -> Mapping[str, Mapping[int, int]]:
        """Return for each topic the numbers of the label maps by their stamps. The first call reads all label maps."""
        if self._numbers:
            return self._numbers
        self._numbers = {topic: {} for topic in self.topics.values()}
        with BagReader(self.path, self.damage.append) as bag:
            for number, recorded in bag.messages(self._numbers.keys()):
                if recorded.data is None:
                    continue
                try:
                    with named_in_errors(f"{self.path}: label map {number} of {recorded.topic}"):
                        stamp_ns = stamp_of(read_image(recorded), recorded.recorded_ns)
                except ValueError as error:
                    self.damage.append(str(error))
                    continue
                self._numbers[recorded.topic][stamp_ns] = number
        return self._numbers

    def __call__(self, frame: Frame) -> np.ndarray | None:
        """Return the label map of a frame, or None if the bag has none.

        Returns:
            ``(H, W)`` uint8 class ids or void; without ``classes``, what `to_label` returns.

        Raises:
            ValueError: If the message is not a label map of the frame's size, or does not fit the classes.
        """
        topic = self.topics[frame.camera]
        number = self.index()[topic].get(frame.stamp_ns)
        if number is None:
            return None
        self._requested[topic].add(frame.stamp_ns)
        name = f"{self.path}: the label map of image {frame.name}, on {topic},"
        with named_in_errors(name):
            recorded = self._messages.read(topic, number)
            message = read_image(recorded)
            if stamp_of(message, recorded.recorded_ns) != frame.stamp_ns:
                raise ValueError("the bag has changed since it was opened")
            label = to_label(message, frame.image.shape[:2])
        return label if self.classes is None else self.classes.read(label, name)

    def unmatched(self) -> list[str]:
        """Return one sentence for each topic that has unmatched label maps: their number."""
        counts = {topic: (len(numbers), len(self._requested[topic])) for topic, numbers in self.index().items()}
        return [
            f"{self.path}: {count - matched} of the {count} label maps of {topic} match no image by stamp"
            for topic, (count, matched) in counts.items()
            if matched < count
        ]


def _ignore(damage: str) -> None:
    """Do not report the damage: `BagLabels.index` and `BagFrames.read` do."""
