# SPDX-License-Identifier: Apache-2.0
"""``netwarp models``: the models that the package ships."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from netwarp_ros.cli.printing import plain_console


def models() -> None:
    """List the models that the package ships."""
    from netwarp_ros.models import DEFAULT_MODEL, read_spec, shipped_models
    from netwarp_ros.models.weights import find_weights, int8_file

    table = Table("model", "host", "NetWarp at", "classes", "MB", "int8, MB", "notes")
    for name in shipped_models():
        path = find_weights(name)
        spec = read_spec(path)
        table.add_row(
            f"{name} (default)" if name == DEFAULT_MODEL else name,
            spec.host,
            ", ".join(spec.netwarp.layers) if spec.netwarp else "none",
            spec.classes.name,
            _megabytes(path),
            _megabytes(int8_file(path)) or "none",
            "\n".join(f"{key}: {value}" for key, value in spec.notes.items()),
        )
    plain_console().print(
        table if table.row_count else "This package holds no weights; train a model with `netwarp train`."
    )


def _megabytes(path: Path) -> str:
    """Return the size of a file; empty if there is none."""
    return f"{path.stat().st_size / 1e6:.1f}" if path.is_file() else ""
