# SPDX-License-Identifier: Apache-2.0
"""Terraces of buildings along the street."""

from __future__ import annotations

import numpy as np

from netwarp_ros.street.ground import PAVEMENT_EDGE, TILE
from netwarp_ros.street.labels import BUILDING, FENCE, SIGN
from netwarp_ros.street.objects.furniture import add_panel
from netwarp_ros.street.objects.geometry import Geometry
from netwarp_ros.street.objects.setting import Setting
from netwarp_ros.street.textures.buildings import House


def add_terrace(geometry: Geometry, setting: Setting, rng: np.random.Generator, start: float, side: int) -> None:
    """Add the buildings of one side of a tile, some with a hanging sign, and perhaps a gap with a fence."""
    course, textures = setting.course, setting.textures
    gap = 2.2 if rng.random() < 0.4 else 0.0
    houses: list[House] = []
    while sum(house.width for house in houses) < TILE - gap - 4:
        houses.append(textures.houses[int(rng.integers(len(textures.houses)))])
    stretch = (TILE - gap) / sum(house.width for house in houses)
    x = start
    for house in houses:
        width = house.width * stretch
        offset = PAVEMENT_EDGE - rng.uniform(0.05, 0.4)
        _add_house(geometry, setting, house, x, width, side, offset)
        if rng.random() < 0.3:
            pose = course.pose(x + width * rng.uniform(0.2, 0.8), side * (offset - 0.55))
            sign = textures.hanging_signs[int(rng.integers(len(textures.hanging_signs)))]
            geometry.add(SIGN, sign, pose.point(0, 0.4, 4.4), pose.vector(0, -0.8, 0), (0, 0, -0.9))
        x += width
    if gap:
        light = setting.weather.facade_light(side)
        add_panel(geometry, setting, FENCE, textures.wooden_fence, x, gap, side * (PAVEMENT_EDGE - 0.05), 2.0, light)


def _add_house(
    geometry: Geometry, setting: Setting, house: House, x: float, width: float, side: int, offset: float
) -> None:
    """Add a building whose front runs from x to x + width, ``offset`` metres from the centre line."""
    near, far = setting.course.pose(x, side * offset), setting.course.pose(x + width, side * offset)
    left, right = (near, far) if side > 0 else (far, near)
    across = (right.x - left.x, right.y - left.y, 0.0)
    height, ridge, light = house.height, house.ridge, setting.weather.facade_light(side)
    geometry.add(BUILDING, house.front, (left.x, left.y, height), across, (0, 0, -height), light, 1)
    if ridge:
        back = side * house.depth / 2
        corner = (left.x, left.y + back, height + ridge)
        geometry.add(BUILDING, house.roof, corner, across, (0, -back, -ridge), 1.0, 1)
        y, top = near.y + back, height + ridge + 1.2
        geometry.add(BUILDING, house.chimney, (x + 0.2, y + 0.5, top), (0, -1, 0), (0, 0, -1.6), 0.85)
        geometry.add(BUILDING, house.chimney, (x + 0.2, y - side * 0.5, top), (0.7, 0, 0), (0, 0, -1.6), light)
    top = height + max(ridge, 0.01)
    back = near.y + (house.depth if side > 0 else 0)
    geometry.add(BUILDING, house.side, (x, back, top), (0, -house.depth, 0), (0, 0, -top), 0.85, 1)
    shaded = side == setting.weather.sun
    strength = 0.08 + 0.47 * (1 - setting.weather.overcast)
    if shaded:  # its front is in the shade, and its shadow falls on the street
        reach = -side * (height + 0.5 * ridge) * 0.75
        slant = 0.35 * abs(reach)
        start, end = x - 0.15, x + width + 0.15  # overlaps the next one's, so that no sunlight falls between
        corners = [(start, near.y), (end, far.y), (end + slant, far.y + reach), (start + slant, near.y + reach)]
        geometry.add_shadow(np.repeat(corners, 2, axis=0), strength)
    foot = [(x, near.y), (x + width, far.y), (x + width, far.y - side * 0.7), (x, near.y - side * 0.7)]
    geometry.add_shadow(np.repeat(foot, 2, axis=0), max(0.25, strength) if shaded else 0.25)
