# SPDX-License-Identifier: Apache-2.0
"""Textures of buildings: terraced houses, shops and offices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from netwarp_ros.street.render import Texture
from netwarp_ros.street.textures.canvas import BOARD_COLORS, WORDS, Canvas, Color, blocks, noise, pick, vary

_BRICKS: list[Color] = [
    (60, 74, 112), (98, 126, 142), (76, 88, 100), (58, 64, 86), (112, 138, 152), (84, 104, 118), (66, 72, 80),
]  # fmt: skip
_PLASTERS: list[Color] = [
    (204, 212, 216), (164, 184, 198), (172, 174, 170), (178, 184, 200), (128, 136, 140), (196, 198, 194),
]  # fmt: skip
_GOODS: list[Color] = [(60, 130, 190), (150, 150, 150), (40, 40, 150), (120, 90, 60), (60, 110, 90)]
_DOORS: list[Color] = [(30, 30, 110), (70, 40, 20), (40, 60, 26), (26, 26, 28), (150, 150, 150)]


@dataclass(frozen=True)
class House:
    """A building: its size in metres and its textures.

    Attributes:
        width: Along the street.
        height: From the pavement to the eaves.
        depth: From front to back.
        ridge: From the eaves up to the ridge; 0 for a flat roof.
        front: The facade.
        side: The gable wall, depth x (height + ridge), transparent above the roof.
        roof: The slope towards the street.
        chimney: One face of the chimney.
    """

    width: float
    height: float
    depth: float
    ridge: float
    front: Texture
    side: Texture
    roof: Texture
    chimney: Texture


def draw_house(rng: np.random.Generator, density: float) -> House:
    """Draw a building of two to four storeys: a terraced house, a shop with flats above, or offices."""
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
    side = _gable(rng, depth, height, ridge, density / 2, wall, brick)
    roof = _roof(rng, width, float(np.hypot(depth / 2, ridge)), density / 2)
    chimney = _chimney(rng, density)
    return House(width, height, depth, ridge, front.texture(), side.texture(), roof.texture(), chimney.texture())


def _gable(
    rng: np.random.Generator, depth: float, height: float, ridge: float, density: float, wall: Color, brick: bool
) -> Canvas:
    side = _wall(rng, depth, height + max(ridge, 0.01), density, wall, brick)
    side.shade(0.92)
    if ridge:
        for x in (0.0, depth):
            side.polygon([(x, height), (depth / 2, height + ridge), (x, height + ridge)], None)
    return side


def _roof(rng: np.random.Generator, width: float, slope: float, density: float) -> Canvas:
    slate = vary(rng, (74, 66, 62) if rng.random() < 0.7 else (54, 64, 96))
    roof = Canvas(width, slope, density, slate)
    shape = roof.image.shape[:2]
    tiles = 1 + 0.10 * rng.standard_normal((int(roof.height / 0.25) + 1, int(width / 0.3) + 1))
    roof.shade(blocks(tiles, shape))
    roof.shade(1 + 0.12 * noise(rng, shape, shape[0] / 3))
    return roof


def _chimney(rng: np.random.Generator, density: float) -> Canvas:
    chimney = _wall(rng, 1.0, 1.6, density, vary(rng, pick(rng, _BRICKS)), True)
    for x in (0.1, 0.55):
        chimney.rectangle(x, 1.25, 0.3, 0.35, (66, 88, 140))
    chimney.rectangle(0, 1.15, 1.0, 0.12, (120, 128, 130))
    for start, end in ((0, 0.1), (0.4, 0.55), (0.85, 1.0)):  # nothing between the pots
        chimney.image[: round(0.33 * density), round(start * density) : round(end * density), 3] = 0
    return chimney


def _wall(rng: np.random.Generator, width: float, height: float, density: float, color: Color, brick: bool) -> Canvas:
    canvas = Canvas(width, height, density, color)
    shape = canvas.image.shape[:2]
    if brick:
        courses, bricks = int(height / 0.075) + 1, int(width / 0.22) + 1
        canvas.shade(blocks(1 + 0.13 * rng.standard_normal((courses, bricks)), shape))
    grime = 1 + 0.06 * noise(rng, shape, density * 1.5, 3)
    streaks = 1 + 0.014 * noise(rng, (2, shape[1]), density * 0.2)
    canvas.shade(grime)
    canvas.shade(streaks)
    foot = np.interp(np.linspace(height, 0, shape[0]), [0, 0.8, height], [0.72, 0.96, 1.0])
    canvas.shade(np.repeat(foot[:, None], 2, 1))
    return canvas


def _glass(rng: np.random.Generator, canvas: Canvas, x: float, y: float, width: float, height: float) -> None:
    """Draw a dark pane, lighter towards its top, where it reflects the sky."""
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
    color = vary(rng, pick(rng, BOARD_COLORS))
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
            goods = vary(rng, pick(rng, _GOODS), 0.4)
            canvas.rectangle(x + rng.uniform(0.05, max(0.06, pane - w - 0.15)), 0.55 + rng.uniform(0, 0.9), w, h, goods)
        x += pane
    canvas.rectangle(door, 0.05, 1.0, 2.3, frame)
    _glass(rng, canvas, door + 0.12, 0.3, 0.76, 1.9)
    canvas.rectangle(0, ground - 0.75, width, 0.65, color)
    canvas.rectangle(0, ground - 0.12, width, 0.14, vary(rng, (150, 156, 158), 0.2))
    canvas.rectangle(0, ground - 0.85, width, 0.1, (34, 34, 36))
    ink = (190, 210, 220) if sum(color) < 330 else (30, 30, 30)
    canvas.text(str(rng.choice(WORDS)), width / 2, ground - 0.6, 0.34, ink)
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
