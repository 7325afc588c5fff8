# SPDX-License-Identifier: Apache-2.0
"""Reading ahead in a thread of its own."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event

import pytest

from netwarp_ros.recordings.frames import read_ahead


def test_items_are_read_ahead_and_keep_their_order() -> None:
    read: list[int] = []
    is_ahead = Event()

    def source() -> Iterator[int]:
        for index in range(9):
            read.append(index)
            if index == 3:
                is_ahead.set()
            yield index

    items = read_ahead(source(), 3)
    assert next(items) == 0
    assert is_ahead.wait(10)  # three more items are read before the next one is asked for
    assert list(items) == [1, 2, 3, 4, 5, 6, 7, 8] and read == list(range(9))
    assert list(read_ahead([])) == []


def test_an_error_is_raised_in_the_place_of_its_item() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("the disk is gone")

    items = read_ahead(source())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="the disk is gone"):
        next(items)


def test_reading_stops_when_the_iterator_is_closed() -> None:
    read: list[int] = []
    items = read_ahead((read.append(index) or index for index in range(1000)), 2)  # type: ignore[func-returns-value]
    next(items)
    items.close()
    count = len(read)
    assert count <= 4
    assert len(read) == count
