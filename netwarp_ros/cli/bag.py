# SPDX-License-Identifier: Apache-2.0
"""``netwarp bag``: a rosbag2 made of images and label maps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from netwarp_ros.cli.printing import say, track_progress

FIRST_STAMP_NS = 10**9
"""Stamp of the first frame: not 0, which stands for a missing stamp in ROS."""


def bag(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="A folder of images, or a video.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A file that ends in .mcap, or a new folder.", show_default=False)
    ],
    labels: Annotated[
        Path | None,
        typer.Argument(
            metavar="LABELS", help="A folder of label maps NAME.png, named like the images.", show_default=False
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate", help="Frames per second. Default: a video's own stamps; 15 for images.", show_default=False
        ),
    ] = None,
    camera: Annotated[str, typer.Option("--camera", help="First part of the topics' names.")] = "camera",
    frame_id: Annotated[
        str | None,
        typer.Option(
            "--frame-id", help="Coordinate frame in the headers. Default: CAMERA_optical_frame.", show_default=False
        ),
    ] = None,
) -> None:
    """Make a rosbag2 of frames and their label maps: topics /CAMERA/image_raw and /CAMERA/labels."""
    from netwarp_ros.recordings.bag_writer import write_bag
    from netwarp_ros.recordings.image_files import LabelFolder
    from netwarp_ros.recordings.open import open_frames

    source = open_frames(images, rate=rate)
    frames = (
        dataclasses.replace(frame, stamp_ns=FIRST_STAMP_NS + frame.stamp_ns)
        for frame in track_progress(source, "recording", len(source))
    )
    count = write_bag(
        output,
        frames,
        topic=f"/{camera}/image_raw",
        labels=LabelFolder(labels) if labels else None,
        label_topic=f"/{camera}/labels",
        # REP 103: images are in a frame of their own (z forward, x right, y down), not in that of the camera's body.
        frame_id=f"{camera}_optical_frame" if frame_id is None else frame_id,
    )
    say(f"{count} frames in {output}")
