# SPDX-License-Identifier: Apache-2.0
"""Textures of street furniture: posts, fences, signs and traffic lights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from netwarp_ros.street.render import Texture
from netwarp_ros.street.textures.canvas import BOARD_COLORS, WORDS, Canvas, Color, blocks, pick, vary


def draw_post(rng: np.random.Generator, density: float, color: Color, height: float, *, bands: bool = False) -> Texture:
    """Draw a round post, lit from the left; ``bands`` adds black ones."""
    canvas = Canvas(0.4, height, density, vary(rng, color, 0.08))
    if bands:
        for y in np.arange(0, height, 0.6):
            canvas.rectangle(0, y, 0.4, 0.3, (30, 30, 30))
    canvas.shade(np.array([[0.85, 1.15, 0.9, 0.6]]))
    return canvas.texture()


def draw_railing(rng: np.random.Generator, width: float, density: float, *, iron: bool) -> Texture:
    """Draw a park's railing of black iron, 1.3 m high, or the galvanised guard rail of a kerb, 1.05 m high."""
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


def draw_wooden_fence(rng: np.random.Generator, width: float, height: float, density: float) -> Texture:
    """Draw a close-boarded wooden fence."""
    canvas = Canvas(width, height, density, (64, 82, 100))
    canvas.shade(blocks(1 + 0.12 * rng.standard_normal((1, round(width / 0.14))), canvas.image.shape[:2]))
    for x in np.arange(0, width, 0.14):
        canvas.rectangle(x, 0, 0.02, height, (34, 42, 50))
    return canvas.texture()


def draw_globe(density: float) -> Texture:
    """Draw the amber globe of a zebra crossing's beacon, 0.4 m square."""
    canvas = Canvas(0.4, 0.4, 2 * density)
    canvas.disc(0.2, 0.2, 0.19, (30, 140, 235))
    canvas.disc(0.15, 0.25, 0.07, (120, 200, 250))
    return canvas.texture()


def _limit(canvas: Canvas) -> None:
    canvas.disc(0.35, 0.35, 0.35, (36, 30, 190))
    canvas.disc(0.35, 0.35, 0.26, (235, 235, 235))
    canvas.text("20", 0.35, 0.24, 0.22, (20, 20, 20))


def _no_entry(canvas: Canvas) -> None:
    canvas.disc(0.35, 0.35, 0.35, (36, 30, 180))
    canvas.rectangle(0.12, 0.28, 0.46, 0.14, (235, 235, 235))


def _keep_left(canvas: Canvas) -> None:
    canvas.disc(0.35, 0.35, 0.35, (160, 84, 20))
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
"""Of direction signs on primary routes, motorways and other roads."""

_ROAD_SIGNS: list[Callable[[Canvas], None]] = [_limit, _no_entry, _keep_left, _warning, _parking, _loading]


def draw_road_signs(density: float) -> list[Texture]:
    """Draw each kind of road sign, 0.7 m square."""
    canvases = [Canvas(0.7, 0.7, 2 * density) for _ in _ROAD_SIGNS]
    for canvas, draw in zip(canvases, _ROAD_SIGNS, strict=True):
        draw(canvas)
    return [canvas.texture() for canvas in canvases]


def draw_board(
    rng: np.random.Generator, width: float, height: float, density: float, colors: Sequence[Color] = BOARD_COLORS
) -> Texture:
    """Draw a board with words: the hanging sign of a pub or shop, or a direction sign."""
    color = vary(rng, pick(rng, colors))
    ink = (200, 220, 226) if sum(color) < 400 else (30, 30, 34)
    canvas = Canvas(width, height, 2 * density, ink)
    canvas.rectangle(0.04, 0.04, width - 0.08, height - 0.08, color)
    lines = max(1, int(height / 0.3))
    for line in range(lines):
        word = str(rng.choice(WORDS)).split()[-1]
        y = height - (line + 0.75) * height / lines
        canvas.text(word, width / 2, y, 0.45 * min(height / lines, width / 3), ink)
    return canvas.texture()


def draw_traffic_light(density: float) -> Texture:
    """Draw the head of a traffic light, 0.35 m x 0.9 m."""
    canvas = Canvas(0.35, 0.9, 2 * density, (24, 24, 24))
    for y, color in ((0.72, (40, 30, 70)), (0.45, (30, 60, 80)), (0.18, (120, 220, 90))):
        canvas.disc(0.175, y, 0.11, color)
    return canvas.texture()
