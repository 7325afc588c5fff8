# SPDX-License-Identifier: Apache-2.0
"""``netwarp segment``: masks, timings and a video of a recording."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netwarp_ros.cli.option_groups import expand_groups
from netwarp_ros.cli.options import InferenceOptions, ModelOptions, RecordingOptions
from netwarp_ros.cli.printing import say, track_progress

if TYPE_CHECKING:
    from netwarp_ros.offline import SegmentedRecording, TimingRow
    from netwarp_ros.recordings.frames import FrameSource
    from netwarp_ros.segmenter import Segmenter


@expand_groups
def segment(
    *,
    recording: Annotated[Path, typer.Argument(metavar="INPUT", help="A folder of images, an image, a video or a bag.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Output folder, or a bag, OUT.mcap.", show_default=False)
    ],
    model: ModelOptions,
    inference: InferenceOptions,
    reading: RecordingOptions,
    video: Annotated[
        bool | None,
        typer.Option(
            "--video/--no-video",
            help="Write overlay.mp4, or OUT.mp4 beside a bag. By default only into a folder.",
            show_default=False,
        ),
    ] = None,
    rrd: Annotated[
        bool,
        typer.Option(
            "--rrd", help="Write recording.rrd, or OUT.rrd beside a bag, for Rerun. Needs netwarp_ros[rerun]."
        ),
    ] = False,
    alpha: Annotated[
        float, typer.Option("--alpha", help="Opacity of the class colors in the video and in Rerun, from 0 to 1.")
    ] = 0.5,
) -> None:
    """Segment a recording: masks/NAME.png (class ids), timing.csv and overlay.mp4; or a bag of masks and timings.

    Nothing that exists is overwritten. If a run was interrupted, the same command continues it.
    """
    from netwarp_ros.offline import remove_masks, segment_recording, video_names, write_masks, write_rerun, write_video
    from netwarp_ros.recordings.atomic import refuse_existing
    from netwarp_ros.recordings.open import open_frames
    from netwarp_ros.recordings.rerun_file import load_rerun

    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}: give 0 to 1")
    if rrd:
        load_rerun()  # says now what is missing, and not when all masks are there
    is_bag = output.suffix == ".mcap"
    if is_bag:
        refuse_existing(output)
    frames = open_frames(recording, rate=reading.rate, topics=reading.topics or [])
    ego_masks = model.ego_masks()
    ego_masks.check_cameras(frames.cameras)
    segmenter = model.segmenter(inference.inference())
    classes = segmenter.classes
    folder = output.with_name(f"{output.name}.unfinished") if is_bag else output
    videos: dict[str, Path] = {}
    if video or (video is None and not is_bag):
        names = video_names(frames.cameras, output.stem if is_bag else "overlay")
        videos = {camera: (output.parent if is_bag else output) / name for camera, name in names.items()}
    rerun_file = output.with_suffix(".rrd") if is_bag else output / "recording.rrd"

    def finish(rows: Sequence[TimingRow]) -> None:
        for camera, path in videos.items():
            write_video(path, frames, folder, camera, classes, alpha)
        if rrd:
            write_rerun(rerun_file, recording.resolve().stem, frames, folder, rows, classes, alpha)
        if is_bag:
            write_masks(output, folder, rows, classes)

    segmented = segment_recording(
        frames, segmenter, folder, _origin(recording, frames, segmenter, model, reading),
        lambda taken: track_progress(taken, "segmenting", len(frames)), model.flow_folder(), finish,
        [*videos.values(), *([rerun_file] if rrd else [])], ego_masks,
    )  # fmt: skip
    if is_bag:
        remove_masks(folder, segmented.rows)
    _print_summary(segmented, output if is_bag else output / "masks")


def _origin(
    recording: Path, frames: FrameSource, segmenter: Segmenter, model: ModelOptions, reading: RecordingOptions
) -> dict[str, Any]:
    """Return what the masks depend on, so that a run continues only one of the same input and settings."""
    from netwarp_ros.evaluation.provenance import describe_input

    return {
        "recording": str(recording.resolve()),
        "cameras": list(frames.cameras),
        "frames": len(frames),
        "rate": reading.rate,
        "weights": describe_input(model.weights())["sha256"],
        **model.settings(segmenter),
    }


def _print_summary(segmented: SegmentedRecording, place: Path) -> None:
    from netwarp_ros.timing import percentiles

    total_ms = percentiles(row.total_ms for row in segmented.rows)
    say(
        f"{len(segmented.rows)} masks in {place}, {total_ms['p50']:.1f} ms a frame (p99 {total_ms['p99']:.1f} ms), "
        f"{segmented.segmenting_percent:.0f} % of the time in flow and network"
    )
