# SPDX-License-Identifier: Apache-2.0
"""The labelled images of a bag."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from netwarp_ros.classes import ClassSet
from netwarp_ros.datasets.samples import Sample, Samples
from netwarp_ros.recordings.bag_file import RecordedMessage
from netwarp_ros.recordings.bag_messages import BagMessages
from netwarp_ros.recordings.bag_reader import BagReader, named_in_errors
from netwarp_ros.recordings.image_messages import to_label
from netwarp_ros.recordings.messages import stamp_of
from netwarp_ros.recordings.recorded_images import read_image
from netwarp_ros.recordings.topic_images import TopicImages


class BagDataset(Samples):
    """The images of a bag that have a label map on another topic, with the same stamp in the header.

    Such a bag comes from a labelling tool, or from recording a segmenter's ``mask`` together with its images. Images
    without a label map appear only in clips, before a labelled image.

    Args:
        path: The bag's folder, or a ``.mcap``, ``.db3`` or ``.bag`` file. The bag must be intact.
        image_topic: Topic of images, raw or compressed, or of a video. To read a sample of a video, the images from the
            key frame before it on are decoded.
        label_topic: Topic of label maps, of type ``sensor_msgs/Image``: class ids of 8 or 16 bits, or colors.
        classes: What the label maps hold.
        max_gap: Longest time between the stamps of two consecutive frames of a clip, in seconds.

    Raises:
        ValueError: If the bag is damaged, lacks a topic, or no label map has the stamp of an image.
    """

    def __init__(
        self, path: str | Path, image_topic: str, label_topic: str, classes: ClassSet, *, max_gap: float = 0.5
    ) -> None:
        self.path, self.classes = Path(path), classes
        self.image_topic, self.label_topic = image_topic, label_topic
        self._stamps, label_stamps = (_stamps(self.path, topic) for topic in (image_topic, label_topic))
        self._labels = {stamp_ns: number for number, stamp_ns in enumerate(label_stamps)}
        self._labelled = [number for number, stamp_ns in enumerate(self._stamps) if stamp_ns in self._labels]
        if not self._labelled:
            raise ValueError(
                f"{path}: none of the {len(label_stamps)} label maps of {label_topic} has the stamp of one of the "
                f"{len(self._stamps)} images of {image_topic}"
            )
        self._messages = BagMessages(self.path, _refuse)
        self._images = TopicImages(partial(self._messages.read, image_topic))
        self._frames_before = [0]
        for previous_ns, present_ns in pairwise(self._stamps):
            follows = 0 < present_ns - previous_ns <= max_gap * 1e9
            self._frames_before.append(self._frames_before[-1] + 1 if follows else 0)

    def __str__(self) -> str:
        return f"{self.path} ({self.image_topic}, {self.label_topic})"

    def __len__(self) -> int:
        return len(self._labelled)

    def frames_before(self, index: int) -> int:
        return self._frames_before[self._labelled[index]]

    def name(self, index: int, before: int = 0) -> str:
        return f"{self._labelled[index] - before:06d}"

    def read(self, index: int, before: int = 0) -> Sample:
        position, name = self._labelled[index] - before, self.name(index, before)
        stamp_ns = self._stamps[position]
        with named_in_errors(f"{self.path}: image {position} of {self.image_topic}"):
            recorded = self._messages.read(self.image_topic, position)
            message, image = self._images.decode(position, recorded)
            _check_stamp(message, recorded, stamp_ns)
        if stamp_ns not in self._labels:
            return self.without_label(name, image)
        label_name = f"{self.path}: the label map of image {position}, on {self.label_topic},"
        with named_in_errors(label_name):
            recorded = self._messages.read(self.label_topic, self._labels[stamp_ns])
            message = read_image(recorded)
            _check_stamp(message, recorded, stamp_ns)
            label = to_label(message, image.shape[:2])
        label = self.classes.read(label, label_name)
        return Sample(name, image, label)


def _check_stamp(message: Any, recorded: RecordedMessage, stamp_ns: int) -> None:
    if stamp_of(message, recorded.recorded_ns) != stamp_ns:
        raise ValueError("the bag has changed since it was opened")


def _stamps(path: Path, topic: str) -> list[int]:
    """Return the stamp of each message of an image topic in ns."""
    stamps = []
    with BagReader(path, _refuse) as bag:
        bag.check_image_topic(topic)
        for number, recorded in bag.messages([topic]):
            with named_in_errors(f"{path}: message {number} of {topic}"):
                message = read_image(recorded)
            stamps.append(stamp_of(message, recorded.recorded_ns))
    return stamps


def _refuse(damage: str) -> None:
    raise ValueError(f"{damage}; training needs an intact bag")
