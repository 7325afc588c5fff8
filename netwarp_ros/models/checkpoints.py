# SPDX-License-Identifier: Apache-2.0
"""Files of ``torch.save``: checkpoints, and weights of public networks. Only tensors and plain values are read."""

from __future__ import annotations

import re
import warnings
import zipfile
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
        _check_archive(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a file that is refused, the error says enough
                return torch.load(file, map_location=device, weights_only=True)
        except Exception as error:  # torch.load raises errors of many types, OSError for a cut file among them
            raise DamagedFileError(f"{path} holds more than weights, or is damaged ({_reason(error)})") from error


def _check_archive(path: Path) -> None:
    """Check that a zip file has its records as they are: torch.save does not compress them.

    Raises:
        DamagedFileError: They could be larger in memory than the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # not a zip file, or a damaged one: torch.load will tell
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise DamagedFileError(f"{path} is a zip archive with compressed records, which torch.save does not write")


def _reason(error: Exception) -> str:
    """Return why PyTorch does not load a file: without its colors, and its advice to load it without weights_only."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    if refused := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it holds {cut(refused[1], 100)}, which could run code"
    if "TorchScript" in text:
        return "it is a TorchScript archive"
    if "Weights only load failed" in text:
        return "it is not a file of torch.save with tensors and plain values only"
    sentence = re.sub(r"\[enforce fail at [^\]]*\][. ]*", "", text).partition(". ")[0]
    return cut(sentence) if re.search("[a-z]{3}", sentence) else type(error).__name__


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
