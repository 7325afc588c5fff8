# SPDX-License-Identifier: Apache-2.0
"""Where the files of `config/` are.

colcon and pip install `config/` inside the Python package; in the source tree it lies beside the package.
"""

from __future__ import annotations

from pathlib import Path


def resource(*parts: str) -> Path:
    """Find a file or a folder of `config/`.

    Args:
        *parts: Its path inside `config/`, such as `"classes", "camvid.yaml"`.

    Returns:
        Its path in the installed package or, run from the source tree, in the tree's `config/`.

    Raises:
        FileNotFoundError: Neither has it; the message names what the folder holds instead.
    """
    package = Path(__file__).parent
    config = next((path for path in (package / "config", package.parent / "config") if path.is_dir()), None)
    if config is None:
        raise FileNotFoundError(f"no config/ in {package} or beside it: is netwarp_ros installed in full?")
    path = config.joinpath(*parts)
    if not path.exists():
        held = ", ".join(sorted(other.name for other in path.parent.glob("*"))) or "nothing"
        raise FileNotFoundError(f"no {path.name!r} in {path.parent}, which holds {held}")
    return path
