# SPDX-License-Identifier: Apache-2.0
"""People on foot and on bicycles."""

from __future__ import annotations

import numpy as np

from netwarp_ros.street.labels import BICYCLIST, PEDESTRIAN
from netwarp_ros.street.objects.geometry import Geometry, Pose, Vector
from netwarp_ros.street.render import Texture
from netwarp_ros.street.textures.people import Person
from netwarp_ros.street.textures.vehicles import Bicycle


def add_pedestrian(geometry: Geometry, person: Person, pose: Pose, swing: float, scale: float) -> None:
    """Add a person on foot.

    Args:
        geometry: What to add to.
        person: The textures.
        pose: Where the person stands, and the heading.
        swing: Angle of the limbs at hip and shoulder, in radians; 0 when standing.
        scale: Height relative to 1.75 m.
    """
    away = 1 if pose.forward_x > 0 else -1  # seen from behind or from the front
    sine, cosine = float(np.sin(swing)), float(np.cos(swing))
    rise = 0.05 * (cosine - 1)

    def add_limb(texture: Texture, left: float, up: float, width: float, length: float, direction: int) -> None:
        corner = pose.point(0.02 * away, away * (left + width / 2), scale * (up + rise))
        down = pose.vector(direction * scale * length * sine, 0, -scale * length * cosine)
        geometry.add(PEDESTRIAN, texture, corner, pose.vector(0, -away * width, 0), down)

    trunk = person.back if away > 0 else person.front
    corner, across = pose.point(0, away * 0.28, scale * (1.75 + rise)), pose.vector(0, -away * 0.56, 0)
    geometry.add(PEDESTRIAN, trunk, corner, across, (0, 0, -scale * 0.95))
    add_limb(person.leg, 0.085, 0.88, 0.2, 0.88, 1)
    add_limb(person.leg, -0.085, 0.88, 0.2, 0.88, -1)
    add_limb(person.arm, 0.235, 1.42, 0.15, 0.62, -1)
    add_limb(person.arm, -0.235, 1.42, 0.15, 0.62, 1)
    geometry.add_shadow(pose.footprint(0.7, 0.6), 0.35)
    geometry.add_shadow(pose.footprint(0.4, 0.4), 0.55)


def add_cyclist(
    geometry: Geometry,
    rider: Person,
    bicycle: Bicycle,
    post: Texture,
    pose: Pose,
    *,
    away: int,
    wheel_turn: float,
    pedal_turn: float,
) -> None:
    """Add a person on a bicycle.

    Args:
        geometry: What to add to.
        rider: The textures of the person.
        bicycle: The textures of the bicycle.
        post: Texture of its fork and handlebar.
        pose: Where the bicycle is, and the heading.
        away: 1 if it is seen from behind, -1 if from the front.
        wheel_turn: Angle of the wheels, in radians.
        pedal_turn: Angle of the pedals, in radians.
    """

    def add(texture: Texture, origin: Vector, across: Vector, down: Vector) -> None:
        geometry.add(BICYCLIST, texture, pose.point(*origin), pose.vector(*across), pose.vector(*down))

    cosine, sine = 0.35 * float(np.cos(wheel_turn)), 0.35 * float(np.sin(wheel_turn))
    for hub in (-0.53, 0.53):
        corner = (hub - cosine + sine, 0, 0.34 + cosine + sine)
        add(bicycle.wheel, corner, (2 * cosine, 0, -2 * sine), (-2 * sine, 0, -2 * cosine))
        add(post, (hub, away * 0.03, 0.68), (0, -away * 0.06, 0), (0, 0, -0.68))  # the fork
    add(bicycle.frame, (-0.55, 0, 1.0), (1.1, 0, 0), (0, 0, -1.0))
    add(post, (0.4, away * 0.26, 1.03), (0, -away * 0.52, 0), (0, 0, -0.05))  # the handlebar
    for side in (1, -1):
        foot = 0.28 + 0.17 * side * float(np.sin(pedal_turn))
        reach = 0.08 + 0.17 * side * float(np.cos(pedal_turn))
        leg, arm = (-0.15, away * (side * 0.1 + 0.1), 1.0), (0.1, away * (side * 0.2 + 0.075), 1.5)
        add(rider.leg, leg, (0, -away * 0.2, 0), (reach + 0.15, 0, foot - 1.0))
        add(rider.arm, arm, (0, -away * 0.15, 0), (0.3, 0, -0.5))
    trunk = rider.back if away > 0 else rider.front
    add(trunk, (0.2, away * 0.28, 1.86), (0, -away * 0.56, 0), (-0.33, 0, -0.93))
    geometry.add_shadow(pose.footprint(1.9, 0.5), 0.4)
