# SPDX-License-Identifier: Apache-2.0
"""What stands on one tile of the street, both sides of it."""

from __future__ import annotations

import numpy as np

from netwarp_ros.street.ground import CROSSING, PARKING, ROAD_EDGE, TILE
from netwarp_ros.street.labels import FENCE
from netwarp_ros.street.objects.buildings import add_terrace
from netwarp_ros.street.objects.cars import add_car
from netwarp_ros.street.objects.furniture import add_crossing_post, add_lamp, add_panel, add_post, add_sign_post
from netwarp_ros.street.objects.geometry import Geometry
from netwarp_ros.street.objects.people import add_pedestrian
from netwarp_ros.street.objects.plants import add_park, add_street_trees
from netwarp_ros.street.objects.setting import Setting

_KEY_GROUP = 2


def build_tile(setting: Setting, rng: np.random.Generator, tile: int) -> Geometry:
    """Return the objects that stand on a tile.

    Args:
        setting: Of the street.
        rng: Source of what stands where.
        tile: Its number; it starts at x = ``TILE * tile``.
    """
    geometry, start, kind = Geometry(_KEY_GROUP, tile), tile * TILE, setting.course.ground_kind(tile)
    for side in (1, -1):
        if rng.random() < (0.2 if kind == CROSSING else 0.3):
            add_park(geometry, setting, rng, start, side)
        else:
            add_terrace(geometry, setting, rng, start, side)
            add_street_trees(geometry, setting, rng, start, side)
        _add_kerbside(geometry, setting, rng, start, side, kind)
    return geometry


def _add_kerbside(
    geometry: Geometry, setting: Setting, rng: np.random.Generator, start: float, side: int, kind: int
) -> None:
    """Add what stands at the kerb: a lamp, signs, and what the kind of ground asks for."""
    offset = side * (ROAD_EDGE + 0.45)
    add_lamp(geometry, setting, start + (6 if side > 0 else 27), offset, side)
    for _ in range(int(rng.integers(1, 4))):
        add_sign_post(geometry, setting, rng, start + rng.uniform(1, TILE - 1), offset)
    if kind == CROSSING:
        _add_crossing(geometry, setting, rng, start, side, offset)
    if kind != PARKING and rng.random() < 0.6:
        texture, light = setting.textures.guard_rail, 0.5 + 0.5 * setting.weather.facade_light(side)
        first = start + (24 if kind == CROSSING else rng.uniform(0, 10))
        for x in np.arange(first, first + 4 * rng.integers(2, 4), 4.0):
            add_panel(geometry, setting, FENCE, texture, float(x), 4.0, side * (ROAD_EDGE + 0.35), 1.05, light)
    if kind == PARKING:
        _add_parked_cars(geometry, setting, rng, start, side)
    elif rng.random() < 0.5:  # bollards
        for x in np.arange(start + 1.0, start + 13, 2.4):
            add_post(geometry, setting, setting.textures.black_post, float(x), side * (ROAD_EDGE + 0.55), 0.16, 1.0)


def _add_crossing(
    geometry: Geometry, setting: Setting, rng: np.random.Generator, start: float, side: int, offset: float
) -> None:
    """Add the post of a crossing and the people who wait there."""
    lights = bool(rng.random() < 0.4)
    add_crossing_post(geometry, setting, start + (17.6 if side > 0 else 22.4), offset, lights=lights)
    people = setting.textures.people
    for x in (19.2, 20.6):
        if rng.random() < 0.6:
            person = people[int(rng.integers(len(people)))]
            pose = setting.course.pose(start + x, side * (ROAD_EDGE + 0.7))
            add_pedestrian(geometry, person, pose, 0.0, float(rng.uniform(0.93, 1.05)))


def _add_parked_cars(geometry: Geometry, setting: Setting, rng: np.random.Generator, start: float, side: int) -> None:
    cars = setting.textures.cars
    occupancy = rng.uniform(0.3, 0.95)
    for x in np.arange(start + 3, start + TILE - 2, 5.7):
        if rng.random() < occupancy:
            car = cars[int(rng.integers(len(cars)))]
            x_car = float(x) + rng.uniform(-0.3, 0.3)
            offset = side * (ROAD_EDGE - 0.95 + rng.uniform(-0.08, 0.08))
            add_car(geometry, car, setting.course.pose(x_car, offset, backward=side < 0), setting.weather)
