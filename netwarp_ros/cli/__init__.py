# SPDX-License-Identifier: Apache-2.0
"""The command line, ``netwarp``: segment recordings, evaluate and train models.

Each command imports what it needs when it runs, so that ``netwarp --help`` does not load PyTorch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from netwarp_ros.cli import bag, benchmark, compare, convert, evaluate, models, plot, segment, table, train, view
from netwarp_ros.environment import configure_libraries

app = typer.Typer(
    name="netwarp",
    help="Semantic segmentation of camera streams by a NetWarp video CNN.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    segment.segment, evaluate.evaluate, compare.compare, table.table, bag.bag, train.train, convert.convert, view.view,
    models.models,
):  # fmt: skip
    app.command()(command)
app.add_typer(benchmark.app, name="benchmark")
app.add_typer(plot.app, name="plot")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Invalid input ends it with one line on standard error and exit status 2."""
    configure_libraries()
    try:
        app(arguments)
    except (OSError, ValueError) as error:
        from netwarp_ros.resources import cut

        sys.stderr.write(f"netwarp: {cut(str(error), 2000)}\n")
        raise SystemExit(2) from None
