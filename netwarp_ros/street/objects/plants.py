# SPDX-License-Identifier: Apache-2.0
"""Trees, hedges and parks."""

from __future__ import annotations

import numpy as np

from netwarp_ros.street.ground import PAVEMENT_EDGE, ROAD_EDGE, TILE
from netwarp_ros.street.labels import FENCE, TREE
from netwarp_ros.street.objects.furniture import add_panel
from netwarp_ros.street.objects.geometry import Geometry
from netwarp_ros.street.objects.setting import Setting
from netwarp_ros.street.textures.plants import TREE_KINDS

_TREE_PROBABILITIES = (0.25, 0.15, 0.2, 0.4)
"""Of the kinds in `TREE_KINDS`."""


def add_street_trees(geometry: Geometry, setting: Setting, rng: np.random.Generator, start: float, side: int) -> None:
    """Add trees on the pavement of some tiles."""
    if rng.random() < 0.35:
        for x in np.arange(start + rng.uniform(2, 8), start + TILE, 13.0):
            _add_tree(geometry, setting, rng, float(x), side * (ROAD_EDGE + 0.9), rng.uniform(0.7, 0.95))


def add_park(geometry: Geometry, setting: Setting, rng: np.random.Generator, start: float, side: int) -> None:
    """Add one side of a tile as a park: a railing, a hedge and three rows of trees."""
    textures = setting.textures
    for x in np.arange(start, start + TILE, 4.0):
        add_panel(geometry, setting, FENCE, textures.iron_railing, float(x), 4.0, side * (PAVEMENT_EDGE - 0.1), 1.3)
    main_kind = _pick_kind(rng)
    light = 0.9 * setting.weather.facade_light(side)
    for x in np.arange(start, start + TILE, 8.0):
        hedge = textures.hedges[int(rng.integers(len(textures.hedges)))]
        height = 1.9 * rng.uniform(0.85, 1.3)
        add_panel(geometry, setting, TREE, hedge, float(x), 8.0, side * (PAVEMENT_EDGE + 0.8), height, light)
    for row, (offset, spacing) in enumerate(((11.5, 7.0), (17.0, 5.5), (26.0, 5.0))):
        for x in np.arange(start + rng.uniform(0, 3), start + TILE, spacing):
            kind = main_kind if rng.random() < 0.6 else None
            place = float(x) + rng.uniform(-1, 1), side * (offset + rng.uniform(-1, 1))
            _add_tree(geometry, setting, rng, *place, rng.uniform(0.9, 1.25) + 0.25 * row, kind)


def _add_tree(
    geometry: Geometry,
    setting: Setting,
    rng: np.random.Generator,
    x: float,
    offset: float,
    scale: float,
    kind: str | None = None,
) -> None:
    """Add a tree of a kind, or of a random one, ``scale`` times 8 m high."""
    textures = setting.textures.trees[kind or _pick_kind(rng)]
    pose = setting.course.pose(x, offset)
    width, height = 6 * scale * rng.uniform(0.9, 1.1), 8 * scale
    light = float(rng.uniform(0.8, 1.1))
    first, second = rng.integers(len(textures), size=2)
    mirror = float(rng.choice([-1, 1]))
    corner, across = pose.point(0, mirror * width / 2, height), pose.vector(0, -mirror * width, 0)
    geometry.add(TREE, textures[first], corner, across, (0, 0, -height), light)
    if abs(offset) < 14:  # a second crown behind the first gives the nearer trees depth as the camera passes
        corner, across = pose.point(0.9, -mirror * 0.45 * width, 0.96 * height), pose.vector(0, mirror * 0.9 * width, 0)
        geometry.add(TREE, textures[second], corner, across, (0, 0, -0.96 * height), 0.82 * light)
    geometry.add_shadow(pose.footprint(0.9 * width, 0.8 * width), 0.18 + 0.15 * (1 - setting.weather.overcast))


def _pick_kind(rng: np.random.Generator) -> str:
    return str(rng.choice(TREE_KINDS, p=_TREE_PROBABILITIES))
