# SPDX-License-Identifier: Apache-2.0
"""Recordings of ROS 2 and ROS 1 open for reading, damaged ones too: their topics and serialized messages, without ROS.

A recording is a file, or a folder of files with rosbag2's ``metadata.yaml``. The files count, not what the metadata say
about them: people edit metadata, and a recorder that is killed writes none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from netwarp_ros.recordings.bag_file import BagFile, RecordedMessage, Topic
from netwarp_ros.recordings.decompression import ZSTD_MAGIC, decompress, decompress_file
from netwarp_ros.recordings.file_order import in_natural_order
from netwarp_ros.recordings.mcap_file import McapFile
from netwarp_ros.recordings.recorded_images import is_image
from netwarp_ros.recordings.ros1_file import Ros1File
from netwarp_ros.recordings.sqlite_file import SqliteFile
from netwarp_ros.resources import cut, load_yaml

_FORMATS: dict[str, type[BagFile]] = {".mcap": McapFile, ".db3": SqliteFile, ".bag": Ros1File, ".active": Ros1File}
"""By suffix. A recorder of ROS 1 that is killed leaves a ``.bag.active``."""

_COMPRESSED = ".zstd"
_METADATA_LIMIT = 512 * 1024
"""Most bytes of ``metadata.yaml``: some hundred topics, and thousands of files."""

_COUNT_LIMIT = 10**9
"""Most messages of a topic: a year at 30 Hz."""


class BagReader:
    """A recording open for reading; use it in a ``with`` statement.

    Args:
        path: A file for which `is_bag_file` is true, or a folder of such files.
        on_damage: Called with one sentence for each damage.

    Attributes:
        topics: The topics by name. Their numbers of messages include those that are known to be lost.

    Raises:
        ValueError: If nothing can be read.
    """

    def __init__(self, path: Path, on_damage: Callable[[str], None]) -> None:
        self.path, self._on_damage = path, on_damage
        self.topics: dict[str, Topic] = {}
        self._files: list[BagFile] = []
        self._damage: list[str] = []  # not reported yet
        self._stack = ExitStack()
        try:
            self._open_files()
            if self._damage and not self.topics:
                raise ValueError(f"{path} is not a readable recording: {self._damage[0]}")
            self._report()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def messages(self, topics: Collection[str], skip: int = 0) -> Iterator[tuple[int, RecordedMessage]]:
        """Read the messages of some topics in the order of their recording, those that are known to be lost too.

        Args:
            topics: The topics.
            skip: Number of messages of these topics to pass over. If the recording has an index, they are not read.

        Yields:
            The number of earlier messages of the same topic, and the message.
        """
        earlier, lost = Counter[str](), Counter[str]()
        for file in self._files:
            counts = Counter({topic: file.topics[topic].count for topic in topics if topic in file.topics})
            if skip >= counts.total():
                skip -= counts.total()
            else:
                try:
                    for number, message in file.messages(topics, skip):
                        message = self._decompressed(file, message)
                        lost[message.topic] += message.data is None
                        self._take_damage(file)
                        self._report()
                        yield earlier[message.topic] + number, message
                finally:
                    file.close()
                skip = 0
            earlier.update(counts)
        for topic in topics:
            count = self.topics[topic].count
            if missing := lost[topic] + count - earlier[topic]:
                self._on_damage(f"{self.path}: {missing} of the {count} messages of {topic} are lost")

    def rate(self, topics: Collection[str]) -> float | None:
        """Return the average number of messages per second on each of some topics; None if it is unknown.

        It is that of the messages in the files: metadata may claim more.
        """
        count = sum(file.topics[name].count for file in self._files for name in topics if name in file.topics)
        ends = [next(self.messages(topics, skip), None) for skip in (0, max(0, count - 1))]
        first_ns, last_ns = (numbered[1].recorded_ns if numbered else 0 for numbered in ends)
        if not count > len(topics) or not last_ns > first_ns:
            return None
        return (count / len(topics) - 1) / ((last_ns - first_ns) * 1e-9)  # there is one interval fewer than messages

    def check_image_topic(self, name: str) -> None:
        """Check that there is an image topic of this name.

        Raises:
            ValueError: If there is no topic of this name, or its messages are not images.
        """
        choices = _list(self._image_topics()) or "none"
        if name not in self.topics:
            raise ValueError(f"{self.path} has no image topic {name!r}: choose one of {choices}")
        if not is_image(self.topics[name]):
            raise ValueError(
                f"{self.path}: {name} has the type {_kind(self.topics[name])}, not sensor_msgs/Image or "
                f"CompressedImage, nor that of a video (CompressedVideo, FFMPEGPacket): choose one of {choices}"
            )

    def only_image_topic(self, leave_out: Collection[str] = ()) -> str:
        """Return the name of the bag's one image topic, not counting those to leave out.

        Raises:
            ValueError: If there is no such topic, or more than one.
        """
        names = [name for name in self._image_topics() if name not in leave_out]
        if not names:
            others = _list(sorted(f"{name} ({_kind(topic)})" for name, topic in self.topics.items()))
            raise ValueError(
                f"{self.path} has no topic of sensor_msgs/Image or CompressedImage, or of a video "
                f"(CompressedVideo, FFMPEGPacket), to take; it has {others or 'no topic at all'}"
            )
        if len(names) > 1:
            raise ValueError(f"{self.path} has {len(names)} image topics, {_list(names)}: name the topic to take")
        return names[0]

    def _image_topics(self) -> list[str]:
        return sorted(name for name, topic in self.topics.items() if is_image(topic))

    def _open_files(self) -> None:
        """Open the files, and add up their topics."""
        paths, declared = ([self.path], {}) if self.path.is_file() else self._folder_content()
        for path in paths:
            try:
                file = self._open_file(path)
            except (OSError, ValueError) as error:
                if path == self.path:
                    raise ValueError(f"{path} is not a readable recording: {error}") from error
                self._damage.append(f"{path} is left out: {error}")
                continue
            self._stack.callback(file.close)
            self._files.append(file)
            file.close()  # a recording may have more files than a process may open
            self._take_damage(file)
            for name, topic in file.topics.items():
                count = self.topics[name].count if name in self.topics else 0
                self.topics[name] = replace(topic, count=topic.count + count)
        for name, topic in self.topics.items():
            self.topics[name] = replace(topic, count=max(topic.count, declared.get(name, 0)))

    def _folder_content(self) -> tuple[list[Path], dict[str, int]]:
        """Return the files of a folder, and the number of messages of each topic according to the metadata."""
        try:
            return _read_metadata(self.path)
        except (OSError, ValueError) as error:
            self._damage.append(f"{self.path} is damaged: {error}")
            return in_natural_order(path for path in self.path.iterdir() if is_bag_file(path)), {}

    def _open_file(self, path: Path) -> BagFile:
        """Open a file; decompress it before, if it is compressed as a whole.

        Raises:
            OSError: If there is no such file, or it cannot be read.
            ValueError: If it has another format.
        """
        if not is_bag_file(path):
            raise ValueError(f"its name does not end in {', '.join(_FORMATS)}, nor in one of these and {_COMPRESSED}")
        kind = _FORMATS[_suffix(path)]
        if path.suffix.lower() != _COMPRESSED:
            return kind(path)
        plain = Path(self._stack.enter_context(TemporaryDirectory(prefix="netwarp-"))) / path.stem
        decompress_file(path, plain)
        file = kind(plain)
        file.name = path
        return file

    def _decompressed(self, file: BagFile, message: RecordedMessage) -> RecordedMessage:
        """Decompress a message that is compressed by itself; only the metadata would say so, and may be lost."""
        if message.data is None or message.encoding != "cdr" or message.data[: len(ZSTD_MAGIC)] != ZSTD_MAGIC:
            return message
        try:
            return message._replace(data=decompress(message.data, "zstd"))
        except ValueError as error:
            self._damage.append(f"{file.name}: a message of {message.topic} is damaged and left out: {error}")
            return message._replace(data=None)

    def _take_damage(self, file: BagFile) -> None:
        self._damage += [f"{file.name}: {damage}" for damage in file.damage]
        file.damage.clear()

    def _report(self) -> None:
        """Report the damage found since the last report."""
        damage, self._damage = self._damage, []
        for sentence in damage:
            self._on_damage(cut(sentence, 500))


def is_bag_file(path: Path) -> bool:
    """Return whether a name is that of a recording's file: ``.mcap``, ``.db3`` or ``.bag``, perhaps with ``.zstd``."""
    return _suffix(path) in _FORMATS


def _suffix(path: Path) -> str:
    """Return the suffix that tells the format, in lower case."""
    return Path(path.name.lower().removesuffix(_COMPRESSED)).suffix


@contextmanager
def named_in_errors(subject: str) -> Iterator[None]:
    """Raise a ValueError of the body as "SUBJECT cannot be read: …"."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{subject} cannot be read: {error}") from error


def _read_metadata(folder: Path) -> tuple[list[Path], dict[str, int]]:
    """Return the files that the metadata of a rosbag2 list, and their number of messages of each topic.

    Raises:
        ValueError: If the metadata cannot be read.
    """
    try:
        with (folder / "metadata.yaml").open("rb") as file:
            text = file.read(_METADATA_LIMIT + 1)
    except FileNotFoundError:
        raise ValueError("there is no metadata.yaml, which is written when a recording ends") from None
    if len(text) > _METADATA_LIMIT:
        raise ValueError(f"its metadata.yaml has more than {_METADATA_LIMIT} bytes")
    content = load_yaml(text, "its metadata.yaml")
    try:
        content = content["rosbag2_bagfile_information"]
        # Old versions write the folder, too.
        files = list(dict.fromkeys(folder / PurePosixPath(name).name for name in content["relative_file_paths"]))
        topics = content["topics_with_message_count"]
        counts = {topic["topic_metadata"]["name"]: int(topic["message_count"]) for topic in topics}
        if any(not 0 <= count <= _COUNT_LIMIT for count in counts.values()):
            raise ValueError(f"a message_count is not from 0 to {_COUNT_LIMIT}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = cut(f"{type(error).__name__}: {error}")
        raise ValueError(f"its metadata.yaml cannot be read: {reason}") from error
    return files, counts


def _kind(topic: Topic) -> str:
    """Return the type of a topic as an error names it."""
    kind = topic.message_type or "no type"
    return cut(kind if topic.encoding == "cdr" else f"{kind} in {topic.encoding or 'no encoding'}")


def _list(names: Iterable[str]) -> str:
    return cut(", ".join(names), 300)
