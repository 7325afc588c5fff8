# SPDX-License-Identifier: Apache-2.0
"""What an object consists of, its surfaces and shadows, and poses on the ground to build it from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from netwarp_ros.street.render import Surface, Texture

GROUND_KEY, SKY_KEY, SKYLINE_KEY = 0, 1, 2
"""Keys of the surfaces that exist once."""

Vector = tuple[float, float, float]


class Shadow(NamedTuple):
    """A convex shadow on the ground.

    Attributes:
        corners: (8, 2) world coordinates x and y.
        strength: From 0 (none) to 1 (black).
    """

    corners: np.ndarray
    strength: float


class Geometry:
    """Surfaces and shadows of one object or of several.

    The pair ``(group, number)`` names them: it gives up to 4096 surfaces their keys, in the order they are added.

    Args:
        group: 2 or more.
        number: Any, also below 0.
    """

    def __init__(self, group: int, number: int) -> None:
        self.surfaces: list[Surface] = []
        self.shadows: list[Shadow] = []
        self._first_key = (group << 48) + ((number + 2**31) << 12)

    def add(
        self,
        label: int,
        texture: Texture,
        origin: Vector,
        across: Vector,
        down: Vector,
        light: float = 1.0,
        facing: int = 0,
    ) -> None:
        """Add a surface; see `Surface` for the arguments."""
        key = self._first_key + len(self.surfaces)
        self.surfaces.append(Surface(key, label, texture, origin, across, down, light, facing))

    def add_shadow(self, corners: np.ndarray, strength: float) -> None:
        """Add a shadow; see `Shadow` for the arguments."""
        self.shadows.append(Shadow(corners, strength))


class Pose(NamedTuple):
    """A position on the ground and a heading, a unit vector."""

    x: float
    y: float
    forward_x: float
    forward_y: float

    def point(self, forward: float, left: float, up: float) -> Vector:
        """Return the world coordinates of a point given relative to the pose."""
        return (
            self.x + forward * self.forward_x - left * self.forward_y,
            self.y + forward * self.forward_y + left * self.forward_x,
            up,
        )

    def vector(self, forward: float, left: float, up: float) -> Vector:
        """Return the world components of a displacement given relative to the pose."""
        return forward * self.forward_x - left * self.forward_y, forward * self.forward_y + left * self.forward_x, up

    def footprint(self, length: float, width: float) -> np.ndarray:
        """Return the corners (8, 2) of a rectangle around the position, with cut corners."""
        a, b = length / 2, width / 2
        c, d = 0.75 * a, 0.75 * b
        ring = [(-a, -d), (-c, -b), (c, -b), (a, -d), (a, d), (c, b), (-c, b), (-a, d)]
        return np.array([self.point(forward, left, 0)[:2] for forward, left in ring])
