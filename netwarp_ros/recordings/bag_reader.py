# SPDX-License-Identifier: Apache-2.0
"""Rosbag2 recordings opened for reading, damaged ones too: their topics and serialized messages, without ROS.

`rosbags` reads intact bags. If it fails, on opening a bag or later, `netwarp_ros.recordings.bag_salvage` reads
what is left of the files.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from rosbags.rosbag2 import Reader

from netwarp_ros.recordings.bag_salvage import salvage
from netwarp_ros.recordings.messages import IMAGES, RecordedMessage

BAG_SUFFIXES = (".mcap", ".db3")


@dataclass(frozen=True)
class Topic:
    """A topic of a bag.

    Attributes:
        message_type: For instance ``sensor_msgs/msg/Image``.
        count: Number of messages; in a damaged bag the number before the damage, if the metadata has it.
    """

    message_type: str
    count: int


class BagReader:
    """A bag open for reading; use it in a ``with`` statement.

    Args:
        path: The bag's folder, or a ``.mcap`` or ``.db3`` file.
        on_damage: Called with one sentence for each damage.

    Attributes:
        topics: The bag's topics by name.
        duration_ns: Time from the first message to the last.

    Raises:
        ValueError: If no message can be read.
    """

    def __init__(self, path: Path, on_damage: Callable[[str], None]) -> None:
        self.path, self._on_damage = path, on_damage
        self._reader: Reader | None = None
        self.topics: dict[str, Topic] = {}
        try:
            if path.is_dir() and not (path / "metadata.yaml").is_file():
                raise FileNotFoundError("there is no metadata.yaml, which is written when a recording ends")
            self._reader = Reader(path)
            self._reader.open()
            self.duration_ns = self._reader.duration
            for connection in self._reader.connections:
                count = self.topics[connection.topic].count if connection.topic in self.topics else 0
                self.topics[connection.topic] = Topic(connection.msgtype, count + connection.msgcount)
        except Exception as error:  # rosbags raises many kinds on damaged files
            self._reader, self.topics = None, {}
            on_damage(f"{path} is damaged: {_reason(error)}")
            self._scan_damaged(error)

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *error: object) -> None:
        if self._reader:
            self._reader.close()

    def messages(self, topics: Collection[str]) -> Iterator[RecordedMessage]:
        """Read the messages of some topics in the order of their recording."""
        read_count = Counter[str]()
        for message in self._sound_then_salvaged(topics):
            read_count[message.topic] += 1
            yield message
        for topic in topics:
            count = self.topics[topic].count
            if (lost := count - read_count[topic]) > 0:
                self._on_damage(f"{self.path}: {lost} of the {count} messages of {topic} are lost")

    def messages_at(self, topic: str, recorded_ns: int) -> Iterator[RecordedMessage]:
        """Read the messages of a topic that were recorded at one time. The bag must be intact."""
        assert self._reader is not None
        return self._read(self._reader, [topic], recorded_ns, recorded_ns + 1)

    def check_image_topic(self, name: str) -> None:
        """Check that there is an image topic of this name.

        Raises:
            ValueError: If there is no topic of this name, or its messages are not images.
        """
        choices = ", ".join(self._image_topics()) or "none"
        if name not in self.topics:
            raise ValueError(f"{self.path} has no image topic {name!r}: choose one of {choices}")
        if self.topics[name].message_type not in IMAGES:
            raise ValueError(
                f"{self.path}: {name} has the type {self.topics[name].message_type}, not sensor_msgs/Image or "
                f"CompressedImage: choose one of {choices}"
            )

    def only_image_topic(self, leave_out: Collection[str] = ()) -> str:
        """Return the name of the bag's one image topic, not counting those to leave out.

        Raises:
            ValueError: If there is no such topic, or more than one.
        """
        names = [name for name in self._image_topics() if name not in leave_out]
        if not names:
            others = ", ".join(sorted(f"{name} ({topic.message_type})" for name, topic in self.topics.items()))
            raise ValueError(
                f"{self.path} has no topic of sensor_msgs/Image or CompressedImage to take; it has "
                f"{others or 'no topic at all'}"
            )
        if len(names) > 1:
            raise ValueError(f"{self.path} has {len(names)} image topics, {', '.join(names)}: name the topic to take")
        return names[0]

    def _image_topics(self) -> list[str]:
        return sorted(name for name, topic in self.topics.items() if topic.message_type in IMAGES)

    def _sound_then_salvaged(self, topics: Collection[str]) -> Iterator[RecordedMessage]:
        last_ns = -1
        on_damage: Callable[[str], None] = _ignore  # `_scan_damaged` has reported this damage already
        if self._reader:
            try:
                for message in self._read(self._reader, topics):
                    last_ns = message.recorded_ns
                    yield message
                return
            except Exception as error:  # rosbags raises many kinds on damaged files
                on_damage = self._on_damage
                on_damage(f"{self.path} is damaged: {_reason(error)}")
        for message in self._salvage(on_damage):
            if message.topic in topics and message.recorded_ns > last_ns:
                yield message

    def _read(self, reader: Reader, topics: Collection[str], *span_ns: int) -> Iterator[RecordedMessage]:
        connections = [connection for connection in reader.connections if connection.topic in topics]
        for connection, recorded_ns, data in reader.messages(connections, *span_ns):
            yield RecordedMessage(connection.topic, connection.msgtype, recorded_ns, data)

    def _scan_damaged(self, error: Exception) -> None:
        """Find topics, counts and duration by reading all that can be salvaged."""
        first_ns, last_ns = sys.maxsize, 0
        for topic, message_type, recorded_ns, _ in self._salvage(self._on_damage):
            self.topics[topic] = Topic(message_type, self.topics[topic].count + 1 if topic in self.topics else 1)
            first_ns, last_ns = min(first_ns, recorded_ns), max(last_ns, recorded_ns)
        self.duration_ns = max(0, last_ns - first_ns)
        if not self.topics:
            raise ValueError(f"{self.path} is not a readable rosbag2: {_reason(error)}") from error
        for topic, count in _declared_counts(self.path).items():
            if topic in self.topics:
                self.topics[topic] = replace(self.topics[topic], count=max(count, self.topics[topic].count))

    def _salvage(self, on_damage: Callable[[str], None]) -> Iterator[RecordedMessage]:
        for file in [self.path] if self.path.is_file() else _files(self.path):
            yield from salvage(file, on_damage)


@contextmanager
def named_in_errors(subject: str) -> Iterator[None]:
    """Raise a ValueError of the body as "SUBJECT cannot be read: …"."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{subject} cannot be read: {error}") from error


def _files(bag: Path) -> list[Path]:
    """Return the storage files in a bag's folder, sorted by number."""
    files = [path for path in bag.iterdir() if path.suffix in BAG_SUFFIXES]
    return sorted(files, key=lambda path: [part.zfill(20) for part in re.split(r"(\d+)", path.name)])


def _declared_counts(bag: Path) -> dict[str, int]:
    """Return the number of messages of each topic according to the bag's metadata; empty if it cannot be read."""
    try:
        metadata = yaml.safe_load((bag / "metadata.yaml").read_text(encoding="utf-8"))
        topics = metadata["rosbag2_bagfile_information"]["topics_with_message_count"]
        return {topic["topic_metadata"]["name"]: int(topic["message_count"]) for topic in topics}
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return {}


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _ignore(damage: str) -> None:
    """Do not report the damage."""
