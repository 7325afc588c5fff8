# SPDX-License-Identifier: Apache-2.0
"""A canvas to draw textures on, in metres; and random colors and noise."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from netwarp_ros.street.render import Texture

Color = tuple[float, float, float]
"""Blue, green and red, from 0 to 255."""

VEHICLE_COLORS: list[Color] = [
    (150, 148, 146), (22, 21, 22), (78, 40, 26), (34, 28, 128),
    (196, 198, 198), (84, 84, 82), (54, 64, 36), (96, 66, 52),
]  # fmt: skip
BOARD_COLORS: list[Color] = [
    (40, 32, 28), (96, 36, 22), (34, 58, 26), (30, 28, 120), (20, 20, 22), (110, 90, 24), (60, 28, 70), (44, 130, 200),
]  # fmt: skip
WORDS = ["BAKERY", "BOOKS", "THE CROWN", "MARKET", "CAFE", "PHARMACY", "NEWS", "CYCLES", "HARDWARE", "FLOWERS", "TEA"]
"""Written on shop fronts and boards."""

TYRE: Color = (22, 22, 22)


class Canvas:
    """A drawing in metres: x to the right, y upwards, the origin in the lower left corner.

    Args:
        width: In metres.
        height: In metres.
        density: Texels per metre.
        color: Of the background; transparent by default.
    """

    def __init__(self, width: float, height: float, density: float, color: Color | None = None) -> None:
        self.density = density
        self.width, self.height = width, height
        shape = (max(2, round(height * density)), max(2, round(width * density)), 4)
        self.image = np.zeros(shape, np.uint8)
        if color is not None:
            self.image[:] = (*color, 255)
        # OpenCV takes fixed-point coordinates, in sixteenths of a texel.
        self._scale = np.array([shape[1] / width, -shape[0] / height]) * 16
        self._offset = np.array([-8.0, shape[0] * 16 - 8])

    def polygon(self, points: Sequence[tuple[float, float]], color: Color | None) -> None:
        """Fill a polygon; None makes it transparent."""
        bgra = (0, 0, 0, 0) if color is None else (*color, 255)
        cv2.fillPoly(self.image, [self._fixed(points)], bgra, cv2.LINE_8, 4)

    def rectangle(self, x: float, y: float, width: float, height: float, color: Color) -> None:
        """Fill a rectangle whose lower left corner is (x, y)."""
        x0, y1 = np.round((self._scale * (x, y) + self._offset + 8) / 16).astype(int)
        x1, y0 = np.round((self._scale * (x + width, y + height) + self._offset + 8) / 16).astype(int)
        self.image[max(y0, 0) : max(y1, y0 + 1, 0), max(x0, 0) : max(x1, x0 + 1, 0)] = (*color, 255)

    def disc(self, x: float, y: float, radius: float, color: Color | None, *, aspect: float = 1.0) -> None:
        """Fill a disc, or with ``aspect`` (height over width) an ellipse; None makes it transparent."""
        turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        points = zip(x + radius * np.cos(turn), y + aspect * radius * np.sin(turn), strict=True)
        self.polygon(list(points), color)

    def dots(self, x: np.ndarray, y: np.ndarray, radii: np.ndarray, color: Color, lights: np.ndarray) -> None:
        """Fill N small discs of one color, each made lighter or darker by its factor in ``lights`` (N,)."""
        centres = self._fixed(np.column_stack([x, y])).reshape(-1, 2).tolist()
        sizes = np.maximum(np.round(radii * self.density * 16), 8).astype(int).tolist()
        colors = (np.outer(lights, color)).clip(0, 255).tolist()
        for centre, size, (blue, green, red) in zip(centres, sizes, colors, strict=True):
            cv2.circle(self.image, centre, size, (blue, green, red, 255), -1, cv2.LINE_8, 4)

    def line(self, points: Sequence[tuple[float, float]], thickness: float, color: Color) -> None:
        """Draw a line through points."""
        texels = max(1, round(thickness * self.density))
        cv2.polylines(self.image, [self._fixed(points)], False, (*color, 255), texels, cv2.LINE_8, 4)

    def text(self, words: str, x: float, y: float, height: float, color: Color) -> None:
        """Write words, centred on x, with their base line at y."""
        thickness = max(1, round(height * self.density / 7))
        (width, tall), _ = cv2.getTextSize(words, cv2.FONT_HERSHEY_DUPLEX, 1, thickness)
        scale = height * self.density / tall
        left, base = (self._scale * (x, y) + self._offset) / 16
        corner = (round(left - width * scale / 2), round(base))
        color_only = self.image[..., :3].copy()  # putText would make the letters transparent
        cv2.putText(color_only, words, corner, cv2.FONT_HERSHEY_DUPLEX, scale, color, thickness, cv2.LINE_8)
        self.image[..., :3] = color_only

    def shade(self, factor: np.ndarray | float) -> None:
        """Multiply the colors by a factor, or by an array of them that is interpolated to the size of the canvas."""
        if isinstance(factor, np.ndarray):
            rows, columns = self.image.shape[:2]
            factor = cv2.resize(factor.astype(np.float32), (columns, rows), interpolation=cv2.INTER_LINEAR)[..., None]
        self.image[..., :3] = (self.image[..., :3] * factor).clip(0, 255).astype(np.uint8)

    def texture(self) -> Texture:
        """Return the finished drawing."""
        return Texture(self.image)

    def _fixed(self, points: Sequence[tuple[float, float]] | np.ndarray) -> np.ndarray:
        return np.round(np.array(points) * self._scale + self._offset).astype(np.int32).reshape(-1, 1, 2)


def noise(rng: np.random.Generator, shape: tuple[int, int], cell: float, octaves: int = 1) -> np.ndarray:
    """Return smooth noise, float32, of mean 0 and standard deviation about 1.

    Args:
        rng: Source of the noise.
        shape: Rows and columns.
        cell: Size of its features in texels.
        octaves: Number of layers that are summed; each has half the cell of the one before.
    """
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        size = max(1.0, cell / 2**octave)
        small = (int(shape[0] / size) + 2, int(shape[1] / size) + 2)
        coarse = rng.standard_normal(small, dtype=np.float32)
        total += cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC) * 0.6**octave
    return total * np.float32(1.2 / np.sqrt(sum(0.36**octave for octave in range(octaves))))


def blocks(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Enlarge values to a shape as rectangles of one value each, float32: bricks, slates, slabs."""
    return cv2.resize(values.astype(np.float32), shape[::-1], interpolation=cv2.INTER_NEAREST)


def vary(rng: np.random.Generator, color: Color, amount: float = 0.12) -> Color:
    """Return a random color near another one."""
    factors = (1 + amount * rng.uniform(-1, 1)) * (1 + 0.3 * amount * rng.uniform(-1, 1, 3))
    b, g, r = np.clip(np.array(color) * factors, 0, 255)
    return float(b), float(g), float(r)


def scaled(color: Color, factor: float) -> Color:
    """Return a lighter or darker color."""
    return color[0] * factor, color[1] * factor, color[2] * factor


def pick(rng: np.random.Generator, colors: Sequence[Color]) -> Color:
    """Return one of the colors at random."""
    return colors[int(rng.integers(len(colors)))]
