# SPDX-License-Identifier: Apache-2.0
"""Labelled frames of a rosbag2."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from netwarp_ros.classes import ClassSet
from netwarp_ros.datasets.samples import Sample, Samples
from netwarp_ros.recordings.bag_reader import BagReader
from netwarp_ros.recordings.bags import check_image_topic, decode, decode_label_of, naming_message
from netwarp_ros.recordings.messages import deserialize, stamp_of


class BagDataset(Samples):
    """The images of a rosbag2 that have a label map on another topic, matched by the stamps of their headers.

    Such a bag may come from a labelling tool, or from recording a segmenter's ``mask`` beside its images. Images
    without a label map are the frames in between, which only clips show.

    Args:
        path: The bag's folder, or a ``.mcap`` or ``.db3`` file.
        image_topic: Topic of type ``sensor_msgs/Image`` or ``CompressedImage``.
        label_topic: Topic of type ``sensor_msgs/Image`` and encoding ``mono8``, of class ids.
        classes: What the ids mean.
        max_gap: Seconds between the stamps of two images over which the second does not follow the first.

    Raises:
        ValueError: If the bag cannot be read, lacks a topic, or no label map has the stamp of an image.
    """

    def __init__(
        self, path: str | Path, image_topic: str, label_topic: str, classes: ClassSet, *, max_gap: float = 0.5
    ) -> None:
        self.path, self.classes = Path(path), classes
        self.image_topic, self.label_topic = image_topic, label_topic
        self._images, labels = (_stamps(self.path, topic) for topic in (image_topic, label_topic))
        self._labels = dict(labels)
        self._labelled = [index for index, (stamp_ns, _) in enumerate(self._images) if stamp_ns in self._labels]
        if not self._labelled:
            raise ValueError(
                f"{path}: none of the {len(labels)} label maps of {label_topic} has the stamp of one of the "
                f"{len(self._images)} images of {image_topic}"
            )
        self._frames_before = [0]
        for (before, _), (present, _) in pairwise(self._images):
            self._frames_before.append(self._frames_before[-1] + 1 if 0 < present - before <= max_gap * 1e9 else 0)

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
        stamp_ns, recorded_ns = self._images[position]
        with naming_message(f"{self.path}: image {position} of {self.image_topic}"):
            image = decode(self._message(self.image_topic, stamp_ns, recorded_ns))
        if stamp_ns not in self._labels:
            return Sample(name, image, np.full(image.shape[:2], self.classes.void, np.uint8))
        label_name = f"{self.path}: the label map of image {position}, on {self.label_topic},"
        with naming_message(label_name):
            message = self._message(self.label_topic, stamp_ns, self._labels[stamp_ns])
            label = decode_label_of(message, image.shape[:2])
        self.classes.check(label, label_name)
        return Sample(name, image, label)

    def _message(self, topic: str, stamp_ns: int, recorded_ns: int) -> Any:
        """Read the message of this stamp that was recorded then."""
        with BagReader(self.path, _refuse) as bag:
            for _, kind, _, data in bag.messages_at(topic, recorded_ns):
                message = deserialize(kind, data)
                if stamp_of(message, recorded_ns) == stamp_ns:
                    return message
        raise ValueError("it is no longer there")


def _stamps(path: Path, topic: str) -> list[tuple[int, int]]:
    """Return the stamp of each message of an image topic and when it was recorded, both in ns."""
    stamps = []
    with BagReader(path, _refuse) as bag:
        check_image_topic(path, bag.topics, topic)
        for index, (_, kind, recorded_ns, data) in enumerate(bag.messages([topic])):
            with naming_message(f"{path}: message {index} of {topic}"):
                message = deserialize(kind, data)
            stamps.append((stamp_of(message, recorded_ns), recorded_ns))
    return stamps


def _refuse(damage: str) -> None:
    raise ValueError(f"{damage}; to be trained on, a bag must be sound")
