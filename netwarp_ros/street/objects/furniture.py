# SPDX-License-Identifier: Apache-2.0
"""Street furniture: fences, posts, lamps, signs and the beacons and lights of crossings.

``offset`` is in metres to the left of the centre line; ``side`` is 1 for the left of the street and -1 for the right.
"""

from __future__ import annotations

import numpy as np

from netwarp_ros.street.labels import POLE, SIGN
from netwarp_ros.street.objects.geometry import Geometry, Pose
from netwarp_ros.street.objects.setting import Setting
from netwarp_ros.street.render import Texture


def add_panel(
    geometry: Geometry,
    setting: Setting,
    label: int,
    texture: Texture,
    x: float,
    length: float,
    offset: float,
    height: float,
    light: float = 1.0,
) -> None:
    """Add an upright panel along the street from x to x + length: a part of a fence or hedge."""
    near, far = setting.course.pose(x, offset), setting.course.pose(x + length, offset)
    geometry.add(label, texture, (near.x, near.y, height), (length, far.y - near.y, 0), (0, 0, -height), light)


def add_post(
    geometry: Geometry, setting: Setting, texture: Texture, x: float, offset: float, width: float, height: float
) -> Pose:
    """Add a post, and return its pose."""
    pose = setting.course.pose(x, offset)
    geometry.add(POLE, texture, pose.point(0, width / 2, height), pose.vector(0, -width, 0), (0, 0, -height))
    geometry.add_shadow(pose.footprint(0.5, 0.45), 0.3)
    return pose


def add_lamp(geometry: Geometry, setting: Setting, x: float, offset: float, side: int) -> None:
    """Add a street lamp, 7.2 m high, with an arm over the road."""
    texture = setting.textures.grey_post
    pose = add_post(geometry, setting, texture, x, offset, 0.19, 7.2)
    for start, end, bottom, thickness in ((0.0, 1.3, 7.2, 0.09), (0.9, 1.75, 7.28, 0.2)):  # the arm and its lantern
        left, right = max(-side * start, -side * end), min(-side * start, -side * end)
        corner, across = pose.point(-0.02, left, bottom + thickness), pose.vector(0, right - left, 0)
        geometry.add(POLE, texture, corner, across, (0, 0, -thickness), 0.9)
    geometry.add(POLE, texture, pose.point(-0.03, 0.12, 1.3), pose.vector(0, -0.24, 0), (0, 0, -1.3), 0.9)  # the base


def add_sign_post(geometry: Geometry, setting: Setting, rng: np.random.Generator, x: float, offset: float) -> None:
    """Add a post with a direction sign, or with one or two road signs."""
    textures = setting.textures
    pose = add_post(geometry, setting, textures.grey_post, x, offset, 0.11, 3.0)
    if rng.random() < 0.12:
        sign = textures.direction_signs[int(rng.integers(len(textures.direction_signs)))]
        geometry.add(SIGN, sign, pose.point(-0.05, 0.8, 3.1), pose.vector(0, -1.6, 0), (0, 0, -1.0))
        return
    for top in (3.05, 2.3)[: int(rng.integers(1, 3))]:
        sign = textures.road_signs[int(rng.integers(len(textures.road_signs)))]
        geometry.add(SIGN, sign, pose.point(-0.05, 0.36, top), pose.vector(0, -0.72, 0), (0, 0, -0.72))


def add_crossing_post(geometry: Geometry, setting: Setting, x: float, offset: float, *, lights: bool) -> None:
    """Add the post of a crossing, with traffic lights or with a beacon."""
    textures = setting.textures
    if lights:
        pose = add_post(geometry, setting, textures.black_post, x, offset, 0.12, 2.4)
        across = pose.vector(0, -0.4, 0)
        geometry.add(SIGN, textures.traffic_light, pose.point(-0.05, 0.2, 3.3), across, (0, 0, -1.0))
    else:
        pose = add_post(geometry, setting, textures.beacon_post, x, offset, 0.13, 2.8)
        geometry.add(POLE, textures.globe, pose.point(-0.02, 0.2, 3.15), pose.vector(0, -0.4, 0), (0, 0, -0.4))
