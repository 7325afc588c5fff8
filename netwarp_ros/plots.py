# SPDX-License-Identifier: Apache-2.0
"""Figures drawn from what ``netwarp evaluate --json`` wrote; they need matplotlib, which nothing else does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


def trimap_curves(files: Sequence[Path]) -> dict[str, dict[int, float]]:
    """Read trimap IoU by band width from result files.

    Returns:
        For each file, by its stem, mean IoU in per cent by width in pixels; widths at which nothing was scored are left
        out.

    Raises:
        ValueError: If a file is no such JSON, or two have the same stem, which is the name of the curve.
    """
    curves = {}
    for file in files:
        try:
            tiou = json.loads(file.read_text(encoding="utf-8"))["tiou"]
            curve = {int(width): float(value) for width, value in tiou.items() if value is not None}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{file} has no trimap IoU (tiou): give what `netwarp evaluate --json` wrote") from error
        if file.stem in curves:
            raise ValueError(f"two files are called {file.stem}, which names their curves: rename one")
        curves[file.stem] = curve
    return curves


def plot_trimap(files: Sequence[Path], output: Path) -> None:
    """Draw trimap IoU over band width, one curve for each result file (the paper's Fig. 4).

    Args:
        files: Results of ``netwarp evaluate --json``, of the host and of the video CNN for instance.
        output: The figure; its ending says the format: ``.png``, ``.svg``, ``.pdf``.

    Raises:
        ValueError: As `trimap_curves`; if matplotlib is missing, or does not know the format.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("plots need matplotlib, which is not installed here: pip install matplotlib") from error

    curves = trimap_curves(files)
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        widths = sorted(curve)
        axes.plot(widths, [curve[width] for width in widths], marker="o", label=name)
    axes.set_xscale("log", base=2)
    ticks = sorted({width for curve in curves.values() for width in curve})
    axes.set_xticks(ticks, [str(width) for width in ticks])
    axes.set_xlabel("trimap width in pixels")
    axes.set_ylabel("mean IoU in %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
