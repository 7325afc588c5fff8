# SPDX-License-Identifier: Apache-2.0
"""The HTML page of a report."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netwarp_ros.classes import ClassSet
from netwarp_ros.evaluation.plots import timeline_figure, trimap_figure
from netwarp_ros.evaluation.report.gallery import FrameGallery
from netwarp_ros.evaluation.result_files import MARK
from netwarp_ros.evaluation.results import EvaluationResults
from netwarp_ros.recordings.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_NOTES = 50
"""Greatest number of notes on damage to show."""


def check_requirements() -> None:
    """Check that the libraries for reports are installed. Call it before a long evaluation.

    Raises:
        ValueError: If one is not.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError(f"reports need jinja2 and matplotlib: pip install jinja2 matplotlib ({error})") from error


def write_page(
    path: Path, results: EvaluationResults, classes: ClassSet, gallery: FrameGallery, context: Mapping[str, Any]
) -> None:
    """Write a report as one file, completely or not at all.

    Args:
        path: The ``.html`` file.
        results: Results of the evaluation.
        classes: Names and colors of the classes.
        gallery: Holds the pictures.
        context: The other keys of `netwarp evaluate --json`: ``settings``, ``inputs``, ``environment``, ``damage``.

    Raises:
        FileExistsError: There is a file that `netwarp evaluate` did not write.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("netwarp_ros.evaluation.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["change"] = _change
    host = results.host
    curves = {"NetWarp" if host else "mask": results.tiou} | ({"host": host.tiou} if host else {})
    curves = {name: {w: v for w, v in curve.items() if not math.isnan(v)} for name, curve in curves.items()}
    text = environment.get_template("page.html.jinja").render(
        results=results,
        host=host,
        colors=["rgb({}, {}, {})".format(*color) for color in classes.palette.tolist()],
        trimap=_svg(trimap_figure(curves)) if results.labelled else "",
        timeline=_svg(timeline_figure(results.records)),
        gallery=[("Best", gallery.best()), ("Worst", gallery.worst())],
        measure=gallery.measure,
        max_notes=MAX_NOTES,
        mark=MARK,
        **context,
    )
    with replacing(path, MARK) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _svg(figure: Figure) -> Any:
    """Return a figure as an ``<svg>`` element, marked as safe to insert without escaping."""
    import matplotlib
    from markupsafe import Markup

    drawing = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "netwarp_ros"}):
        figure.savefig(drawing, format="svg", transparent=True)
    element = drawing.getvalue()[drawing.getvalue().index("<svg") :]
    return Markup(re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL))  # noqa: S704 - our own figure


def _number(value: float, digits: int = 2) -> str:
    """Format a number; a dash for nan."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _change(value: float, digits: int = 2) -> str:
    """Format a difference with its sign; minus is U+2212."""
    return "–" if math.isnan(value) else f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")
