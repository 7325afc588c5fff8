# SPDX-License-Identifier: Apache-2.0
"""``netwarp models``: the models that the package ships."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from netwarp_ros.cli.printing import plain_console, say


def models() -> None:
    """List the models that the package ships."""
    from netwarp_ros.models import DEFAULT_MODEL, read_spec, shipped_models
    from netwarp_ros.models.weights import find_weights, int8_file

    table, described = Table(), []
    table.add_column("model", no_wrap=True)
    for title in ("NetWarp at", "classes", "MB", "int8, MB"):
        table.add_column(title)
    for name in shipped_models():
        path = find_weights(name)
        spec = read_spec(path)
        table.add_row(
            f"{name}\n(default)" if name == DEFAULT_MODEL else name,
            ", ".join(spec.netwarp.layers) if spec.netwarp else "none",
            spec.classes.name,
            _megabytes(path),
            _megabytes(int8_file(path)) or "none",
        )
        notes = {"host": spec.host, **spec.notes}
        described.append("\n".join([name, *(f"  {key}: {value}" for key, value in notes.items())]))
    if not described:
        say("This package holds no weights; train a model with `netwarp train`.")
        return
    plain_console().print(table)
    for lines in described:
        say(lines)


def _megabytes(path: Path) -> str:
    """Return the size of a file; empty if there is none."""
    return f"{path.stat().st_size / 1e6:.1f}" if path.is_file() else ""
