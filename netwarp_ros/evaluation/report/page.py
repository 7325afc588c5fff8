# SPDX-License-Identifier: Apache-2.0
"""The page: its template filled, its figures and pictures put in."""

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
from netwarp_ros.evaluation.results import EvaluationResults
from netwarp_ros.recordings.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 50
"""How many notes on damage are shown."""


def check_requirements() -> None:
    """Check that what a page is made with is installed, before an evaluation is.

    Raises:
        ValueError: If it is not.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError(f"reports need jinja2 and matplotlib: pip install jinja2 matplotlib ({error})") from error


def write_page(
    path: Path, report: EvaluationResults, classes: ClassSet, moments: FrameGallery, context: Mapping[str, Any]
) -> None:
    """Write a report as one page, with all that is in it, whole or not at all.

    Args:
        path: The ``.html`` file.
        report: What the evaluation found.
        classes: Names and colours.
        moments: What has seen the frames.
        context: What `netwarp evaluate --json` writes beside the scores: ``settings``, ``inputs``, ``environment`` and
            ``damage``.
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
    host = report.host
    curves = {"NetWarp" if host else "mask": report.tiou} | ({"host": host.tiou} if host else {})
    curves = {name: {w: v for w, v in curve.items() if not math.isnan(v)} for name, curve in curves.items()}
    text = environment.get_template("page.html.jinja").render(
        report=report,
        host=host,
        colors=["rgb({}, {}, {})".format(*color) for color in classes.palette.tolist()],
        trimap=_svg(trimap_figure(curves)) if report.labelled else "",
        timeline=_svg(timeline_figure(report.records)),
        moments=[("Best", moments.best()), ("Worst", moments.worst())],
        measure=moments.measure,
        shown=SHOWN,
        **context,
    )
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _svg(figure: Figure) -> Any:
    """Return a figure as an ``<svg>`` element to be put into a page as it is."""
    import matplotlib
    from markupsafe import Markup

    drawing = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "netwarp_ros"}):
        figure.savefig(drawing, format="svg", transparent=True)
    element = drawing.getvalue()[drawing.getvalue().index("<svg") :]
    return Markup(re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL))  # noqa: S704 - our own figure


def _number(value: float, digits: int = 2) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _change(value: float, digits: int = 2) -> str:
    """Show a difference with its sign, a true minus."""
    return "–" if math.isnan(value) else f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")
