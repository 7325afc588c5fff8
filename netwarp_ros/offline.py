# SPDX-License-Identifier: Apache-2.0
"""Recordings segmented to files: masks and timings, a bag of both, videos and a Rerun recording with the images.

A run that was killed can be resumed, and gives the same masks as an uninterrupted run: a checkpoint of the streams'
memories is saved at the start and regularly after it, and removed at the end. A folder without a checkpoint is no
run's, so whatever masks it holds are left alone.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import torch

from netwarp_ros.classes import ClassSet
from netwarp_ros.flow import FlowFolder
from netwarp_ros.models.checkpoints import load_checkpoint
from netwarp_ros.recordings.atomic import refuse_existing, refuse_foreign, replacing, written_by
from netwarp_ros.recordings.bag_writer import BagWriter
from netwarp_ros.recordings.ego_masks import NO_EGO_MASKS, EgoMasks
from netwarp_ros.recordings.frames import Frame, FrameSource, read_ahead
from netwarp_ros.recordings.image_files import read_samples
from netwarp_ros.recordings.messages import header, image_message, label_info, timing_message
from netwarp_ros.recordings.rerun_file import CameraTimings, write_rerun_file
from netwarp_ros.recordings.video_writer import VideoWriter
from netwarp_ros.resources import cut
from netwarp_ros.segmenter import MemoryState, Result, Segmenter, Stream

CHECKPOINT_INTERVAL = 50
"""Frames from one checkpoint to the next."""

_CHECKPOINT, _TIMING, _UNFINISHED_TIMING = "resume.pt", "timing.csv", "timing.part.csv"
_STAGES = ("prepare", "flow", "network")

PRODUCT_MARK = written_by("segment")
"""What every video and every Rerun recording of a run holds."""


@dataclass(frozen=True)
class TimingRow:
    """The line of a frame in ``timing.csv``: times in ms, why the memory was reset, and 1 for a key frame."""

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
    is_key: int = 1


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
    finish: Callable[[Sequence[TimingRow]], None] = lambda rows: None,
    products: Sequence[Path] = (),
    ego_masks: EgoMasks = NO_EGO_MASKS,
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
        finish: Called with the rows when all masks are there. If it is interrupted, the run can still be resumed.
        products: Videos and Rerun recordings that ``finish`` writes.
        ego_masks: What is left out of the masks.

    Raises:
        FileExistsError: If the folder holds masks or timings, but no unfinished run; or a product exists, which no
            unfinished run can have written.
        ValueError: If the folder holds an unfinished run of another origin, or a flow cannot be used.
        OSError: If a file cannot be written, or a flow is missing.
    """
    masks, timing, checkpoint = (folder / name for name in ("masks", _UNFINISHED_TIMING, _CHECKPOINT))
    streams: dict[str, Stream] = {}
    rows: list[TimingRow] = []
    if has_begun := checkpoint.exists():
        for product in products:
            refuse_foreign(product, PRODUCT_MARK)
        streams, rows = _resume(folder, segmenter, origin, ego_masks)
    else:
        refuse_existing(masks, timing, folder / _TIMING, *products, because=", and belongs to no unfinished run")
    done, segmenting_ms, start = len(rows), 0.0, perf_counter()
    for position, frame in enumerate(show_progress(read_ahead(frames))):
        if position < done:
            start = perf_counter()
            continue
        if frame.camera not in streams:
            streams[frame.camera] = segmenter.stream(ego_mask=ego_masks.of(frame.camera))
        stream = streams[frame.camera]
        result = segment_frame(stream, frame, flows)
        segmenting_ms += sum(result.stages_ms.values())
        if not has_begun:
            _begin(folder, origin)
            has_begun = True
        mask_file = masks / f"{frame.name}.png"
        mask_file.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(mask_file), result.mask):
            raise OSError(f"{mask_file} cannot be written")
        rows.append(_timing_row(frame, result))
        _append(timing, vars(rows[-1]).values())
        if len(rows) % CHECKPOINT_INTERVAL == 0:
            _save_checkpoint(folder, origin, streams)
    segmenting_percent = segmenting_ms / 10 / (perf_counter() - start)
    if not has_begun:  # there are no frames
        _begin(folder, origin)
    _save_checkpoint(folder, origin, streams)
    finish(rows)
    timing.replace(folder / _TIMING)
    checkpoint.unlink()
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
            timing = timing_message(
                common, sequences[camera], stages, MemoryState[row.memory.upper()], row.reason, is_key=bool(row.is_key)
            )
            bag.write(f"{topic}/timing", timing, row.recorded_ns)
            sequences[camera] += 1


def write_video(path: Path, frames: FrameSource, folder: Path, camera: str, classes: ClassSet, alpha: float) -> None:
    """Write a video of one camera: its images under the colors of the masks in a folder, with opacity ``alpha``."""
    with replacing(path, PRODUCT_MARK) as temporary, VideoWriter(temporary, frames.rate, PRODUCT_MARK) as video:
        for frame in read_ahead(frames):
            if frame.camera == camera:
                mask = read_samples(folder / "masks" / f"{frame.name}.png")
                video.write(classes.overlay(frame.image, mask, alpha))


def write_rerun(
    path: Path,
    name: str,
    frames: FrameSource,
    folder: Path,
    rows: Sequence[TimingRow],
    classes: ClassSet,
    alpha: float,
) -> None:
    """Write a Rerun recording of all cameras: images, the masks in a folder with opacity ``alpha``, and timings.

    Raises:
        ValueError: Rerun's SDK cannot be used.
    """
    # The viewer merges recordings of one id, so those of two runs must not have the same.
    identity = f"{PRODUCT_MARK} {hashlib.sha256(repr([name, *rows]).encode()).hexdigest()[:32]}"
    masks = (read_samples(folder / "masks" / f"{row.name}.png") for row in rows)
    timings = {camera: _camera_timings([row for row in rows if row.camera == camera]) for camera in frames.cameras}
    with replacing(path, PRODUCT_MARK) as temporary:
        segmented = zip(read_ahead(frames), masks, strict=True)
        write_rerun_file(temporary, identity, name, classes, alpha, timings, segmented)


def video_names(cameras: Sequence[str], stem: str) -> dict[str, str]:
    """Return the file name of each camera's video: the stem, and the camera's name if there are several.

    ``/a/b`` gives ``STEM-a-b.mp4``. If an earlier camera has that name already, a number is appended.
    """
    if len(cameras) == 1:
        return {cameras[0]: f"{stem}.mp4"}
    names: dict[str, str] = {}
    for camera in cameras:
        name = f"{stem}-{camera.strip('/').replace('/', '-')}"
        candidates = (f"{name}{f'-{number}' if number > 1 else ''}.mp4" for number in count(1))
        names[camera] = next(candidate for candidate in candidates if candidate not in names.values())
    return names


def remove_masks(folder: Path, rows: Sequence[TimingRow]) -> None:
    """Remove the masks and timings of a finished run, and the folder if nothing else is in it."""
    for row in rows:
        (folder / "masks" / f"{row.name}.png").unlink(missing_ok=True)
    (folder / _TIMING).unlink(missing_ok=True)
    for left in (folder / "masks", folder):
        with contextlib.suppress(OSError):  # not empty
            left.rmdir()


def _camera_timings(rows: Sequence[TimingRow]) -> CameraTimings:
    return CameraTimings(
        indices=[row.index for row in rows],
        stamps_ns=[row.stamp_ns for row in rows],
        stages_ms={stage: [getattr(row, f"{stage}_ms") for row in rows] for stage in (*_STAGES, "total")},
        resets=[row.reason for row in rows],
    )


def _begin(folder: Path, origin: Mapping[str, Any]) -> None:
    """Write the first checkpoint of a run, before any mask."""
    (folder / "masks").mkdir(parents=True)
    _append(folder / _UNFINISHED_TIMING, (field.name for field in fields(TimingRow)))
    _save_checkpoint(folder, origin, {})


def _append(timing: Path, values: Iterable[Any]) -> None:
    with timing.open("a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow(values)


def _timing_row(frame: Frame, result: Result) -> TimingRow:
    stages = {stage: round(result.stages_ms[stage], 3) for stage in _STAGES}
    return TimingRow(
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
        is_key=int(result.is_key),
    )


def _save_checkpoint(folder: Path, origin: Mapping[str, Any], streams: Mapping[str, Stream]) -> None:
    states = {camera: stream.state() for camera, stream in streams.items()}
    timing_bytes = (folder / _UNFINISHED_TIMING).stat().st_size
    with replacing(folder / _CHECKPOINT) as temporary:
        torch.save({"origin": dict(origin), "streams": states, "timing_bytes": timing_bytes}, temporary)


def _resume(
    folder: Path, segmenter: Segmenter, origin: Mapping[str, Any], ego_masks: EgoMasks
) -> tuple[dict[str, Stream], list[TimingRow]]:
    """Return the streams and rows of an unfinished run at its latest checkpoint.

    Raises:
        ValueError: If the run has another origin, or its files are damaged.
    """
    checkpoint, timing = folder / _CHECKPOINT, folder / _UNFINISHED_TIMING
    others = f"{timing.name} and the masks"
    content = load_checkpoint(checkpoint, ("origin", "streams", "timing_bytes"), segmenter.device, belongings=others)
    if content["origin"] != dict(origin):
        differing = [f"{key} {value}" for key, value in content["origin"].items() if value != origin.get(key)]
        raise ValueError(
            f"{folder} holds an unfinished run with other settings ({cut(', '.join(differing))}): finish that run, or "
            f"remove {checkpoint}, {others}"
        )
    if not timing.is_file() or timing.stat().st_size < content["timing_bytes"]:
        raise ValueError(
            f"{timing} is cut off or missing, so this run cannot be resumed. To start anew, remove {checkpoint}, "
            f"{others}"
        )
    try:
        streams = {
            camera: segmenter.stream(state, ego_mask=ego_masks.of(camera))
            for camera, state in content["streams"].items()
        }
        os.truncate(timing, content["timing_bytes"])
        return streams, _read_timing(timing)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{folder} holds an unfinished run of another version ({cut(str(error))}), which cannot be resumed. To "
            f"start anew, remove {checkpoint}, {others}"
        ) from error


def _read_timing(timing: Path) -> list[TimingRow]:
    types = {"int": int, "float": float, "str": str}
    with timing.open(encoding="utf-8", newline="") as file:
        return [
            TimingRow(**{field.name: types[str(field.type)](line[field.name]) for field in fields(TimingRow)})
            for line in csv.DictReader(file)
        ]
