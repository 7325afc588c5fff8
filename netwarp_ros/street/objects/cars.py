# SPDX-License-Identifier: Apache-2.0
"""Cars, parked or moving."""

from __future__ import annotations

from netwarp_ros.street.labels import CAR
from netwarp_ros.street.objects.geometry import Geometry, Pose, Vector
from netwarp_ros.street.objects.setting import Weather
from netwarp_ros.street.render import Texture
from netwarp_ros.street.textures.vehicles import Car


def add_car(geometry: Geometry, car: Car, pose: Pose, weather: Weather) -> None:
    """Add a car at a pose: two sides, two ends, roof, bonnet, boot and windows."""
    half, side = car.length / 2, car.width / 2
    rear_bottom, rear_top, front_top, front_bottom = car.window_x
    height, waist, roof_side = car.height, car.waist, car.width / 2 - car.lean
    # The sun, if on the street's left, is on the right of a car that comes the other way.
    left_light = 0.9 + 0.3 * (1 - weather.overcast) * weather.sun * (1 if pose.forward_x > 0 else -1)
    right_light = 1.8 - left_light
    along, left, right = (car.length, 0, 0), (0, car.width, 0), (0.0, -car.width, 0.0)
    window = front_bottom - rear_bottom
    # Texture, origin, across, down (forward, left, up), light, facing.
    surfaces: list[tuple[Texture, Vector, Vector, Vector, float, int]] = [
        (car.side, (-half, -side, waist), along, (0, 0, -waist), right_light, 1),
        (car.side, (-half, side, waist), along, (0, 0, -waist), left_light, -1),
        (car.cabin, (rear_bottom, -roof_side, height), (window, 0, 0), (0, -car.lean, waist - height), right_light, 1),
        (car.cabin, (rear_bottom, roof_side, height), (window, 0, 0), (0, car.lean, waist - height), left_light, -1),
        (car.rear, (-half, side, waist), right, (0, 0, -waist), 0.9, 1),
        (car.front, (half, -side, car.nose), left, (0, 0, -car.nose), 0.95, 1),
        (car.panel, (front_top, roof_side, height), (0, -2 * roof_side, 0), (rear_top - front_top, 0, 0), 1.0, 1),
        (car.panel, (front_bottom, -side, waist), left, (half - front_bottom, 0, car.nose - waist), 1.0, 1),
        (car.panel, (rear_bottom, side, waist), right, (-half - rear_bottom, 0, 0), 1.0, 1),
        (car.rear_window, (rear_top, side, height), right, (rear_bottom - rear_top, 0, waist - height), 1.0, 1),
        (car.windscreen, (front_top, -side, height), left, (front_bottom - front_top, 0, waist - height), 1.05, 1),
    ]
    for texture, origin, across, down, light, facing in surfaces:
        geometry.add(CAR, texture, pose.point(*origin), pose.vector(*across), pose.vector(*down), light, facing)
    for margin, strength in ((0.7, 0.25), (0.35, 0.45), (0.05, 0.75)):
        geometry.add_shadow(pose.footprint(car.length + margin, car.width + margin), strength)
