# SPDX-License-Identifier: Apache-2.0
"""Everything around the camera: the sky, what stands on the street, and the traffic.

The street has no end. It consists of tiles of 40 m. What stands on the nth tile, and what the nth member of a stream of
traffic looks like, comes from a random generator seeded by the street's seed and n. So any moment can be made without
those before it. Road users are functions of time, so that the same ones can be placed at two moments.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from netwarp_ros.street.ground import TILE
from netwarp_ros.street.labels import SKY, TREE
from netwarp_ros.street.objects.geometry import SKY_KEY, SKYLINE_KEY, Geometry
from netwarp_ros.street.objects.setting import (
    CAMERA_SPEED,
    VIEW_AHEAD,
    VIEW_BEHIND,
    Course,
    Setting,
    Textures,
    Weather,
    numbered_generator,
)
from netwarp_ros.street.objects.tile import build_tile
from netwarp_ros.street.objects.traffic import RoadUser, Traffic
from netwarp_ros.street.render import Surface
from netwarp_ros.street.textures.sky import SKY_FOOT, SKY_SPAN, SKY_TOP

# Chosen so that seed 0, the sample that everybody sees, starts in a fine street in sunshine.
_WEATHER_STREAM, _TILE_STREAM = 13, 23


class Scene:
    """A street and its traffic.

    Args:
        seed: Everything follows from it.
        detail: Texture density relative to that of an image 480 pixels wide.

    Attributes:
        course: Where the street runs.
        weather: Its weather and light.
    """

    def __init__(self, seed: int, detail: float) -> None:
        rng = np.random.default_rng((seed, _WEATHER_STREAM))
        self.course, self.weather = Course(seed, rng), Weather.draw(rng)
        textures = Textures(np.random.default_rng((seed, 2)), detail, self.weather)
        self._seed, self._setting = seed, Setting(self.course, self.weather, textures)
        self._traffic = Traffic(seed, self._setting, rng)
        self._tile = lru_cache(64)(self._build_tile)

    def backdrop(self) -> list[Surface]:
        """Return the sky and the skyline, both infinitely far away; the second hides the first."""
        textures, height = self._setting.textures, SKY_TOP + SKY_FOOT
        return [
            Surface(SKY_KEY, SKY, textures.sky, (1, SKY_SPAN, SKY_TOP), (0, -2 * SKY_SPAN, 0), (0, 0, -height),
                    finite=False),
            Surface(SKYLINE_KEY, TREE, textures.skyline, (1, SKY_SPAN, 0.055), (0, -2 * SKY_SPAN, 0), (0, 0, -0.06),
                    finite=False),
        ]  # fmt: skip

    def tiles(self, time: float) -> list[Geometry]:
        """Return what stands on each tile that the camera may see at a time in seconds."""
        x = CAMERA_SPEED * time
        first, last = int((x - VIEW_BEHIND) // TILE), int((x + VIEW_AHEAD) // TILE)
        return [self._tile(tile) for tile in range(first, last + 1)]

    def road_users(self, time: float) -> list[RoadUser]:
        """Return the road users around the camera at a time in seconds."""
        return self._traffic.around(time)

    def _build_tile(self, tile: int) -> Geometry:
        return build_tile(self._setting, numbered_generator(self._seed, _TILE_STREAM, tile), tile)
