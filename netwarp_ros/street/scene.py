# SPDX-License-Identifier: Apache-2.0
"""Where everything on the synthetic street stands, and how what moves moves.

The street has no end: what stands on each 40 m of it, and who is the nth car or pedestrian of a stream of traffic,
is drawn from a generator seeded by the street's seed and that number, so any moment can be made without the ones
before it. Moving things are functions of time; asking for one moment's things at another moment's time gives the
motion between the two.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from netwarp_ros.street import textures as paint
from netwarp_ros.street.ground import CROSSING, PARKING, PAVEMENT_EDGE, PLAIN, ROAD_EDGE, TILE
from netwarp_ros.street.render import Surface, Texture

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)

SPEED = 8.0
"""Of the camera, in m/s."""

AHEAD, BEHIND = 170.0, 12.0
"""Metres of street in front of the camera and behind it that are filled."""

# Streams of random numbers, picked so that seed 0, the sample that everybody sees, starts in a fine street in sunshine.
_WEATHER_STREAM, _GROUND_STREAM, _TILE_STREAM = 13, 8, 23

_TREE_SHARES = (0.25, 0.15, 0.2, 0.4)

Vector = tuple[float, float, float]


class Shadow(NamedTuple):
    """A convex shadow on the ground: (8, 2) world corners and its strength from 0 to 1."""

    corners: np.ndarray
    strength: float


class Things(NamedTuple):
    """What a part of the scene consists of."""

    surfaces: list[Surface]
    shadows: list[Shadow]


Actor = Callable[[float], Things]
"""A moving thing: what it consists of at a time in seconds."""


class Axes(NamedTuple):
    """Local axes on the ground: a position and a direction, for things built from forward, left, up."""

    x: float
    y: float
    forward_x: float
    forward_y: float

    def point(self, forward: float, left: float, up: float) -> Vector:
        """World coordinates of a place."""
        return (
            self.x + forward * self.forward_x - left * self.forward_y,
            self.y + forward * self.forward_y + left * self.forward_x,
            up,
        )

    def vector(self, forward: float, left: float, up: float) -> Vector:
        """World components of a displacement."""
        return forward * self.forward_x - left * self.forward_y, forward * self.forward_y + left * self.forward_x, up

    def footprint(self, length: float, width: float) -> np.ndarray:
        """A rectangle with cut corners around the origin."""
        a, b = length / 2, width / 2
        c, d = 0.75 * a, 0.75 * b
        ring = [(-a, -d), (-c, -b), (c, -b), (a, -d), (a, d), (c, b), (-c, b), (-a, d)]
        return np.array([self.point(f, left, 0)[:2] for f, left in ring])


class Scene:
    """A street and its traffic.

    Args:
        seed: Everything follows from it.
        detail: Texture density relative to that of a picture 480 pixels wide.
    """

    def __init__(self, seed: int, detail: float) -> None:
        self._seed = seed
        rng = np.random.default_rng((seed, _WEATHER_STREAM))
        waves = np.array([190.0, 310.0, 470.0]) * rng.uniform(0.85, 1.15, 3)
        steepness = rng.uniform(0.012, 0.05, 3)
        self._axis = np.column_stack([2 * np.pi / waves, steepness * waves / (2 * np.pi), rng.uniform(0, 2 * np.pi, 3)])
        self.sun = float(rng.choice([-1, 1]))  # on the left or the right
        self.overcast = float(rng.beta(0.7, 0.9))
        self.exposure = float(rng.choice([1.12, 0.66], p=[0.8, 0.2]) * rng.uniform(0.85, 1.15))
        glow = rng.uniform(0, 1)
        self.haze: paint.Color = (252 - 10 * glow, 250 - 4 * glow, 244 + 6 * glow)
        self._lead = (rng.random() < 0.6, rng.uniform(18, 30), rng.uniform(3, 7), rng.uniform(0, 2 * np.pi))
        self._draw_textures(np.random.default_rng((seed, 2)), 32 * detail, detail)
        self.tile = lru_cache(64)(self._make_tile)
        self._member = lru_cache(1024)(self._draw_member)

    def _draw_textures(self, rng: np.random.Generator, density: float, detail: float) -> None:
        self._houses = [paint.house(rng, density) for _ in range(16)]
        self._trees = {kind: [paint.tree(rng, density, kind) for _ in range(2)] for kind in paint.TREES}
        self._hedges = [paint.hedge(rng, 8, 1.9, density) for _ in range(2)]
        self._iron = paint.railing(rng, 4, 1.5 * density, iron=True)
        self._guard = paint.railing(rng, 4, 1.5 * density, iron=False)
        self._boards = paint.boards(rng, 4, 2.0, density)
        self._post_grey = paint.post(rng, density, (88, 88, 84), 8)
        self._black_post = paint.post(rng, density, (34, 34, 34), 1)
        self._beacon_post = paint.post(rng, density, (215, 215, 215), 3, bands=True)
        self._globe = paint.globe(density)
        self._signs = [paint.sign(density, painter) for painter in paint.SIGNS]
        self._boards_hung = [paint.board(rng, 0.8, 0.9, density) for _ in range(5)]
        self._directions = [paint.board(rng, 1.6, 1.0, density, paint.DIRECTION_COLORS) for _ in range(3)]
        self._signal = paint.signal(density)
        self._cars = [paint.car(rng, 2.5 * density, paint.CAR_COLORS[k % len(paint.CAR_COLORS)]) for k in range(12)]
        self._clothes = [paint.clothes(rng, 1.5 * density) for _ in range(10)]
        self._riders = [paint.clothes(rng, 1.5 * density, helmet=True) for _ in range(3)]
        self._bicycles = [paint.bicycle(rng, 1.5 * density) for _ in range(3)]
        self._sky = paint.sky(rng, detail, self.overcast, self.haze)
        self._skyline = paint.skyline(rng, detail)

    # --- the way ---------------------------------------------------------------------------------------------------

    def axis(self, x: np.ndarray | np.floating) -> np.ndarray:
        """Y of the street's axis."""
        return sum(height * np.sin(rate * x + phase) for rate, height, phase in self._axis)

    def slope(self, x: float) -> float:
        """Of the street's axis, dy/dx."""
        return float(sum(height * rate * np.cos(rate * x + phase) for rate, height, phase in self._axis))

    def at(self, x: float, offset: float, *, backward: bool = False) -> Axes:
        """Local axes at a place on the street, along it or against it."""
        length = float(np.hypot(1, self.slope(x))) * (-1 if backward else 1)
        return Axes(x, float(self.axis(np.float64(x))) + offset, 1 / length, self.slope(x) / length)

    def kind(self, tile: int) -> int:
        """Kind of ground of a tile."""
        if tile % 4 == 1:
            return CROSSING
        return PARKING if self._rng(_GROUND_STREAM, tile).random() < 0.5 else PLAIN

    def _rng(self, stream: int, number: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, 3, stream, number + 2**31))

    # --- what is there ---------------------------------------------------------------------------------------------

    def backdrop(self) -> list[Surface]:
        """The sky and what stands on the horizon, infinitely far away; the later before the former."""
        span, top = paint.SKY_SPAN, paint.SKY_TOP
        height = top + paint.SKY_FOOT
        return [
            Surface(1, SKY, self._sky, (1, span, top), (0, -2 * span, 0), (0, 0, -height), finite=False),
            Surface(2, TREE, self._skyline, (1, span, 0.055), (0, -2 * span, 0), (0, 0, -0.06), finite=False),
        ]

    def still(self, x: float) -> Things:
        """What stands on the street where a camera at x may see it."""
        tiles = range(int((x - BEHIND) // TILE), int((x + AHEAD) // TILE) + 1)
        parts = [self.tile(tile) for tile in tiles]
        return Things([s for part in parts for s in part.surfaces], [s for part in parts for s in part.shadows])

    def moving(self, time: float) -> list[Actor]:
        """Everybody who moves on the street around the camera at a time."""
        x = SPEED * time
        actors: list[Actor] = []
        present, gap, swing, phase = self._lead
        if present:
            actors.append(partial(self._lead_car, gap=gap, swing=swing, phase=phase))
        # stream, spacing in m, speed in m/s, share of places taken, sight in m, maker
        for stream, spacing, speed, share, sight, make in (
            (10, 31.0, -8.5, 0.6, AHEAD, self._oncoming_car),
            (11, 44.0, 4.6, 0.6, 120.0, self._cyclist),
            (12, 55.0, -4.8, 0.5, 120.0, self._cyclist),
            (13, 9.0, 1.3, 0.4, 100.0, self._pedestrian),
            (14, 10.0, -1.4, 0.4, 100.0, self._pedestrian),
            (15, 9.0, 1.35, 0.4, 100.0, self._pedestrian),
            (16, 10.0, -1.25, 0.4, 100.0, self._pedestrian),
        ):
            first = int((x - BEHIND - speed * time) // spacing)
            last = int((x + sight - speed * time) // spacing)
            for number in range(first, last + 1):
                is_there, jitter, choice, phase = self._member(stream, number)
                if is_there < share:
                    start = (number + 0.4 * jitter) * spacing
                    actors.append(
                        partial(
                            make, stream=stream, number=number, start=start, speed=speed, choice=choice, phase=phase
                        )
                    )
        return actors

    def _draw_member(self, stream: int, number: int) -> tuple[float, float, int, float]:
        rng = self._rng(stream, number)
        return float(rng.random()), float(rng.random()), int(rng.integers(1 << 20)), float(rng.uniform(0, 2 * np.pi))

    # --- tiles -----------------------------------------------------------------------------------------------------

    def _make_tile(self, tile: int) -> Things:
        rng = self._rng(_TILE_STREAM, tile)
        builder = _Builder(tile)
        for side in (1, -1):
            if rng.random() < (0.2 if self.kind(tile) == CROSSING else 0.3):
                self._park(rng, builder, tile * TILE, side)
            else:
                self._terrace(rng, builder, tile * TILE, side)
            self._kerbside(rng, builder, tile, side)
        return Things(builder.surfaces, builder.shadows)

    def _light(self, side: int) -> float:
        """Of what faces the street on a side: the sun shines on the far side from itself."""
        clear = 1 - self.overcast
        return 1.0 + (0.45 if side != self.sun else -0.42) * clear

    def _terrace(self, rng: np.random.Generator, builder: _Builder, start: float, side: int) -> None:
        gap = 2.2 if rng.random() < 0.4 else 0.0
        houses: list[paint.House] = []
        while sum(house.width for house in houses) < TILE - gap - 4:
            houses.append(self._houses[int(rng.integers(len(self._houses)))])
        stretch = (TILE - gap) / sum(house.width for house in houses)
        x = start
        for house in houses:
            width = house.width * stretch
            offset = PAVEMENT_EDGE - rng.uniform(0.05, 0.4)
            self._house(builder, house, x, width, side, offset)
            if rng.random() < 0.3:
                frame = self.at(x + width * rng.uniform(0.2, 0.8), side * (offset - 0.55))
                builder.add(
                    SIGN,
                    self._boards_hung[int(rng.integers(5))],
                    frame.point(0, 0.4, 4.4),
                    frame.vector(0, -0.8, 0),
                    (0, 0, -0.9),
                )
            x += width
        if gap:
            self._along(builder, FENCE, self._boards, x, gap, side * (PAVEMENT_EDGE - 0.05), 2.0, self._light(side))
        if rng.random() < 0.35:
            for x in np.arange(start + rng.uniform(2, 8), start + TILE, 13.0):
                self._tree(rng, builder, float(x), side * (ROAD_EDGE + 0.9), rng.uniform(0.7, 0.95))

    def _house(
        self,
        builder: _Builder,
        house: paint.House,
        x: float,
        width: float,
        side: int,
        offset: float,
    ) -> None:
        near = self.at(x, side * offset)
        far = self.at(x + width, side * offset)
        left, right = (near, far) if side > 0 else (far, near)
        across = (right.x - left.x, right.y - left.y, 0.0)
        height, ridge, light = house.height, house.ridge, self._light(side)
        builder.add(BUILDING, house.front, (left.x, left.y, height), across, (0, 0, -height), light, 1)
        if ridge:
            back = side * house.depth / 2
            builder.add(
                BUILDING, house.roof, (left.x, left.y + back, height + ridge), across, (0, -back, -ridge), 1.0, 1
            )
            y = near.y + back
            stack = house.chimney
            builder.add(BUILDING, stack, (x + 0.2, y + 0.5, height + ridge + 1.2), (0, -1, 0), (0, 0, -1.6), 0.85)
            builder.add(
                BUILDING, stack, (x + 0.2, y - side * 0.5, height + ridge + 1.2), (0.7, 0, 0), (0, 0, -1.6), light
            )
        tall = height + max(ridge, 0.01)
        back = near.y + (house.depth if side > 0 else 0)
        builder.add(BUILDING, house.side, (x, back, tall), (0, -house.depth, 0), (0, 0, -tall), 0.85, 1)
        reach = -side * (height + 0.5 * ridge) * 0.75
        strength = 0.08 + 0.47 * (1 - self.overcast)
        if side == self.sun:
            slant = 0.35 * abs(reach)
            start, end = x - 0.15, x + width + 0.15  # overlaps the neighbour's, so that no sunlight falls between
            corners = [(start, near.y), (end, far.y), (end + slant, far.y + reach), (start + slant, near.y + reach)]
            builder.shadow(np.repeat(corners, 2, axis=0), strength)
        foot = [(x, near.y), (x + width, far.y), (x + width, far.y - side * 0.7), (x, near.y - side * 0.7)]
        builder.shadow(np.repeat(foot, 2, axis=0), max(0.25, strength) if side == self.sun else 0.25)

    def _park(self, rng: np.random.Generator, builder: _Builder, start: float, side: int) -> None:
        for x in np.arange(start, start + TILE, 4.0):
            self._along(builder, FENCE, self._iron, float(x), 4.0, side * (PAVEMENT_EDGE - 0.1), 1.3)
        kind = str(rng.choice(list(self._trees), p=_TREE_SHARES))
        for x in np.arange(start, start + TILE, 8.0):
            hedge = self._hedges[int(rng.integers(len(self._hedges)))]
            height = 1.9 * rng.uniform(0.85, 1.3)
            self._along(
                builder, TREE, hedge, float(x), 8.0, side * (PAVEMENT_EDGE + 0.8), height, 0.9 * self._light(side)
            )
        for row, (offset, spacing) in enumerate(((11.5, 7.0), (17.0, 5.5), (26.0, 5.0))):
            for x in np.arange(start + rng.uniform(0, 3), start + TILE, spacing):
                mixed = kind if rng.random() < 0.6 else None
                self._tree(rng, builder, float(x) + rng.uniform(-1, 1), side * (offset + rng.uniform(-1, 1)),
                           rng.uniform(0.9, 1.25) + 0.25 * row, mixed)  # fmt: skip

    def _tree(
        self,
        rng: np.random.Generator,
        builder: _Builder,
        x: float,
        offset: float,
        scale: float,
        kind: str | None = None,
    ) -> None:
        choices = self._trees[kind or str(rng.choice(list(self._trees), p=_TREE_SHARES))]
        frame = self.at(x, offset)
        width, height = 6 * scale * rng.uniform(0.9, 1.1), 8 * scale
        light = float(rng.uniform(0.8, 1.1))
        picks = rng.integers(len(choices), size=2)
        turned = float(rng.choice([-1, 1]))
        builder.add(
            TREE,
            choices[picks[0]],
            frame.point(0, turned * width / 2, height),
            frame.vector(0, -turned * width, 0),
            (0, 0, -height),
            light,
        )
        if abs(offset) < 14:  # a second crown, turned about, gives the nearer trees depth as the camera passes
            builder.add(
                TREE,
                choices[picks[1]],
                frame.point(0.9, -turned * 0.45 * width, 0.96 * height),
                frame.vector(0, turned * 0.9 * width, 0),
                (0, 0, -0.96 * height),
                0.82 * light,
            )
        builder.shadow(frame.footprint(0.9 * width, 0.8 * width), 0.18 + 0.15 * (1 - self.overcast))

    def _kerbside(self, rng: np.random.Generator, builder: _Builder, tile: int, side: int) -> None:
        start, kind = tile * TILE, self.kind(tile)
        offset = side * (ROAD_EDGE + 0.45)
        self._lamp(builder, start + (6 if side > 0 else 27), offset, side)
        for _ in range(int(rng.integers(1, 4))):
            self._sign_post(rng, builder, start + rng.uniform(1, TILE - 1), offset)
        if kind == CROSSING:
            lights = rng.random() < 0.4
            self._crossing_post(builder, start + (17.6 if side > 0 else 22.4), offset, lights)
            for x in (19.2, 20.6):
                if rng.random() < 0.6:
                    outfit = self._clothes[int(rng.integers(len(self._clothes)))]
                    frame = self.at(start + x, side * (ROAD_EDGE + 0.7))
                    size = float(rng.uniform(0.93, 1.05))
                    builder.take(self._figure(PEDESTRIAN, builder.key(), outfit, frame, 0.0, size))
        if kind != PARKING and rng.random() < 0.6:
            first = start + (24 if kind == CROSSING else rng.uniform(0, 10))
            for x in np.arange(first, first + 4 * rng.integers(2, 4), 4.0):
                self._along(
                    builder,
                    FENCE,
                    self._guard,
                    float(x),
                    4.0,
                    side * (ROAD_EDGE + 0.35),
                    1.05,
                    0.5 + 0.5 * self._light(side),
                )
        if kind == PARKING:
            density = rng.uniform(0.3, 0.95)
            for x in np.arange(start + 3, start + TILE - 2, 5.7):
                if rng.random() < density:
                    shape = self._cars[int(rng.integers(len(self._cars)))]
                    frame = self.at(
                        float(x) + rng.uniform(-0.3, 0.3),
                        side * (ROAD_EDGE - 0.95 + rng.uniform(-0.08, 0.08)),
                        backward=side < 0,
                    )
                    builder.take(self._car(shape, frame, builder.key()))
        elif rng.random() < 0.5:
            for x in np.arange(start + 1.0, start + 13, 2.4):
                self._post(builder, self._black_post, float(x), side * (ROAD_EDGE + 0.55), 0.16, 1.0)

    def _post(self, builder: _Builder, texture: Texture, x: float, offset: float, width: float, height: float) -> Axes:
        frame = self.at(x, offset)
        builder.add(POLE, texture, frame.point(0, width / 2, height), frame.vector(0, -width, 0), (0, 0, -height))
        builder.shadow(frame.footprint(0.5, 0.45), 0.3)
        return frame

    def _lamp(self, builder: _Builder, x: float, offset: float, side: int) -> None:
        frame = self._post(builder, self._post_grey, x, offset, 0.19, 7.2)
        for start, end, low, thick in ((0.0, 1.3, 7.2, 0.09), (0.9, 1.75, 7.28, 0.2)):
            a, b = -side * start, -side * end
            left, right = max(a, b), min(a, b)
            builder.add(
                POLE,
                self._post_grey,
                frame.point(-0.02, left, low + thick),
                frame.vector(0, right - left, 0),
                (0, 0, -thick),
                0.9,
            )
        builder.add(POLE, self._post_grey, frame.point(-0.03, 0.12, 1.3), frame.vector(0, -0.24, 0), (0, 0, -1.3), 0.9)

    def _sign_post(self, rng: np.random.Generator, builder: _Builder, x: float, offset: float) -> None:
        frame = self._post(builder, self._post_grey, x, offset, 0.11, 3.0)
        if rng.random() < 0.12:
            board = self._directions[int(rng.integers(len(self._directions)))]
            builder.add(SIGN, board, frame.point(-0.05, 0.8, 3.1), frame.vector(0, -1.6, 0), (0, 0, -1.0))
            return
        for top in (3.05, 2.3)[: int(rng.integers(1, 3))]:
            picture = self._signs[int(rng.integers(len(self._signs)))]
            builder.add(SIGN, picture, frame.point(-0.05, 0.36, top), frame.vector(0, -0.72, 0), (0, 0, -0.72))

    def _crossing_post(self, builder: _Builder, x: float, offset: float, lights: bool) -> None:
        if lights:
            frame = self._post(builder, self._black_post, x, offset, 0.12, 2.4)
            builder.add(SIGN, self._signal, frame.point(-0.05, 0.2, 3.3), frame.vector(0, -0.4, 0), (0, 0, -1.0))
        else:
            frame = self._post(builder, self._beacon_post, x, offset, 0.13, 2.8)
            builder.add(POLE, self._globe, frame.point(-0.02, 0.2, 3.15), frame.vector(0, -0.4, 0), (0, 0, -0.4))

    def _along(
        self,
        builder: _Builder,
        label: int,
        texture: Texture,
        x: float,
        length: float,
        offset: float,
        height: float,
        light: float = 1.0,
    ) -> None:
        """A panel that stands along the street."""
        near, far = self.at(x, offset), self.at(x + length, offset)
        builder.add(label, texture, (near.x, near.y, height), (length, far.y - near.y, 0), (0, 0, -height), light)

    # --- traffic ---------------------------------------------------------------------------------------------------

    def _lead_car(self, time: float, *, gap: float, swing: float, phase: float) -> Things:
        x = SPEED * time + gap + swing * float(np.sin(0.4 * time + phase))
        return self._car(self._cars[int(phase * 1000) % len(self._cars)], self.at(x, 1.6), _key(9, 0))

    def _oncoming_car(
        self, time: float, *, stream: int, number: int, start: float, speed: float, choice: int, phase: float
    ) -> Things:
        frame = self.at(start + speed * time, -1.6 + 0.1 * float(np.sin(phase)), backward=True)
        return self._car(self._cars[choice % len(self._cars)], frame, _key(stream, number))

    def _car(self, shape: paint.CarShape, frame: Axes, key: int) -> Things:
        point, vector = frame.point, frame.vector
        half, side = shape.length / 2, shape.width / 2
        foot, back, front, nose = shape.glass
        top, waist, inner = shape.height, shape.waist, shape.width / 2 - shape.lean
        clear = 1 - self.overcast
        # A car that comes the other way has the street's left, where the sun is if self.sun > 0, on its right.
        left_light = 0.9 + 0.3 * clear * self.sun * (1 if frame.forward_x > 0 else -1)
        right_light = 1.8 - left_light
        width = (0.0, -shape.width, 0.0)
        # texture, origin, across, down (forward, left, up), light, facing
        parts: list[tuple[Texture, Vector, Vector, Vector, float, int]] = [
            (shape.side, (-half, -side, waist), (shape.length, 0, 0), (0, 0, -waist), right_light, 1),
            (shape.side, (-half, side, waist), (shape.length, 0, 0), (0, 0, -waist), left_light, -1),
            (shape.cabin, (foot, -inner, top), (nose - foot, 0, 0), (0, -shape.lean, waist - top), right_light, 1),
            (shape.cabin, (foot, inner, top), (nose - foot, 0, 0), (0, shape.lean, waist - top), left_light, -1),
            (shape.rear, (-half, side, waist), width, (0, 0, -waist), 0.9, 1),
            (shape.front, (half, -side, shape.nose), (0, shape.width, 0), (0, 0, -shape.nose), 0.95, 1),
            (shape.panel, (front, inner, top), (0, -2 * inner, 0), (back - front, 0, 0), 1.0, 1),
            (shape.panel, (nose, -side, waist), (0, shape.width, 0), (half - nose, 0, shape.nose - waist), 1.0, 1),
            (shape.panel, (foot, side, waist), width, (-half - foot, 0, 0), 1.0, 1),
            (shape.back_glass, (back, side, top), width, (foot - back, 0, waist - top), 1.0, 1),
            (shape.windscreen, (front, -side, top), (0, shape.width, 0), (nose - front, 0, waist - top), 1.05, 1),
        ]
        surfaces = [
            Surface(key + n, CAR, texture, point(*origin), vector(*across), vector(*down), light, facing)
            for n, (texture, origin, across, down, light, facing) in enumerate(parts)
        ]
        shadows = [Shadow(frame.footprint(shape.length + grow, shape.width + grow), strength)
                   for grow, strength in ((0.7, 0.25), (0.35, 0.45), (0.05, 0.75))]  # fmt: skip
        return Things(surfaces, shadows)

    def _pedestrian(
        self, time: float, *, stream: int, number: int, start: float, speed: float, choice: int, phase: float
    ) -> Things:
        side = 1 if stream < 15 else -1
        lane = 6.5 if (speed > 0) == (side > 0) else 7.5
        frame = self.at(start + speed * time, side * (lane + 0.2 * float(np.sin(phase))), backward=speed < 0)
        gait = 2 * np.pi * abs(speed) * time / 1.45 + phase
        outfit = self._clothes[choice % len(self._clothes)]
        return self._figure(
            PEDESTRIAN, _key(stream, number), outfit, frame, float(0.5 * np.sin(gait)), 0.92 + 0.14 * (choice % 97) / 97
        )

    def _figure(self, label: int, key: int, outfit: paint.Clothes, frame: Axes, swing: float, scale: float) -> Things:
        """A person who stands or walks: a trunk, and limbs that swing from hip and shoulder by an angle in radians."""
        toward = 1 if frame.forward_x > 0 else -1  # pictures are laid out from the camera's right to its left
        sine, cosine = float(np.sin(swing)), float(np.cos(swing))
        rise = 0.05 * (cosine - 1)
        surfaces: list[Surface] = []

        def limb(texture: Texture, left: float, up: float, width: float, length: float, sign: int) -> None:
            origin = frame.point(0.02 * toward, toward * (left + width / 2), scale * (up + rise))
            down = frame.vector(sign * scale * length * sine, 0, -scale * length * cosine)
            surfaces.append(
                Surface(key + len(surfaces), label, texture, origin, frame.vector(0, -toward * width, 0), down)
            )

        trunk = frame.point(0, toward * 0.28, scale * (1.75 + rise))
        surfaces.append(
            Surface(
                key,
                label,
                outfit.back if toward > 0 else outfit.front,
                trunk,
                frame.vector(0, -toward * 0.56, 0),
                (0, 0, -scale * 0.95),
            )
        )
        limb(outfit.leg, 0.085, 0.88, 0.2, 0.88, 1)
        limb(outfit.leg, -0.085, 0.88, 0.2, 0.88, -1)
        limb(outfit.arm, 0.235, 1.42, 0.15, 0.62, -1)
        limb(outfit.arm, -0.235, 1.42, 0.15, 0.62, 1)
        return Things(surfaces, [Shadow(frame.footprint(0.7, 0.6), 0.35), Shadow(frame.footprint(0.4, 0.4), 0.55)])

    def _cyclist(
        self, time: float, *, stream: int, number: int, start: float, speed: float, choice: int, phase: float
    ) -> Things:
        x = start + speed * time
        frame = self.at(x, 2.7 if speed > 0 else -2.75, backward=speed < 0)
        toward = 1 if speed > 0 else -1
        outfit = self._riders[choice % len(self._riders)]
        bicycle, wheel = self._bicycles[choice % len(self._bicycles)]
        key = _key(stream, number)
        surfaces: list[Surface] = []

        def add(texture: Texture, origin: Vector, across: Vector, down: Vector, light: float = 1.0) -> None:
            surfaces.append(
                Surface(
                    key + len(surfaces),
                    BICYCLIST,
                    texture,
                    frame.point(*origin),
                    frame.vector(*across),
                    frame.vector(*down),
                    light,
                )
            )

        turn = -abs(speed) * time / 0.34
        cosine, sine = 0.35 * float(np.cos(turn)), 0.35 * float(np.sin(turn))
        for hub in (-0.53, 0.53):
            add(
                wheel,
                (hub - cosine + sine, 0, 0.34 + cosine + sine),
                (2 * cosine, 0, 2 * sine * -1),
                (-2 * sine, 0, -2 * cosine),
            )
            add(self._black_post, (hub, toward * 0.03, 0.68), (0, -toward * 0.06, 0), (0, 0, -0.68))
        add(bicycle, (-0.55, 0, 1.0), (1.1, 0, 0), (0, 0, -1.0))
        add(self._black_post, (0.4, toward * 0.26, 1.03), (0, -toward * 0.52, 0), (0, 0, -0.05))  # handlebar
        pedal = 2.2 * abs(speed) * time / 2 + phase
        for side in (1, -1):
            foot = 0.28 + 0.17 * side * float(np.sin(pedal))
            reach = 0.08 + 0.17 * side * float(np.cos(pedal))
            add(
                outfit.leg,
                (-0.15, toward * (side * 0.1 + 0.1), 1.0),
                (0, -toward * 0.2, 0),
                (reach + 0.15, 0, foot - 1.0),
            )
            add(outfit.arm, (0.1, toward * (side * 0.2 + 0.075), 1.5), (0, -toward * 0.15, 0), (0.3, 0, -0.5))
        add(
            outfit.back if speed > 0 else outfit.front,
            (0.2, toward * 0.28, 1.86),
            (0, -toward * 0.56, 0),
            (-0.33, 0, -0.93),
        )
        return Things(surfaces, [Shadow(frame.footprint(1.9, 0.5), 0.4)])


class _Builder:
    """Gathers the things of a tile and names them."""

    def __init__(self, tile: int) -> None:
        self.surfaces: list[Surface] = []
        self.shadows: list[Shadow] = []
        self._tile = tile

    def key(self) -> int:
        """Key of the next thing."""
        return _key(2, self._tile) + len(self.surfaces)

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
        self.surfaces.append(Surface(self.key(), label, texture, origin, across, down, light, facing))

    def take(self, things: Things) -> None:
        self.surfaces += things.surfaces
        self.shadows += things.shadows

    def shadow(self, corners: np.ndarray, strength: float) -> None:
        self.shadows.append(Shadow(corners, strength))


def _key(stream: int, number: int) -> int:
    """The first of 4096 keys of a thing."""
    return (stream << 48) + ((number + 2**31) << 12)
