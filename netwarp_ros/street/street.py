# SPDX-License-Identifier: Apache-2.0
"""The synthetic street: a drive through a British town, with exact labels and exact reverse flow.

It is the sample of the demonstration, of the tests and of training on adjacent frames. It looks as CamVid does (a
camera behind a windscreen at 480×360, traffic on the left) and has its eleven classes: 0 sky, 1 building, 2 pole,
3 road, 4 pavement, 5 tree, 6 sign, 7 fence, 8 car, 9 pedestrian, 10 bicyclist.

Everything is a textured plane (`street_render`) that stands or moves (`street_scene`) on the ground (`street_ground`),
so the motion of every pixel is known in closed form. Light, haze, soft focus and noise change the image alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from netwarp_ros.street.ground import TILE, Ground
from netwarp_ros.street.render import OVERSAMPLING, Camera, Raster, Surface, ground_polygons, stack
from netwarp_ros.street.scene import SPEED, Scene, Shadow

SIZES = (32, 4096)
"""Least and greatest width and height in pixels."""

RATES = (1.0, 240.0)
"""Least and greatest frame rate in Hz."""

_GROUND_KEY = 0
_HAZE_DISTANCE = 320.0


@dataclass(frozen=True)
class StreetFrame:
    """A frame of the street and the truth about it.

    Attributes:
        image: (H, W, 3) uint8, BGR.
        label: (H, W) uint8, CamVid's class ids from 0 to 10; of what is seen at each pixel's centre.
        flow: (H, W, 2) float32, reverse flow in pixels: what pixel (x, y) shows was at (x + u, y + v) one frame
            before. Zero for frame 0.
        valid: (H, W) bool, False where that was hidden or outside then, by what the pixel nearest to it showed; all
            False for frame 0.
    """

    image: np.ndarray
    label: np.ndarray
    flow: np.ndarray
    valid: np.ndarray


class _View(NamedTuple):
    """What the camera saw: the buffers, and for each surface number its key and projection."""

    raster: Raster
    keys: np.ndarray
    matrices: np.ndarray
    label: np.ndarray


class Street:
    """A street without end, driven down at 8 m/s; frame ``index`` depends on the arguments and on ``index`` alone.

    Each frame needs the view before its own. The latest is kept, so frames asked for in order take half the time.

    Args:
        width: Of the frames, in pixels.
        height: Of the frames, in pixels.
        seed: Of the houses, the traffic, the weather and the noise.
        rate: Frames per second.

    Raises:
        ValueError: A size outside 32 to 4096, a negative seed or a rate outside 1 to 240 Hz.
    """

    def __init__(self, width: int = 480, height: int = 360, seed: int = 0, rate: float = 10.0) -> None:
        for name, value in (("width", width), ("height", height)):
            if not SIZES[0] <= value <= SIZES[1] or value != int(value):
                raise ValueError(f"{name} is {value}: give {SIZES[0]} to {SIZES[1]} pixels, whole")
        if seed < 0:
            raise ValueError(f"seed is {seed}: give 0 or more")
        if not RATES[0] <= rate <= RATES[1]:
            raise ValueError(f"rate is {rate}: give {RATES[0]:g} to {RATES[1]:g} Hz")
        self.width, self.height, self.seed, self.rate = width, height, seed, rate
        detail = float(np.clip(width / 480, 0.25, 2))
        self._scene = Scene(seed, detail)
        self._ground = Ground(seed, detail, self._scene.axis, self._scene.kind)
        self._sway = np.random.default_rng((seed, 4)).uniform(0, 2 * np.pi, 6)
        self._latest: tuple[int, _View] | None = None
        self._y, self._x = np.mgrid[:height, :width].astype(np.float64)
        away = ((self._x / width - 0.5) ** 2 + (self._y / height - 0.5) ** 2) / 0.5
        self._vignette = (1 - 0.16 * away)[..., None].astype(np.float32)

    def frame(self, index: int) -> StreetFrame:
        """Make a frame.

        Raises:
            ValueError: A negative index.
        """
        if index < 0:
            raise ValueError(f"index is {index}: give 0 or more")
        earlier = self._latest[1] if self._latest and self._latest[0] == index - 1 else None
        view = self._view(index)
        self._latest = index, view
        image = self._develop(view, index)
        if index == 0:
            empty = np.zeros((self.height, self.width, 2), np.float32)
            return StreetFrame(image, view.label.copy(), empty, np.zeros(view.label.shape, bool))
        flow, valid = self._flow(view, earlier or self._view(index - 1), index)
        return StreetFrame(image, view.label.copy(), flow, valid)

    def _camera(self, index: int) -> Camera:
        time = index / self.rate
        x = SPEED * time
        a, b, c, d, e, f = self._sway
        lane = self._scene.at(x, 1.5 + 0.12 * float(np.sin(0.5 * time + a)))
        height = 1.42 + 0.012 * float(np.sin(7.5 * time + b))
        yaw = float(np.arctan2(lane.forward_y, lane.forward_x)) + 0.006 * float(np.sin(0.9 * time + c))
        pitch = 0.012 + 0.0035 * float(np.sin(5.1 * time + d)) + 0.002 * float(np.sin(11.3 * time + e))
        roll = 0.006 * float(np.sin(1.3 * time + f))
        forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), -np.sin(pitch)])
        level = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
        under = np.cross(forward, level)
        right = np.cos(roll) * level + np.sin(roll) * under
        focal = 0.95 * max(self.width, self.height)
        intrinsics = np.array([[focal, 0, (self.width - 1) / 2], [0, focal, (self.height - 1) / 2], [0, 0, 1]])
        return Camera(
            np.array([lane.x, lane.y, height]), np.stack([right, np.cross(forward, right), forward]), intrinsics
        )

    def _base(self, index: int) -> float:
        """Where the ground's coordinates start, near the camera so that they stay exact however long the drive."""
        return TILE * np.floor(SPEED * index / self.rate / TILE)

    def _projections(self, actors_of: int, index: int) -> tuple[list[Surface], list[Shadow], np.ndarray]:
        """Surfaces of frame ``actors_of`` where they are at frame ``index``, shadows and projections, ground first."""
        camera = self._camera(index)
        backdrop = self._scene.backdrop()
        still = self._scene.still(SPEED * actors_of / self.rate)
        moving = [actor(index / self.rate) for actor in self._scene.moving(actors_of / self.rate)]
        surfaces = backdrop + still.surfaces + [s for things in moving for s in things.surfaces]
        shadows = still.shadows + [s for things in moving for s in things.shadows]
        origins, across, down, finite = stack(surfaces)
        ground = camera.project(
            np.array([[self._base(actors_of), 0, 0]]),
            np.array([[1.0, 0, 0]]),
            np.array([[0, 1.0, 0]]),
            np.array([True]),
        )
        return surfaces, shadows, np.concatenate([ground, camera.project(origins, across, down, finite)])

    def _view(self, index: int) -> _View:
        surfaces, shadows, matrices = self._projections(index, index)
        raster = Raster(self.width, self.height)
        base = self._base(index)
        scaled = np.diag([OVERSAMPLING, OVERSAMPLING, 1.0]) @ matrices[0]
        outlines = ground_polygons(np.array([shadow.corners for shadow in shadows]) - (base, 0), scaled)
        offsets = self._ground.draw(
            raster, np.linalg.inv(matrices[0]), base, outlines, [shadow.strength for shadow in shadows], 0
        )
        raster.draw(surfaces, matrices[1:], 1)
        seen = raster.surface[::OVERSAMPLING, ::OVERSAMPLING]
        labels = np.array([255] + [s.label for s in surfaces], np.uint8)
        label = np.where(seen == 0, self._ground.label(offsets), labels[seen])
        return _View(raster, np.array([_GROUND_KEY] + [s.key for s in surfaces]), matrices, label)

    def _flow(self, view: _View, earlier: _View, index: int) -> tuple[np.ndarray, np.ndarray]:
        before = self._projections(index, index - 1)[2]
        seen = view.raster.surface[::OVERSAMPLING, ::OVERSAMPLING]
        used = np.flatnonzero(np.bincount(seen.ravel(), minlength=len(view.keys)))
        motion = np.zeros_like(before)
        motion[used] = before[used] @ np.linalg.inv(view.matrices[used])
        table = motion.reshape(-1, 9).take(seen, axis=0)
        y, x = self._y, self._x
        past = [table[..., 3 * k] * x + table[..., 3 * k + 1] * y + table[..., 3 * k + 2] for k in range(3)]
        past_x, past_y = past[0] / past[2], past[1] / past[2]
        flow = np.stack([past_x - x, past_y - y], axis=-1).astype(np.float32)

        inside = (
            (past[2] > 0) & (past_x >= 0) & (past_x <= self.width - 1) & (past_y >= 0) & (past_y <= self.height - 1)
        )
        column = np.where(inside, np.rint(past_x), 0).astype(int)
        row = np.where(inside, np.rint(past_y), 0).astype(int)
        keys_before = earlier.keys[earlier.raster.surface[OVERSAMPLING * row, OVERSAMPLING * column]]
        return flow, inside & (keys_before == view.keys[seen])

    def _develop(self, view: _View, index: int) -> np.ndarray:
        """Samples to image: soft focus, haze, exposure, vignette and noise."""
        samples = cv2.cvtColor(view.raster.color, cv2.COLOR_BGRA2BGR)
        soft = cv2.GaussianBlur(samples, (3, 3), 0)[::OVERSAMPLING, ::OVERSAMPLING]
        depth = view.raster.inverse_depth[::OVERSAMPLING, ::OVERSAMPLING]
        clear = np.where(depth > 1e-6, np.exp(-1 / (_HAZE_DISTANCE * np.maximum(depth, 1e-6))), 1)[..., None]
        haze = np.array(self._scene.haze, np.float32) * np.float32(0.8)
        image = haze + (soft.astype(np.float32) - haze) * clear.astype(np.float32)
        rng = np.random.default_rng((self.seed, 5, index))
        exposure = self._scene.exposure * (1 + 0.015 * np.sin(0.8 * index / self.rate + self._sway[0]))
        image *= np.float32(exposure * (1 + 0.008 * rng.standard_normal())) * self._vignette
        image += 2.2 * rng.standard_normal(image.shape, dtype=np.float32)
        return image.clip(0, 255).astype(np.uint8)
