# SPDX-License-Identifier: Apache-2.0
"""How well a network agrees with its targets and with itself, and the guard that ends a training which harms that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

PATIENCE = 5
"""The training ends after this many comparisons in a row that were not better than the best."""

TOLERANCE = 1.1
"""Disagreements that differ by less than this factor are taken as equal: on ten frames, half of that is noise."""

MOVING = 1.0
"""Motion in pixels of the network's input from which on a pixel counts as moving."""


@dataclass(frozen=True)
class Agreement:
    """How a network does on frames that it was not trained on, on the targets' grid, in per cent.

    Attributes:
        consistency: `TemporalConsistency` along the flow that the targets were averaged along; nan if none is trusted.
        static: Pixels of another class than their target, among those that move by less than `MOVING`; nan if none do.
        moving: The same among those that move.
        miou: Mean IoU; nan without labels.
    """

    consistency: float
    static: float
    moving: float
    miou: float

    @property
    def disagreement(self) -> float:
        """Mean of static and moving, so that each counts, however few pixels it has."""
        values = [value for value in (self.static, self.moving) if not math.isnan(value)]
        return sum(values) / len(values) if values else math.nan


class Guard:
    """Watches that the training does not make the masks worse, and keeps the best state.

    The state with the least disagreement is kept; of equal ones (`TOLERANCE`) the latest, as the learning rate falls.
    But one that smears is not: it disagrees with the targets more than the host does, on static or on moving pixels.

    Args:
        host: The host by itself.

    Attributes:
        host: The host by itself.
        checks: What was measured, by number of steps.
        kept: The number of steps of the best state.
    """

    def __init__(self, host: Agreement) -> None:
        self.host, self.checks, self.kept = host, dict[int, Agreement](), 0
        self._best: dict[str, Tensor] = {}
        self._least = math.inf
        self._worse = 0

    def check(self, step: int, agreement: Agreement, state: Mapping[str, Tensor]) -> bool:
        """Look at a state.

        Args:
            step: Number of steps.
            agreement: What was measured.
            state: What is trained, by name.

        Returns:
            Whether to go on: False after `PATIENCE` states in a row that were worse than the best.
        """
        self.checks[step] = agreement
        smears = any(
            now > TOLERANCE * before
            for now, before in ((agreement.static, self.host.static), (agreement.moving, self.host.moving))
        )
        if not self._best or (not smears and agreement.disagreement < TOLERANCE * self._least):
            self.kept, self._worse = step, 0
            self._least = min(self._least, agreement.disagreement)
            self._best = {name: value.detach().clone() for name, value in state.items()}
        else:
            self._worse += 1
        return self._worse < PATIENCE

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Set what is trained to the best state."""
        with torch.no_grad():
            for name, value in state.items():
                value.copy_(self._best[name])
