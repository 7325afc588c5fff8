# SPDX-License-Identifier: Apache-2.0
"""Where results come from: input files, library versions, and the machine."""

from __future__ import annotations

import hashlib
import platform
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from netwarp_ros.ops import compiled
from netwarp_ros.resources import sha256


def describe_input(path: Path) -> dict[str, Any]:
    """Return the ``path`` of a file or folder, its size in ``bytes``, and its ``sha256``.

    The SHA-256 of a folder is that of a list of all files under it, sorted by path, as ``sha256sum`` prints it: SHA-256
    of the file, two spaces, and its path within the folder.
    """
    if path.is_file():
        return {"path": str(path), "bytes": path.stat().st_size, "sha256": sha256(path)}
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = "".join(f"{sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
    return {
        "path": str(path),
        "bytes": sum(file.stat().st_size for file in files),
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decode and compute."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        **{name: metadata.version(name) for name in ("simplejpeg", "av", "rosbags") if find_spec(name)},
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Describe the machine and the settings that times depend on."""
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
