# SPDX-License-Identifier: Apache-2.0
"""One file of a recording, whatever its format: its topics and its serialized messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


@dataclass(frozen=True)
class Topic:
    """A topic of a recording.

    Attributes:
        message_type: For instance ``sensor_msgs/msg/Image``; empty if the recording does not name it.
        encoding: How messages are serialized: ``cdr`` (ROS 2), ``ros1``, ``protobuf`` or another.
        count: Number of messages, those included that are known to be lost.
    """

    message_type: str
    encoding: str
    count: int


class RecordedMessage(NamedTuple):
    """A message as it was recorded.

    Attributes:
        topic: The topic it was published on.
        message_type: For instance ``sensor_msgs/msg/Image``.
        encoding: How it is serialized, as in `Topic`.
        recorded_ns: When it was recorded.
        data: The serialized message, perhaps a view that keeps what was recorded with it in memory; None if it is lost.
    """

    topic: str
    message_type: str
    encoding: str
    recorded_ns: int
    data: bytes | memoryview | None


class BagFile(ABC):
    """A file open for reading. Reading opens it again if it was closed.

    Args:
        path: The file.

    Attributes:
        name: The path for errors: another one if the file was decompressed to be read.
        topics: Its topics by name.
        damage: What could not be read and why, one clause each; whoever takes them out names the file.

    Raises:
        ValueError: If the file has another format. The message says what "it" is.
    """

    def __init__(self, path: Path) -> None:
        self.path = self.name = path
        self.topics: dict[str, Topic] = {}
        self.damage: list[str] = []

    @abstractmethod
    def messages(self, topics: Collection[str], skip: int = 0) -> Iterator[tuple[int, RecordedMessage]]:
        """Read messages in the order of their recording, the lost ones too.

        Args:
            topics: The topics; those that the file does not have are ignored.
            skip: Number of messages of these topics to pass over; they are not read if the file has an index.

        Yields:
            The number of earlier messages of the same topic, and the message.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def _add_topic(self, name: str, message_type: str, encoding: str, count: int) -> None:
        """Add messages to a topic."""
        count += self.topics[name].count if name in self.topics else 0
        self.topics[name] = Topic(message_type, encoding, count)


def full_type(message_type: str, encoding: str) -> str:
    """Return a message type as ROS 2 writes it today. ROS 1 and the first ROS 2 leave out the ``msg`` in the middle."""
    is_short = encoding in ("cdr", "ros1") and message_type.count("/") == 1
    return message_type.replace("/", "/msg/") if is_short else message_type
