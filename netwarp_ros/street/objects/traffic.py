# SPDX-License-Identifier: Apache-2.0
"""Road users who move: cars, cyclists and pedestrians, as functions of time."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from netwarp_ros.street.objects.cars import add_car
from netwarp_ros.street.objects.geometry import Geometry
from netwarp_ros.street.objects.people import add_cyclist, add_pedestrian
from netwarp_ros.street.objects.setting import CAMERA_SPEED, VIEW_AHEAD, VIEW_BEHIND, Setting, numbered_generator

RoadUser = Callable[[float], Geometry]
"""The geometry of a road user at a time in seconds."""

_LEAD_CAR_GROUP = 9


class _Stream(NamedTuple):
    """Road users of one type that follow one another at one speed.

    Attributes:
        number: Of the stream; names its random numbers and its surfaces' keys.
        type: ``car``, ``cyclist`` or ``pedestrian``.
        side: Of the street: 1 for the left, -1 for the right.
        spacing: Distance from one place in the stream to the next, in metres.
        speed: In m/s, negative towards the camera.
        occupancy: Probability that a place is taken.
        sight: Distance in metres up to which its members are drawn.
    """

    number: int
    type: str
    side: int
    spacing: float
    speed: float
    occupancy: float
    sight: float


_STREAMS = (
    _Stream(10, "car", -1, 31.0, -8.5, 0.6, VIEW_AHEAD),
    _Stream(11, "cyclist", 1, 44.0, 4.6, 0.6, 120.0),
    _Stream(12, "cyclist", -1, 55.0, -4.8, 0.5, 120.0),
    _Stream(13, "pedestrian", 1, 9.0, 1.3, 0.4, 100.0),
    _Stream(14, "pedestrian", 1, 10.0, -1.4, 0.4, 100.0),
    _Stream(15, "pedestrian", -1, 9.0, 1.35, 0.4, 100.0),
    _Stream(16, "pedestrian", -1, 10.0, -1.25, 0.4, 100.0),
)


class _Member(NamedTuple):
    """What is random about one place in a stream.

    Attributes:
        occupied: The place is taken if this is less than the stream's occupancy.
        jitter: Shift along the street, as a fraction of 0.4 spacings.
        choice: Picks the textures.
        phase: Of what repeats over time, in radians.
    """

    occupied: float
    jitter: float
    choice: int
    phase: float


class Traffic:
    """All road users of a street.

    Args:
        seed: Of the streams.
        setting: Of the street.
        rng: Source of the car in front of the camera.
    """

    def __init__(self, seed: int, setting: Setting, rng: np.random.Generator) -> None:
        self._seed, self._setting = seed, setting
        self._has_lead_car = bool(rng.random() < 0.6)
        self._lead_gap, self._lead_swing = rng.uniform(18, 30), rng.uniform(3, 7)
        self._lead_phase = rng.uniform(0, 2 * np.pi)
        self._member = lru_cache(1024)(self._draw_member)
        self._make = {"car": self._car, "cyclist": self._cyclist, "pedestrian": self._pedestrian}

    def around(self, time: float) -> list[RoadUser]:
        """Return the road users around the camera at a time in seconds."""
        x = CAMERA_SPEED * time
        users: list[RoadUser] = [self._lead_car] if self._has_lead_car else []
        for stream in _STREAMS:
            first = int((x - VIEW_BEHIND - stream.speed * time) // stream.spacing)
            last = int((x + stream.sight - stream.speed * time) // stream.spacing)
            for number in range(first, last + 1):
                if self._member(stream, number).occupied < stream.occupancy:
                    users.append(partial(self._make[stream.type], stream, number))
        return users

    def _draw_member(self, stream: _Stream, number: int) -> _Member:
        rng = numbered_generator(self._seed, stream.number, number)
        return _Member(rng.random(), rng.random(), int(rng.integers(1 << 20)), rng.uniform(0, 2 * np.pi))

    def _x(self, stream: _Stream, number: int, time: float) -> float:
        start = (number + 0.4 * self._member(stream, number).jitter) * stream.spacing
        return start + stream.speed * time

    def _lead_car(self, time: float) -> Geometry:
        geometry, cars = Geometry(_LEAD_CAR_GROUP, 0), self._setting.textures.cars
        x = CAMERA_SPEED * time + self._lead_gap + self._lead_swing * float(np.sin(0.4 * time + self._lead_phase))
        car = cars[int(self._lead_phase * 1000) % len(cars)]
        add_car(geometry, car, self._setting.course.pose(x, 1.6), self._setting.weather)
        return geometry

    def _car(self, stream: _Stream, number: int, time: float) -> Geometry:
        geometry, member = Geometry(stream.number, number), self._member(stream, number)
        cars = self._setting.textures.cars
        offset = -1.6 + 0.1 * float(np.sin(member.phase))
        pose = self._setting.course.pose(self._x(stream, number, time), offset, backward=True)
        add_car(geometry, cars[member.choice % len(cars)], pose, self._setting.weather)
        return geometry

    def _pedestrian(self, stream: _Stream, number: int, time: float) -> Geometry:
        geometry, member = Geometry(stream.number, number), self._member(stream, number)
        lane = 6.5 if (stream.speed > 0) == (stream.side > 0) else 7.5
        offset = stream.side * (lane + 0.2 * float(np.sin(member.phase)))
        pose = self._setting.course.pose(self._x(stream, number, time), offset, backward=stream.speed < 0)
        gait = 2 * np.pi * abs(stream.speed) * time / 1.45 + member.phase
        people = self._setting.textures.people
        person, scale = people[member.choice % len(people)], 0.92 + 0.14 * (member.choice % 97) / 97
        add_pedestrian(geometry, person, pose, float(0.5 * np.sin(gait)), scale)
        return geometry

    def _cyclist(self, stream: _Stream, number: int, time: float) -> Geometry:
        geometry, member = Geometry(stream.number, number), self._member(stream, number)
        textures, speed = self._setting.textures, stream.speed
        x, offset = self._x(stream, number, time), 2.7 if stream.side > 0 else -2.75
        add_cyclist(
            geometry,
            textures.riders[member.choice % len(textures.riders)],
            textures.bicycles[member.choice % len(textures.bicycles)],
            textures.black_post,
            self._setting.course.pose(x, offset, backward=speed < 0),
            away=1 if speed > 0 else -1,
            wheel_turn=-abs(speed) * time / 0.34,
            pedal_turn=2.2 * abs(speed) * time / 2 + member.phase,
        )
        return geometry
