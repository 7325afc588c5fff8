# SPDX-License-Identifier: Apache-2.0
"""Ego masks: which pixels of a camera show its own robot, and are left out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from netwarp_ros.recordings.image_codecs import PNG, ImageError, decode


@dataclass(frozen=True)
class EgoMasks:
    """The ego masks of a recording's cameras.

    Attributes:
        every: The mask of the cameras that have none of their own, as `read_ego_mask` returns it; None if there is
            none.
        by_camera: Masks of single cameras, by their names.
    """

    every: np.ndarray | None = None
    by_camera: Mapping[str, np.ndarray] = field(default_factory=dict)

    def of(self, camera: str) -> np.ndarray | None:
        """Return the mask of a camera, ``(h, w)`` bool, or None if it has none."""
        return self.by_camera.get(camera, self.every)

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each mask's size and content, by camera; that of ``every`` has no name."""
        masks = {**({} if self.every is None else {"": self.every}), **self.by_camera}
        return {camera: hashlib.sha256(str(m.shape).encode() + m.tobytes()).hexdigest() for camera, m in masks.items()}

    def check_cameras(self, cameras: Sequence[str]) -> None:
        """Check that each mask is of a camera of the recording.

        Raises:
            ValueError: A mask is of another camera.
        """
        for camera in self.by_camera:
            if camera not in cameras:
                known = ", ".join(filter(None, cameras))
                choice = f"give one of {known}" if known else "the recording names no camera, so give the file alone"
                raise ValueError(f"there is an ego mask of {camera!r}, which is no camera of the recording: {choice}")


NO_EGO_MASKS = EgoMasks()
"""For cameras that do not see their own robot."""


def read_ego_mask(path: str | Path) -> np.ndarray:
    """Read an ego mask.

    Args:
        path: A PNG of any size. A pixel is left out if any of its colors is not 0, unless it is fully transparent.

    Returns:
        ``(h, w)`` bool: True is left out.

    Raises:
        ValueError: It cannot be read, is no PNG, or leaves nothing in.
    """
    try:
        data = np.fromfile(path, np.uint8)
        if data[: len(PNG)].tobytes() != PNG:  # the zeros of a JPEG are not exact
            raise ImageError("it is not a PNG")
        samples = decode(data)
    except (OSError, ImageError) as error:
        raise ValueError(f"the ego mask {path} cannot be read ({error}): give a PNG") from error
    if samples.ndim == 2:
        left_out = samples != 0
    else:
        left_out = (samples[..., :3] != 0).any(axis=2)
        if samples.shape[2] == 4:
            left_out &= samples[..., 3] != 0
    if left_out.all():
        raise ValueError(f"the ego mask {path} leaves out every pixel: give one that is black where the scene is seen")
    return left_out


def read_ego_masks(texts: Sequence[str]) -> EgoMasks:
    """Read the ego masks that a user names.

    Args:
        texts: ``CAMERA=FILE`` each, or ``FILE`` for all other cameras.

    Raises:
        ValueError: A file cannot be read (`read_ego_mask`), or there are two for a camera.
    """
    every: np.ndarray | None = None
    by_camera: dict[str, np.ndarray] = {}
    for text in texts:
        camera, equals, file = text.partition("=")
        if equals and not Path(text).is_file():
            if camera in by_camera:
                raise ValueError(f"there are two ego masks of {camera!r}: give one")
            by_camera[camera] = read_ego_mask(file)
        elif every is not None:
            raise ValueError(f"there are two ego masks of every camera, the second is {text}: give one, or CAMERA=FILE")
        else:
            every = read_ego_mask(text)
    return EgoMasks(every, by_camera)
