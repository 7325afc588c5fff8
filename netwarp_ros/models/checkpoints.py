# SPDX-License-Identifier: Apache-2.0
"""Files of ``torch.save``: checkpoints, and weights of public networks. Only tensors and plain values are read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from netwarp_ros.resources import cut


class DamagedFileError(ValueError):
    """A file of ``torch.save`` is cut, empty, or holds something else."""


def load_tensors(path: Path, device: torch.device | str = "cpu") -> Any:
    """Load what ``torch.save`` wrote, if it is tensors and plain values: anything else could run code.

    Raises:
        DamagedFileError: The file cannot be loaded.
        OSError: The file cannot be opened.
    """
    with path.open("rb") as file:
        try:
            return torch.load(file, map_location=device, weights_only=True)
        except Exception as error:  # torch.load raises errors of many types, OSError for a cut file among them
            # The first sentence has the reason. After it, PyTorch advises to load the file without weights_only.
            reason = cut(str(error).partition(". ")[0]) or type(error).__name__
            raise DamagedFileError(f"{path} holds more than weights, or is damaged ({reason})") from error


def load_checkpoint(
    path: Path, keys: Collection[str], device: torch.device | str = "cpu", *, belongings: str = ""
) -> Mapping[str, Any]:
    """Load the checkpoint of an interrupted run.

    Args:
        path: The file.
        keys: What it must hold.
        device: Where its tensors go.
        belongings: What else of the run must be removed to start anew, for the error.

    Raises:
        DamagedFileError: The file cannot be loaded, or is the checkpoint of another program.
        OSError: The file cannot be opened.
    """
    way_out = f"it cannot be resumed. To start anew, remove it{belongings and f', {belongings}'}"
    try:
        content = load_tensors(path, device)
    except DamagedFileError as error:
        raise DamagedFileError(f"{error}: {way_out}") from error
    if not isinstance(content, Mapping) or not set(keys) <= content.keys():
        raise DamagedFileError(f"{path} is not a checkpoint of this program: {way_out}")
    return content
