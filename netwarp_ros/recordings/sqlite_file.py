# SPDX-License-Identifier: Apache-2.0
"""SQLite files of rosbag2, sound or damaged.

The table of messages is read once without their data, to find their number, time and order. This needs no index, so a
damaged index does no harm. Damage costs

* all messages after a damaged page of the table;
* a message that has a part of its data in a damaged page.

A killed recorder leaves its last messages in a write-ahead log beside the file. To read it, SQLite would write to the
user's folder. So it gets a copy of the log, in a temporary folder.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import apsw
import numpy as np

from netwarp_ros.recordings.bag_file import BagFile, RecordedMessage, full_type
from netwarp_ros.recordings.decompression import MEMORY_LIMIT

_ROW = np.dtype([("recorded_ns", np.int64), ("topic", np.int64), ("id", np.int64)])
"""A message: time of recording, key of its topic, and number of its row."""


class SqliteFile(BagFile):
    """A ``.db3`` file open for reading."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._stack = ExitStack()
        self._database: apsw.Connection | None = None
        self._is_reported = False
        try:
            self._names = self._read_topics()
            rows = np.fromiter(self._read_rows(), _ROW)
        except (apsw.Error, UnicodeDecodeError) as error:
            self.close()
            raise ValueError(f"it cannot be read as a database of rosbag2: {error}") from error
        except BaseException:
            self.close()
            raise
        self._rows = rows[np.argsort(rows["recorded_ns"], kind="stable")]
        counts = Counter(self._rows["topic"].tolist())
        for key, names in self._names.items():
            self._add_topic(*names, counts[key])

    def close(self) -> None:
        self._database = None
        self._stack.close()

    def messages(self, topics: Collection[str], skip: int = 0) -> Iterator[tuple[int, RecordedMessage]]:
        rows = self._rows_of(topics)
        numbers = Counter[str]()
        for key, count in zip(*np.unique(rows["topic"][:skip], return_counts=True), strict=True):
            numbers[self._names[int(key)][0]] += int(count)
        for row in rows[skip:]:
            message = self._message(row)
            yield numbers[message.topic], message
            numbers[message.topic] += 1

    def _rows_of(self, topics: Collection[str]) -> np.ndarray:
        keys = [key for key, names in self._names.items() if names[0] in topics]
        return self._rows[np.isin(self._rows["topic"], keys)]

    def _message(self, row: np.void) -> RecordedMessage:
        names, data = self._names[int(row["topic"])], None
        try:
            data = self._query("SELECT data FROM messages WHERE rowid = ?", int(row["id"])).get
        except apsw.Error as error:
            if not self._is_reported:
                self.damage.append(f"a message of {names[0]} is damaged, and left out like all such: {error}")
            self._is_reported = True
        return RecordedMessage(*names, int(row["recorded_ns"]), data if isinstance(data, bytes) else None)

    def _query(self, query: str, *values: int) -> apsw.Cursor:
        if self._database is None:
            self._database = _open(self.path.resolve(), self._stack)
        return self._database.execute(query, values)

    def _read_topics(self) -> dict[int, tuple[str, str, str]]:
        """Return name, type and serialization format of each topic."""
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name IN ('topics', 'messages')"
        if len(self._query(query).fetchall()) != 2:
            raise ValueError("it is a database, but lacks the tables of rosbag2, topics and messages")
        names = {}
        for key, *texts in self._query("SELECT id, name, type, serialization_format FROM topics"):
            if isinstance(key, int):
                topic, message_type, encoding = map(str, texts)
                names[key] = topic, full_type(message_type, encoding), encoding
        return names

    def _read_rows(self) -> Iterator[tuple[int, int, int]]:
        """Yield time of recording, topic and number of each message, up to the first damage."""
        last = None
        query = "SELECT timestamp, topic_id, rowid FROM messages NOT INDEXED"
        try:
            for recorded_ns, key, number in self._query(query):
                if last is not None and number <= last:
                    raise apsw.CorruptError("its rows are not in the order of their numbers")
                if key in self._names and isinstance(recorded_ns, int):
                    yield recorded_ns, key, number
                last = number
        except apsw.Error as error:
            self.damage.append(f"it is damaged, and what follows is lost: {error}")


def _open(path: Path, stack: ExitStack) -> apsw.Connection:
    """Open a database, and its write-ahead log if there is one, without changing anything in its folder."""
    log = Path(f"{path}-wal")
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    if log.is_file() and log.stat().st_size:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="netwarp-")))
        (folder / path.name).touch()  # SQLite looks at its permissions
        shutil.copyfile(log, folder / log.name)
        files = _FilesOfTwoFolders(path)
        stack.callback(files.unregister)
        database = apsw.Connection(str(folder / path.name), flags=apsw.SQLITE_OPEN_READONLY, vfs=files.name)
        stack.callback(database.close)
        database.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        database.execute("PRAGMA locking_mode = EXCLUSIVE")  # so that the index of the log is in memory
    else:
        database = apsw.Connection(f"file:{quote(str(path))}?immutable=1", flags=flags)
        stack.callback(database.close)
    database.limit(apsw.SQLITE_LIMIT_LENGTH, MEMORY_LIMIT)
    # Otherwise SQLite refuses a file that is shorter than its first page says.
    database.execute("PRAGMA writable_schema = ON")
    return database


class _FilesOfTwoFolders(apsw.VFS):
    """The file system as SQLite sees it: the main database is elsewhere, and is never locked or written."""

    def __init__(self, main: Path) -> None:
        self.name, self._main = f"netwarp-{id(self)}", str(main)
        super().__init__(self.name, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        if flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            return _UnlockedFile("", self._main, [flags[0], 0])
        return apsw.VFSFile("", name, flags)


class _UnlockedFile(apsw.VFSFile):
    def xLock(self, level: int) -> None:  # noqa: N802
        """Do nothing: the file cannot be locked, because it is open for reading only."""

    def xUnlock(self, level: int) -> None:  # noqa: N802
        """Do nothing."""

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return False
