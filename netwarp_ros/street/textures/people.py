# SPDX-License-Identifier: Apache-2.0
"""Textures of people."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from netwarp_ros.street.render import Texture
from netwarp_ros.street.textures.canvas import BOARD_COLORS, VEHICLE_COLORS, Canvas, Color, pick, scaled, vary

_COATS: list[Color] = [
    (26, 24, 26), (52, 38, 30), (34, 30, 52), (30, 36, 32), (84, 80, 76), (34, 28, 96), (84, 54, 32), (44, 48, 54),
]  # fmt: skip
_TROUSERS: list[Color] = [(26, 24, 26), (58, 42, 32), (38, 40, 44), (70, 56, 46)]


@dataclass(frozen=True)
class Person:
    """Textures of a person 1.75 m tall.

    Attributes:
        front: Head and trunk from the front, 0.56 m x 0.95 m.
        back: Head and trunk from behind, 0.56 m x 0.95 m.
        arm: 0.15 m x 0.62 m.
        leg: 0.2 m x 0.88 m.
    """

    front: Texture
    back: Texture
    arm: Texture
    leg: Texture


def draw_person(rng: np.random.Generator, density: float, *, helmet: bool = False) -> Person:
    """Draw a person in random clothes."""
    density *= 2
    coat, trousers = vary(rng, pick(rng, _COATS), 0.25), vary(rng, pick(rng, _TROUSERS), 0.2)
    skin = vary(rng, (92, 112, 146), 0.3)
    hair = pick(rng, [(24, 28, 34), (40, 62, 84), (70, 100, 120), (110, 112, 114)])
    top = vary(rng, pick(rng, VEHICLE_COLORS), 0.2) if helmet else hair
    bag = vary(rng, pick(rng, BOARD_COLORS)) if rng.random() < 0.35 else None
    trunks = []
    for behind in (False, True):
        trunk = Canvas(0.56, 0.95, density)
        outline = [
            (0.12, 0), (0.44, 0), (0.45, 0.3), (0.5, 0.56), (0.42, 0.64), (0.14, 0.64), (0.06, 0.56), (0.11, 0.3),
        ]  # fmt: skip
        trunk.polygon(outline, coat)
        trunk.rectangle(0.23, 0.6, 0.1, 0.1, skin)
        trunk.disc(0.28, 0.8, 0.105, hair if behind else skin, aspect=1.3)
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
    return Person(trunks[0].texture(), trunks[1].texture(), arm.texture(), leg.texture())
