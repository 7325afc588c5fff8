# SPDX-License-Identifier: Apache-2.0
"""``netwarp benchmark flow``: time and error of the estimators of optical flow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from netwarp_ros.cli.benchmark_figures import FIGURES, make_folder, read_sizes, write
from netwarp_ros.cli.option_groups import expand_groups
from netwarp_ros.cli.options import ThreadsOption
from netwarp_ros.cli.printing import plain_console, say, track_progress, warn

if TYPE_CHECKING:
    from netwarp_ros.benchmarks.flow import Clip, FlowResult


@dataclass(frozen=True)
class ClipOptions:
    """Frames that flow is estimated on: the synthetic street, or a recording."""

    video: Annotated[
        Path | None,
        typer.Option(
            "--video",
            help="A folder of images, a video or a bag. By default the synthetic street, whose flow is known exactly.",
            show_default=False,
        ),
    ] = None
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels", help="A folder of label maps NAME.png, named like the images of --video.", show_default=False
        ),
    ] = None
    classes: Annotated[
        str, typer.Option("--classes", metavar="NAME|FILE", help="What the label maps hold: a class set.")
    ] = "camvid"
    step: Annotated[int, typer.Option("--step", min=1, help="Take every N-th frame of --video.")] = 1
    frames: Annotated[int, typer.Option("--frames", min=2, help="Number of frames, for each seed.")] = 40
    seeds: Annotated[str, typer.Option("--seeds", metavar="N,N,...", help="Seeds of the street.")] = "1"
    size: Annotated[str, typer.Option("--size", metavar="WxH", help="Size of the street's frames.")] = "480x360"

    def clips(self) -> Iterator[Clip]:
        """Read the recording, or draw a clip of the street for each seed.

        Raises:
            ValueError: If an option is not valid, or the recording cannot be read.
            OSError: If the recording or the label maps are not there.
        """
        from netwarp_ros.benchmarks.flow import street_clip, video_clip
        from netwarp_ros.classes import load_classes
        from netwarp_ros.recordings.image_files import LabelFolder
        from netwarp_ros.recordings.open import open_frames
        from netwarp_ros.street import Street

        if self.video:
            classes = load_classes(self.classes)
            read = LabelFolder(self.labels, classes) if self.labels else None
            yield video_clip(open_frames(self.video), self.frames, step=self.step, read_label=read, void=classes.void)
            return
        if self.labels:
            raise ValueError(f"labels are in {self.labels}, but there is no recording: give --video")
        street_sizes = read_sizes(self.size)
        if len(street_sizes) > 1:
            raise ValueError(f"size is {self.size!r}: give one size, such as 480x360")
        for street in [Street(*street_sizes[0], seed=seed, rate=_STREET_RATE) for seed in self._seeds()]:
            drawn = track_progress(range(self.frames), f"drawing seed {street.seed}", self.frames)
            yield street_clip(street.frame(index) for index in drawn)

    def settings(self) -> dict[str, Any]:
        """Return these options for a JSON file; of the recording and its labels there is a hash."""
        from netwarp_ros.evaluation.provenance import describe_input

        if not self.video:
            return {"frames": self.frames, "seeds": self._seeds(), "size": self.size, "rate": _STREET_RATE}
        labels = {"labels": describe_input(self.labels), "classes": self.classes} if self.labels else {}
        return {"frames": self.frames, "step": self.step, "video": describe_input(self.video), **labels}

    def _seeds(self) -> list[int]:
        try:
            return [int(seed) for seed in self.seeds.split(",")]
        except ValueError:
            raise ValueError(f"seeds is {self.seeds!r}: give whole numbers, such as 1,2,3") from None


_STREET_RATE = 10.0


@expand_groups
def flow(
    *,
    clips: ClipOptions,
    estimators: Annotated[
        str | None,
        typer.Option(
            "--estimators",
            metavar="NAME,...",
            help="ultrafast, fast or medium: OpenCV's DIS. With @torch or @cuda our own, in plain PyTorch on the CPU "
            "or on the GPU, as fast@cuda. With :warm at the end, they start from the flow of the pair before. "
            "deepflow: OpenCV's. nvidia: NVIDIA's hardware for flow. By default all.",
            show_default=False,
        ),
    ] = None,
    threads: ThreadsOption = 0,
    pictures: Annotated[
        Path | None,
        typer.Option(
            "--pictures", metavar="FOLDER", help="Draw the flow of one frame into flow.png here.", show_default=False
        ),
    ] = None,
    picture_frame: Annotated[
        int | None,
        typer.Option("--picture-frame", help="Index of that frame. By default the middle one.", show_default=False),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help=FIGURES, show_default=False)] = None,
) -> None:
    """Compare estimators of optical flow with OpenCV's DIS: time and error on the same frames, in turns.

    The photometric error is the mean difference in grey levels between a pixel and where the flow says it was.
    """
    import cv2
    import torch

    from netwarp_ros.benchmarks.flow import NAMES, compare, open_estimators, write_sheet
    from netwarp_ros.evaluation.provenance import environment, versions

    if threads < 0:
        raise ValueError(f"threads is {threads}: give a number of threads, or 0 for one on each core")
    if threads:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
    sheet = pictures / "flow.png" if pictures else None
    for file in (json_file, sheet):
        make_folder(file)
    opened, skipped = open_estimators(estimators.split(",") if estimators is not None else NAMES)
    results, picture = compare(clips.clips(), opened, picture_frame)
    plain_console().print(_flow_table(results))
    for reason in dict.fromkeys(skipped.values()):
        warn(f"skipped {', '.join(name for name in skipped if skipped[name] == reason)}: {reason}")
    if sheet:
        write_sheet(sheet, picture)
        say(f"flow of frame {picture.index} in {sheet}")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    system = {**environment(torch.device("cpu")), "gpu": gpu, "versions": versions()}
    content = {"environment": system, "settings": {**clips.settings(), "threads": threads}, "skipped": skipped}
    write(json_file, {**content, "results": [each.to_json() for each in results]})


def _flow_table(results: Sequence[FlowResult]) -> Table:
    """Return the figures as a table, without columns that are empty."""
    columns: dict[str, list[str]] = {
        title: ["" if (value := getattr(each, field)) is None else form.format(value) for each in results]
        for title, field, form in (
            ("estimator", "estimator", "{}"),
            ("mean\npx", "mean_error", "{:.2f}"),
            ("median\npx", "median_error", "{:.2f}"),
            ("> 3 px\n%", "large_percent", "{:.1f}"),
            ("grey\nlevels", "photometric_error", "{:.2f}"),
            ("labels\n%", "carried_percent", "{:.2f}"),
            ("time\nms", "time_ms", "{:.4g}"),
            ("error\n×", "error_ratio", "{:.3f}"),
            ("time\n×", "time_ratio", "{:.2f}"),
        )
    }
    filled = {title: cells for title, cells in columns.items() if any(cells)}
    table = Table(title=f"{results[0].pairs} pairs of frames", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))  # 80 columns
    table.caption = "px: end-point error. grey levels: photometric error. ×: compared with OpenCV's DIS"
    for title in filled:
        table.add_column(title, no_wrap=True)
    for cells in zip(*filled.values(), strict=True):
        table.add_row(*cells)
    return table
