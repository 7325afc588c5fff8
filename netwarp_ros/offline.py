# SPDX-License-Identifier: Apache-2.0
"""Recordings segmented to files: masks and timings, a bag of both, and videos of the masks over the images.

A run that was killed can be resumed, and gives the same masks as an uninterrupted run: a checkpoint of the streams'
memories is saved regularly beside the masks.
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
from netwarp_ros.recordings.image_files import read_samples
from netwarp_ros.recordings.messages import header, image_message, label_info, timing_message
from netwarp_ros.recordings.video_writer import VideoWriter
from netwarp_ros.segmenter import MemoryState, Result, Segmenter, Stream

CHECKPOINT_INTERVAL = 50
"""Frames from one checkpoint to the next."""

_CHECKPOINT, _TIMING, _UNFINISHED_TIMING = "resume.pt", "timing.csv", "timing.part.csv"
_STAGES = ("prepare", "flow", "network")


@dataclass(frozen=True)
class TimingRow:
    """The line of a frame in ``timing.csv``: times in ms, and whether and why the memory was reset."""

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
class SegmentedRecording:
    """The result of a run.

    Attributes:
        rows: One row per frame, including the frames of the resumed run.
        segmenting_percent: Time spent in the segmenter, in per cent of this run's time. In the rest of the time the run
            waits for frames or writes masks.
    """

    rows: Sequence[TimingRow]
    segmenting_percent: float


def segment_recording(
    frames: FrameSource,
    segmenter: Segmenter,
    folder: Path,
    origin: Mapping[str, Any],
    show_progress: Callable[[Iterable[Frame]], Iterable[Frame]] = lambda frames: frames,
    flows: FlowFolder | None = None,
) -> SegmentedRecording:
    """Segment all frames, each camera as one stream, to ``masks/NAME.png`` (class ids) and ``timing.csv``.

    Args:
        frames: The recording.
        segmenter: Segments the frames.
        folder: Folder of the output, made if necessary. If it holds an unfinished run, that run is resumed.
        origin: Plain values that the masks depend on: recording, model and options. Only a run with the same values is
            resumed.
        show_progress: Wraps the frames to show the progress of the run.
        flows: Precomputed flow. Without it the segmenter estimates the flow.

    Raises:
        ValueError: If the folder holds an unfinished run of another origin, or a flow cannot be used.
        OSError: If a file cannot be written, or a flow is missing.
    """
    masks, timing, checkpoint = (folder / name for name in ("masks", _UNFINISHED_TIMING, _CHECKPOINT))
    masks.mkdir(parents=True, exist_ok=True)
    streams, rows = _resume(folder, segmenter, origin)
    done, segmenting_ms, start = len(rows), 0.0, perf_counter()
    with timing.open("a" if done else "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        if not done:
            table.writerow(field.name for field in fields(TimingRow))
        for position, frame in enumerate(show_progress(read_ahead(frames))):
            if position < done:
                start = perf_counter()
                continue
            stream = streams.setdefault(frame.camera, segmenter.stream())
            result = segment_frame(stream, frame, flows)
            segmenting_ms += sum(result.stages_ms.values())
            with replacing(masks / f"{frame.name}.png") as mask_file:
                if not cv2.imwrite(str(mask_file), result.mask):
                    raise OSError(f"{mask_file} cannot be written")
            stages = {stage: round(result.stages_ms[stage], 3) for stage in _STAGES}
            row = TimingRow(
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
            if len(rows) % CHECKPOINT_INTERVAL == 0:
                file.flush()
                states = {camera: stream.state() for camera, stream in streams.items()}
                content = {"origin": dict(origin), "streams": states, "timing_bytes": timing.stat().st_size}
                with replacing(checkpoint) as temporary:
                    torch.save(content, temporary)
    segmenting_percent = segmenting_ms / 10 / (perf_counter() - start)
    timing.replace(folder / _TIMING)
    checkpoint.unlink(missing_ok=True)
    return SegmentedRecording(rows, segmenting_percent)


def segment_frame(stream: Stream, frame: Frame, flows: FlowFolder | None) -> Result:
    """Segment the next frame of a recording, with its precomputed flow if there is one.

    Raises:
        FileNotFoundError: If flows are given and this frame needs one (the memory was kept), but its file is missing.
        ValueError: If the flow cannot be read, or its size is not that of the image.
    """
    flow = flows(frame.name) if flows else None
    if flows and flow is not None and flow.shape[:2] != frame.image.shape[:2]:
        (height, width), (image_height, image_width) = flow.shape[:2], frame.image.shape[:2]
        raise ValueError(
            f"{flows.path(frame.name)} is {width}x{height}, but its image is {image_width}x{image_height}: give the "
            "flow at the size of the image"
        )
    result = stream.segment(frame.image, frame.stamp_ns, frame.frame_id, frame.encoding, flow=flow)
    if flows and flow is None and result.memory is MemoryState.KEPT:
        raise FileNotFoundError(f"there is no {flows.path(frame.name)}, the flow from {frame.name} to the frame before")
    return result


def write_masks(path: Path, folder: Path, rows: Sequence[TimingRow], classes: ClassSet) -> None:
    """Write the masks and timings in a folder to a bag, with the stamps of their images.

    The topics are those of the node: images on ``/front/image_raw`` get ``/front/segmentation/mask``, ``…/timing`` and
    ``…/label_info``. Images on another topic, ``/front/left``, get ``/front/left/segmentation/…``, and images that were
    not in a bag ``/camera/segmentation/…``.

    Raises:
        FileExistsError: If the path exists.
    """
    sequences: Counter[str] = Counter()
    with BagWriter(path) as bag:
        for row in rows:
            camera = row.camera.removesuffix("/compressed").removesuffix("/image_raw") or "/camera"
            topic, common = f"{camera}/segmentation", header(row.stamp_ns, row.frame_id)
            if not sequences[camera]:
                bag.write(f"{topic}/label_info", label_info(common, classes), row.recorded_ns)
            mask = read_samples(folder / "masks" / f"{row.name}.png")
            bag.write(f"{topic}/mask", image_message(mask, "mono8", common), row.recorded_ns)
            stages = {stage: getattr(row, f"{stage}_ms") for stage in _STAGES}
            timing = timing_message(common, sequences[camera], stages, MemoryState[row.memory.upper()], row.reason)
            bag.write(f"{topic}/timing", timing, row.recorded_ns)
            sequences[camera] += 1


def write_video(path: Path, frames: FrameSource, folder: Path, camera: str, classes: ClassSet, alpha: float) -> None:
    """Write a video of one camera: its images under the colors of the masks in a folder, with opacity ``alpha``."""
    with replacing(path) as temporary, VideoWriter(temporary, frames.rate) as video:
        for frame in read_ahead(frames):
            if frame.camera == camera:
                mask = read_samples(folder / "masks" / f"{frame.name}.png")
                video.write(classes.overlay(frame.image, mask, alpha))


def video_names(cameras: Sequence[str], stem: str) -> dict[str, str]:
    """Return the file name of each camera's video: the stem, and the camera's name if there are several."""
    if len(cameras) == 1:
        return {cameras[0]: f"{stem}.mp4"}
    return {camera: f"{stem}-{camera.strip('/').replace('/', '-')}.mp4" for camera in cameras}


def _resume(folder: Path, segmenter: Segmenter, origin: Mapping[str, Any]) -> tuple[dict[str, Stream], list[TimingRow]]:
    """Return the streams and rows of an unfinished run at its latest checkpoint; empty if there is none."""
    checkpoint = folder / _CHECKPOINT
    if not checkpoint.is_file():
        return {}, []
    content = torch.load(checkpoint, map_location=segmenter.device, weights_only=True)
    if content["origin"] != dict(origin):
        differing = [f"{key} {value}" for key, value in content["origin"].items() if value != origin.get(key)]
        raise ValueError(
            f"{folder} holds an unfinished run with other settings ({', '.join(differing)}): finish that run, or "
            f"remove {checkpoint}"
        )
    streams = {camera: segmenter.stream(state) for camera, state in content["streams"].items()}
    os.truncate(folder / _UNFINISHED_TIMING, content["timing_bytes"])
    types = {"int": int, "float": float, "str": str}
    with (folder / _UNFINISHED_TIMING).open(encoding="utf-8", newline="") as file:
        rows = [
            TimingRow(**{field.name: types[str(field.type)](line[field.name]) for field in fields(TimingRow)})
            for line in csv.DictReader(file)
        ]
    return streams, rows
