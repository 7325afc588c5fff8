# SPDX-License-Identifier: Apache-2.0
"""A recording segmented to files: masks and timings, a bag of both, and films.

A run that was killed goes on where it was: the memories of the streams are kept beside the masks from time to time, so
that the masks are those of a run that was not.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import torch

from netwarp_ros.classes import ClassSet
from netwarp_ros.flow import FlowFolder
from netwarp_ros.recordings.atomic import replacing
from netwarp_ros.recordings.bag_writer import BagWriter
from netwarp_ros.recordings.frames import Frame, FrameSource, read_ahead
from netwarp_ros.recordings.images import read_image
from netwarp_ros.recordings.messages import header, image_message, label_info, timing_message
from netwarp_ros.recordings.video_writer import VideoWriter
from netwarp_ros.segmenter import MemoryState, Result, Segmenter, Stream

CHECKPOINT = 50
"""Frames after which the memories are kept."""

_RESUME, _TIMING, _UNFINISHED = "resume.pt", "timing.csv", "timing.part.csv"
_STAGES = ("prepare", "flow", "network")


@dataclass(frozen=True)
class Row:
    """One line of ``timing.csv``: what became of a frame."""

    index: int
    name: str
    camera: str
    frame_id: str
    stamp_ns: int
    recorded_ns: int
    prepare_ms: float
    flow_ms: float
    network_ms: float
    total_ms: float
    memory: str
    reason: str


@dataclass(frozen=True)
class Segmented:
    """What a run made.

    Attributes:
        rows: What became of each frame, those of the run before it included.
        share: Part of this run's time, in per cent, that went to flow and network; the rest is waiting for frames, and
            writing masks.
    """

    rows: Sequence[Row]
    segmenting_percent: float


def segment_recording(
    frames: FrameSource,
    segmenter: Segmenter,
    folder: Path,
    origin: Mapping[str, Any],
    show: Callable[[Iterable[Frame]], Iterable[Frame]] = lambda frames: frames,
    flows: FlowFolder | None = None,
) -> Segmented:
    """Segment all frames, each camera as one stream, to ``masks/NAME.png`` (class ids) and ``timing.csv``.

    Args:
        frames: The recording.
        segmenter: What segments it.
        folder: Made where there is none. What an unfinished run left in it is made use of.
        origin: Plain values that tell this run from others: of which recording, by which model, in which way.
        show: Wraps the frames, to show how far the run is.
        flows: Flow that is known beforehand; by default the segmenter estimates it.

    Raises:
        ValueError: If an unfinished run of another origin left something in the folder, or a flow cannot be used.
        OSError: If a file cannot be written, or a flow is missing.
    """
    masks, unfinished, resume = (folder / name for name in ("masks", _UNFINISHED, _RESUME))
    masks.mkdir(parents=True, exist_ok=True)
    streams, rows = _resume(folder, segmenter, origin)
    done, spent_ms, begun = len(rows), 0.0, perf_counter()
    with unfinished.open("a" if done else "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        if not done:
            table.writerow(field.name for field in fields(Row))
        for position, frame in enumerate(show(read_ahead(frames))):
            if position < done:
                begun = perf_counter()
                continue
            stream = streams.setdefault(frame.camera, segmenter.stream())
            result = segment_frame(stream, frame, flows)
            spent_ms += sum(result.stages_ms.values())
            with replacing(masks / f"{frame.name}.png") as mask_file:
                if not cv2.imwrite(str(mask_file), result.mask):
                    raise OSError(f"{mask_file} cannot be written")
            stages = {stage: round(result.stages_ms[stage], 3) for stage in _STAGES}
            row = Row(
                index=frame.index,
                name=frame.name,
                camera=frame.camera,
                frame_id=frame.frame_id,
                stamp_ns=frame.stamp_ns,
                recorded_ns=frame.arrival_ns,
                prepare_ms=stages["prepare"],
                flow_ms=stages["flow"],
                network_ms=stages["network"],
                total_ms=round(sum(stages.values()), 3),
                memory=result.memory.name.lower(),
                reason=str(result.reason),
            )
            rows.append(row)
            table.writerow(vars(row).values())
            if len(rows) % CHECKPOINT == 0:
                file.flush()
                states = {camera: stream.state() for camera, stream in streams.items()}
                with replacing(resume) as temporary:
                    kept = {"origin": dict(origin), "streams": states, "timing_bytes": unfinished.stat().st_size}
                    torch.save(kept, temporary)
    segmenting_percent = spent_ms / 10 / (perf_counter() - begun)
    unfinished.replace(folder / _TIMING)
    resume.unlink(missing_ok=True)
    return Segmented(rows, segmenting_percent)


def segment_frame(stream: Stream, frame: Frame, flows: FlowFolder | None) -> Result:
    """Segment the next frame of a recording, along its flow as far as that is known.

    Raises:
        FileNotFoundError: If flows are given, but not that of this frame to the one that is remembered.
        ValueError: If its flow cannot be read, or is of another size than its image.
    """
    flow = flows(frame.name) if flows else None
    if flows and flow is not None and flow.shape[:2] != frame.image.shape[:2]:
        (height, width), (wanted_height, wanted_width) = flow.shape[:2], frame.image.shape[:2]
        raise ValueError(
            f"{flows.path(frame.name)} is of {width}x{height} pixels, its image of {wanted_width}x{wanted_height}: "
            "give the flow at the size of the image"
        )
    result = stream.segment(frame.image, frame.stamp_ns, frame.frame_id, frame.encoding, flow=flow)
    if flows and flow is None and result.memory is MemoryState.KEPT:
        raise FileNotFoundError(f"there is no {flows.path(frame.name)}, the flow from {frame.name} to the frame before")
    return result


def write_masks(path: Path, folder: Path, rows: Sequence[Row], classes: ClassSet) -> None:
    """Write the masks and timings of a folder as a bag, under the stamps of their images.

    For images on ``/front/image_raw`` there are ``/front/segmentation/mask``, ``…/timing`` and ``…/label_info``, as the
    node publishes them; where the topic does not end like that, all of it stands in the place of ``/front``, and for
    images that come from no bag, ``/camera``.

    Raises:
        FileExistsError: If there is something at the path.
    """
    sequences: Counter[str] = Counter()
    with BagWriter(path) as bag:
        for row in rows:
            camera = row.camera.removesuffix("/compressed").removesuffix("/image_raw") or "/camera"
            topic, common = f"{camera}/segmentation", header(row.stamp_ns, row.frame_id)
            if not sequences[camera]:
                bag.write(f"{topic}/label_info", label_info(common, classes), row.recorded_ns)
            mask = read_image(folder / "masks" / f"{row.name}.png", cv2.IMREAD_UNCHANGED)
            bag.write(f"{topic}/mask", image_message(mask, "mono8", common), row.recorded_ns)
            stages = {stage: getattr(row, f"{stage}_ms") for stage in _STAGES}
            timing = timing_message(common, sequences[camera], stages, MemoryState[row.memory.upper()], row.reason)
            bag.write(f"{topic}/timing", timing, row.recorded_ns)
            sequences[camera] += 1


def write_video(path: Path, frames: FrameSource, folder: Path, camera: str, classes: ClassSet, alpha: float) -> None:
    """Write a film of one camera, the colours of the masks of a folder over its images."""
    with replacing(path) as temporary, VideoWriter(temporary, frames.rate) as film:
        for frame in read_ahead(frames):
            if frame.camera == camera:
                mask = read_image(folder / "masks" / f"{frame.name}.png", cv2.IMREAD_UNCHANGED)
                film.write(classes.overlay(frame.image, mask, alpha))


def video_names(cameras: Sequence[str], stem: str) -> dict[str, str]:
    """Return what the film of each camera is called: the stem, and, of several cameras, which."""
    if len(cameras) == 1:
        return {cameras[0]: f"{stem}.mp4"}
    return {camera: f"{stem}-{camera.strip('/').replace('/', '-')}.mp4" for camera in cameras}


def _resume(folder: Path, segmenter: Segmenter, origin: Mapping[str, Any]) -> tuple[dict[str, Stream], list[Row]]:
    """Return the streams and rows of an unfinished run, as they were when its memories were kept last."""
    resume = folder / _RESUME
    if not resume.is_file():
        return {}, []
    kept = torch.load(resume, map_location=segmenter.device, weights_only=True)
    if kept["origin"] != dict(origin):
        differing = [f"{key} {value}" for key, value in kept["origin"].items() if value != origin.get(key)]
        raise ValueError(
            f"{folder} holds an unfinished run of another kind ({', '.join(differing)}): finish that one, or remove "
            f"{resume}"
        )
    streams = {camera: segmenter.stream(state) for camera, state in kept["streams"].items()}
    os.truncate(folder / _UNFINISHED, kept["timing_bytes"])
    kinds = {"int": int, "float": float, "str": str}
    with (folder / _UNFINISHED).open(encoding="utf-8", newline="") as file:
        lines = csv.DictReader(file)
        rows = [
            Row(**{field.name: kinds[str(field.type)](line[field.name]) for field in fields(Row)}) for line in lines
        ]
    return streams, rows
