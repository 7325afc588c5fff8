# SPDX-License-Identifier: Apache-2.0
"""``netwarp plot``: figures of results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netwarp_ros.cli.printing import say

app = typer.Typer(help="Draw figures of results.", no_args_is_help=True)

FigureOption = Annotated[
    Path, typer.Option("--output", "-o", help="The figure: .png, .svg or .pdf.", show_default=False)
]


@app.command()
def node(
    results: Annotated[Path, typer.Argument(metavar="NODE.json", help="A file of `netwarp benchmark node --json`.")],
    output: FigureOption,
) -> None:
    """Draw the age of the masks over the rate of the images, for each node."""
    from netwarp_ros.evaluation.plots import plot_node

    plot_node(results, output)
    say(f"figure in {output}")


@app.command()
def trimap(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS.json...",
            help="Files of `netwarp evaluate --json`; the name of a file is the name of its curve.",
        ),
    ],
    output: FigureOption,
) -> None:
    """Draw IoU near the borders of the labels over the width of the band, as in the paper's Fig. 4."""
    from netwarp_ros.evaluation.plots import plot_trimap

    plot_trimap(results, output)
    say(f"figure in {output}")
