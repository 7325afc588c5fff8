# SPDX-License-Identifier: Apache-2.0
"""Option groups of ``netwarp evaluate`` alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netwarp_ros.cli.options import ClassesOption

if TYPE_CHECKING:
    from netwarp_ros.classes import ClassSet
    from netwarp_ros.evaluation.result_files import FrameSpool
    from netwarp_ros.evaluation.slices import SliceRunner
    from netwarp_ros.segmenter import Segmenter


@dataclass(frozen=True)
class ScoringOptions:
    """How frames are segmented, and what is scored."""

    classes: ClassesOption = None
    stills: Annotated[bool, typer.Option("--stills", help="Reset the memory before each image.")] = False
    realtime: Annotated[
        bool,
        typer.Option("--realtime", help="Take frames at the recording's rate, as the node does: newest image wins."),
    ] = False
    host: Annotated[
        bool | None,
        typer.Option(
            "--host/--no-host",
            help="Also run the image CNN alone, and measure where the two disagree. By default for a report, and if "
            "there are no labels.",
            show_default=False,
        ),
    ] = None
    trimap: Annotated[
        str, typer.Option("--trimap", metavar="W,W,...", help="Widths of the trimap bands in pixels.")
    ] = "1,2,4,8,16,32"

    def class_set(self, segmenter: Segmenter) -> ClassSet:
        """Return the classes to score by."""
        from netwarp_ros.classes import load_classes

        return load_classes(self.classes) if self.classes else segmenter.classes

    def widths(self) -> list[int]:
        """Return the widths of the trimap bands.

        Raises:
            ValueError: If they are not whole numbers > 0, separated by commas.
        """
        try:
            widths = [int(width) for width in self.trimap.split(",")]
        except ValueError:
            widths = []
        if not widths or min(widths) <= 0:
            raise ValueError(f"trimap is {self.trimap!r}: give widths > 0 in whole pixels, such as 1,2,4")
        return widths


@dataclass(frozen=True)
class ResultFiles:
    """The files that results are written to."""

    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the scores to this file.", show_default=False)
    ] = None
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write a line for each frame to this file.", show_default=False)
    ] = None
    html_file: Annotated[
        Path | None,
        typer.Option(
            "--html", help="Write a report to this file, one page that needs no other file.", show_default=False
        ),
    ] = None

    def make_folders(self) -> None:
        """Make the folders of the files, so that a wrong path shows before the evaluation.

        Raises:
            FileExistsError: If there is a file that `netwarp evaluate` did not write.
        """
        from netwarp_ros.evaluation.result_files import CSV_MARK, MARK
        from netwarp_ros.recordings.atomic import refuse_foreign

        for file, mark in ((self.json_file, MARK), (self.csv_file, CSV_MARK), (self.html_file, MARK)):
            if file:
                refuse_foreign(file, mark)
                file.parent.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def spool(self) -> Iterator[FrameSpool | None]:
        """Provide what keeps the frames for the JSON file; None without it."""
        from netwarp_ros.evaluation.result_files import FrameSpool

        if not self.json_file:
            yield None
            return
        with FrameSpool(self.json_file.parent) as frames:
            yield frames


@dataclass(frozen=True)
class SliceOptions:
    """How bags are evaluated in slices."""

    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="BAGs: folder for the results, BAG.json for each bag. The results of each slice are kept there, too; "
            "the same command, started again, continues from them.",
            show_default=False,
        ),
    ] = None
    slice_s: Annotated[
        float, typer.Option("--slice", metavar="SECONDS", help="BAGs: length of a slice. 0: the whole recording.")
    ] = 0.0
    warm_up: Annotated[
        int,
        typer.Option(
            "--warm-up", metavar="N", help="BAGs: frames before a slice that fill the memory and are not scored."
        ),
    ] = 15
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="local|ADDRESS",
            help="BAGs: evaluate slices on Ray, on this machine or a cluster. By default, one after the other.",
            show_default=False,
        ),
    ] = None
    workers: Annotated[
        int | None, typer.Option("--workers", help="Slices at a time on a local Ray. By default, one for each CPU.")
    ] = None

    @contextmanager
    def runner(self) -> Iterator[SliceRunner]:
        """Provide the function that evaluates slices, connected to Ray if --ray is given."""
        from netwarp_ros.evaluation.ray_runner import ray_cluster, run_on_ray
        from netwarp_ros.evaluation.slices import run_serially

        if not self.ray:
            yield run_serially
            return
        with ray_cluster(self.ray, self.workers):
            yield run_on_ray
