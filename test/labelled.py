# SPDX-License-Identifier: Apache-2.0
"""Tiny labelled images and data sets for tests."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from netwarp_ros.classes import load_classes
from netwarp_ros.datasets.folder import ImageFolder

HEIGHT, WIDTH = 6, 8
CAMVID = load_classes("camvid")


def picture(value: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), value, np.uint8)


def label(value: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH), value, np.uint8)


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def write_labelled_video(root: Path, count: int, labelled: set[int]) -> ImageFolder:
    """Write frames number 0 to count - 1. The grey value is the number, the class is the number modulo 11."""
    for index in range(count):
        write(root / "images" / f"{index:03d}.png", picture(index))
        if index in labelled:
            write(root / "labels" / f"{index:03d}.png", label(index % 11))
    return ImageFolder(root / "images", root / "labels", CAMVID)


def write_cityscapes(root: Path, *, sequence: str = "leftImg8bit_sequence", frames: range = range(17, 22)) -> Path:
    """Write two cities with one snippet each. Frame 19 is labelled; the grey value of a frame is its number."""
    ids = np.resize(np.uint8([7, 26, 24, 29, 0, 33]), (HEIGHT, WIDTH))
    instances = np.where(ids == 26, np.uint16(26001), ids)  # cars (26) have instances; persons (24) are a group without
    for city in ("aachen", "ulm"):
        for frame in frames:
            write(root / sequence / "train" / city / f"{city}_000003_{frame:06d}_leftImg8bit.png", picture(frame))
        stem = root / "gtFine" / "train" / city / f"{city}_000003_000019_gtFine"
        write(stem.with_name(f"{stem.name}_labelIds.png"), ids)
        write(stem.with_name(f"{stem.name}_instanceIds.png"), instances)
        write(stem.with_name(f"{stem.name}_color.png"), picture(1))
    return root
