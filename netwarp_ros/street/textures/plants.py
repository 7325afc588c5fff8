# SPDX-License-Identifier: Apache-2.0
"""Textures of plants: trees and hedges."""

from __future__ import annotations

import numpy as np

from netwarp_ros.street.render import Texture
from netwarp_ros.street.textures.canvas import Canvas, Color, scaled, vary

TREE_KINDS = ("leafy", "autumn", "evergreen", "bare")


def draw_tree(rng: np.random.Generator, density: float, kind: str) -> Texture:
    """Draw a tree of one of `TREE_KINDS`, on 6 m x 8 m."""
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
    rng: np.random.Generator, canvas: Canvas, x: float, y: float, radius: float, leaf: Color, light: float
) -> None:
    """Draw a clump of leaves; ``light`` is its brightness at its middle."""
    count = 240
    turn, away = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.random(count))
    rise = away * np.sin(turn)
    canvas.dots(x + radius * away * np.cos(turn), y + radius * rise, rng.uniform(0.02, 0.065, count), leaf,
                light * (1 + 0.45 * rise) + rng.normal(0, 0.13, count))  # fmt: skip


def _branches(rng: np.random.Generator, canvas: Canvas, bark: Color, *, bare: bool) -> list[tuple[float, float]]:
    """Draw a trunk and its branches, and return the ends of the branches."""
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


def draw_hedge(rng: np.random.Generator, width: float, height: float, density: float) -> Texture:
    """Draw a clipped hedge with a ragged top."""
    canvas = Canvas(width, height, density)
    leaf: Color = vary(rng, (34, 58, 48), 0.2)
    canvas.rectangle(0, 0, width, height - 0.25, scaled(leaf, 0.45))
    count = int(width * height * 150)
    y = (height - 0.12) * np.sqrt(rng.random(count))
    lights = 0.45 + 0.75 * y / height + rng.normal(0, 0.16, count)
    canvas.dots(rng.uniform(0, width, count), y, rng.uniform(0.03, 0.085, count), leaf, lights)
    return canvas.texture()
