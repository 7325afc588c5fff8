# SPDX-License-Identifier: Apache-2.0
"""Where results come from: what was read, and by which versions of what."""

from __future__ import annotations

import hashlib
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from netwarp_ros.ops import compiled


def describe_input(path: Path) -> dict[str, Any]:
    """Tell the path of a file or a folder, its size in bytes, and its SHA-256.

    That of a folder is of one line for each file in it, at any depth, in the order of their names: the file's own
    SHA-256, two spaces, and its path in the folder, as of ``sha256sum``.
    """
    if path.is_file():
        return {"path": str(path), "bytes": path.stat().st_size, "sha256": _digest(path)}
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = "".join(f"{_digest(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
    return {
        "path": str(path),
        "bytes": sum(file.stat().st_size for file in files),
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
    }


def versions() -> dict[str, str]:
    """Tell the versions of Python and of what computes and decodes."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "rosbags": metadata.version("rosbags"),
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Describe what was measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else model,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "operator": "compiled" if device.type in compiled.DEVICES else "plain PyTorch",
        "date": time.strftime("%Y-%m-%d"),
    }


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
