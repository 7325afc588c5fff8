# SPDX-License-Identifier: Apache-2.0
"""``netwarp compare``: how much two evaluations differ."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from netwarp_ros.evaluation.comparison import Difference


def compare(
    first: Annotated[
        Path,
        typer.Argument(
            metavar="A.json", help="A file of `netwarp evaluate --json`, or a folder with such a file for each bag."
        ),
    ],
    second: Annotated[
        Path, typer.Argument(metavar="B.json", help="The same for another model, evaluated on the same frames.")
    ],
    gate: Annotated[
        list[str] | None,
        typer.Option(
            "--gate",
            metavar="MEASURE",
            help="Measure in which B must not be worse: miou, iou.road, tiou.2, tc, total_ms, and so on; may be given "
            "more than once. By default miou, or tc if there are no labels.",
            show_default=False,
        ),
    ] = None,
    margin: Annotated[
        float, typer.Option("--margin", min=0.0, help="How much worse B may be, in per cent or milliseconds.")
    ] = 0.0,
    confidence: Annotated[float, typer.Option("--confidence", help="Confidence of the intervals in per cent.")] = 95.0,
    draws: Annotated[int, typer.Option("--draws", help="How often frames, or bags, are resampled.")] = 2000,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the differences to this file.", show_default=False)
    ] = None,
) -> None:
    """Compare two evaluations. The exit status is 1 if B is significantly worse than A."""
    from netwarp_ros.evaluation.comparison import compare as compare_results
    from netwarp_ros.evaluation.comparison import read_pair, select_gates

    pair = read_pair(first, second)
    differences = compare_results(*pair, draws=draws, confidence=confidence)
    failed = [gated.measure for gated in select_gates(differences, gate or []) if gated.is_worse(margin)]
    _print(differences, confidence, f"{len(pair[0].names)} {'bags' if first.is_dir() else 'frames'}")
    if json_file:
        _write(json_file, differences, failed)
    if failed:
        by = f" by more than {margin:g}" if margin else ""
        sys.stderr.write(f"netwarp: {second} is worse than {first}{by} in {', '.join(failed)}\n")
        raise typer.Exit(1)


def _print(differences: Sequence[Difference], confidence: float, title: str) -> None:
    table = Table("measure", "A", "B", "B − A", f"{confidence:g} % from", "to", "B is", title=title)
    for difference in differences:
        values = (difference.first, difference.second)
        changes = (difference.second - difference.first, difference.low, difference.high)
        table.add_row(
            difference.measure,
            *(f"{value:.2f}" for value in values),
            *(f"{value:+.2f}" for value in changes),
            "worse" if difference.is_worse() else "better" if difference.is_better() else "",
        )
    Console().print(table)


def _write(file: Path, differences: Sequence[Difference], failed: Sequence[str]) -> None:
    from netwarp_ros.recordings.atomic import replacing

    content = {"differences": [difference.to_json() for difference in differences], "failed": list(failed)}
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
