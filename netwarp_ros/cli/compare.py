# SPDX-License-Identifier: Apache-2.0
"""``netwarp compare``: how much two evaluations differ."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from netwarp_ros.cli.printing import plain_console

if TYPE_CHECKING:
    from netwarp_ros.evaluation.comparison import Difference
    from netwarp_ros.evaluation.observations import Observations


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
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the differences to this file.", show_default=False)
    ] = None,
) -> None:
    """Compare two evaluations. The exit status is 1 if B is significantly worse than A."""
    from netwarp_ros.evaluation.comparison import compare as compare_results
    from netwarp_ros.evaluation.comparison import describe, select_gates
    from netwarp_ros.evaluation.observations import read_pair

    pair = read_pair(first, second)
    differences = compare_results(*pair, confidence=confidence)
    gates = select_gates(differences, gate or [])
    failed = [gated.measure for gated in gates if gated.is_worse(margin)]
    _print(differences, confidence, pair[0])
    for gated in gates:
        typer.echo(describe(gated, pair[0]))
    if json_file:
        _write(json_file, differences, failed)
    if failed:
        by = f" by more than {margin:g}" if margin else ""
        sys.stderr.write(f"netwarp: {second} is worse than {first}{by} in {', '.join(failed)}\n")
        raise typer.Exit(1)


def _print(differences: Sequence[Difference], confidence: float, observations: Observations) -> None:
    recordings = len(observations.names)
    units = "recordings" if observations.independent else "pieces"
    title = f"{observations.frames} frames of {f'{recordings} recordings' if observations.independent else 'one drive'}"
    measure = Column("measure", no_wrap=True)
    table = Table(measure, "A", "B", "B − A", f"± ({confidence:g} %)", units, "B is", title=title)
    for difference in differences:
        table.add_row(
            difference.measure,
            f"{difference.first:.2f}",
            f"{difference.second:.2f}",
            f"{difference.second - difference.first:+.2f}",
            f"{difference.uncertainty:.2f}" if difference.is_known else "?",
            f"{round(difference.units, 1):g}" if difference.is_known else "?",
            "worse" if difference.is_worse() else "better" if difference.is_better() else "",
        )
    plain_console().print(table)


def _write(file: Path, differences: Sequence[Difference], failed: Sequence[str]) -> None:
    from netwarp_ros.recordings.atomic import write_marked_json

    content = {"differences": [difference.to_json() for difference in differences], "failed": list(failed)}
    write_marked_json(file, content, "compare")
