# SPDX-License-Identifier: Apache-2.0
"""A z-buffer renderer of textured parallelograms.

A surface is a parallelogram ``origin + a * across + b * down``; a and b go from 0 to 1 along its texture's width and
height. In a camera K R (X - C) its projection is a homography

    depth * (x, y, 1) = M (a, b, 1),    M = K R [across, down, origin - C],

so the inverse of M gives texture coordinates and inverse depth of a pixel, and M(t-1) M(t)^-1 gives its exact motion,
however the camera and the surface move.

World axes are x along the street, y to the left, z up, in metres. Pixel coordinates are integers at pixel centres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

NEAR = 0.4
"""Depth of the near plane in metres: nothing nearer than it is drawn."""

OVERSAMPLING = 2
"""Samples per pixel on each axis. Sample (2x, 2y) is the centre of pixel (x, y), where labels and flow are taken."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        position: (3,) world coordinates.
        rotation: (3, 3); its rows are the world directions of the image's right, of its down, and of the view.
        intrinsics: (3, 3) camera matrix in pixels.
    """

    position: np.ndarray
    rotation: np.ndarray
    intrinsics: np.ndarray

    def project(self, origin: np.ndarray, across: np.ndarray, down: np.ndarray, finite: np.ndarray) -> np.ndarray:
        """Return the matrices M (N, 3, 3) of N surfaces.

        Args:
            origin: (N, 3).
            across: (N, 3).
            down: (N, 3).
            finite: (N,) bool; False for a surface at infinity, whose origin is a direction: the camera's position does
                not matter.
        """
        relative = origin - finite[:, None] * self.position
        vectors = np.stack([across, down, relative], axis=-1)
        return (self.intrinsics @ self.rotation) @ vectors


class Texture:
    """A BGRA image and its smaller copies, which are made at first use.

    A texel is drawn if its alpha is above one half. Smaller copies keep the fraction of such texels; otherwise leaves
    and railings would vanish at a distance.

    Args:
        image: (H, W, 4) or (H, W, 3) uint8.
    """

    def __init__(self, image: np.ndarray) -> None:
        if image.shape[2] == 3:
            image = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
        self.height, self.width = image.shape[:2]
        self._coverage = float(np.mean(image[..., 3] > 127))
        alpha = image[..., 3:].astype(np.float32) / 255
        self._premultiplied = np.dstack([image[..., :3] * alpha, alpha * 255]).astype(np.float32)
        self._levels: dict[tuple[int, int], np.ndarray] = {}

    def level(self, across: int, down: int) -> np.ndarray:
        """Return the copy that is smaller by 2^(across/2) and 2^(down/2), with a transparent border of one texel."""
        if (across, down) not in self._levels:
            self._levels[across, down] = self._shrink(across, down)
        return self._levels[across, down]

    def _shrink(self, across: int, down: int) -> np.ndarray:
        width = max(1, round(self.width * 2 ** (-across / 2)))
        height = max(1, round(self.height * 2 ** (-down / 2)))
        small = cv2.resize(self._premultiplied, (width, height), interpolation=cv2.INTER_AREA)
        alpha = small[..., 3]
        if self._coverage <= 0.995:
            alpha = cv2.GaussianBlur(alpha, (3, 3), 0)  # smooth outlines
        near = cv2.blur(small, (5, 5))  # color of transparent texels, which shows when they are interpolated
        color = 255 * np.where(
            alpha[..., None] > 8,
            small[..., :3] / np.maximum(alpha, 8)[..., None],
            near[..., :3] / np.maximum(near[..., 3:], 1e-3),
        )
        if self._coverage < 0.995:
            alpha = alpha + np.clip(127.5 - np.quantile(alpha, 1 - self._coverage), -80, 80)
        image = np.dstack([color, alpha]).clip(0, 255).astype(np.uint8)
        image = np.asarray(cv2.copyMakeBorder(image, 1, 1, 1, 1, cv2.BORDER_REPLICATE), np.uint8)
        image[[0, -1], :, 3] = 0
        image[:, [0, -1], 3] = 0
        return image


@dataclass(frozen=True)
class Surface:
    """A textured parallelogram at one moment.

    Attributes:
        key: Identifies the surface in all frames.
        label: Class id.
        texture: Its texture.
        origin: World coordinates of the texture's upper left corner; a direction if ``finite`` is False.
        across: From the upper left corner to the upper right.
        down: From the upper left corner to the lower left.
        light: Factor on the texture's brightness.
        facing: 1 if it is visible only from the front, where its texture is not mirrored, -1 only from the back, 0 from
            both sides.
        finite: False for a surface at infinity.
    """

    key: int
    label: int
    texture: Texture
    origin: tuple[float, float, float]
    across: tuple[float, float, float]
    down: tuple[float, float, float]
    light: float = 1.0
    facing: int = 0
    finite: bool = True


def stack(surfaces: Sequence[Surface]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return origin, across, down (N, 3) and finite (N,) of N surfaces, the arguments of `Camera.project`."""
    vectors = np.array([(*s.origin, *s.across, *s.down) for s in surfaces], np.float64).reshape(-1, 3, 3)
    return vectors[:, 0], vectors[:, 1], vectors[:, 2], np.array([s.finite for s in surfaces], bool)


@dataclass
class Raster:
    """Buffers of the samples, `OVERSAMPLING` times the image's size on each axis.

    Attributes:
        width: Of the image, in pixels.
        height: Of the image, in pixels.
        color: (2H, 2W, 4) uint8, BGR and a channel without meaning.
        inverse_depth: (2H, 2W) float32, in 1/m, 0 at infinity.
        surface: (2H, 2W) int32, number of the visible surface, -1 where there is none.
    """

    width: int
    height: int
    color: np.ndarray = field(init=False)
    inverse_depth: np.ndarray = field(init=False)
    surface: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        shape = (OVERSAMPLING * self.height, OVERSAMPLING * self.width)
        self.color = np.zeros((*shape, 4), np.uint8)
        self.inverse_depth = np.zeros(shape, np.float32)
        self.surface = np.full(shape, -1, np.int32)
        self._x = np.arange(shape[1], dtype=np.float64)
        self._y = np.arange(shape[0], dtype=np.float64)

    def draw(self, surfaces: Sequence[Surface], matrices: np.ndarray, first: int) -> None:
        """Draw surfaces, the nearest first, so that most hidden ones need no texturing.

        Args:
            surfaces: N surfaces.
            matrices: (N, 3, 3) from `Camera.project`, in pixels.
            first: Number of the first surface; the others count up from it.
        """
        matrices = np.diag([OVERSAMPLING, OVERSAMPLING, 1.0]) @ matrices
        determinants = np.linalg.det(matrices)
        boxes, depths = self._boxes(matrices)
        facing = np.array([s.facing for s in surfaces])
        finite = np.array([s.finite for s in surfaces])
        seen = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        seen &= (facing * determinants >= 0) & (np.abs(determinants) > 1e-6 * depths)
        order = np.flatnonzero(seen)
        order = order[np.lexsort((depths[order], ~finite[order]))]
        inverses = np.linalg.inv(matrices[order])
        boxes = boxes[order]
        levels = _levels([surfaces[n].texture for n in order.tolist()], inverses, boxes)
        for n, inverse, box, level in zip(order.tolist(), inverses, boxes.tolist(), levels.tolist(), strict=True):
            self._draw(surfaces[n], inverse, box, level, first + n)

    def _boxes(self, matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return bounding boxes (N, 4), x0, y0, x1, y1 in samples, and least depths (N,) in metres.

        Only what is in front of the near plane counts.
        """
        rows, columns = self.surface.shape
        corners = np.einsum("nij,kj->nki", matrices, [(0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1)])
        depth = corners[..., 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            points = corners[..., :2] / depth[..., None]
        low, high = points.min(1), points.max(1)
        for n in np.flatnonzero((depth.min(1) < NEAR) & (depth.max(1) > NEAR)):
            cut = _clip(corners[n])
            low[n], high[n] = cut.min(0), cut.max(0)
        behind = depth.max(1) <= NEAR
        low[behind], high[behind] = 0, -1
        limit = np.array([columns, rows])
        low = np.clip(np.ceil(low), 0, limit)
        high = np.clip(np.floor(high) + 1, 0, limit)
        return np.hstack([low, high]).astype(int), np.maximum(depth.min(1), NEAR)

    def _draw(self, surface: Surface, inverse: np.ndarray, box: list[int], level: list[int], number: int) -> None:
        x0, y0, x1, y1 = box
        region = np.s_[y0:y1, x0:x1]
        depths = self.inverse_depth[region]
        if surface.finite:
            a, b, c = inverse[2].tolist()
            along = (a * self._x[x0:x1] + c).astype(np.float32)
            depth = along + (b * self._y[y0:y1]).astype(np.float32)[:, None]
        else:
            depth = np.full(depths.shape, 1e-9, np.float32)
        mask = cv2.compare(depth, depths, cv2.CMP_GT)
        if not cv2.countNonZero(mask):
            return
        texture = surface.texture.level(*level)
        height, width = texture.shape[0] - 2, texture.shape[1] - 2
        texels = inverse.copy()  # from samples of the region to texels: +1 for the border, -0.5 for a texel's centre
        texels[:, 2] += inverse[:, 0] * x0 + inverse[:, 1] * y0
        texels[0] = texels[0] * width + 0.5 * texels[2]
        texels[1] = texels[1] * height + 0.5 * texels[2]
        patch = cv2.warpPerspective(
            texture, texels, (x1 - x0, y1 - y0),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        _, opaque = cv2.threshold(cv2.extractChannel(patch, 3), 127, 255, cv2.THRESH_BINARY)
        mask = cv2.bitwise_and(mask, opaque)
        if surface.light != 1:
            patch = cv2.convertScaleAbs(patch, alpha=surface.light)
        cv2.copyTo(patch, mask, self.color[region])
        cv2.copyTo(depth, mask, depths)
        np.putmask(self.surface[region], np.asarray(mask, bool), number)


def _levels(textures: Sequence[Texture], inverses: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the arguments (N, 2) of `Texture.level` at which texels and samples match in the middle of the boxes."""
    sizes = np.array([(texture.width, texture.height) for texture in textures], np.float64).reshape(-1, 2)
    centres = np.column_stack([boxes[:, [0, 2]].mean(1), boxes[:, [1, 3]].mean(1), np.ones(len(boxes))])
    a, b, w = np.einsum("nij,nj->in", inverses, centres)
    w = np.where(w > 0, w, np.inf)  # behind the camera: the surface is near, so use its finest level
    fractions = np.stack([a, b], -1) / w[:, None]
    gradients = (inverses[:, :2, :2] - fractions[..., None] * inverses[:, 2:, :2]) / w[:, None, None]
    texels = np.hypot(gradients[..., 0], gradients[..., 1]) * sizes
    return np.rint(2 * np.log2(np.clip(texels, 1, sizes))).astype(int)


def _clip(corners: np.ndarray) -> np.ndarray:
    """Clip a polygon of homogeneous (4, 3) corners at the near plane, and return its image points (K, 2)."""
    points = []
    for first, second in zip(corners, [*corners[1:], corners[0]], strict=True):
        if first[2] > NEAR:
            points.append(first)
        if (first[2] > NEAR) != (second[2] > NEAR):
            points.append(first + (second - first) * (NEAR - first[2]) / (second[2] - first[2]))
    polygon = np.array(points)
    return polygon[:, :2] / polygon[:, 2:]


def ground_polygons(polygons: np.ndarray, matrix: np.ndarray) -> list[np.ndarray | None]:
    """Project convex polygons (N, K, 2) on the plane z = 0 by ``matrix`` (3, 3).

    Returns:
        The image points of each, clipped at the near plane; None for one behind it.
    """
    corners = np.concatenate([polygons, np.ones((*polygons.shape[:2], 1))], axis=-1) @ matrix.T
    depth = corners[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        points = corners[..., :2] / depth[..., None]
    return [
        None if most <= NEAR else whole if least > NEAR else _clip(polygon)
        for polygon, whole, least, most in zip(corners, points, depth.min(1), depth.max(1), strict=True)
    ]
