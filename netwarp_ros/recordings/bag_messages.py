# SPDX-License-Identifier: Apache-2.0
"""Single messages of a recording, which stays open between calls."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from netwarp_ros.recordings.bag_file import RecordedMessage
from netwarp_ros.recordings.bag_reader import BagReader

_AHEAD = 16
"""Messages of a topic that are passed over. Opening the stream again at a later one costs more."""


class BagMessages:
    """The messages of a recording, by topic and number, in any order; the fastest is that of their recording.

    The recording is opened at the first call, and stays open. Pickled, or in a forked process, it is opened again.

    Args:
        path: As for `BagReader`.
        on_damage: Called with one sentence for each damage.
    """

    def __init__(self, path: Path, on_damage: Callable[[str], None]) -> None:
        self._path, self._on_damage = path, on_damage
        self._process = 0
        self._streams: dict[str, tuple[int, Iterator[tuple[int, RecordedMessage]]]] = {}

    def read(self, topic: str, number: int) -> RecordedMessage:
        """Return the message before which the topic has ``number`` others; its data are None if they are lost.

        Raises:
            ValueError: If there is none, or the recording cannot be read.
        """
        if self._process != os.getpid():
            self._open()
        following, messages = self._streams.get(topic, (number + 1, iter(())))
        if not following <= number <= following + _AHEAD:
            messages = self._bag.messages([topic], number)
        for position, message in messages:
            self._streams[topic] = position + 1, messages
            if position == number:
                return message
        self._streams.pop(topic, None)
        raise ValueError(f"message {number} is no longer there")

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_bag": None, "_process": 0, "_streams": {}}

    def _open(self) -> None:
        self._streams = {}
        self._bag = BagReader(self._path, self._on_damage)
        weakref.finalize(self, self._bag.__exit__)
        self._process = os.getpid()
