# SPDX-License-Identifier: Apache-2.0
"""Progress on standard error, and results as tables on standard output."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table

if TYPE_CHECKING:
    from netwarp_ros.evaluation.results import EvaluationResults, Scores

MAX_NOTES = 10
"""How many notes on damage are printed."""

T = TypeVar("T")


def plain_console(*, stderr: bool = False) -> Console:
    """Return a console that prints text as it is: a path or the name of a class may look like rich's markup."""
    return Console(stderr=stderr, markup=False, emoji=False)


def say(text: str) -> None:
    """Print a line. The terminal wraps it, not rich, which would put line ends into paths."""
    plain_console().print(text, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a line to standard error."""
    plain_console(stderr=True).print(f"netwarp: {text}", highlight=False, soft_wrap=True)


def track_progress(items: Iterable[T], description: str, count: int) -> Iterable[T]:
    """Show progress while the items are taken; a count of 0 means that it is unknown."""
    return track(items, description, total=count or None, console=Console(stderr=True), transient=True)


def progress_bar() -> Progress:
    """Return a progress bar that disappears at its end."""
    return Progress(console=Console(stderr=True), transient=True)


def print_results(results: EvaluationResults, damage: Sequence[str]) -> None:
    """Print what an evaluation measured, and the notes on damage."""
    console = plain_console()
    console.print(_class_table(results))
    console.print(_measure_table(results))
    console.print(_timing_table(results))
    if damage:
        console.print(f"{len(damage)} notes on what was read:", *damage[:MAX_NOTES], sep="\n  ")
    if len(damage) > MAX_NOTES:
        console.print(f"  and {len(damage) - MAX_NOTES} more")


def _networks(results: EvaluationResults) -> list[tuple[str, Scores]]:
    """Return the scores of the model, and of its host if it was run, each with the start of its column titles."""
    return [("", results), ("host's ", results.host)] if results.host else [("", results)]


def _class_table(results: EvaluationResults) -> Table:
    networks = _networks(results)
    columns = [(f"{title}IoU %", scores.iou) for title, scores in networks if results.labelled]
    columns += [(f"{title}flicker %", scores.flicker) for title, scores in networks]
    table = Table("class", title=f"{results.frames} frames, {results.labelled} with labels")
    for title, _ in columns:
        table.add_column(title)
    for name in results.iou:
        table.add_row(name, *(_cell(values[name], 1) for _, values in columns))
    return table


def _measure_table(results: EvaluationResults) -> Table:
    networks = _networks(results)
    table = Table("measure", *(f"{title}%" for title, _ in networks))
    for name in results.measures():
        table.add_row(name, *(_cell(scores.measures()[name], 2) for _, scores in networks))
    if results.host:
        table.add_row("disagreement with the host", _cell(results.disagreement, 2))
    return table


def _timing_table(results: EvaluationResults) -> Table:
    percent = results.segmenting_percent
    title = f"{results.fps:.1f} frames per second, {percent:.1f} % of the time without scoring in flow and network"
    if results.key_frames < results.frames:
        title += f"; {results.key_frames} of {results.frames} are key frames"
    table = Table("stage", "p50 ms", "p95 ms", "p99 ms", title=title)
    rows = list(results.stages_ms.items())
    if results.latency_ms:
        table.caption = f"{sum(results.dropped.values())} frames dropped in real time"
        rows += [("arrival to mask", results.latency_ms), ("age of the mask", results.age_ms)]
    for name, values in rows:
        table.add_row(name, *(f"{values[key]:.1f}" for key in ("p50", "p95", "p99")))
    return table


def _cell(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"
