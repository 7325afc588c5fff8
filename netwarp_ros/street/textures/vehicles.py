# SPDX-License-Identifier: Apache-2.0
"""Textures of cars and bicycles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from netwarp_ros.street.render import Texture
from netwarp_ros.street.textures.canvas import TYRE, Canvas, Color, pick, scaled, vary


@dataclass(frozen=True)
class Car:
    """A car: its shape in metres, with x forward from its middle, and its textures.

    Attributes:
        length: From bumper to bumper.
        width: From side to side.
        waist: Height of the lower body.
        height: Height of the roof.
        window_x: x of the rear window's bottom and top, and of the windscreen's top and bottom.
        nose: Height of the bonnet's front edge.
        lean: Distance by which the roof is narrower than the waist, on each side.
        side: The lower body from its right.
        cabin: The upper body from its right.
        rear: The lower body from behind.
        front: The lower body from the front.
        rear_window: The rear window in its frame.
        windscreen: The windscreen in its frame.
        panel: Roof, bonnet and boot lid.
    """

    length: float
    width: float
    waist: float
    height: float
    window_x: tuple[float, float, float, float]
    nose: float
    lean: float
    side: Texture
    cabin: Texture
    rear: Texture
    front: Texture
    rear_window: Texture
    windscreen: Texture
    panel: Texture


def draw_car(rng: np.random.Generator, density: float, color: Color) -> Car:
    """Draw a hatchback, a saloon, an estate or a van."""
    kind = rng.choice(["hatchback", "hatchback", "saloon", "estate", "van"])
    length, height, window_x = {
        "hatchback": (3.9, 1.46, (-1.85, -1.45, 0.25, 1.0)),
        "saloon": (4.5, 1.42, (-1.6, -0.95, 0.35, 1.15)),
        "estate": (4.5, 1.5, (-2.15, -1.85, 0.35, 1.15)),
        "van": (4.6, 1.95, (-2.25, -2.15, 0.95, 1.6)),
    }[str(kind)]
    waist, width, nose, lean = (1.05, 1.8, 0.95, 0.12) if kind == "van" else (0.92, 1.72, 0.72, 0.22)
    color = vary(rng, color)

    grey = rng.uniform(34, 60)
    glass = grey * 1.1, grey, grey * 0.95
    rear_window, windscreen = (
        _draw_window(density, width, float(np.hypot(height - waist, end - start)), lean, color, glass)
        for start, end in (window_x[:2], window_x[2:])
    )
    panel = Canvas(1, 1, 16, color)
    panel.shade(np.array([[1.5, 1.35], [1.25, 1.4]]))
    return Car(
        length,
        width,
        waist,
        height,
        window_x,
        nose,
        lean,
        side=_draw_side(density, length, waist, nose, window_x[3], color),
        cabin=_draw_cabin(density, float(np.hypot(height - waist, lean)), window_x, color, glass, van=kind == "van"),
        rear=_draw_rear(density, width, waist, color),
        front=_draw_front(density, width, waist, color),
        rear_window=rear_window,
        windscreen=windscreen,
        panel=panel.texture(),
    )


def _draw_side(density: float, length: float, waist: float, nose: float, windscreen_x: float, color: Color) -> Texture:
    canvas = Canvas(length, waist, density)
    half = length / 2
    nearly_half = half - 0.06
    outline = [
        (0.0, 0.2), (length, 0.2), (length, nose + 0.015), (half + windscreen_x, waist), (0.0, waist),
    ]  # fmt: skip
    canvas.polygon(outline, color)
    canvas.shade(np.repeat(np.array([[1.25], [1.0], [0.85], [0.55], [0.4]]), 2, 1))
    for x in (half - 0.5, half + 0.45):  # gaps of the doors
        canvas.rectangle(x, 0.3, 0.025, waist - 0.3, scaled(color, 0.4))
    canvas.rectangle(0.1, 0.42, length - 0.25, 0.05, scaled(color, 0.5))
    canvas.rectangle(0.0, 0.62, 0.14, 0.18, (40, 30, 150))
    canvas.rectangle(length - 0.3, 0.56, 0.24, 0.12, (200, 205, 205))
    for x in (half - nearly_half * 0.62, half + nearly_half * 0.64):
        canvas.disc(x, 0.33, 0.38, (14, 14, 14))
        canvas.disc(x, 0.31, 0.31, TYRE)
        canvas.disc(x, 0.31, 0.2, (120, 120, 118))
        for spoke in np.arange(0, 2 * np.pi, 2 * np.pi / 5):
            canvas.disc(x + 0.12 * np.cos(spoke), 0.31 + 0.12 * np.sin(spoke), 0.045, (50, 50, 50))
    return canvas.texture()


def _draw_cabin(
    density: float, height: float, window_x: tuple[float, float, float, float], color: Color, glass: Color, *, van: bool
) -> Texture:
    rear_top, front_top, length = (x - window_x[0] for x in window_x[1:])
    canvas = Canvas(length, height, density)
    canvas.polygon([(0, 0), (length, 0), (front_top + 0.02, height), (rear_top - 0.02, height)], color)
    top = height - 0.07
    if van:
        start, end = length - 1.35, length - 0.25
        canvas.polygon([(start, 0.05), (end, 0.05), (front_top - 0.1, top), (start, top)], glass)
    else:
        canvas.polygon([(0.22, 0.03), (length - 0.22, 0.03), (front_top - 0.03, top), (rear_top + 0.07, top)], glass)
        canvas.rectangle(-window_x[0] - 0.02, 0, 0.07, height, scaled(color, 0.6))
    canvas.shade(np.array([[1.25], [1.0], [0.75]]).repeat(2, 1))
    return canvas.texture()


def _draw_rear(density: float, width: float, waist: float, color: Color) -> Texture:
    canvas = _draw_end(density, width, waist, color)
    canvas.rectangle(0.5 * width - 0.26, 0.48, 0.52, 0.12, (50, 190, 215))
    canvas.text("NW26 ROS", 0.5 * width, 0.505, 0.07, (20, 20, 20))
    for x in (0.06, width - 0.3):
        canvas.rectangle(x, 0.6, 0.24, 0.2, (36, 24, 150))
    return canvas.texture()


def _draw_front(density: float, width: float, waist: float, color: Color) -> Texture:
    canvas = _draw_end(density, width, waist, color)
    canvas.rectangle(0.4, 0.42, width - 0.8, 0.16, (26, 26, 26))
    canvas.rectangle(0.5 * width - 0.26, 0.32, 0.52, 0.11, (220, 224, 224))
    for x in (0.08, width - 0.42):
        canvas.rectangle(x, 0.5, 0.34, 0.16, (206, 210, 208))
        canvas.rectangle(x + 0.08, 0.53, 0.16, 0.1, (150, 150, 148))
    return canvas.texture()


def _draw_end(density: float, width: float, waist: float, color: Color) -> Canvas:
    """Draw what the rear and the front have in common."""
    canvas = Canvas(width, waist, 1.5 * density)
    for x in (0.05, width - 0.25):
        canvas.rectangle(x, 0, 0.2, 0.4, TYRE)
    canvas.rectangle(0.25, 0.16, width - 0.5, 0.1, (16, 16, 16))
    canvas.polygon([(0, 0.2), (width, 0.2), (width, waist), (0, waist)], color)
    canvas.rectangle(0, 0.2, width, 0.2, scaled(color, 0.55))
    canvas.shade(np.array([[1.15], [1.0], [0.9], [0.6]]).repeat(2, 1))
    return canvas


def _draw_window(density: float, width: float, height: float, lean: float, color: Color, glass: Color) -> Texture:
    canvas = Canvas(width, height, density)
    canvas.polygon([(0, 0), (width, 0), (width - lean + 0.02, height), (lean - 0.02, height)], color)
    top = height - 0.06
    canvas.polygon([(0.14, 0.04), (width - 0.14, 0.04), (width - lean - 0.07, top), (lean + 0.07, top)], glass)
    canvas.polygon([(0.3, 0.1), (0.62, 0.1), (0.85, height - 0.1), (0.6, height - 0.1)], scaled(glass, 1.5))
    for x in (0.48, width - 0.72):  # headrests
        canvas.rectangle(x, 0.06, 0.24, 0.16, scaled(glass, 0.75))
    return canvas.texture()


@dataclass(frozen=True)
class Bicycle:
    """A bicycle's textures: its frame, 1.1 m x 1 m, and a wheel, 0.7 m square."""

    frame: Texture
    wheel: Texture


def draw_bicycle(rng: np.random.Generator, density: float) -> Bicycle:
    """Draw a bicycle from its right."""
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
    wheel.disc(0.35, 0.35, 0.34, TYRE)
    wheel.disc(0.35, 0.35, 0.295, None)
    for turn in np.arange(0, np.pi, np.pi / 5):
        dx, dy = 0.3 * np.cos(turn), 0.3 * np.sin(turn)
        wheel.line([(0.35 - dx, 0.35 - dy), (0.35 + dx, 0.35 + dy)], 0.015, (110, 110, 110))
    return Bicycle(frame.texture(), wheel.texture())
