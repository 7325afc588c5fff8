# SPDX-License-Identifier: Apache-2.0
"""Video files as recordings, read by PyAV (FFmpeg)."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from netwarp_ros.recordings.frames import DEFAULT_RATE, Frame, FrameSource, stamp

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream


class VideoFile(FrameSource):
    """A video file.

    Opening it reads the stamps of all packets, and decodes none. The rate is the average over these stamps: not every
    container declares one, and the films of phones and browsers have no constant rate. An undecodable frame is noted as
    damage and left out; the index still counts it.

    Args:
        path: The file, in any format that FFmpeg reads.
        rate: Frames per second. Frames are then stamped at this rate from 0, not by the container.

    Raises:
        ValueError: If PyAV is not installed, or the file cannot be opened. While iterating: if it holds no frame.
    """

    def __init__(self, path: Path, rate: float | None = None) -> None:
        super().__init__()
        self.path = path
        with _open(path) as container:
            self._packets = _PacketIndex.of(container)
        self.rate = rate or self._packets.rate
        self._stamps_ns = self._packets.stamps_ns() if rate is None else []

    def __len__(self) -> int:
        return self._packets.count

    def read(self, begin: int = 0, end: int | None = None) -> Iterator[Frame]:
        self.damage = []
        index = -1
        for index, frame in self._frames_from(range(begin, sys.maxsize if end is None else end)):
            image: np.ndarray = frame.to_ndarray(format="bgr24")
            if quarters := frame.rotation // 90:
                image = np.ascontiguousarray(np.rot90(image, quarters))
            stamp_ns = self._stamps_ns[index] if index < len(self._stamps_ns) else stamp(index, self.rate)
            yield Frame(index, stamp_ns, f"{index:06d}", image)
        if index < 0 and not begin and end is None:
            raise ValueError(f"{self.path} holds no frame that FFmpeg can decode: convert it to MP4 or MKV")
        found_s, declared_s = self._packets.duration_s, self._packets.declared_s
        if end is None and found_s + 2 / self._packets.rate < declared_s:
            self.note_damage(f"{self.path} ended after {found_s:.1f} of the {declared_s:.1f} s that it declares")

    def _frames_from(self, wanted: range) -> Iterator[tuple[int, VideoFrame]]:
        """Decode from the key frame before the wanted frames on; yield these, with their indices."""
        if (key := self._packets.key_before(wanted.start)) is not None:
            frames = self._decode(wanted, key)
            first = next(frames, None)
            if first and first[0] <= wanted.start:
                yield first
                yield from frames
                return
        # There is no key frame before, or FFmpeg found only a later one.
        self.damage = []  # it is found again
        yield from self._decode(wanted, None)

    def _decode(self, wanted: range, key: int | None) -> Iterator[tuple[int, VideoFrame]]:
        index, lost = -1, 0
        corrupt: set[int | None] = set()
        av = load_pyav()
        with _open(self.path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if key is not None:
                container.seek(key, stream=stream)
            for packet in _demux(container, stream):
                if packet.is_corrupt:
                    corrupt.add(packet.pts)
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    frames = []
                    # The error may be that of an earlier packet: decoders are some packets behind.
                    lost += self._packets.find(packet.pts, wanted.start - 1) >= wanted.start
                for frame in frames:
                    index = self._packets.find(frame.pts, index)
                    is_damaged = frame.is_corrupt or frame.pts in corrupt
                    lost += is_damaged and index in wanted
                    if index in wanted and not is_damaged:
                        yield index, frame
                if index + 1 >= wanted.stop:
                    break
        if lost:
            self.note_damage(f"{self.path}: {lost} of the {len(self)} frames are damaged and left out")


@dataclass(frozen=True)
class _PacketIndex:
    """The packets of a film, one for each frame; those that an edit of the film hides are left out.

    Attributes:
        count: Number of packets.
        ticks: Their stamps, ``(count,)`` int64, in the order of display; empty if a packet has none.
        key_ticks: The stamps of those that can be decoded without others, sorted.
        tick_s: Unit of the stamps in seconds.
        rate: Average number of frames per second; without stamps the one that the film declares.
        duration_s: From the first frame to the end of the last one.
        declared_s: The duration that the film declares; 0 if unknown.
    """

    count: int
    ticks: np.ndarray
    key_ticks: np.ndarray
    tick_s: Fraction
    rate: float
    duration_s: float
    declared_s: float

    @classmethod
    def of(cls, container: InputContainer) -> _PacketIndex:
        """Read all packets of a film."""
        stream = container.streams.video[0]
        count, end = 0, 0
        ticks, key_ticks = array("q"), array("q")
        for packet in _demux(container, stream):
            if packet.size and not packet.is_discard:
                count += 1
                if packet.pts is not None:
                    ticks.append(packet.pts)
                    key_ticks.extend([packet.pts] * packet.is_keyframe)
                    end = max(end, packet.pts + (packet.duration or 0))
        if len(ticks) < count:
            ticks = key_ticks = array("q")
        tick_s = stream.time_base or Fraction(1)
        first, last = (min(ticks), max(ticks)) if ticks else (0, 0)
        rate = (count - 1) / (tick_s * (last - first)) if last > first else stream.guessed_rate
        declared_s = float(tick_s * (stream.duration or 0))
        if not declared_s and len(container.streams) == 1:  # otherwise it may be the duration of the sound
            declared_s = (container.duration or 0) * 1e-6
        return cls(
            count=count,
            ticks=np.sort(ticks),
            key_ticks=np.sort(key_ticks),
            tick_s=tick_s,
            rate=float(rate or DEFAULT_RATE),
            duration_s=float(tick_s * (end - first)) if ticks else declared_s,
            declared_s=declared_s,
        )

    def stamps_ns(self) -> list[int]:
        """Return the stamps of all frames in ns, from 0; empty if packets have none."""
        stamps: list[int] = []
        for tick in (self.ticks - self.ticks[:1]).tolist():
            stamp_ns = round(tick * float(self.tick_s) * 1e9)
            if stamps and stamp_ns <= stamps[-1]:  # some containers repeat a stamp
                stamp_ns = stamps[-1] + stamp(1, self.rate)
            stamps.append(stamp_ns)
        return stamps

    def find(self, tick: int | None, previous: int) -> int:
        """Return the index of a frame by its stamp; without stamps, it is the one after the previous frame."""
        if tick is None or not self.ticks.size:
            return previous + 1
        return max(previous + 1, int(np.searchsorted(self.ticks, tick)))

    def key_before(self, index: int) -> int | None:
        """Return the stamp of the last key frame up to a frame; None if that is the first frame, or unknown."""
        if index == 0 or not self.ticks.size:
            return None
        keys = self.key_ticks[self.key_ticks <= self.ticks[min(index, self.count - 1)]]
        return int(keys[-1]) if keys.size else None


def load_pyav() -> ModuleType:
    """Import PyAV. It is loaded for films alone, and has no rosdep key.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError(f"videos need PyAV: pip install av ({error})") from error
    return av


def _open(path: Path) -> InputContainer:
    av = load_pyav()
    try:
        # A playlist must not make FFmpeg read from the network.
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"})
    except av.FFmpegError:
        container = None
    if container is None or not container.streams.video or container.format.name == "tty":  # FFmpeg draws text files
        raise ValueError(
            f"{path} cannot be opened as a video: give a video, an image, a folder of images, or a bag (its folder, "
            ".mcap, .db3 or .bag)"
        )
    return container


def _demux(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """Read packets up to the end of the film, or to where it is damaged; the last one is empty."""
    try:
        yield from container.demux(stream)
    except load_pyav().FFmpegError:
        return
