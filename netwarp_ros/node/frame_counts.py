# SPDX-License-Identifier: Apache-2.0
"""Counts of one camera's frames: each received frame is published, dropped for a reason, or in flight.

``camera.py`` counts received, superseded and published frames; ``pipeline.py`` counts those that fail.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field, replace
from enum import StrEnum
from threading import Lock
from time import monotonic

LATENCY_FRAMES = 300
"""Number of latest frames whose latencies and ages are kept."""


class DropReason(StrEnum):
    """Why a frame was dropped."""

    SUPERSEDED = "superseded"  # a newer frame arrived before its turn
    MALFORMED = "malformed"  # the message contradicts itself or cannot be decoded
    FAILED = "failed"  # the segmenter or a publisher raised an error
    DEACTIVATED = "deactivated"  # the node was deactivated before its turn


@dataclass
class FrameCounts:
    """Counts at one moment.

    Times are in s, on the monotonic clock.

    Attributes:
        time: The moment.
        started: When the counting began.
        first_received: When the first frame was received; None before that.
        last_received: When the latest frame was received; None before the first.
        missed: Frames that were sent and never received: they were lost, or a newer frame replaced them in the
            middleware's queue.
        received: Frames received.
        published: Frames whose mask was published.
        unstamped: Those of them whose image had no stamp (0).
        key_frames: Those of them that the network was run on.
        dropped: Frames dropped, by `DropReason`.
        resets: How often the memory was reset, by reason.
        late_pictures: Color and overlay that were not made: a newer mask came before their turn.
        latencies_ms: Image callback to mask published, of the latest `LATENCY_FRAMES` frames.
        ages_ms: Image stamp to mask published, of the same frames.
        last_error: What was wrong with the latest malformed or failed frame; empty if there was none.
    """

    time: float = 0.0
    started: float = 0.0
    first_received: float | None = None
    last_received: float | None = None
    missed: int = 0
    received: int = 0
    published: int = 0
    unstamped: int = 0
    key_frames: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    resets: Counter[str] = field(default_factory=Counter)
    late_pictures: int = 0
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCY_FRAMES))
    ages_ms: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCY_FRAMES))
    last_error: str = ""

    @property
    def in_flight(self) -> int:
        """Frames that are neither published nor dropped yet."""
        return self.received - self.published - self.dropped.total()


class FrameCounter:
    """Counts the frames of one camera. Threads may share it."""

    def __init__(self) -> None:
        self._counts = FrameCounts(started=monotonic())
        self._lock = Lock()

    def count_received(self, missed: int = 0) -> None:
        """Count a received frame, and the missed frames between it and the one received before."""
        with self._lock:
            self._counts.missed += missed
            self._counts.received += 1
            self._counts.last_received = monotonic()
            if self._counts.first_received is None:
                self._counts.first_received = self._counts.last_received

    def count_dropped(self, reason: DropReason, error: str = "") -> None:
        """Count a dropped frame, and keep its error if there was one."""
        with self._lock:
            self._counts.dropped[reason] += 1
            self._counts.last_error = error or self._counts.last_error

    def count_late_picture(self) -> None:
        """Count a picture that was not made, because a newer mask came before its turn."""
        with self._lock:
            self._counts.late_pictures += 1

    def note(self, error: str) -> None:
        """Keep an error after which the frame's mask was published nevertheless."""
        with self._lock:
            self._counts.last_error = error

    def count_published(
        self, latency_ms: float, age_ms: float, reset: str, *, unstamped: bool = False, is_key: bool = True
    ) -> None:
        """Count a frame whose mask was published.

        Args:
            latency_ms: Image callback to mask published.
            age_ms: Image stamp to mask published.
            reset: Why the memory was reset; empty if it was kept.
            unstamped: Whether its image had no stamp.
            is_key: Whether the network was run on it.
        """
        with self._lock:
            self._counts.published += 1
            self._counts.unstamped += unstamped
            self._counts.key_frames += is_key
            self._counts.latencies_ms.append(latency_ms)
            self._counts.ages_ms.append(age_ms)
            if reset:
                self._counts.resets[reset] += 1

    def snapshot(self) -> FrameCounts:
        """Return a copy of the counts at this moment."""
        with self._lock:
            counts = self._counts
            return replace(
                counts,
                time=monotonic(),
                dropped=counts.dropped.copy(),
                resets=counts.resets.copy(),
                latencies_ms=counts.latencies_ms.copy(),
                ages_ms=counts.ages_ms.copy(),
            )
