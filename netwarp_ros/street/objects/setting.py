# SPDX-License-Identifier: Apache-2.0
"""What all objects of a street share: the street's course, its weather and the textures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from netwarp_ros.street.ground import CROSSING, PARKING, PLAIN
from netwarp_ros.street.objects.geometry import Pose
from netwarp_ros.street.textures.buildings import draw_house
from netwarp_ros.street.textures.canvas import VEHICLE_COLORS, Color
from netwarp_ros.street.textures.furniture import (
    DIRECTION_COLORS,
    draw_board,
    draw_globe,
    draw_post,
    draw_railing,
    draw_road_signs,
    draw_traffic_light,
    draw_wooden_fence,
)
from netwarp_ros.street.textures.people import draw_person
from netwarp_ros.street.textures.plants import TREE_KINDS, draw_hedge, draw_tree
from netwarp_ros.street.textures.sky import draw_sky, draw_skyline
from netwarp_ros.street.textures.vehicles import draw_bicycle, draw_car

CAMERA_SPEED = 8.0
"""Of the camera along the street, in m/s; it is at x = 0 at time 0."""

VIEW_AHEAD, VIEW_BEHIND = 170.0, 12.0
"""Distance in metres in front of the camera and behind it up to which there are objects."""

_GROUND_STREAM = 8


def numbered_generator(seed: int, stream: int, number: int) -> np.random.Generator:
    """Return the random generator of the nth member of a stream, the same one every time."""
    return np.random.default_rng((seed, 3, stream, number + 2**31))


class Course:
    """Where the street runs, and what ground it runs on.

    Its centre line is y = f(x), a sum of three sine waves.

    Args:
        seed: Of the kinds of ground.
        rng: Source of the waves.
    """

    def __init__(self, seed: int, rng: np.random.Generator) -> None:
        self._seed = seed
        lengths = np.array([190.0, 310.0, 470.0]) * rng.uniform(0.85, 1.15, 3)
        steepness = rng.uniform(0.012, 0.05, 3)
        phases = rng.uniform(0, 2 * np.pi, 3)
        self._waves = np.column_stack([2 * np.pi / lengths, steepness * lengths / (2 * np.pi), phases])

    def centre_line(self, x: np.ndarray | np.floating) -> np.ndarray:
        """Return y of the centre line at x, both in metres."""
        return sum(amplitude * np.sin(rate * x + phase) for rate, amplitude, phase in self._waves)

    def pose(self, x: float, offset: float, *, backward: bool = False) -> Pose:
        """Return the pose at x, ``offset`` metres left of the centre line, heading along the street or ``backward``."""
        slope = float(sum(amplitude * rate * np.cos(rate * x + phase) for rate, amplitude, phase in self._waves))
        length = float(np.hypot(1, slope)) * (-1 if backward else 1)
        return Pose(x, float(self.centre_line(np.float64(x))) + offset, 1 / length, slope / length)

    def ground_kind(self, tile: int) -> int:
        """Return the kind of ground of a tile: `PLAIN`, `PARKING` or `CROSSING`."""
        if tile % 4 == 1:
            return CROSSING
        return PARKING if numbered_generator(self._seed, _GROUND_STREAM, tile).random() < 0.5 else PLAIN


@dataclass(frozen=True)
class Weather:
    """Weather and light.

    Attributes:
        sun: 1 if the sun stands to the left of the street, -1 if to the right.
        overcast: From 0 (blue sky) to 1 (grey).
        exposure: Factor on the image's brightness.
        haze: Color of the haze and of the horizon.
    """

    sun: float
    overcast: float
    exposure: float
    haze: Color

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Weather:
        """Draw the weather at random."""
        sun = float(rng.choice([-1, 1]))
        overcast = float(rng.beta(0.7, 0.9))
        exposure = float(rng.choice([1.12, 0.66], p=[0.8, 0.2]) * rng.uniform(0.85, 1.15))
        warmth = rng.uniform(0, 1)
        return cls(sun, overcast, exposure, (252 - 10 * warmth, 250 - 4 * warmth, 244 + 6 * warmth))

    def facade_light(self, side: int) -> float:
        """Return the light on what faces the street from one side: the sun shines on the side opposite to it."""
        return 1.0 + (0.45 if side != self.sun else -0.42) * (1 - self.overcast)


class Textures:
    """All textures of a street's objects.

    Args:
        rng: Source of what is random about them.
        detail: Texture density relative to that of an image 480 pixels wide.
        weather: Of the sky.
    """

    def __init__(self, rng: np.random.Generator, detail: float, weather: Weather) -> None:
        density = 32 * detail  # texels per metre
        self.houses = [draw_house(rng, density) for _ in range(16)]
        self.trees = {kind: [draw_tree(rng, density, kind) for _ in range(2)] for kind in TREE_KINDS}
        self.hedges = [draw_hedge(rng, 8, 1.9, density) for _ in range(2)]
        self.iron_railing = draw_railing(rng, 4, 1.5 * density, iron=True)
        self.guard_rail = draw_railing(rng, 4, 1.5 * density, iron=False)
        self.wooden_fence = draw_wooden_fence(rng, 4, 2.0, density)
        self.grey_post = draw_post(rng, density, (88, 88, 84), 8)
        self.black_post = draw_post(rng, density, (34, 34, 34), 1)
        self.beacon_post = draw_post(rng, density, (215, 215, 215), 3, bands=True)
        self.globe = draw_globe(density)
        self.road_signs = draw_road_signs(density)
        self.hanging_signs = [draw_board(rng, 0.8, 0.9, density) for _ in range(5)]
        self.direction_signs = [draw_board(rng, 1.6, 1.0, density, DIRECTION_COLORS) for _ in range(3)]
        self.traffic_light = draw_traffic_light(density)
        self.cars = [draw_car(rng, 2.5 * density, VEHICLE_COLORS[k % len(VEHICLE_COLORS)]) for k in range(12)]
        self.people = [draw_person(rng, 1.5 * density) for _ in range(10)]
        self.riders = [draw_person(rng, 1.5 * density, helmet=True) for _ in range(3)]
        self.bicycles = [draw_bicycle(rng, 1.5 * density) for _ in range(3)]
        self.sky = draw_sky(rng, detail, weather.overcast, weather.haze)
        self.skyline = draw_skyline(rng, detail)


@dataclass(frozen=True)
class Setting:
    """What all objects of a street share."""

    course: Course
    weather: Weather
    textures: Textures
