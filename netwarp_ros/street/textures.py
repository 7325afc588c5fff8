# SPDX-License-Identifier: Apache-2.0
"""The pictures that the synthetic street is papered with, all drawn from random numbers.

Colours are BGR. Their averages follow CamVid's: a street much darker than its sky, brick, render and slate, dark
clothes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from netwarp_ros.street.render import Texture

Color = tuple[float, float, float]

_BRICKS: list[Color] = [
    (60, 74, 112),
    (98, 126, 142),
    (76, 88, 100),
    (58, 64, 86),
    (112, 138, 152),
    (84, 104, 118),
    (66, 72, 80),
]
_PLASTERS: list[Color] = [
    (204, 212, 216),
    (164, 184, 198),
    (172, 174, 170),
    (178, 184, 200),
    (128, 136, 140),
    (196, 198, 194),
]
_FASCIAS: list[Color] = [
    (40, 32, 28), (96, 36, 22), (34, 58, 26), (30, 28, 120), (20, 20, 22), (110, 90, 24), (60, 28, 70), (44, 130, 200),
]  # fmt: skip
_DOORS: list[Color] = [(30, 30, 110), (70, 40, 20), (40, 60, 26), (26, 26, 28), (150, 150, 150)]
CAR_COLORS: list[Color] = [
    (150, 148, 146), (22, 21, 22), (78, 40, 26), (34, 28, 128),
    (196, 198, 198), (84, 84, 82), (54, 64, 36), (96, 66, 52),
]  # fmt: skip
_COATS: list[Color] = [
    (26, 24, 26), (52, 38, 30), (34, 30, 52), (30, 36, 32), (84, 80, 76), (34, 28, 96), (84, 54, 32), (44, 48, 54),
]  # fmt: skip
_TROUSERS: list[Color] = [(26, 24, 26), (58, 42, 32), (38, 40, 44), (70, 56, 46)]
_WORDS = ["BAKERY", "BOOKS", "THE CROWN", "MARKET", "CAFE", "PHARMACY", "NEWS", "CYCLES", "HARDWARE", "FLOWERS", "TEA"]


class Canvas:
    """A picture drawn in metres, x to the right and y upwards from the lower left corner; clear where undrawn."""

    def __init__(self, width: float, height: float, density: float, color: Color | None = None) -> None:
        self.density = density
        self.width, self.height = width, height
        shape = (max(2, round(height * density)), max(2, round(width * density)), 4)
        self.image = np.zeros(shape, np.uint8)
        if color is not None:
            self.image[:] = (*color, 255)
        self._scale = np.array([shape[1] / width, -shape[0] / height]) * 16
        self._offset = np.array([-8.0, shape[0] * 16 - 8])

    def polygon(self, points: Sequence[tuple[float, float]], color: Color) -> None:
        """Fill a polygon."""
        cv2.fillPoly(self.image, [self._fixed(points)], (*color, 255), cv2.LINE_8, 4)

    def rectangle(self, x: float, y: float, width: float, height: float, color: Color) -> None:
        """Fill a rectangle from its lower left corner."""
        x0, y1 = np.round((self._scale * (x, y) + self._offset + 8) / 16).astype(int)
        x1, y0 = np.round((self._scale * (x + width, y + height) + self._offset + 8) / 16).astype(int)
        self.image[max(y0, 0) : max(y1, y0 + 1, 0), max(x0, 0) : max(x1, x0 + 1, 0)] = (*color, 255)

    def disc(self, x: float, y: float, radius: float, color: Color, *, squeeze: float = 1.0) -> None:
        """Fill a disc, its height ``squeeze`` times its width."""
        turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        points = zip(x + radius * np.cos(turn), y + squeeze * radius * np.sin(turn), strict=True)
        self.polygon(list(points), color)

    def dots(self, x: np.ndarray, y: np.ndarray, radii: np.ndarray, color: Color, lights: np.ndarray) -> None:
        """Fill many small discs of one colour, each lighter or darker by its own factor."""
        centres = self._fixed(np.column_stack([x, y])).reshape(-1, 2).tolist()
        sizes = np.maximum(np.round(radii * self.density * 16), 8).astype(int).tolist()
        colors = (np.outer(lights, color)).clip(0, 255).tolist()
        for centre, size, (blue, green, red) in zip(centres, sizes, colors, strict=True):
            cv2.circle(self.image, centre, size, (blue, green, red, 255), -1, cv2.LINE_8, 4)

    def line(self, points: Sequence[tuple[float, float]], thickness: float, color: Color) -> None:
        """Draw a line through points."""
        pixels = max(1, round(thickness * self.density))
        cv2.polylines(self.image, [self._fixed(points)], False, (*color, 255), pixels, cv2.LINE_8, 4)

    def text(self, words: str, x: float, y: float, height: float, color: Color) -> None:
        """Write words centred on x, standing on y."""
        thickness = max(1, round(height * self.density / 7))
        (width, tall), _ = cv2.getTextSize(words, cv2.FONT_HERSHEY_DUPLEX, 1, thickness)
        scale = height * self.density / tall
        left, base = (self._scale * (x, y) + self._offset) / 16
        place = (round(left - width * scale / 2), round(base))
        color_only = self.image[..., :3].copy()  # putText would cut the letters out of the fourth channel
        cv2.putText(color_only, words, place, cv2.FONT_HERSHEY_DUPLEX, scale, color, thickness, cv2.LINE_8)
        self.image[..., :3] = color_only

    def shade(self, factor: np.ndarray | float) -> None:
        """Multiply the colours, by one factor or by an array that is stretched over the picture."""
        if isinstance(factor, np.ndarray):
            rows, columns = self.image.shape[:2]
            factor = cv2.resize(factor.astype(np.float32), (columns, rows), interpolation=cv2.INTER_LINEAR)[..., None]
        self.image[..., :3] = (self.image[..., :3] * factor).clip(0, 255).astype(np.uint8)

    def texture(self) -> Texture:
        return Texture(self.image)

    def _fixed(self, points: Sequence[tuple[float, float]] | np.ndarray) -> np.ndarray:
        return np.round(np.array(points) * self._scale + self._offset).astype(np.int32).reshape(-1, 1, 2)


def noise(rng: np.random.Generator, shape: tuple[int, int], cell: float, octaves: int = 1) -> np.ndarray:
    """Smooth noise of mean 0 and deviation about 1, features ``cell`` texels wide and, if wanted, ever smaller ones."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        size = max(1.0, cell / 2**octave)
        small = (int(shape[0] / size) + 2, int(shape[1] / size) + 2)
        coarse = rng.standard_normal(small, dtype=np.float32)
        total += cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC) * 0.6**octave
    return total * np.float32(1.2 / np.sqrt(sum(0.36**octave for octave in range(octaves))))


def vary(rng: np.random.Generator, color: Color, amount: float = 0.12) -> Color:
    """A colour near another one."""
    factors = (1 + amount * rng.uniform(-1, 1)) * (1 + 0.3 * amount * rng.uniform(-1, 1, 3))
    b, g, r = np.clip(np.array(color) * factors, 0, 255)
    return float(b), float(g), float(r)


def scaled(color: Color, factor: float) -> Color:
    """A lighter or darker colour."""
    return color[0] * factor, color[1] * factor, color[2] * factor


def pick(rng: np.random.Generator, colors: Sequence[Color]) -> Color:
    """One of the colours."""
    return colors[int(rng.integers(len(colors)))]


# --- buildings ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class House:
    """A building's pictures and measures.

    Attributes:
        width: Metres along the street.
        height: Metres from the pavement to the eaves.
        depth: Metres from front to back.
        ridge: Metres from the eaves to the ridge; 0 for a flat roof.
        front: The facade.
        side: The gable wall, depth by height + ridge, clear above the roof.
        roof: The slope towards the street.
        chimney: A stack's face.
    """

    width: float
    height: float
    depth: float
    ridge: float
    front: Texture
    side: Texture
    roof: Texture
    chimney: Texture


def house(rng: np.random.Generator, density: float) -> House:
    """Draw a building of two to four storeys: a terrace house, a shop with flats above, or offices."""
    kind = rng.choice(["house", "shop", "shop", "office"])
    storeys = int(rng.integers(2, 4 if kind == "house" else 5))
    ground, storey = (3.5 if kind == "shop" else 3.0), rng.uniform(2.7, 3.1)
    width = float(rng.uniform(5, 7.5) if kind == "house" else rng.uniform(6, 13))
    height = float(ground + (storeys - 1) * storey + rng.uniform(0.3, 0.8))
    ridge = 0.0 if kind == "office" or rng.random() < 0.3 else float(rng.uniform(1.6, 2.6))
    brick = rng.random() < 0.62
    wall = vary(rng, pick(rng, _BRICKS if brick else _PLASTERS))

    front = _wall(rng, width, height, density, wall, brick)
    if kind == "office":
        _office_windows(rng, front, ground, storey, storeys)
    else:
        _sash_windows(rng, front, ground, storey, storeys, brick)
    if kind == "shop":
        _shop_front(rng, front, ground)
    elif kind == "house":
        _house_front(rng, front)
    _cornice(rng, front, ridge > 0)

    depth = 7.0
    side = _wall(rng, depth, height + max(ridge, 0.01), density / 2, wall, brick)
    side.shade(0.92)
    if ridge:
        for x in (0.0, depth):
            corner = [(x, height), (depth / 2, height + ridge), (x, height + ridge)]
            cv2.fillPoly(side.image, [side._fixed(corner)], (0, 0, 0, 0), cv2.LINE_8, 4)
    slate = vary(rng, (74, 66, 62) if rng.random() < 0.7 else (54, 64, 96))
    roof = Canvas(width, float(np.hypot(depth / 2, ridge)), density / 2, slate)
    rows = roof.image.shape[0]
    tiles = 1 + 0.10 * rng.standard_normal((int(roof.height / 0.25) + 1, int(width / 0.3) + 1))
    roof.image[..., :3] = (roof.image[..., :3] * blocks(tiles, roof.image.shape[:2])[..., None]).clip(0, 255)
    roof.shade(1 + 0.12 * noise(rng, (rows, roof.image.shape[1]), rows / 3))
    chimney = _wall(rng, 1.0, 1.6, density, vary(rng, pick(rng, _BRICKS)), True)
    for x in (0.1, 0.55):
        chimney.rectangle(x, 1.25, 0.3, 0.35, (66, 88, 140))
    chimney.rectangle(0, 1.15, 1.0, 0.12, (120, 128, 130))
    for x0, x1 in ((0, 0.1), (0.4, 0.55), (0.85, 1.0)):
        a, b = round(x0 * density), round(x1 * density)
        chimney.image[: round(0.33 * density), a:b, 3] = 0
    return House(width, height, depth, ridge, front.texture(), side.texture(), roof.texture(), chimney.texture())


def blocks(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Stretch values to a shape as rectangles of one value each: bricks, slates, slabs."""
    return cv2.resize(values.astype(np.float32), shape[::-1], interpolation=cv2.INTER_NEAREST)


def _wall(rng: np.random.Generator, width: float, height: float, density: float, color: Color, brick: bool) -> Canvas:
    canvas = Canvas(width, height, density, color)
    shape = canvas.image.shape[:2]
    if brick:
        courses, bricks = int(height / 0.075) + 1, int(width / 0.22) + 1
        grid = blocks(1 + 0.13 * rng.standard_normal((courses, bricks)), shape)
        canvas.image[..., :3] = (canvas.image[..., :3] * grid[..., None]).clip(0, 255)
    grime = 1 + 0.06 * noise(rng, shape, density * 1.5, 3)
    streaks = 1 + 0.014 * noise(rng, (2, shape[1]), density * 0.2)
    canvas.shade(grime)
    canvas.shade(streaks)
    foot = np.interp(np.linspace(height, 0, shape[0]), [0, 0.8, height], [0.72, 0.96, 1.0])
    canvas.shade(np.repeat(foot[:, None], 2, 1))
    return canvas


def _glass(rng: np.random.Generator, canvas: Canvas, x: float, y: float, width: float, height: float) -> None:
    """A dark pane, lighter towards its top where it mirrors the sky."""
    tint = rng.uniform(0.6, 1.3)
    bands = 6
    for band in range(bands):
        value = (26 + 60 * (band / bands) ** 2) * tint
        canvas.rectangle(x, y + band * height / bands, width, height / bands, (value * 1.08, value, value * 0.92))
    style = rng.random()
    if style < 0.25:  # curtains
        for side in (x, x + width * 0.72):
            canvas.rectangle(side, y, width * 0.28, height, vary(rng, (140, 150, 158), 0.3))
    elif style < 0.45:  # a blind
        drop = rng.uniform(0.25, 0.7) * height
        canvas.rectangle(x, y + height - drop, width, drop, vary(rng, (150, 164, 172), 0.2))


def _sash_windows(
    rng: np.random.Generator, canvas: Canvas, ground: float, storey: float, storeys: int, brick: bool
) -> None:
    columns = max(2, round(canvas.width / rng.uniform(2.0, 2.8)))
    width, height = rng.uniform(0.9, 1.15), rng.uniform(1.4, 1.75)
    trim = (196, 202, 204) if rng.random() < 0.75 else (70, 76, 80)
    stone = (146, 164, 172) if brick else (170, 178, 180)
    for floor in range(1, storeys):
        y = ground + (floor - 1) * storey + 0.75
        for column in range(columns):
            x = (column + 0.5) * canvas.width / columns - width / 2
            canvas.rectangle(x - 0.08, y - 0.14, width + 0.16, 0.14, stone)
            canvas.rectangle(x - 0.1, y + height, width + 0.2, 0.2, stone)
            canvas.rectangle(x - 0.02, y - 0.24, width + 0.04, 0.1, (44, 46, 50))
            canvas.rectangle(x, y, width, height, trim)
            canvas.rectangle(x, y + height - 0.1, width, 0.1, (50, 52, 54))
            for pane in (0, 1):
                _glass(rng, canvas, x + 0.08, y + 0.07 + pane * height / 2, width - 0.16, height / 2 - 0.13)
            canvas.rectangle(x + width / 2 - 0.02, y, 0.04, height, trim)
    pipe = rng.uniform(0.1, 0.3)
    canvas.rectangle(pipe, 0, 0.09, canvas.height, (40, 42, 44))


def _office_windows(rng: np.random.Generator, canvas: Canvas, ground: float, storey: float, storeys: int) -> None:
    bay = rng.uniform(1.1, 1.9)
    trim = pick(rng, [(60, 58, 56), (190, 192, 190), (110, 84, 60)])
    for floor in range(storeys):
        y = 0.5 if floor == 0 else ground + (floor - 1) * storey + 0.9
        height = 2.2 if floor == 0 else storey - 1.25
        canvas.rectangle(0.3, y - 0.08, canvas.width - 0.6, height + 0.16, trim)
        count = max(1, int((canvas.width - 0.6) / bay))
        for column in range(count):
            step = (canvas.width - 0.6) / count
            _glass(rng, canvas, 0.3 + column * step + 0.05, y, step - 0.1, height)


def _shop_front(rng: np.random.Generator, canvas: Canvas, ground: float) -> None:
    width = canvas.width
    color = vary(rng, pick(rng, _FASCIAS))
    frame = pick(rng, [color, (30, 30, 32), (180, 184, 186)])
    canvas.rectangle(0, 0, width, ground, frame)
    canvas.rectangle(0, 0, width, 0.35, vary(rng, (60, 62, 64), 0.3))
    door = rng.uniform(0.2, 0.75) * width
    x = 0.25
    while x < width - 0.8:
        pane = min(rng.uniform(1.4, 2.4), width - 0.25 - x)
        _glass(rng, canvas, x, 0.5, pane - 0.1, ground - 1.25)
        for _ in range(int(rng.integers(2, 6))):  # goods and posters behind the pane
            w, h = rng.uniform(0.12, 0.5), rng.uniform(0.15, 0.6)
            goods = vary(
                rng, pick(rng, [(60, 130, 190), (150, 150, 150), (40, 40, 150), (120, 90, 60), (60, 110, 90)]), 0.4
            )
            canvas.rectangle(x + rng.uniform(0.05, max(0.06, pane - w - 0.15)), 0.55 + rng.uniform(0, 0.9), w, h, goods)
        x += pane
    canvas.rectangle(door, 0.05, 1.0, 2.3, frame)
    _glass(rng, canvas, door + 0.12, 0.3, 0.76, 1.9)
    canvas.rectangle(0, ground - 0.75, width, 0.65, color)
    canvas.rectangle(0, ground - 0.12, width, 0.14, vary(rng, (150, 156, 158), 0.2))
    canvas.rectangle(0, ground - 0.85, width, 0.1, (34, 34, 36))
    ink = (190, 210, 220) if sum(color) < 330 else (30, 30, 30)
    canvas.text(str(rng.choice(_WORDS)), width / 2, ground - 0.6, 0.34, ink)
    for x in (0.0, width - 0.22):
        canvas.rectangle(x, 0, 0.22, ground - 0.1, vary(rng, frame, 0.1))


def _house_front(rng: np.random.Generator, canvas: Canvas) -> None:
    door = 0.6 if rng.random() < 0.5 else canvas.width - 1.7
    canvas.rectangle(door - 0.12, 0, 1.24, 2.75, (176, 184, 188))
    canvas.rectangle(door, 0.15, 1.0, 2.05, vary(rng, pick(rng, _DOORS)))
    _glass(rng, canvas, door + 0.05, 2.25, 0.9, 0.4)
    canvas.rectangle(door - 0.1, 0, 1.2, 0.15, (120, 124, 126))
    start, end = (2.3, canvas.width - 0.6) if door < 1 else (0.6, canvas.width - 2.4)
    for x in np.arange(start, end - 0.9, 1.7):
        canvas.rectangle(x - 0.08, 0.75, 1.26, 0.13, (150, 160, 166))
        canvas.rectangle(x, 0.88, 1.1, 1.6, (196, 202, 204))
        for pane in (0, 1):
            _glass(rng, canvas, x + 0.08, 0.95 + pane * 0.8, 0.94, 0.68)


def _cornice(rng: np.random.Generator, canvas: Canvas, eaves: bool) -> None:
    top = canvas.height
    if eaves:
        canvas.rectangle(0, top - 0.12, canvas.width, 0.12, (48, 50, 52))
        canvas.rectangle(0, top - 0.3, canvas.width, 0.18, vary(rng, (168, 174, 178), 0.2))
    else:
        canvas.rectangle(0, top - 0.22, canvas.width, 0.22, vary(rng, (138, 150, 156), 0.15))
        canvas.rectangle(0, top - 0.32, canvas.width, 0.1, (58, 60, 64))


# --- plants ---------------------------------------------------------------------------------------------------------


TREES = ("leafy", "autumn", "evergreen", "bare")
"""Kinds of tree."""


def tree(rng: np.random.Generator, density: float, kind: str) -> Texture:
    """A tree on a picture 6 m wide and 8 m high: ``leafy``, ``autumn``, ``evergreen`` or ``bare``."""
    canvas = Canvas(6, 8, 1.5 * density)
    bark = vary(rng, (58, 62, 66))
    tips = _branches(rng, canvas, bark, bare=kind == "bare")
    if kind == "bare":
        return canvas.texture()
    leaf: Color = {"leafy": (48, 88, 80), "autumn": (50, 92, 112), "evergreen": (42, 58, 52)}[kind]
    crown = tips + [(3 + rng.normal(0, 1.05), 5.2 + rng.normal(0, 1.05)) for _ in range(50)]
    inside = [(x, y) for x, y in crown if ((x - 3) / 2.2) ** 2 + ((y - 5) / 2.2) ** 2 < 1]
    clumps = sorted(inside, key=lambda place: -abs(place[0] - 3))
    for x, y in clumps:
        _leaves(rng, canvas, x, y, rng.uniform(0.35, 0.75), leaf, 0.6 + 0.11 * (y - 2.5) + rng.normal(0, 0.06))
    return canvas.texture()


def _leaves(
    rng: np.random.Generator, canvas: Canvas, x: float, y: float, radius: float, leaf: Color, lit: float
) -> None:
    """A clump of leaves, lighter on top."""
    count = 240
    turn, away = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.random(count))
    rise = away * np.sin(turn)
    canvas.dots(x + radius * away * np.cos(turn), y + radius * rise, rng.uniform(0.02, 0.065, count), leaf,
                lit * (1 + 0.45 * rise) + rng.normal(0, 0.13, count))  # fmt: skip


def _branches(rng: np.random.Generator, canvas: Canvas, bark: Color, *, bare: bool) -> list[tuple[float, float]]:
    """Grow a trunk and its branches; returns where they end."""
    tips: list[tuple[float, float]] = []
    # start x, start y, angle from upright, length, thickness, generation
    growing = [(3.0, 0.0, rng.normal(0, 0.04), 2.2 if not bare else 1.75, 0.26, 0)]
    last = 6 if bare else 3
    while growing:
        x, y, angle, length, thickness, generation = growing.pop()
        bend = angle + rng.normal(0, 0.12)
        middle = (x + length / 2 * np.sin(angle), y + length / 2 * np.cos(angle))
        end = (middle[0] + length / 2 * np.sin(bend), middle[1] + length / 2 * np.cos(bend))
        canvas.line([(x, y), middle, end], max(thickness, 0.015), vary(rng, bark, 0.2))
        if generation == last:
            tips.append(end)
            continue
        for child in range(3 if generation < 4 or rng.random() < 0.3 else 2):
            spread = (child - 1) * 0.42 + rng.normal(0, 0.22)
            shrink = rng.uniform(0.6, 0.8)
            growing.append((*end, bend * 0.8 + spread, length * shrink, thickness * 0.58, generation + 1))
    return tips


def hedge(rng: np.random.Generator, width: float, height: float, density: float) -> Texture:
    """A clipped hedge with a ragged top."""
    canvas = Canvas(width, height, density)
    leaf: Color = vary(rng, (34, 58, 48), 0.2)
    canvas.rectangle(0, 0, width, height - 0.25, scaled(leaf, 0.45))
    count = int(width * height * 150)
    y = (height - 0.12) * np.sqrt(rng.random(count))
    lit = 0.45 + 0.75 * y / height + rng.normal(0, 0.16, count)
    canvas.dots(rng.uniform(0, width, count), y, rng.uniform(0.03, 0.085, count), leaf, lit)
    return canvas.texture()


# --- street furniture -----------------------------------------------------------------------------------------------


def post(rng: np.random.Generator, density: float, color: Color, height: float, *, bands: bool = False) -> Texture:
    """A round post, one texel-wide gradient from its lit to its dark side; black and white if ``bands``."""
    canvas = Canvas(0.4, height, density, vary(rng, color, 0.08))
    if bands:
        for y in np.arange(0, height, 0.6):
            canvas.rectangle(0, y, 0.4, 0.3, (30, 30, 30))
    canvas.shade(np.array([[0.85, 1.15, 0.9, 0.6]]))
    return canvas.texture()


def railing(rng: np.random.Generator, width: float, density: float, *, iron: bool) -> Texture:
    """Railings: a park's, of black iron with spikes, or the galvanised guard rail of a kerb."""
    canvas = Canvas(width, 1.3 if iron else 1.05, density)
    color = vary(rng, (32, 32, 32) if iron else (104, 104, 100), 0.15)
    if iron:
        canvas.rectangle(0, 0, width, 0.3, vary(rng, (84, 96, 104), 0.15))
        for y in (0.38, 1.1):
            canvas.rectangle(0, y, width, 0.06, color)
        for x in np.arange(0.03, width, 0.125):
            canvas.rectangle(x, 0.3, 0.045, 1.0, color)
    else:
        for y in (0.1, 0.95):
            canvas.rectangle(0, y, width, 0.07, color)
        for x in np.arange(0.0, width, 0.11):
            canvas.rectangle(x, 0.1, 0.04, 0.9, color)
        for x in np.arange(0.0, width, 2.0):
            canvas.rectangle(x, 0, 0.08, 1.05, color)
    return canvas.texture()


def boards(rng: np.random.Generator, width: float, height: float, density: float) -> Texture:
    """A close-boarded wooden fence."""
    canvas = Canvas(width, height, density, (64, 82, 100))
    tone = blocks(1 + 0.12 * rng.standard_normal((1, round(width / 0.14))), canvas.image.shape[:2])
    canvas.image[..., :3] = (canvas.image[..., :3] * tone[..., None]).clip(0, 255)
    for x in np.arange(0, width, 0.14):
        canvas.rectangle(x, 0, 0.02, height, (34, 42, 50))
    return canvas.texture()


def globe(density: float) -> Texture:
    """The amber globe of a zebra crossing's beacon, 0.4 m square."""
    canvas = Canvas(0.4, 0.4, 2 * density)
    canvas.disc(0.2, 0.2, 0.19, (30, 140, 235))
    canvas.disc(0.15, 0.25, 0.07, (120, 200, 250))
    return canvas.texture()


def _ring(canvas: Canvas, color: Color) -> None:
    canvas.disc(0.35, 0.35, 0.35, color)


def _limit(canvas: Canvas) -> None:
    _ring(canvas, (36, 30, 190))
    canvas.disc(0.35, 0.35, 0.26, (235, 235, 235))
    canvas.text("20", 0.35, 0.24, 0.22, (20, 20, 20))


def _no_entry(canvas: Canvas) -> None:
    _ring(canvas, (36, 30, 180))
    canvas.rectangle(0.12, 0.28, 0.46, 0.14, (235, 235, 235))


def _keep_left(canvas: Canvas) -> None:
    _ring(canvas, (160, 84, 20))
    canvas.line([(0.5, 0.5), (0.22, 0.22)], 0.08, (240, 240, 240))
    canvas.line([(0.22, 0.42), (0.22, 0.22), (0.42, 0.22)], 0.08, (240, 240, 240))


def _warning(canvas: Canvas) -> None:
    canvas.polygon([(0, 0.03), (0.7, 0.03), (0.35, 0.68)], (36, 30, 190))
    canvas.polygon([(0.12, 0.1), (0.58, 0.1), (0.35, 0.52)], (235, 235, 235))
    canvas.rectangle(0.32, 0.18, 0.06, 0.18, (20, 20, 20))


def _parking(canvas: Canvas) -> None:
    canvas.rectangle(0, 0, 0.7, 0.7, (150, 80, 20))
    canvas.text("P", 0.35, 0.16, 0.38, (240, 240, 240))


def _loading(canvas: Canvas) -> None:
    canvas.rectangle(0, 0.1, 0.7, 0.5, (40, 190, 225))
    canvas.disc(0.18, 0.35, 0.13, (130, 60, 40))
    canvas.text("ZONE", 0.47, 0.3, 0.1, (20, 20, 20))


DIRECTION_COLORS: list[Color] = [(60, 96, 20), (140, 78, 20), (206, 210, 210)]
"""Of primary routes, motorways and other roads."""

SIGNS: list[Callable[[Canvas], None]] = [_limit, _no_entry, _keep_left, _warning, _parking, _loading]
"""Painters of the 0.7 m road signs."""


def sign(density: float, paint: Callable[[Canvas], None]) -> Texture:
    """A road sign 0.7 m square."""
    canvas = Canvas(0.7, 0.7, 2 * density)
    paint(canvas)
    return canvas.texture()


def board(
    rng: np.random.Generator, width: float, height: float, density: float, colors: Sequence[Color] = _FASCIAS
) -> Texture:
    """A board with words: a pub's or a shop's hanging sign, or a direction sign."""
    color = vary(rng, pick(rng, colors))
    ink = (200, 220, 226) if sum(color) < 400 else (30, 30, 34)
    canvas = Canvas(width, height, 2 * density, ink)
    canvas.rectangle(0.04, 0.04, width - 0.08, height - 0.08, color)
    lines = max(1, int(height / 0.3))
    for line in range(lines):
        word = str(rng.choice(_WORDS)).split()[-1]
        canvas.text(
            word, width / 2, height - (line + 0.75) * height / lines, 0.45 * min(height / lines, width / 3), ink
        )
    return canvas.texture()


def signal(density: float) -> Texture:
    """A traffic light's head, 0.35 m by 0.9 m."""
    canvas = Canvas(0.35, 0.9, 2 * density, (24, 24, 24))
    for y, color in ((0.72, (40, 30, 70)), (0.45, (30, 60, 80)), (0.18, (120, 220, 90))):
        canvas.disc(0.175, y, 0.11, color)
    return canvas.texture()


# --- vehicles and people --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CarShape:
    """A car's side view in metres, x forward from its middle, and its pictures.

    Attributes:
        length: Bumper to bumper.
        width: Across.
        waist: Height of the lower body.
        height: Of the roof.
        glass: x of the rear window's foot and top, and of the windscreen's top and foot.
        nose: Height of the bonnet's front edge.
        lean: How far the roof's edge lies inside of the waist.
    """

    length: float
    width: float
    waist: float
    height: float
    glass: tuple[float, float, float, float]
    nose: float
    lean: float
    side: Texture
    cabin: Texture
    rear: Texture
    front: Texture
    back_glass: Texture
    windscreen: Texture
    panel: Texture


_TYRE: Color = (22, 22, 22)


def car(rng: np.random.Generator, density: float, color: Color) -> CarShape:
    """Draw a hatchback, a saloon, an estate or a van."""
    kind = rng.choice(["hatchback", "hatchback", "saloon", "estate", "van"])
    length, height, glass = {
        "hatchback": (3.9, 1.46, (-1.85, -1.45, 0.25, 1.0)),
        "saloon": (4.5, 1.42, (-1.6, -0.95, 0.35, 1.15)),
        "estate": (4.5, 1.5, (-2.15, -1.85, 0.35, 1.15)),
        "van": (4.6, 1.95, (-2.25, -2.15, 0.95, 1.6)),
    }[str(kind)]
    waist, width, nose, lean = (1.05, 1.8, 0.95, 0.12) if kind == "van" else (0.92, 1.72, 0.72, 0.22)
    color = vary(rng, color)

    side = Canvas(length, waist, density)
    half = length / 2
    nearly_half = half - 0.06
    outline = [
        (0.0, 0.2), (length, 0.2), (length, nose + 0.015), (half + glass[3], waist), (0.0, waist),
    ]  # fmt: skip
    side.polygon(outline, color)
    side.shade(np.repeat(np.array([[1.25], [1.0], [0.85], [0.55], [0.4]]), 2, 1))
    for x in (half - 0.5, half + 0.45):  # gaps of the doors
        side.rectangle(x, 0.3, 0.025, waist - 0.3, scaled(color, 0.4))
    side.rectangle(0.1, 0.42, length - 0.25, 0.05, scaled(color, 0.5))
    side.rectangle(0.0, 0.62, 0.14, 0.18, (40, 30, 150))
    side.rectangle(length - 0.3, 0.56, 0.24, 0.12, (200, 205, 205))
    for x in (half - nearly_half * 0.62, half + nearly_half * 0.64):
        side.disc(x, 0.33, 0.38, (14, 14, 14))
        side.disc(x, 0.31, 0.31, _TYRE)
        side.disc(x, 0.31, 0.2, (120, 120, 118))
        for spoke in np.arange(0, 2 * np.pi, 2 * np.pi / 5):
            side.disc(x + 0.12 * np.cos(spoke), 0.31 + 0.12 * np.sin(spoke), 0.045, (50, 50, 50))

    cabin_height = float(np.hypot(height - waist, lean))
    span = glass[3] - glass[0]
    cabin = Canvas(span, cabin_height, density)
    rear_top, front_top = glass[1] - glass[0], glass[2] - glass[0]
    cabin.polygon([(0, 0), (span, 0), (front_top + 0.02, cabin_height), (rear_top - 0.02, cabin_height)], color)
    pane = _pane(rng)
    top = cabin_height - 0.07
    if kind == "van":
        cabin.polygon([(span - 1.35, 0.05), (span - 0.25, 0.05), (front_top - 0.1, top), (span - 1.35, top)], pane)
    else:
        cabin.polygon([(0.22, 0.03), (span - 0.22, 0.03), (front_top - 0.03, top), (rear_top + 0.07, top)], pane)
        cabin.rectangle(-glass[0] - 0.02, 0, 0.07, cabin_height, scaled(color, 0.6))
    cabin.shade(np.array([[1.25], [1.0], [0.75]]).repeat(2, 1))

    rear = _end(density, width, waist, color)
    rear.rectangle(0.5 * width - 0.26, 0.48, 0.52, 0.12, (50, 190, 215))
    rear.text("NW26 ROS", 0.5 * width, 0.505, 0.07, (20, 20, 20))
    for x in (0.06, width - 0.3):
        rear.rectangle(x, 0.6, 0.24, 0.2, (36, 24, 150))
    front = _end(density, width, waist, color)
    front.rectangle(0.4, 0.42, width - 0.8, 0.16, (26, 26, 26))
    front.rectangle(0.5 * width - 0.26, 0.32, 0.52, 0.11, (220, 224, 224))
    for x in (0.08, width - 0.42):
        front.rectangle(x, 0.5, 0.34, 0.16, (206, 210, 208))
        front.rectangle(x + 0.08, 0.53, 0.16, 0.1, (150, 150, 148))

    back_glass = _trapezoid(density, width, float(np.hypot(height - waist, glass[1] - glass[0])), lean, color, pane)
    windscreen = _trapezoid(density, width, float(np.hypot(height - waist, glass[3] - glass[2])), lean, color, pane)
    panel = Canvas(1, 1, 16, color)
    panel.shade(np.array([[1.5, 1.35], [1.25, 1.4]]))
    return CarShape(
        length, width, waist, height, glass, nose, lean, side.texture(), cabin.texture(), rear.texture(),
        front.texture(), back_glass.texture(), windscreen.texture(), panel.texture(),
    )  # fmt: skip


def _pane(rng: np.random.Generator) -> Color:
    value = rng.uniform(34, 60)
    return value * 1.1, value, value * 0.95


def _end(density: float, width: float, waist: float, color: Color) -> Canvas:
    canvas = Canvas(width, waist, 1.5 * density)
    for x in (0.05, width - 0.25):
        canvas.rectangle(x, 0, 0.2, 0.4, _TYRE)
    canvas.rectangle(0.25, 0.16, width - 0.5, 0.1, (16, 16, 16))
    canvas.polygon([(0, 0.2), (width, 0.2), (width, waist), (0, waist)], color)
    canvas.rectangle(0, 0.2, width, 0.2, scaled(color, 0.55))
    canvas.shade(np.array([[1.15], [1.0], [0.9], [0.6]]).repeat(2, 1))
    return canvas


def _trapezoid(density: float, width: float, height: float, lean: float, color: Color, pane: Color) -> Canvas:
    canvas = Canvas(width, height, density)
    canvas.polygon([(0, 0), (width, 0), (width - lean + 0.02, height), (lean - 0.02, height)], color)
    canvas.polygon(
        [(0.14, 0.04), (width - 0.14, 0.04), (width - lean - 0.07, height - 0.06), (lean + 0.07, height - 0.06)], pane
    )
    canvas.polygon([(0.3, 0.1), (0.62, 0.1), (0.85, height - 0.1), (0.6, height - 0.1)], scaled(pane, 1.5))
    for x in (0.48, width - 0.72):  # headrests
        canvas.rectangle(x, 0.06, 0.24, 0.16, scaled(pane, 0.75))
    return canvas


@dataclass(frozen=True)
class Clothes:
    """A person's pictures: head and trunk from in front and from behind, an arm, a leg."""

    front: Texture
    back: Texture
    arm: Texture
    leg: Texture


def clothes(rng: np.random.Generator, density: float, *, helmet: bool = False) -> Clothes:
    """Dress a person 1.75 m tall: a trunk of 0.56 m by 0.95 m, an arm of 0.15 m by 0.62 m, a leg of 0.2 m by 0.88 m."""
    density *= 2
    coat, trousers = vary(rng, pick(rng, _COATS), 0.25), vary(rng, pick(rng, _TROUSERS), 0.2)
    skin = vary(rng, (92, 112, 146), 0.3)
    hair = pick(rng, [(24, 28, 34), (40, 62, 84), (70, 100, 120), (110, 112, 114)])
    top = vary(rng, pick(rng, CAR_COLORS), 0.2) if helmet else hair
    bag = vary(rng, pick(rng, _FASCIAS)) if rng.random() < 0.35 else None
    trunks = []
    for behind in (False, True):
        trunk = Canvas(0.56, 0.95, density)
        outline = [
            (0.12, 0),
            (0.44, 0),
            (0.45, 0.3),
            (0.5, 0.56),
            (0.42, 0.64),
            (0.14, 0.64),
            (0.06, 0.56),
            (0.11, 0.3),
        ]
        trunk.polygon(outline, coat)
        trunk.rectangle(0.23, 0.6, 0.1, 0.1, skin)
        trunk.disc(0.28, 0.8, 0.105, hair if behind else skin, squeeze=1.3)
        trunk.polygon([(0.17, 0.8), (0.39, 0.8), (0.385, 0.9), (0.33, 0.948), (0.23, 0.948), (0.175, 0.9)], top)
        if behind and bag:
            trunk.rectangle(0.15, 0.2, 0.26, 0.36, bag)
        elif not behind:
            trunk.rectangle(0.27, 0.02, 0.02, 0.56, scaled(coat, 0.6))
        trunks.append(trunk)
    arm = Canvas(0.15, 0.62, density)
    arm.polygon([(0.03, 0.1), (0.12, 0.1), (0.14, 0.6), (0.02, 0.6)], scaled(coat, 0.85))
    arm.disc(0.075, 0.07, 0.05, skin)
    leg = Canvas(0.2, 0.88, density)
    leg.polygon([(0.05, 0.06), (0.15, 0.06), (0.19, 0.88), (0.01, 0.88)], trousers)
    leg.rectangle(0.03, 0, 0.14, 0.08, (20, 20, 22))
    for canvas in (*trunks, arm, leg):
        canvas.shade(np.array([[0.8, 1.2, 1.0, 0.6]]))
    return Clothes(trunks[0].texture(), trunks[1].texture(), arm.texture(), leg.texture())


def bicycle(rng: np.random.Generator, density: float) -> tuple[Texture, Texture]:
    """A bicycle's frame, 1.1 m by 1 m, and one of its wheels, 0.7 m square."""
    density *= 2
    color = vary(rng, pick(rng, [(30, 30, 140), (120, 60, 30), (30, 30, 32), (50, 100, 50)]))
    frame = Canvas(1.1, 1.0, density)
    for points in (
        [(0.05, 0.35), (0.45, 0.3), (0.35, 0.8), (0.05, 0.35)],
        [(0.45, 0.3), (0.9, 0.75), (0.36, 0.72)],
        [(1.05, 0.35), (0.9, 0.75), (0.87, 0.95), (1.0, 0.93)],
    ):
        frame.line(points, 0.05, color)
    frame.rectangle(0.24, 0.85, 0.24, 0.06, (20, 20, 20))
    frame.line([(0.36, 0.8), (0.36, 0.87)], 0.04, (60, 60, 60))
    wheel = Canvas(0.7, 0.7, density)
    wheel.disc(0.35, 0.35, 0.34, _TYRE)
    inner = Canvas(0.7, 0.7, density)
    inner.disc(0.35, 0.35, 0.295, (0, 0, 0))
    wheel.image[inner.image[..., 3] > 0] = 0
    for turn in np.arange(0, np.pi, np.pi / 5):
        dx, dy = 0.3 * np.cos(turn), 0.3 * np.sin(turn)
        wheel.line([(0.35 - dx, 0.35 - dy), (0.35 + dx, 0.35 + dy)], 0.015, (110, 110, 110))
    return frame.texture(), wheel.texture()


# --- sky ------------------------------------------------------------------------------------------------------------

SKY_SPAN, SKY_TOP, SKY_FOOT = 1.6, 1.35, 0.25
"""The sky's picture reaches this far to either side, up and down from straight ahead, as tangents of angles."""


def sky(rng: np.random.Generator, detail: float, overcast: float, glow: Color) -> Texture:
    """Clouds over a bright horizon; ``overcast`` from 0 (blue with white clouds) to 1 (grey)."""
    rows, columns = round(480 * detail) + 16, round(960 * detail) + 32
    up = np.linspace(SKY_TOP, -SKY_FOOT, rows, dtype=np.float32)[:, None]
    across = np.linspace(-SKY_SPAN, SKY_SPAN, columns, dtype=np.float32)[None]
    height = np.maximum(up, 0) + 0.16  # a low dome of cloud rather than a plane, whose far clouds would be mere streaks
    # A flat layer of clouds, seen in perspective.
    plane_x, plane_y = across / height, np.broadcast_to(1 / height, (rows, columns))
    field = noise(rng, (512, 512), 96, 6)
    clouds = cv2.remap(field, (plane_x * 70 + 256).astype(np.float32), (plane_y * 70).astype(np.float32),
                       cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)  # fmt: skip
    clouds *= np.clip(up * 4, 0.1, 1)
    cover = 1 / (1 + np.exp(-(clouds * 2.2 - 0.6 + 3.2 * (overcast - 0.45))))
    rise = np.clip(up, 0, 1)[..., None] ** 0.6
    blue = np.array([250, 222, 188], np.float32) * rise + np.array(glow, np.float32) * (1 - rise)
    white = 250 - (8 + 40 * overcast) * np.clip(clouds, -0.4, 1.6)
    grey = np.stack([white + 3, white + 1, white - 2], -1) * (1 - 0.3 * (1 - rise)) + np.array(glow) * 0.3 * (1 - rise)
    image = blue * (1 - cover[..., None]) + grey * cover[..., None]
    return Texture(image.clip(0, 255).astype(np.uint8))


def skyline(rng: np.random.Generator, detail: float) -> Texture:
    """Hazy tree tops all along the horizon, 3.2 by 0.06 in tangents of angles."""
    rows, columns = max(4, round(36 * detail)), round(1800 * detail)
    top = 0.45 + 0.16 * noise(rng, (1, columns), 40 * detail, 5)[0]
    depth = np.linspace(1, 0, rows)[:, None]
    image = np.zeros((rows, columns, 4), np.uint8)
    image[..., :3] = np.clip(
        np.array([112, 114, 112]) + 9 * noise(rng, (rows, columns), 6 * detail, 2)[..., None], 0, 255
    )
    image[..., 3] = np.where(depth < np.clip(top, 0.15, 0.95), 255, 0)
    return Texture(image)
