# SPDX-License-Identifier: Apache-2.0
"""The commands of ``netwarp``.

Each command imports what it needs when it runs, so that ``netwarp --help`` does not load PyTorch.
"""

from __future__ import annotations

import typer

from netwarp_ros.cli import (
    adapt,
    bag,
    benchmark,
    compare,
    convert,
    evaluate,
    export,
    insert,
    models,
    plot,
    quantize,
    segment,
    table,
    train,
    view,
)

app = typer.Typer(
    name="netwarp",
    help="Semantic segmentation of camera streams by a NetWarp video CNN.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    segment.segment, evaluate.evaluate, compare.compare, table.table, bag.bag, train.train, convert.convert,
    insert.insert, adapt.adapt, quantize.quantize, export.export, view.view, models.models,
):  # fmt: skip
    app.command()(command)
app.add_typer(benchmark.app, name="benchmark")
app.add_typer(plot.app, name="plot")
