# SPDX-License-Identifier: Apache-2.0
"""Class ids of the synthetic street: CamVid's eleven classes, without void."""

from __future__ import annotations

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
