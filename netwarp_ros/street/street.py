# SPDX-License-Identifier: Apache-2.0
"""The synthetic street: a drive through a British town, with exact labels and exact reverse flow.

It resembles CamVid: a camera behind a windscreen, traffic on the left, and the same eleven classes (`labels`).

Everything is a textured plane, so the motion of every pixel is known in closed form. Haze, soft focus, exposure and
noise change the image alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from netwarp_ros.street.ground import TILE, Ground, ground_label
from netwarp_ros.street.objects.geometry import GROUND_KEY, Shadow
from netwarp_ros.street.objects.setting import CAMERA_SPEED
from netwarp_ros.street.render import OVERSAMPLING, Camera, Raster, Surface, ground_polygons, stack
from netwarp_ros.street.scene import Scene

_MIN_SIDE, _MAX_SIDE = 32, 4096
_MIN_RATE, _MAX_RATE = 1.0, 240.0

_HAZE_DISTANCE = 320.0
"""Distance in metres at which haze hides all but 1/e of the color."""


@dataclass(frozen=True)
class StreetFrame:
    """A frame of the street with its labels and flow.

    Attributes:
        image: (H, W, 3) uint8, BGR.
        label: (H, W) uint8, CamVid's class ids from 0 to 10, at the pixels' centres.
        flow: (H, W, 2) float32, reverse flow in pixels: what pixel (x, y) shows was at (x + u, y + v) one frame
            before. Zero for frame 0.
        valid: (H, W) bool; True where the nearest pixel to (x + u, y + v) showed the same surface in the frame before,
            False where the surface was hidden or out of view. All False for frame 0.
    """

    image: np.ndarray
    label: np.ndarray
    flow: np.ndarray
    valid: np.ndarray


class _View(NamedTuple):
    """What the camera sees at a frame.

    Attributes:
        raster: Buffers of the samples.
        keys: (N,) key of each surface, by its number.
        matrices: (N, 3, 3) projection of each surface.
        label: (H, W) uint8 class ids.
    """

    raster: Raster
    keys: np.ndarray
    matrices: np.ndarray
    label: np.ndarray


class Street:
    """A street without end, seen from a car at 8 m/s. A frame depends only on the arguments and on its index.

    A frame needs the view of the frame before it. The last view is kept, so frames in order take half the time.

    Args:
        width: Of the frames, from 32 to 4096 pixels.
        height: Of the frames, from 32 to 4096 pixels.
        seed: 0 or more: of the houses, the traffic, the weather and the noise.
        rate: Frames per second, from 1 to 240.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, width: int = 480, height: int = 360, seed: int = 0, rate: float = 10.0) -> None:
        for name, value in (("width", width), ("height", height)):
            if not _MIN_SIDE <= value <= _MAX_SIDE or value != int(value):
                raise ValueError(f"{name} is {value}: give a whole number of pixels from {_MIN_SIDE} to {_MAX_SIDE}")
        if seed < 0:
            raise ValueError(f"seed is {seed}: give 0 or more")
        if not _MIN_RATE <= rate <= _MAX_RATE:
            raise ValueError(f"rate is {rate}: give {_MIN_RATE:g} to {_MAX_RATE:g} Hz")
        self.width, self.height, self.seed, self.rate = width, height, seed, rate
        detail = float(np.clip(width / 480, 0.25, 2))
        self._scene = Scene(seed, detail)
        self._ground = Ground(seed, detail, self._scene.course.centre_line, self._scene.course.ground_kind)
        self._sway = np.random.default_rng((seed, 4)).uniform(0, 2 * np.pi, 6)
        self._last_view: tuple[int, _View] | None = None
        self._y, self._x = np.mgrid[:height, :width].astype(np.float64)
        distance = ((self._x / width - 0.5) ** 2 + (self._y / height - 0.5) ** 2) / 0.5
        self._vignette = (1 - 0.16 * distance)[..., None].astype(np.float32)

    def frame(self, index: int) -> StreetFrame:
        """Render a frame; the first one has index 0.

        Raises:
            ValueError: If the index is negative.
        """
        if index < 0:
            raise ValueError(f"index is {index}: give 0 or more")
        previous = self._last_view[1] if self._last_view and self._last_view[0] == index - 1 else None
        view = self._view(index)
        self._last_view = index, view
        image = self._image(view, index)
        if index == 0:
            empty = np.zeros((self.height, self.width, 2), np.float32)
            return StreetFrame(image, view.label.copy(), empty, np.zeros(view.label.shape, bool))
        flow, valid = self._flow(view, previous or self._view(index - 1), index)
        return StreetFrame(image, view.label.copy(), flow, valid)

    def _camera(self, index: int) -> Camera:
        """Return the camera at a frame: on the left lane, swaying a little."""
        time = index / self.rate
        x = CAMERA_SPEED * time
        a, b, c, d, e, f = self._sway
        lane = self._scene.course.pose(x, 1.5 + 0.12 * float(np.sin(0.5 * time + a)))
        height = 1.42 + 0.012 * float(np.sin(7.5 * time + b))
        yaw = float(np.arctan2(lane.forward_y, lane.forward_x)) + 0.006 * float(np.sin(0.9 * time + c))
        pitch = 0.012 + 0.0035 * float(np.sin(5.1 * time + d)) + 0.002 * float(np.sin(11.3 * time + e))
        roll = 0.006 * float(np.sin(1.3 * time + f))
        forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), -np.sin(pitch)])
        level = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
        right = np.cos(roll) * level + np.sin(roll) * np.cross(forward, level)
        focal = 0.95 * max(self.width, self.height)
        intrinsics = np.array([[focal, 0, (self.width - 1) / 2], [0, focal, (self.height - 1) / 2], [0, 0, 1]])
        return Camera(
            np.array([lane.x, lane.y, height]), np.stack([right, np.cross(forward, right), forward]), intrinsics
        )

    def _base(self, index: int) -> float:
        """Return the x at which the ground's coordinates start: near the camera, so that float32 stays exact."""
        return TILE * np.floor(CAMERA_SPEED * index / self.rate / TILE)

    def _project(self, objects_of: int, index: int) -> tuple[list[Surface], list[Shadow], np.ndarray]:
        """Project the objects that are visible at one frame as they are at another.

        Args:
            objects_of: Index of the frame that chooses the objects.
            index: Index of the frame that sets the camera and where road users are.

        Returns:
            N surfaces, their shadows, and the projections (N + 1, 3, 3) of the ground and of the surfaces.
        """
        camera, time = self._camera(index), objects_of / self.rate
        objects = self._scene.tiles(time) + [user(index / self.rate) for user in self._scene.road_users(time)]
        surfaces = self._scene.backdrop() + [surface for geometry in objects for surface in geometry.surfaces]
        shadows = [shadow for geometry in objects for shadow in geometry.shadows]
        origins, across, down, finite = stack(surfaces)
        ground = camera.project(
            np.array([[self._base(objects_of), 0, 0]]),
            np.array([[1.0, 0, 0]]),
            np.array([[0, 1.0, 0]]),
            np.array([True]),
        )
        return surfaces, shadows, np.concatenate([ground, camera.project(origins, across, down, finite)])

    def _view(self, index: int) -> _View:
        surfaces, shadows, matrices = self._project(index, index)
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
        label = np.where(seen == 0, ground_label(offsets), labels[seen])
        return _View(raster, np.array([GROUND_KEY] + [s.key for s in surfaces]), matrices, label)

    def _flow(self, view: _View, previous: _View, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return flow and validity of a frame; see `StreetFrame`."""
        matrices_before = self._project(index, index - 1)[2]
        seen = view.raster.surface[::OVERSAMPLING, ::OVERSAMPLING]
        used = np.flatnonzero(np.bincount(seen.ravel(), minlength=len(view.keys)))
        motion = np.zeros_like(matrices_before)
        motion[used] = matrices_before[used] @ np.linalg.inv(view.matrices[used])
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
        keys_before = previous.keys[previous.raster.surface[OVERSAMPLING * row, OVERSAMPLING * column]]
        return flow, inside & (keys_before == view.keys[seen])

    def _image(self, view: _View, index: int) -> np.ndarray:
        """Make the image from the samples: soft focus, haze, exposure, vignette and noise."""
        samples = cv2.cvtColor(view.raster.color, cv2.COLOR_BGRA2BGR)
        soft = cv2.GaussianBlur(samples, (3, 3), 0)[::OVERSAMPLING, ::OVERSAMPLING]
        depth = view.raster.inverse_depth[::OVERSAMPLING, ::OVERSAMPLING]
        clear = np.where(depth > 1e-6, np.exp(-1 / (_HAZE_DISTANCE * np.maximum(depth, 1e-6))), 1)[..., None]
        haze = np.array(self._scene.weather.haze, np.float32) * np.float32(0.8)
        image = haze + (soft.astype(np.float32) - haze) * clear.astype(np.float32)
        rng = np.random.default_rng((self.seed, 5, index))
        exposure = self._scene.weather.exposure * (1 + 0.015 * np.sin(0.8 * index / self.rate + self._sway[0]))
        image *= np.float32(exposure * (1 + 0.008 * rng.standard_normal())) * self._vignette
        image += 2.2 * rng.standard_normal(image.shape, dtype=np.float32)
        return image.clip(0, 255).astype(np.uint8)
