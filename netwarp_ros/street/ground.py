# SPDX-License-Identifier: Apache-2.0
"""The ground of the synthetic street: one plane with a road, two pavements and grass behind them.

A position is given in metres: x along the street, and the offset to the left of the centre line y = f(x). Offsets are
measured along y, not at right angles to the street; in bends as gentle as these the difference is one per cent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from netwarp_ros.street.labels import PAVEMENT, ROAD, TREE
from netwarp_ros.street.render import OVERSAMPLING, Raster
from netwarp_ros.street.textures.canvas import blocks, noise

TILE = 40.0
"""Length of a tile of the street, in metres."""

PLAIN, PARKING, CROSSING = range(3)
"""Kinds of ground: with double yellow lines, with parking bays, with a zebra crossing."""

ROAD_EDGE, PAVEMENT_EDGE, GROUND_EDGE = 4.8, 8.7, 12.0
"""Distance in metres from the centre line to the kerb, the back of the pavement and the edge of the texture."""

_TEXEL_ALONG, _TEXEL_ACROSS = 0.04, 0.025
"""Size of a texel in metres, at detail 1."""


def ground_label(offset: np.ndarray) -> np.ndarray:
    """Return the class ids, uint8, at offsets: road, pavement, or tree, which is CamVid's class for grass too."""
    distance = np.abs(offset)
    return np.where(distance < ROAD_EDGE, ROAD, np.where(distance < PAVEMENT_EDGE, PAVEMENT, TREE)).astype(np.uint8)


def _draw_atlas(rng: np.random.Generator, detail: float) -> np.ndarray:
    """Draw a tile of each kind of ground from above, side by side: (across, along, 3) float32, row 0 the left edge.

    Only their markings differ, so that any tile may follow any other without a seam.
    """
    columns, rows = round(TILE / _TEXEL_ALONG * detail), round(2 * GROUND_EDGE / _TEXEL_ACROSS * detail)
    bare = _asphalt(rng, rows, columns, detail)
    wear = np.clip(0.9 + 0.12 * noise(rng, (rows, columns), 12 * detail, 2), 0.35, 1)[..., None]
    for side in (1, -1):
        _pavement(rng, bare, side, detail)
    tiles = []
    for kind in (PLAIN, PARKING, CROSSING):
        tile = bare.copy()
        _markings(kind, tile, wear)
        tiles.append(tile)
    return np.hstack(tiles).clip(0, 255)


def _rows(image: np.ndarray, left: float, right: float) -> slice:
    """Return the rows of a tile between two offsets, in either order."""
    rows = len(image)
    edges = ((GROUND_EDGE - y) / (2 * GROUND_EDGE) * rows for y in (max(left, right), min(left, right)))
    return slice(*(max(0, round(edge)) for edge in edges))


def _columns(image: np.ndarray, start: float, end: float) -> slice:
    """Return the columns of a tile between two distances from its start."""
    return slice(*(max(0, round(x / TILE * image.shape[1])) for x in (start, end)))


def _periodic_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float, octaves: int) -> np.ndarray:
    """Return noise whose right edge continues at its left."""
    overlap = shape[1] // 8
    long = noise(rng, (shape[0], shape[1] + overlap), cell, octaves)
    fade = np.linspace(1, 0, overlap, dtype=np.float32)
    result = long[:, : shape[1]].copy()
    result[:, :overlap] = result[:, :overlap] * (1 - fade) + long[:, shape[1] :] * fade
    return result


def _asphalt(rng: np.random.Generator, rows: int, columns: int, detail: float) -> np.ndarray:
    tone = 1 + 0.05 * _periodic_noise(rng, (rows, columns), 60 * detail, 3)
    tone += 0.06 * rng.standard_normal((rows, columns), np.float32)
    offsets = np.linspace(GROUND_EDGE, -GROUND_EDGE, rows, dtype=np.float32)[:, None]
    for lane in (1.6, -1.6):  # lighter in the tyres' tracks, and darker between them, from oil
        for side in (-0.75, 0.75):
            tone *= 1 + 0.05 * np.exp(-(((offsets - lane - side) / 0.25) ** 2))
        tone *= 1 - 0.07 * np.exp(-(((offsets - lane) / 0.3) ** 2))
    image = tone[..., None] * np.array([92, 89, 86], np.float32)
    for _ in range(5):  # patched trenches
        y, x = rng.uniform(-4, 4), rng.uniform(0, TILE - 4)
        patch = _rows(image, y + rng.uniform(0.4, 1.2), y), _columns(image, x, x + rng.uniform(1, 4))
        image[patch] *= rng.uniform(0.8, 0.95)
    for _ in range(2):  # manholes
        y, x = rng.uniform(-3.5, 3.5), rng.uniform(1, TILE - 1)
        image[_rows(image, y + 0.35, y - 0.35), _columns(image, x - 0.35, x + 0.35)] *= 0.55
        image[_rows(image, y + 0.3, y - 0.3), _columns(image, x - 0.3, x + 0.3)] *= 1.25
    return image


def _markings(kind: int, image: np.ndarray, wear: np.ndarray) -> None:
    white, yellow = np.array([198, 202, 202], np.float32), np.array([96, 168, 186], np.float32)

    def paint(left: float, right: float, start: float, end: float, color: np.ndarray = white) -> None:
        region = _rows(image, left, right), _columns(image, start, end)
        image[region] += (color - image[region]) * wear[region]

    if kind == CROSSING:
        for y in np.arange(-ROAD_EDGE + 0.3, ROAD_EDGE - 0.4, 1.25):
            paint(y, y + 0.62, 18.5, 21.5)
        for x in (17.2, 22.3):
            for y in np.arange(-ROAD_EDGE + 0.2, ROAD_EDGE - 0.4, 0.9):
                paint(y, y + 0.45, x, x + 0.25)
        for middle in (0.0, ROAD_EDGE - 0.6, 0.6 - ROAD_EDGE):
            for leg in range(6):
                shift = 0.15 if leg % 2 else -0.15
                for start in (4.5 + 2 * leg, 23.5 + 2 * leg):
                    for step in range(16):  # a slanted stroke, as a staircase
                        y = middle - shift + 2 * shift * (step + 0.5) / 16
                        paint(y - 0.05, y + 0.05, start + step / 8, start + (step + 1) / 8)
        return
    for start in np.arange(1, TILE, 5):
        paint(-0.06, 0.06, start, start + 3)
    for side in (1, -1):
        if kind == PARKING:
            for start in np.arange(0, TILE, 1.4):
                paint(side * (ROAD_EDGE - 1.95), side * (ROAD_EDGE - 1.85), start, start + 0.8)
        else:
            for y in (ROAD_EDGE - 0.55, ROAD_EDGE - 0.3):
                paint(side * y, side * (y + 0.1), 0, TILE, yellow)


def _pavement(rng: np.random.Generator, image: np.ndarray, side: int, detail: float) -> None:
    columns = image.shape[1]

    def band(near: float, far: float) -> slice:
        return _rows(image, side * near, side * far)

    image[band(ROAD_EDGE - 0.25, ROAD_EDGE)] *= 0.82  # the gutter
    slabs = band(ROAD_EDGE, PAVEMENT_EDGE)
    shape = (slabs.stop - slabs.start, columns)
    tone = blocks(1 + 0.07 * rng.standard_normal((5, round(TILE / 0.9))), shape)
    tone *= 1 + 0.07 * _periodic_noise(rng, shape, 40 * detail, 3) + 0.03 * rng.standard_normal(shape, np.float32)
    image[slabs] = tone[..., None] * np.array([88, 91, 94])
    for row in range(7):
        y = ROAD_EDGE + 0.3 + row * 0.62
        image[band(y, y + 0.025)] *= 0.75
    joints = np.round(np.arange(0, TILE, 0.9) / TILE * columns).astype(int)
    image[slabs, joints.clip(0, columns - 1)] *= 0.75
    image[band(ROAD_EDGE - 0.02, ROAD_EDGE + 0.1)] *= 0.5  # the kerb's face, and its stones on top
    image[band(ROAD_EDGE + 0.1, ROAD_EDGE + 0.28)] *= 1.22
    stones = np.round(np.arange(0, TILE, 1.0) / TILE * columns).astype(int).clip(0, columns - 1)
    image[band(ROAD_EDGE, ROAD_EDGE + 0.28), stones] *= 0.7
    grass = band(PAVEMENT_EDGE, GROUND_EDGE)
    shape = (grass.stop - grass.start, columns)
    blades = 1 + 0.15 * _periodic_noise(rng, shape, 20 * detail, 4) + 0.1 * rng.standard_normal(shape, np.float32)
    image[grass] = blades[..., None] * np.array([44, 84, 70])


class Ground:
    """The plane z = 0, textured by tiles along the street's centre line.

    A pixel at depth z covers a length that grows with z^2 along the street and with z across it. So from one level to
    the next the texture shrinks to a quarter along the street and to half across it. Each row of samples is a blend of
    two levels.

    Args:
        seed: Of the texture.
        detail: Texture density relative to that of an image 480 pixels wide.
        centre_line: Gives y of the street's centre line at x, both arrays in metres.
        ground_kind: Gives the kind of ground of a tile, by its number.
    """

    _FAR = 600.0  # depth in metres beyond which no ground is drawn
    _FIRST_DEPTH = 7.0  # depth in metres up to which the finest level serves
    _STEP = 0.05  # metres between the points at which the centre line is computed

    def __init__(
        self,
        seed: int,
        detail: float,
        centre_line: Callable[[np.ndarray], np.ndarray],
        ground_kind: Callable[[int], int],
    ) -> None:
        self._centre_line, self._ground_kind = centre_line, ground_kind
        atlas = _draw_atlas(np.random.default_rng((seed, 1)), detail)
        self._levels = [atlas.astype(np.uint8)]
        for level in range(1, 5):
            columns = max(6, round(atlas.shape[1] / 4**level))
            rows = round(atlas.shape[0] / 2 ** max(0.0, level - 1.5))
            self._levels.append(cv2.resize(atlas, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.uint8))

    def draw(
        self,
        raster: Raster,
        inverse: np.ndarray,
        base: float,
        shadows: Sequence[np.ndarray | None],
        strengths: Sequence[float],
        number: int,
    ) -> np.ndarray:
        """Draw the ground, and return the offset from the centre line at each pixel, (H, W) float32 in metres.

        Args:
            raster: Empty buffers.
            inverse: (3, 3), from pixels to (x - base, y, 1) / depth.
            base: x of the origin of the ground's coordinates, a multiple of `TILE`.
            shadows: (K, 2) polygons in samples; None for a shadow that is not in front of the camera.
            strengths: Of the shadows, from 0 to 1.
            number: Surface number of the ground.
        """
        rows, columns = raster.surface.shape
        offsets = np.zeros((rows // OVERSAMPLING, columns // OVERSAMPLING), np.float32)
        inverse = inverse @ np.diag([1 / OVERSAMPLING, 1 / OVERSAMPLING, 1.0])
        x = np.arange(columns)
        edges = inverse[2] @ np.array([[0, columns - 1], [0, 0], [1, 1]])
        below = (1 / self._FAR - edges.max()) / inverse[2, 1]
        top = int(np.clip(np.ceil(below), 0, rows))
        top += top % OVERSAMPLING
        if top >= rows:
            return offsets
        y = np.arange(top, rows)
        # (x - base) / depth, y / depth and 1 / depth of each sample.
        plane = [(a * x + c).astype(np.float32) + (b * y).astype(np.float32)[:, None] for a, b, c in inverse]
        inverse_depth = np.maximum(plane[2], np.float32(0.5 / self._FAR))
        along = plane[0] / inverse_depth
        span = np.arange(-TILE, 2 * self._FAR + TILE, self._STEP)
        index = ((along + TILE) * (1 / self._STEP)).clip(0, len(span) - 1).astype(np.int32)
        centre_line = self._centre_line(base + span).astype(np.float32)
        first = round(base / TILE) - 1
        numbers = np.floor((span + 1e-9) / TILE).astype(int)
        kinds = np.array([self._ground_kind(first + 1 + tile) for tile in range(numbers[0], numbers[-1] + 1)])
        start = ((kinds[numbers - numbers[0]] - numbers) * TILE).astype(np.float32)
        offset = plane[1] / inverse_depth - centre_line.take(index)
        color = self._texture(along + start.take(index), offset, inverse_depth)
        self._shade(color, shadows, strengths, top)
        mask = (plane[2] > 1 / self._FAR).astype(np.uint8)
        region = np.s_[top:, :]
        cv2.copyTo(cv2.cvtColor(color, cv2.COLOR_BGR2BGRA), mask, raster.color[region])
        cv2.copyTo(plane[2], mask, raster.inverse_depth[region])
        np.putmask(raster.surface[region], mask, number)
        offsets[top // OVERSAMPLING :] = offset[::OVERSAMPLING, ::OVERSAMPLING]
        return offsets

    def _texture(self, along: np.ndarray, offset: np.ndarray, inverse_depth: np.ndarray) -> np.ndarray:
        """Return the color of each sample, (rows, columns, 3) uint8; ``along`` is in metres along the atlas."""
        rows, columns = along.shape
        wanted = -np.log2(inverse_depth[:, columns // 2] * self._FIRST_DEPTH).clip(-len(self._levels), 0)
        wanted = np.clip(wanted, 0, len(self._levels) - 1.001)
        result = np.empty((rows, columns, 3), np.uint8)
        for level in range(len(self._levels) - 1):
            chosen = np.flatnonzero(np.floor(wanted) == level)
            if not len(chosen):
                continue
            part = np.s_[chosen[0] : chosen[-1] + 1]
            fine, coarse = (self._look_up(self._levels[k], along[part], offset[part]) for k in (level, level + 1))
            weight = np.repeat((wanted[part] - level).clip(0, 1).astype(np.float32)[:, None], columns, 1)
            result[part] = cv2.blendLinear(fine, coarse, 1 - weight, weight)
        return result

    @staticmethod
    def _look_up(texture: np.ndarray, along: np.ndarray, offset: np.ndarray) -> np.ndarray:
        rows, columns = texture.shape[:2]
        x = cv2.addWeighted(along, columns / (3 * TILE), along, 0, -0.5)
        y = cv2.addWeighted(offset, -rows / (2 * GROUND_EDGE), offset, 0, rows / 2 - 0.5)
        return cv2.remap(texture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    @staticmethod
    def _shade(color: np.ndarray, shadows: Sequence[np.ndarray | None], strengths: Sequence[float], top: int) -> None:
        """Darken each sample by the strongest shadow on it, so that overlapping shadows do not add up."""
        shade = np.zeros(color.shape[:2], np.uint8)
        for number in np.argsort(strengths, kind="stable").tolist():
            polygon = shadows[number]
            if polygon is not None:
                points = np.rint((polygon - (0, top)).clip(-20000, 20000) * 16).astype(np.int32)
                cv2.fillConvexPoly(shade, points, 255 * strengths[number], cv2.LINE_AA, 4)
        cv2.multiply(color, cv2.cvtColor(255 - shade, cv2.COLOR_GRAY2BGR), color, 1 / 255)
