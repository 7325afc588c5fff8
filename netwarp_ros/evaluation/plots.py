# SPDX-License-Identifier: Apache-2.0
"""Figures of evaluations and benchmarks. They need matplotlib, which is imported only here and by reports."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from netwarp_ros.evaluation.result_files import FramesFile
from netwarp_ros.evaluation.results import FrameRecord
from netwarp_ros.recordings.atomic import replacing, written_by
from netwarp_ros.resources import cut
from netwarp_ros.segmenter import Reset

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 2000
"""Greatest number of points of a line over time, and of resets: two for each pixel of a screen."""

_COLORS = ("#0b6e99", "#e07a1f", "#5a9e4b", "#a0457e", "#707070")
_RESET = "#c62828"
_MARK = written_by("plot")
_METADATA = {".png": "Software", ".svg": "Creator", ".pdf": "Creator"}
"""Where matplotlib writes the name of the program, by format."""


def trimap_curves(files: Sequence[Path]) -> dict[str, dict[int, float]]:
    """Read trimap IoU by band width from result files.

    Returns:
        For the stem of each file: mean IoU in per cent by width in pixels, without widths that have no score.

    Raises:
        ValueError: If a file has no trimap IoU, or two files have the same stem, which names the curve.
    """
    curves = {}
    for file in files:
        try:
            tiou = FramesFile(file).head["tiou"]
            curve = {int(width): float(value) for width, value in tiou.items() if value is not None}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{file} has no trimap IoU (tiou): give a file of `netwarp evaluate --json`") from error
        if file.stem in curves:
            raise ValueError(f"two files are called {file.stem}, which names their curves: rename one")
        curves[file.stem] = curve
    return curves


def plot_trimap(files: Sequence[Path], output: Path) -> None:
    """Draw trimap IoU over the width of the trimap, one curve for each file of results (the paper's Fig. 4).

    Args:
        files: Files written by ``netwarp evaluate --json``, such as one of the host and one of the video CNN.
        output: The figure, in the format of its ending: ``.png``, ``.svg`` or ``.pdf``.

    Raises:
        FileExistsError: There is a file that `netwarp plot` did not write.
        ValueError: As `trimap_curves`; if matplotlib is not installed, or does not know the format.
    """
    _save(trimap_figure(trimap_curves(files)), output)


def trimap_figure(curves: Mapping[str, Mapping[int, float]]) -> Figure:
    """Draw trimap IoU in per cent over the width of the trimap in pixels.

    Raises:
        ValueError: If matplotlib is not installed.
    """
    figure = _figure(5, 3.5)
    axes = figure.add_subplot()
    for (name, curve), color in zip(curves.items(), cycle(_COLORS)):
        widths = sorted(curve)
        axes.plot(widths, [curve[width] for width in widths], marker="o", color=color, label=name)
    axes.set_xscale("log", base=2)
    ticks = sorted({width for curve in curves.values() for width in curve})
    axes.set_xticks(ticks, [str(width) for width in ticks])
    axes.set_xlabel("trimap width in pixels")
    axes.set_ylabel("mean IoU in %")
    axes.legend(frameon=False)
    _tidy(axes)
    return figure


def timeline_figure(records: Sequence[FrameRecord]) -> Figure:
    """Draw durations and scores of frames over the time of their stamps; resets of the memory are dotted lines.

    Of a long recording, no more is drawn than can be seen: `MAX_POINTS` resets, and about as many points of a line.

    Args:
        records: At least one frame. Each camera is a line of its own.

    Raises:
        ValueError: If matplotlib is not installed.
    """
    disagreement = _series(records, "disagreement")
    name = "NetWarp" if disagreement else "mask"
    panels = [
        (title, lines)
        for title, lines in (
            ("ms", {"work": _series(records, "total_ms"), "age": _series(records, "age_ms")}),
            ("mean IoU in %", {name: _series(records, "miou"), "host": _series(records, "host_miou")}),
            ("consistency in %", {name: _series(records, "tc"), "host": _series(records, "host_tc")}),
            ("disagreement in %", {"with the host": disagreement}),
        )
        if any(lines.values())
    ]
    first_ns = min(record.stamp_ns for record in records)
    duration = (max(record.stamp_ns for record in records) - first_ns) * 1e-9
    reset_at = ((record.stamp_ns - first_ns) * 1e-9 for record in records if record.reason not in ("", Reset.HOST_ONLY))
    step = duration / MAX_POINTS or 1.0
    resets = list({int(seconds / step): seconds for seconds in reset_at}.values())
    figure = _figure(10, 1.8 * len(panels) + 0.4)
    from matplotlib.collections import LineCollection

    all_axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (title, lines) in zip(all_axes, panels, strict=True):
        for (name, cameras), color in zip(lines.items(), _COLORS, strict=False):
            for number, points in enumerate(cameras):
                stamps_ns, values = _thinned(points).T
                seconds, label = (stamps_ns - first_ns) * 1e-9, None if number else name
                axes.plot(seconds, values, color=color, linewidth=1, label=label)
        marks = LineCollection([[(at, 0), (at, 1)] for at in resets], colors=_RESET, linewidths=0.8, linestyles=":")
        marks.set_transform(axes.get_xaxis_transform())
        axes.add_collection(marks, autolim=False)
        axes.set_ylabel(title)
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.97), ncols=2, borderpad=0)
        _tidy(axes)
    all_axes[-1].set_xlabel("time in s")
    figure.align_ylabels()
    return figure


def plot_node(file: Path, output: Path) -> None:
    """Draw the age of masks over the rate of the images, a panel for each number of cameras and size.

    Args:
        file: Written by ``netwarp benchmark node --json``.
        output: The figure, in the format of its ending: ``.png``, ``.svg`` or ``.pdf``.

    Raises:
        FileExistsError: There is a file that `netwarp plot` did not write.
        ValueError: If the file has no runs; if matplotlib is not installed, or does not know the format.
    """
    try:
        figure = node_figure(json.loads(file.read_text(encoding="utf-8"))["runs"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{file} has no runs ({cut(str(error))}): give a file of `netwarp benchmark node --json`"
        ) from error
    _save(figure, output)


def _save(figure: Figure, output: Path) -> None:
    key = _METADATA.get(output.suffix.lower())
    with replacing(output, _MARK) as temporary:
        figure.savefig(temporary, dpi=150, metadata={key: _MARK} if key else None)


def node_figure(runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the age of masks in ms over the rate of the images: the median as a line, up to p99 as an area.

    Peak rates are stars.

    Args:
        runs: As in the JSON of ``netwarp benchmark node``.

    Raises:
        ValueError: If no run has a mask, or matplotlib is not installed.
    """
    runs = [run for run in runs if run["stages_ms"]]
    cameras = sorted({run["cameras"] for run in runs})
    sizes = sorted({(run["width"], run["height"]) for run in runs})
    ticks = sorted({run["rate"] for run in runs if not run["peak"]})
    if not runs:
        raise ValueError("no mask came out in any run")
    figure = _figure(3.4 * len(cameras), 2.6 * len(sizes))
    panels = figure.subplots(len(sizes), len(cameras), sharex=True, sharey=True, squeeze=False)
    for (row, (width, height)), (column, number) in product(enumerate(sizes), enumerate(cameras)):
        axes = panels[row, column]
        here = [run for run in runs if (run["cameras"], run["width"], run["height"]) == (number, width, height)]
        for system, color in zip(dict.fromkeys(run["system"] for run in runs), _COLORS, strict=False):
            ours = sorted((run for run in here if run["system"] == system), key=lambda run: run["rate"])
            rates = [run["rate"] for run in ours]
            median, highest = ([run["stages_ms"]["age"][rank] for run in ours] for rank in ("p50", "p99"))
            axes.plot(rates, median, marker="o", markersize=3, color=color, label=system)
            axes.fill_between(rates, median, highest, color=color, alpha=0.15, linewidth=0)
            for run in (run for run in ours if run["peak"]):
                axes.plot(run["rate"], run["stages_ms"]["age"]["p50"], marker="*", markersize=11, color=color)
        axes.set_title(f"{number} × {width}×{height}", fontsize="medium")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
        axes.xaxis.minorticks_off()
        _tidy(axes)
    for axes in panels[-1]:
        axes.set_xlabel("images per second and camera")
    for axes in panels[:, 0]:
        axes.set_ylabel("age in ms")
    panels[0, 0].legend(frameon=False)
    return figure


def _series(records: Sequence[FrameRecord], name: str) -> list[list[tuple[int, float]]]:
    """Return stamp in ns and value of the frames whose value is not nan, a list for each camera that has any."""
    cameras: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        value = getattr(record, name)
        if not math.isnan(value):
            cameras.setdefault(record.camera, []).append((record.stamp_ns, value))
    return list(cameras.values())


def _thinned(points: Sequence[tuple[int, float]]) -> np.ndarray:
    """Return the points ``(N, 2)``; of many, only the lowest and the highest of each of `MAX_POINTS` / 2 parts."""
    array = np.array(points, dtype=np.float64)
    if len(array) <= MAX_POINTS:
        return array
    parts = np.array_split(np.arange(len(array)), MAX_POINTS // 2)
    kept = [part[extreme(array[part, 1])] for part in parts for extreme in (np.argmin, np.argmax)]
    return array[np.unique(kept)]


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("plots need matplotlib, which is not installed here: pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
