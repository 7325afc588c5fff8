# SPDX-License-Identifier: Apache-2.0
"""Textures of what is infinitely far away: the sky and the trees on the horizon."""

from __future__ import annotations

import cv2
import numpy as np

from netwarp_ros.street.render import Texture
from netwarp_ros.street.textures.canvas import Color, noise

SKY_SPAN, SKY_TOP, SKY_FOOT = 1.6, 1.35, 0.25
"""Extent of the sky's texture sideways, upwards and downwards from the horizon's middle, as tangents of angles."""


def draw_sky(rng: np.random.Generator, detail: float, overcast: float, glow: Color) -> Texture:
    """Draw clouds over a horizon of color ``glow``; ``overcast`` goes from 0 (blue, white clouds) to 1 (grey)."""
    rows, columns = round(480 * detail) + 16, round(960 * detail) + 32
    up = np.linspace(SKY_TOP, -SKY_FOOT, rows, dtype=np.float32)[:, None]
    across = np.linspace(-SKY_SPAN, SKY_SPAN, columns, dtype=np.float32)[None]
    # A layer of clouds in perspective. It is a low dome: on a plane, far clouds would be mere streaks.
    height = np.maximum(up, 0) + 0.16
    plane_x, plane_y = across / height, np.broadcast_to(1 / height, (rows, columns))
    field = noise(rng, (512, 512), 96, 6)
    clouds = cv2.remap(field, (plane_x * 70 + 256).astype(np.float32), (plane_y * 70).astype(np.float32),
                       cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)  # fmt: skip
    clouds *= np.clip(up * 4, 0.1, 1)
    cover = 1 / (1 + np.exp(-(clouds * 2.2 - 0.6 + 3.2 * (overcast - 0.45))))
    rise = np.clip(up, 0, 1)[..., None] ** 0.6
    blue = np.array([250, 222, 188], np.float32) * rise + np.array(glow, np.float32) * (1 - rise)
    white = 250 - (8 + 40 * overcast) * np.clip(clouds, -0.4, 1.6)
    grey = np.stack([white + 3, white + 1, white - 2], -1) * (1 - 0.3 * (1 - rise)) + np.array(glow) * 0.3 * (1 - rise)
    image = blue * (1 - cover[..., None]) + grey * cover[..., None]
    return Texture(image.clip(0, 255).astype(np.uint8))


def draw_skyline(rng: np.random.Generator, detail: float) -> Texture:
    """Draw hazy tree tops along the whole horizon, 3.2 x 0.06 in tangents of angles."""
    rows, columns = max(4, round(36 * detail)), round(1800 * detail)
    top = 0.45 + 0.16 * noise(rng, (1, columns), 40 * detail, 5)[0]
    depth = np.linspace(1, 0, rows)[:, None]
    image = np.zeros((rows, columns, 4), np.uint8)
    image[..., :3] = np.clip(
        np.array([112, 114, 112]) + 9 * noise(rng, (rows, columns), 6 * detail, 2)[..., None], 0, 255
    )
    image[..., 3] = np.where(depth < np.clip(top, 0.15, 0.95), 255, 0)
    return Texture(image)
