# SPDX-License-Identifier: Apache-2.0
"""Opens a recording of any kind (images, video, bag) and its label maps."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path

from netwarp_ros.classes import ClassSet
from netwarp_ros.recordings.bag_reader import is_bag_file
from netwarp_ros.recordings.bags import BagFrames, BagLabels
from netwarp_ros.recordings.frames import DEFAULT_RATE, FrameSource
from netwarp_ros.recordings.image_files import IMAGE_SUFFIXES, ImageFiles, LabelFolder
from netwarp_ros.recordings.videos import VideoFile


def open_frames(
    path: str | Path, *, rate: float | None = None, topics: Sequence[str] = (), leave_out: Collection[str] = ()
) -> FrameSource:
    """Open a recording.

    Args:
        path: A folder of images (sorted by name, frame_2 before frame_10), an image, a video, or a bag: rosbag2's
            folder, or a ``.mcap``, ``.db3`` or ``.bag`` file.
        rate: Frames per second. Frames are then stamped at this rate from 0, not by the recording. Images have no
            stamps; their rate is `DEFAULT_RATE` if none is given.
        topics: Image topics of a bag; required if it has several.
        leave_out: Topics not to choose if no topics are given, such as those of label maps.

    Raises:
        FileNotFoundError: If the path does not exist, or the folder holds no image.
        ValueError: If the recording cannot be read, the rate is not > 0, or a topic does not fit.
    """
    path = Path(path)
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"rate is {rate}: give frames per second > 0")
    if not path.exists():
        raise FileNotFoundError(f"nothing at {path}: give a folder of images, an image, a video or a bag")
    if is_bag(path):
        return BagFrames(path, topics=topics, rate=rate, leave_out=leave_out)
    if topics:
        raise ValueError(f"the topic {topics[0]} is named, but {path} is not a bag: leave the topic out")
    if path.is_dir():
        return ImageFiles.in_folder(path, rate or DEFAULT_RATE)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageFiles([path], rate or DEFAULT_RATE)
    return VideoFile(path, rate)


def open_labels(
    frames: FrameSource, images: Path, labels: Path | None, topics: Sequence[str], classes: ClassSet | None = None
) -> LabelFolder | BagLabels | None:
    """Open the label maps of a recording.

    Args:
        frames: The recording.
        images: Path of the recording.
        labels: A folder of label maps, or a bag. None stands for the recording's own bag.
        topics: Topics of label maps in the bag, one for each of the recording's cameras.
        classes: What the label maps hold. None leaves them as they are stored.

    Returns:
        A callable that gives the label map of a frame; None if neither labels nor topics are given.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no label map.
        ValueError: If the topics do not fit.
    """
    path = labels or images
    if not topics:
        if labels and is_bag(labels):
            raise ValueError(f"{labels} is a bag: name the topic of its label maps")
        return LabelFolder(labels, classes) if labels else None
    if not is_bag(path):
        raise ValueError(f"the topic {topics[0]} of label maps is named, but {path} is not a bag: leave the topic out")
    if len(topics) != len(frames.cameras):
        cameras = ", ".join(camera or str(images) for camera in frames.cameras)
        raise ValueError(
            f"{len(topics)} topics of label maps are named ({', '.join(topics)}) for {len(frames.cameras)} cameras "
            f"({cameras}): name one for each, in their order"
        )
    return BagLabels(path, dict(zip(frames.cameras, topics, strict=True)), classes)


def is_bag(path: Path) -> bool:
    """Return whether a path is a bag: a file of one, or a folder with rosbag2's metadata or with such files."""
    if not path.is_dir():
        return is_bag_file(path)
    if _has_bag_metadata(path):
        return True
    # A folder of images is not a bag, whatever else it holds.
    files = list(path.iterdir())
    return any(map(is_bag_file, files)) and not any(file.suffix.lower() in IMAGE_SUFFIXES for file in files)


def _has_bag_metadata(folder: Path) -> bool:
    """Return whether a folder's ``metadata.yaml`` is rosbag2's; other programs write files of this name, too."""
    try:
        with (folder / "metadata.yaml").open("rb") as file:
            return b"rosbag2_bagfile_information" in file.read(65536)
    except (FileNotFoundError, IsADirectoryError):
        return False
