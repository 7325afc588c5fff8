# SPDX-License-Identifier: Apache-2.0
"""``netwarp train``: train a model by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netwarp_ros.cli.printing import say


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The training recipe.")],
) -> None:
    """Train an image CNN or a video CNN by a recipe. If a run was interrupted, the same command continues it."""
    from netwarp_ros.training import trainer
    from netwarp_ros.training.config import load_config

    say(f"weights in {trainer.train(load_config(config))}")
