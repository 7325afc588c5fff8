# SPDX-License-Identifier: Apache-2.0
"""The books of one camera: every frame that came in is published, dropped for a reason, or in flight."""

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

    SUPERSEDED = "superseded"  # a newer one came before its turn
    MALFORMED = "malformed"  # the message contradicts itself or cannot be decoded
    FAILED = "failed"  # the segmenter or a publisher raised an error
    DEACTIVATED = "deactivated"  # the node was deactivated before its turn


@dataclass
class FrameCounts:
    """State of an account at one moment.

    Times are on the monotonic clock, in s.

    Attributes:
        time: The moment.
        opened: When the account was opened.
        first_received: When the first frame came in; None when none came.
        last_received: When the latest frame came in; None when none came.
        missed: Frames that their publisher sent but that never came in: lost on the way, or replaced by a newer one in
            the middleware's queue before the node got to it.
        received: Frames that came in.
        published: Frames whose mask was published.
        dropped: Frames dropped, by `DropReason`.
        resets: How often the memory started anew, by reason.
        latencies_ms: Image callback to mask published, of the latest `LATENCY_FRAMES` frames.
        ages_ms: Image stamp to mask published, of the same.
        last_error: What was wrong with the latest frame that was malformed or failed; empty when none was.
    """

    time: float = 0.0
    opened: float = 0.0
    first_received: float | None = None
    last_received: float | None = None
    missed: int = 0
    received: int = 0
    published: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    resets: Counter[str] = field(default_factory=Counter)
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCY_FRAMES))
    ages_ms: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCY_FRAMES))
    last_error: str = ""

    @property
    def in_flight(self) -> int:
        """Frames that are neither published nor dropped yet."""
        return self.received - self.published - self.dropped.total()


class FrameCounter:
    """Counts the frames of one camera; for several threads."""

    def __init__(self) -> None:
        self._balance = FrameCounts(opened=monotonic())
        self._lock = Lock()

    def receive(self, missed: int = 0) -> None:
        """Count a frame that came in, and those before it that did not."""
        with self._lock:
            self._balance.missed += missed
            self._balance.received += 1
            self._balance.last_received = monotonic()
            if self._balance.first_received is None:
                self._balance.first_received = self._balance.last_received

    def drop(self, reason: DropReason, error: str = "") -> None:
        """Count a frame that was dropped, and what was wrong with it."""
        with self._lock:
            self._balance.dropped[reason] += 1
            self._balance.last_error = error or self._balance.last_error

    def publish(self, latency_ms: float, age_ms: float, reset: str) -> None:
        """Count a frame whose mask was published, and why the memory started anew for it, unless that is empty."""
        with self._lock:
            self._balance.published += 1
            self._balance.latencies_ms.append(latency_ms)
            self._balance.ages_ms.append(age_ms)
            if reset:
                self._balance.resets[reset] += 1

    def balance(self) -> FrameCounts:
        """Return a copy of the state of this moment."""
        with self._lock:
            balance = self._balance
            return replace(
                balance,
                time=monotonic(),
                dropped=balance.dropped.copy(),
                resets=balance.resets.copy(),
                latencies_ms=balance.latencies_ms.copy(),
                ages_ms=balance.ages_ms.copy(),
            )
