# SPDX-License-Identifier: Apache-2.0
"""Recordings for Rerun's viewer (https://rerun.io): images, masks and timings in one ``.rrd`` file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import simplejpeg

from netwarp_ros.classes import VOID, ClassSet
from netwarp_ros.recordings.frames import Frame

if TYPE_CHECKING:
    from rerun.chunk import Chunk

APPLICATION = "netwarp segment"
"""Rerun's viewer groups recordings by it."""

JPEG_QUALITY = 85
"""Of the images. One of CamVid's, 480x360, then takes 38 kB, with a PSNR of 36 dB."""


@dataclass(frozen=True)
class CameraTimings:
    """What is known of the frames of one camera, beside their images and masks. All sequences have one value a frame.

    Attributes:
        indices: Position in the recording.
        stamps_ns: When the image was taken.
        stages_ms: Durations of each stage, in ms.
        resets: Why the memory was reset; empty if it was kept.
    """

    indices: Sequence[int]
    stamps_ns: Sequence[int]
    stages_ms: Mapping[str, Sequence[float]]
    resets: Sequence[str]


def write_rerun_file(
    path: Path,
    recording_id: str,
    name: str,
    classes: ClassSet,
    alpha: float,
    timings: Mapping[str, CameraTimings],
    segmented: Iterable[tuple[Frame, np.ndarray]],
) -> None:
    """Write a recording for Rerun; one frame is held in memory.

    Each camera has these entities below its topic, or below ``/camera`` if it has none:

    * ``image``: the image as JPEG
    * ``mask``: the class ids; names and colors of the classes and of void are at ``/``
    * ``timing/STAGE``: duration of each stage, in ms
    * ``memory``: "kept", or why it was reset

    Each frame has two times: ``stamp`` and ``frame``, its position in the recording.

    Args:
        path: The file; overwritten if it exists.
        recording_id: The viewer merges recordings of the same id. The file holds this text uncompressed.
        name: The name that the viewer shows.
        classes: The classes of the masks.
        alpha: Opacity of the masks in the viewer.
        timings: By the cameras of the frames.
        segmented: The frames with their masks, ``(H, W)`` uint8 class ids.

    Raises:
        ValueError: As `load_rerun`.
        OSError: If the file cannot be written.
    """
    load_rerun()
    from rerun.chunk import LazyChunkStream

    errors: list[BaseException] = []

    def noting_errors(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        try:
            yield from chunks
        except BaseException as error:
            errors.append(error)
            raise

    chunks = noting_errors(_chunks(name, classes, alpha, timings, segmented))
    try:
        LazyChunkStream.from_iter(chunks).write_rrd(path, application_id=APPLICATION, recording_id=recording_id)
    except RuntimeError as error:  # of writing, or in place of an error of the frames
        if errors:
            raise errors[0] from None
        raise OSError(f"{path} cannot be written: {error}") from error


def load_rerun() -> ModuleType:
    """Import Rerun's SDK, and let it raise errors where it would only log them.

    What is used of it opens no viewer and no connection. Its analytics are those of the viewer and of its servers.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import rerun
        import rerun.chunk
    except ImportError as error:
        raise ValueError(f"recordings for Rerun need its SDK ({error}): pip install 'netwarp_ros[rerun]'") from error
    rerun.set_strict_mode(True)
    return rerun


def entities_of(cameras: Iterable[str]) -> dict[str, str]:
    """Return the path of each camera's entity: its topic, in Rerun's spelling, or ``/camera`` if it has none.

    Topics that differ only in their slashes get different paths.
    """
    rerun = load_rerun()
    entities: dict[str, str] = {}
    for camera in cameras:
        entity = rerun.new_entity_path([part for part in camera.split("/") if part] or ["camera"])
        while entity in entities.values():
            entity += "-2"
        entities[camera] = entity
    return entities


def _chunks(
    name: str,
    classes: ClassSet,
    alpha: float,
    timings: Mapping[str, CameraTimings],
    segmented: Iterable[tuple[Frame, np.ndarray]],
) -> Iterator[Chunk]:
    rerun = load_rerun()
    annotations = [(number, entry.name, entry.color) for number, entry in enumerate(classes.classes)]
    annotations += [(void, "void", (0, 0, 0)) for void in sorted({classes.void, VOID})]
    yield _chunk("/__properties", rerun.archetypes.RecordingInfo(name=name))
    yield _chunk("/", rerun.AnnotationContext(annotations))
    entities = entities_of(timings)
    for camera, entity in entities.items():
        yield _chunk(f"{entity}/mask", rerun.SegmentationImage.from_fields(opacity=alpha))
        yield from _timing_chunks(entity, timings[camera])
    for frame, mask in segmented:
        entity, times = entities[frame.camera], _times([frame.index], [frame.stamp_ns])
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(frame.image), JPEG_QUALITY, "BGR", "420")
        yield _chunk(f"{entity}/image", rerun.EncodedImage(contents=jpeg, media_type="image/jpeg"), times)
        yield _chunk(f"{entity}/mask", rerun.SegmentationImage(mask), times)


def _timing_chunks(entity: str, timings: CameraTimings) -> Iterator[Chunk]:
    import rerun
    from rerun.chunk import Chunk

    if not timings.indices:
        return
    times = _times(timings.indices, timings.stamps_ns)
    for stage, durations in timings.stages_ms.items():
        yield Chunk.from_columns(f"{entity}/timing/{stage}", times, rerun.Scalars.columns(scalars=durations))
    texts = [f"reset: {reason}" if reason else "kept" for reason in timings.resets]
    levels = ["INFO" if reason else "DEBUG" for reason in timings.resets]
    yield Chunk.from_columns(f"{entity}/memory", times, rerun.TextLog.columns(text=texts, level=levels))


def _chunk(entity: str, value: Any, times: Sequence[Any] = ()) -> Chunk:
    """Return the chunk of one value of an entity, at one time; without times, the value is always valid."""
    from rerun.chunk import Chunk

    return Chunk.from_columns(entity, times, [batch.partition([1]) for batch in value.as_component_batches()])


def _times(indices: Sequence[int], stamps_ns: Sequence[int]) -> list[Any]:
    import rerun

    stamps = np.array(stamps_ns, "datetime64[ns]")
    return [rerun.TimeColumn("frame", sequence=indices), rerun.TimeColumn("stamp", timestamp=stamps)]
