# SPDX-License-Identifier: Apache-2.0
"""``netwarp benchmark``: how fast this machine is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from netwarp_ros.cli.benchmark_figures import FIGURES, make_folder, read_numbers, read_sizes, write
from netwarp_ros.cli.benchmark_flow import flow
from netwarp_ros.cli.option_groups import expand_groups
from netwarp_ros.cli.options import (
    DeviceOption,
    EngineOptions,
    FlowDeviceOption,
    InputHeightOption,
    ModelOption,
    ThreadsOption,
)
from netwarp_ros.cli.printing import plain_console, warn

if TYPE_CHECKING:
    import numpy as np

    from netwarp_ros.benchmarks.node import Run
    from netwarp_ros.benchmarks.ops import Case, Result

app = typer.Typer(help="Measure how fast this machine is.", no_args_is_help=True)


@dataclass(frozen=True)
class ModelBenchmarkOptions(EngineOptions):
    """Which model is timed, and how it runs."""

    model: ModelOption = None
    flow: Annotated[
        str, typer.Option("--flow", help="Estimator of the flow: ultrafast, fast or medium (DIS), deepflow, or nvidia.")
    ] = "ultrafast"
    flow_device: FlowDeviceOption = "auto"
    input_height: InputHeightOption = 0


@dataclass(frozen=True)
class NodeBenchmarkOptions(ModelBenchmarkOptions):
    """The same for the node, which takes DIS flow only."""

    flow: Annotated[str, typer.Option("--flow", help="DIS preset: ultrafast, fast or medium.")] = "ultrafast"


@app.command()
def ops(
    device: DeviceOption = "cpu",
    compile_others: Annotated[
        bool, typer.Option("--compiled/--no-compiled", help="Also time grid_sample under torch.compile.")
    ] = True,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0, help="For each case, direction and state of the memory.")
    ] = 1.0,
    json_file: Annotated[Path | None, typer.Option("--json", help=FIGURES, show_default=False)] = None,
) -> None:
    """Time the warp operator, a copy of the same tensor, and grid_sample."""
    import torch

    from netwarp_ros.benchmarks import ops as benchmark
    from netwarp_ros.evaluation.provenance import environment

    target = torch.device(device)
    make_folder(json_file)
    cases = benchmark.standard_cases(target)
    results = list(benchmark.run(cases, target, with_compiled=compile_others, seconds=seconds))
    for case in cases:
        plain_console().print(_ops_table(case, [result for result in results if result.case == case]))
    write(json_file, {"environment": environment(target), "results": [result.to_json() for result in results]})


@app.command()
@expand_groups
def model(
    *,
    options: ModelBenchmarkOptions,
    frames: Annotated[int, typer.Option("--frames", help="Frames of the synthetic street, 480x360.")] = 40,
    passes: Annotated[int, typer.Option("--passes", help="How often all frames are segmented.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help=FIGURES, show_default=False)] = None,
) -> None:
    """Time a video CNN and its host on the same frames: the overhead of NetWarp, flow included."""
    import torch

    from netwarp_ros.benchmarks.model import measure_overhead
    from netwarp_ros.evaluation.provenance import environment
    from netwarp_ros.models import DEFAULT_MODEL, load_model

    make_folder(json_file)
    loaded = load_model(options.model or DEFAULT_MODEL)
    images = _street(frames)
    settings = {
        "flow": options.flow,
        "flow_device": options.flow_device,
        "input_height": options.input_height,
        **options.engine_arguments(),
    }
    result = measure_overhead(images, loaded, passes=passes, **settings)
    table = Table("stage, median ms", "host", "NetWarp", title=f"{loaded.name}, {result.frames} frames")
    for stage, value in result.stages_ms["host"].items():
        table.add_row(stage, f"{value:.2f}", f"{result.stages_ms['netwarp'][stage]:.2f}")
    table.caption = f"overhead {result.overhead_percent:.1f} %"
    plain_console().print(table)
    system = environment(torch.device(options.device))
    write(json_file, {"environment": system, "settings": {**settings, "model": loaded.name}, **result.to_json()})


@app.command()
def engines(
    *,
    model: ModelOption = None,
    names: Annotated[
        str,
        typer.Option(
            "--engines",
            metavar="NAME:PRECISION,...",
            help="Engines with their precisions; torch may also have a compile mode, as in torch:float32:default.",
        ),
    ] = "openvino:float32,openvino:bfloat16,openvino:int8,onnxruntime:float32",
    images: Annotated[
        Path | None,
        typer.Option("--images", help="A folder of images or a video. By default the synthetic street, 480x360."),
    ] = None,
    flow: Annotated[str, typer.Option("--flow", help="DIS preset: ultrafast, fast or medium.")] = "ultrafast",
    threads: ThreadsOption = 0,
    frames: Annotated[int, typer.Option("--frames", help="Number of frames.")] = 40,
    passes: Annotated[int, typer.Option("--passes", help="How often all frames are segmented.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help=FIGURES, show_default=False)] = None,
) -> None:
    """Time engines beside each other on this machine: whole frames of a video CNN and of its host, in turns."""
    import torch

    from netwarp_ros.benchmarks.engines import compare_engines
    from netwarp_ros.benchmarks.tables import first_images
    from netwarp_ros.evaluation.provenance import environment, versions
    from netwarp_ros.models import DEFAULT_MODEL, load_model
    from netwarp_ros.recordings.open import open_frames

    make_folder(json_file)
    chosen = [_engine(name) for name in names.split(",")]
    loaded = load_model(model or DEFAULT_MODEL)
    taken = _street(frames) if images is None else first_images(open_frames(images), frames)
    results, notes = compare_engines(taken, loaded, chosen, passes=passes, flow=flow, threads=threads)
    table = Table(
        "engine", "precision", "host ms", "frame ms", "p99", "overhead", "× torch", "changed pixels",
        title=f"{loaded.name}, {len(taken)} frames, {passes} times",
    )  # fmt: skip
    for each in results:
        table.add_row(
            each.engine, each.precision, f"{each.host_ms:.1f}", f"{each.frame_ms:.1f}", f"{each.p99_ms:.1f}",
            f"{each.overhead_percent:.1f} %", f"{each.speedup:.2f}", f"{each.changed_percent:.4f} %",
        )  # fmt: skip
    plain_console().print(table)
    for note in notes:
        warn(note)
    system = {**environment(torch.device("cpu")), "versions": versions()}
    settings = {"model": loaded.name, "flow": flow, "threads": threads, "frames": len(taken), "passes": passes}
    content = {"environment": system, "settings": settings, "results": [each.to_json() for each in results]}
    write(json_file, {**content, "not used": notes})


def _engine(text: str) -> dict[str, str]:
    """Return the arguments of a segmenter for ``NAME:PRECISION`` or ``NAME:PRECISION:COMPILE``."""
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise ValueError(f"engine {text!r}: give NAME:PRECISION, such as openvino:float32")
    return dict(zip(("engine", "precision", "compile"), (*parts, "none"), strict=False))


def _street(count: int) -> list[np.ndarray]:
    """Return images of the synthetic street."""
    from netwarp_ros.street import Street

    street = Street(seed=0, rate=15)
    return [street.frame(index).image for index in track(range(count), "drawing", console=Console(stderr=True))]


app.command()(flow)


@app.command()
@expand_groups
def node(
    *,
    options: NodeBenchmarkOptions,
    nodes: Annotated[
        str,
        typer.Option(
            "--nodes",
            metavar="NAME,...",
            help="netwarp: the segment node. viewed: the same, with a subscriber of its overlays. host: with "
            "host_only. plain: a node as in tutorials.",
        ),
    ] = "netwarp,host,plain",
    cameras: Annotated[str, typer.Option("--cameras", metavar="N,N,...", help="Numbers of cameras.")] = "1,2,4",
    sizes: Annotated[
        str, typer.Option("--sizes", metavar="WxH,WxH,...", help="Sizes of their images in pixels.")
    ] = "480x360,1280x720,1920x1080",
    rates: Annotated[
        str, typer.Option("--rates", metavar="HZ,HZ,...", help="Images per second of each camera.")
    ] = "10,30,60",
    seconds: Annotated[float, typer.Option("--seconds", min=0.5, help="How long each load is measured.")] = 5.0,
    peak: Annotated[
        bool,
        typer.Option("--peak/--no-peak", help="Also find the highest rate at which less than 5 % of frames drop."),
    ] = True,
    json_file: Annotated[Path | None, typer.Option("--json", "-o", help=FIGURES, show_default=False)] = None,
) -> None:
    """Put the segment node under load, and beside it its host alone and a node as in tutorials. Needs ROS 2.

    Prints a table in Markdown. `netwarp plot node` draws the figures.
    """
    import torch

    from netwarp_ros.benchmarks.node import markdown
    from netwarp_ros.evaluation.provenance import describe_input, environment, versions
    from netwarp_ros.models.weights import DEFAULT_MODEL, find_weights

    try:
        from netwarp_ros.node.tools.load_test import middleware
    except ImportError as error:
        raise ValueError(f"this needs ROS 2 and a workspace with netwarp_ros: source both ({error})") from error
    make_folder(json_file)
    weights = find_weights(options.model or DEFAULT_MODEL)
    loads: dict[str, Any] = {
        "systems": nodes.split(","),
        "cameras": read_numbers("cameras", cameras, int, "1,2,4"),
        "sizes": read_sizes(sizes),
        "rates": read_numbers("rates", rates, float, "10,30,60"),
        "seconds": seconds,
        "peak": peak,
    }
    parameters = {
        "model": str(weights),
        **{name: value for name, value in options.engine_arguments().items() if value is not None},
        "flow_preset": options.flow,
        "flow_device": options.flow_device,
        "input_height": options.input_height,
    }
    runs = _run_nodes(loads, parameters)
    typer.echo(markdown(runs))
    system = {**environment(torch.device(options.device)), **middleware(), "versions": versions()}
    source = {"model": options.model or DEFAULT_MODEL, "images": "the synthetic street"}
    content = {
        "environment": system,
        "settings": {**loads, **parameters, **source},
        "weights": describe_input(weights)["sha256"],
        "runs": [run.to_json() for run in runs],
    }
    write(json_file, content)


def _ops_table(case: Case, results: Sequence[Result]) -> Table:
    shape, dtype = "×".join(map(str, case.shape)), str(case.dtype).removeprefix("torch.")
    table = Table(
        "", "memory", "implementation", "ms", "GB/s", "× copy", "faster than grid_sample",
        title=f"{case.name}: {shape}, {dtype}, {case.layout}",
    )  # fmt: skip
    for result in results:
        table.add_row(
            result.direction,
            result.memory,
            result.implementation,
            f"{result.time_ms:.3f}",
            f"{result.bytes / result.time_ms / 1e6:.1f}",
            f"{result.vs_copy:.2f}",
            "" if result.vs_grid_sample is None else f"{result.vs_grid_sample:.1f}×",
        )
    return table


def _run_nodes(loads: Mapping[str, Any], parameters: Mapping[str, Any]) -> list[Run]:
    """Measure all nodes under all loads; a node that fails ends the command with exit status 1."""
    from netwarp_ros.node.process import NodeError
    from netwarp_ros.node.tools.load_test import benchmark

    runs = []
    with Console(stderr=True).status("starting the nodes") as status:
        try:
            for run in benchmark(**loads, **parameters):
                runs.append(run)
                status.update(f"{run.cameras} × {run.width}x{run.height} at {run.rate:.1f} Hz: {run.system} is done")
        except NodeError as error:
            sys.stderr.write(f"netwarp: {error}\n")
            raise typer.Exit(1) from None
    return runs
