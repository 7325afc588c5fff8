# SPDX-License-Identifier: Apache-2.0
"""The command line, ``netwarp``: segment recordings, evaluate and train models.

Each command imports what it needs when it runs, so that ``netwarp --help`` does not wait for PyTorch.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import typer
import yaml
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table

from netwarp_ros.environment import configure_libraries

if TYPE_CHECKING:
    from netwarp_ros.evaluation.results import EvaluationResults
    from netwarp_ros.evaluation.scoring import Labels
    from netwarp_ros.evaluation.slices import Slice, SliceResults, SliceSettings
    from netwarp_ros.flow import FlowEstimator
    from netwarp_ros.models import Inference
    from netwarp_ros.recordings.frames import Frame, FrameSource
    from netwarp_ros.segmenter import Segmenter

app = typer.Typer(
    name="netwarp",
    help="Semantic segmentation of camera streams by a NetWarp video CNN.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

NumberT = TypeVar("NumberT", int, float)

SHOWN = 10
"""How many notes on damage are shown."""

benchmark_app = typer.Typer(help="Measure how fast this machine is.", no_args_is_help=True)
app.add_typer(benchmark_app, name="benchmark")

plot_app = typer.Typer(help="Draw figures from results.", no_args_is_help=True)
app.add_typer(plot_app, name="plot")

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME|FILE",
        help="A shipped model (see `netwarp models`) or a .safetensors file; by default the shipped one.",
        show_default=False,
    ),
]
HostOnlyOption = Annotated[bool, typer.Option("--host-only", help="Run the image CNN frame by frame, without NetWarp.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="auto, float32, bfloat16 or float16.")]
EstimatorOption = Annotated[
    str, typer.Option("--flow", help="Estimator of the flow: ultrafast, fast or medium (DIS), or deepflow.")
]
PresetOption = Annotated[str, typer.Option("--flow", help="DIS preset: ultrafast, fast or medium.")]
FlowOption = Annotated[
    str,
    typer.Option(
        "--flow",
        metavar="NAME|FOLDER",
        help="Estimator of the flow: ultrafast, fast or medium (DIS), or deepflow; or a folder of known flow, of each "
        "frame to the one before it in NAME.flo.",
    ),
]
HeightOption = Annotated[
    int, typer.Option("--input-height", help="Pixels that images are scaled to for the network; 0: as it was trained.")
]
WindowOption = Annotated[
    int,
    typer.Option(
        "--window",
        metavar="N",
        help="Side in pixels of the windows that the network sees a frame through, 2/3 of it apart; 0: all at once.",
    ),
]
ScalesOption = Annotated[
    str, typer.Option("--scales", metavar="S,S,...", help="Sizes at which it sees the frame, as factors of its own.")
]
FlipOption = Annotated[bool, typer.Option("--flip", help="Let it see each window mirrored, too.")]
RateOption = Annotated[
    float | None,
    typer.Option("--rate", help="Frames per second, in place of recorded stamps; 15 for images.", show_default=False),
]
TopicOption = Annotated[
    list[str] | None,
    typer.Option(
        "--topic",
        help="Image topic of a bag that has several; may be given more than once, for several cameras.",
        show_default=False,
    ),
]
ImagesOption = Annotated[
    Path | None, typer.Option("--images", help="Folder of images, video or rosbag2.", show_default=False)
]
LabelsOption = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        help="Folder of label maps NAME.png, named like the images, or a bag; without, no scores against labels.",
        show_default=False,
    ),
]
LabelTopicOption = Annotated[
    list[str] | None,
    typer.Option(
        "--label-topic",
        help="Topic of mono8 label maps with the stamps of the images, in the bag of the labels or the images; one "
        "for each --topic, in their order.",
        show_default=False,
    ),
]
CityscapesOption = Annotated[
    Path | None,
    typer.Option("--cityscapes", metavar="ROOT", help="Cityscapes, in place of the two.", show_default=False),
]
SplitOption = Annotated[str, typer.Option("--split", help="Of Cityscapes: train or val.")]
ClipOption = Annotated[
    int, typer.Option("--clip", help="Of Cityscapes: frames of a stream, the last of which is labelled.")
]


@app.command()
def segment(
    recording: Annotated[
        Path, typer.Argument(metavar="INPUT", help="A folder of images, an image, a video, or a rosbag2.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder for what is written, or a bag, OUT.mcap.", show_default=False),
    ],
    model: ModelOption = None,
    host_only: HostOnlyOption = False,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "auto",
    flow: FlowOption = "ultrafast",
    input_height: HeightOption = 0,
    window: WindowOption = 0,
    scales: ScalesOption = "1",
    flip: FlipOption = False,
    rate: RateOption = None,
    topic: TopicOption = None,
    video: Annotated[
        bool | None,
        typer.Option(
            "--video/--no-video", help="Write overlay.mp4, or OUT.mp4; by default for a folder.", show_default=False
        ),
    ] = None,
    alpha: Annotated[float, typer.Option("--alpha", help="Weight of the colours in it, 0 to 1.")] = 0.5,
) -> None:
    """Segment a recording: masks/NAME.png (class ids), timing.csv and overlay.mp4; or a bag of masks and timings.

    A run that was killed goes on where it was.
    """
    from netwarp_ros.evaluation.provenance import describe_input
    from netwarp_ros.flow import open_flow
    from netwarp_ros.models.weights import DEFAULT_MODEL, find_weights
    from netwarp_ros.offline import segment_recording, video_names, write_masks, write_video
    from netwarp_ros.recordings.open import open_frames
    from netwarp_ros.timing import percentiles

    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}: give 0 to 1")
    is_bag = output.suffix == ".mcap"
    if is_bag and output.exists():
        raise FileExistsError(f"{output} exists already: remove it, or give another path")
    frames = open_frames(recording, rate=rate, topics=topic or [])
    inference = _inference(window, scales, flip)
    estimator, flows = open_flow(flow)
    segmenter = _segmenter(model, estimator, device, precision, input_height, host_only, inference)
    classes = segmenter.model.spec.classes
    origin = {
        "recording": str(recording.resolve()),
        "cameras": list(frames.cameras),
        "frames": len(frames),
        "rate": rate,
        "weights": describe_input(find_weights(model or DEFAULT_MODEL))["sha256"],
        **_settings(segmenter, flow, host_only),
    }
    folder = output.with_name(f"{output.name}.unfinished") if is_bag else output
    segmented = segment_recording(
        frames, segmenter, folder, origin, lambda taken: _progress(taken, "segmenting", len(frames)), flows
    )
    if video or (video is None and not is_bag):
        for camera, name in video_names(frames.cameras, output.stem if is_bag else "overlay").items():
            write_video((output.parent if is_bag else output) / name, frames, folder, camera, classes, alpha)
    if is_bag:
        write_masks(output, folder, segmented.rows, classes)
        shutil.rmtree(folder)
    totals = percentiles(row.total_ms for row in segmented.rows)
    Console().print(
        f"{len(segmented.rows)} masks in {output if is_bag else output / 'masks'}, {totals['p50']:.1f} ms a frame "
        f"(p99 {totals['p99']:.1f} ms), {segmented.segmenting_percent:.0f} % of the time in flow and network",
        highlight=False,
    )


@app.command()
def evaluate(
    recordings: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[BAG]...",
            help="Recordings to judge slice by slice, with --output; in place of --images.",
            show_default=False,
        ),
    ] = None,
    images: ImagesOption = None,
    labels: LabelsOption = None,
    label_topic: LabelTopicOption = None,
    cityscapes: CityscapesOption = None,
    split: SplitOption = "val",
    clip: ClipOption = 2,
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            metavar="NAME|FILE",
            help="camvid, cityscapes or a .yaml file; by default the model's.",
            show_default=False,
        ),
    ] = None,
    stills: Annotated[bool, typer.Option("--stills", help="Start anew at each image.")] = False,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Take a recording at its rate, as the node does: newest image wins.")
    ] = False,
    with_host: Annotated[
        bool | None,
        typer.Option(
            "--host/--no-host",
            help="Run the image CNN beside it, and tell where they disagree; by default where there are no labels, or "
            "for a report.",
            show_default=False,
        ),
    ] = None,
    trimap: Annotated[
        str, typer.Option("--trimap", metavar="W,W,...", help="Widths of the trimap bands in pixels.")
    ] = "1,2,4,8,16,32",
    model: ModelOption = None,
    host_only: HostOnlyOption = False,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "auto",
    flow: FlowOption = "ultrafast",
    input_height: HeightOption = 0,
    window: WindowOption = 0,
    scales: ScalesOption = "1",
    flip: FlipOption = False,
    rate: RateOption = None,
    topic: TopicOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the scores to this file.", show_default=False)
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write a line for each frame to this file.", show_default=False)
    ] = None,
    html_file: Annotated[
        Path | None,
        typer.Option("--html", help="Write a report to this file, a page that needs no other.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Of BAGs: folder for BAG.json of each, and for what is found of each slice as it comes, which the "
            "command, started again, need not judge anew.",
            show_default=False,
        ),
    ] = None,
    slice_s: Annotated[
        float, typer.Option("--slice", metavar="SECONDS", help="Of BAGs: length of a slice; 0: the whole recording.")
    ] = 0.0,
    warm_up: Annotated[
        int,
        typer.Option("--warm-up", metavar="N", help="Of BAGs: frames before a slice that are only to be remembered."),
    ] = 15,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="local|ADDRESS",
            help="Of BAGs: judge slices on Ray, here or on a cluster; without, one after the other.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", help="How many slices at a time on a local Ray; by default one a CPU."),
    ] = None,
) -> None:
    """Score a model on recorded frames, taken as one stream for each camera; with labels, or without."""
    import torch

    from netwarp_ros.classes import load_classes
    from netwarp_ros.evaluation.provenance import describe_input, environment, versions
    from netwarp_ros.evaluation.report import FrameGallery, check_requirements, write_page
    from netwarp_ros.evaluation.results import write_csv, write_json
    from netwarp_ros.evaluation.scoring import ScoredFrame
    from netwarp_ros.evaluation.scoring import evaluate as evaluate_frames
    from netwarp_ros.evaluation.slices import SliceSettings, cut_slices, recording_name
    from netwarp_ros.flow import open_flow
    from netwarp_ros.models.weights import DEFAULT_MODEL, find_weights
    from netwarp_ros.recordings.bags import BagLabels

    if html_file:
        check_requirements()
    widths = _widths(trimap)
    inference = _inference(window, scales, flip)
    estimator, flows = open_flow(flow)
    segmenter = _segmenter(model, estimator, device, precision, input_height, host_only, inference)
    class_set = load_classes(classes) if classes else segmenter.model.spec.classes
    for file in filter(None, (json_file, csv_file, html_file)):
        file.parent.mkdir(parents=True, exist_ok=True)
    weights = find_weights(model or DEFAULT_MODEL)
    settings = {
        **_settings(segmenter, flow, host_only), "classes": class_set.name, "stills": stills, "realtime": realtime,
    }  # fmt: skip
    system = {**environment(torch.device(device)), "versions": versions()}
    for_slices = {"--output": output, "--slice": slice_s, "--ray": ray, "--workers": workers}
    if recordings:
        _refuse(
            {
                "--images": images, "--labels": labels, "--cityscapes": cityscapes, "--realtime": realtime,
                "--html": html_file, "--flow FOLDER": flows,
            },
            "cannot be used on recordings judged slice by slice, with labels on their topics: give one by --images",
        )  # fmt: skip
        if output is None:
            raise ValueError("recordings are judged slice by slice: give a folder for what is found, by --output")
        job = SliceSettings(
            {
                "model": str(weights.resolve()), "flow": flow, "device": device, "precision": segmenter.precision,
                "input_height": input_height, "host_only": host_only, "inference": inference,
            },
            class_set, topic or [], label_topic or [], rate, stills,
            (not label_topic and segmenter.uses_netwarp) if with_host is None else with_host, widths,
        )  # fmt: skip
        slices = cut_slices(job, [recording.resolve() for recording in recordings], seconds=slice_s, warm_up=warm_up)
        common = {"settings": {**settings, "slice_s": slice_s, "warm_up": warm_up}, "environment": system}
        report, damage = _evaluate_slices(job, slices, output, common, weights, ray, workers)
        _print_report(report, damage)
        if csv_file:
            write_csv(csv_file, report.records)
        if json_file:
            sources = {**{recording_name(path): path for path in recordings}, "model": weights}
            described = {name: describe_input(path) for name, path in sources.items()}
            write_json(json_file, {**report.to_json(), "damage": damage, "inputs": described, **common})
        return
    _refuse(for_slices, "is for recordings judged slice by slice: give them as arguments, in place of --images")
    data = _open_data(images, labels, label_topic or [], topic or [], rate, cityscapes, split, clip)
    frames, label_of = data.frames, data.labels
    if with_host is None:
        with_host = (label_of is None or html_file is not None) and segmenter.uses_netwarp and not realtime
    moments = FrameGallery(class_set, labelled=label_of is not None, host=with_host)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("evaluating", total=len(frames) or None)

        def watch(moment: ScoredFrame) -> None:
            progress.advance(task)
            if html_file:
                moments.add(moment)

        report = evaluate_frames(
            frames, label_of, segmenter, class_set, stills=stills, realtime=realtime, host=with_host,
            widths=widths, instances=data.instances, sizes=data.sizes, flows=flows, on_frame=watch,
        )  # fmt: skip
    damage = list(frames.damage)
    if isinstance(label_of, BagLabels):
        damage += label_of.damage + label_of.unmatched()
    _print_report(report, damage)
    if csv_file:
        write_csv(csv_file, report.records)
    if not (json_file or html_file):
        return
    inputs = {
        **data.inputs,
        "model": weights,
        "flow": flows and flows.folder,
    }
    context = {
        "damage": damage,
        "settings": {**settings, "cameras": list(frames.cameras)},
        "inputs": {name: describe_input(path) for name, path in inputs.items() if path},
        "environment": system,
    }
    if json_file:
        write_json(json_file, {**report.to_json(), **context})
    if html_file:
        write_page(html_file, report, class_set, moments, context)


@app.command()
def compare(
    first: Annotated[
        Path, typer.Argument(metavar="A.json", help="What `evaluate --json` wrote, or a folder of such, one a bag.")
    ],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="The same of the same frames, by another model.")],
    gate: Annotated[
        list[str] | None,
        typer.Option(
            "--gate",
            metavar="MEASURE",
            help="What B must not be worse in, such as miou, iou.road, tiou.2, tc, total_ms; may be given more than "
            "once. By default miou, and tc where there are no labels.",
            show_default=False,
        ),
    ] = None,
    margin: Annotated[
        float, typer.Option("--margin", min=0.0, help="How much worse it may be, in per cent or milliseconds.")
    ] = 0.0,
    confidence: Annotated[float, typer.Option("--confidence", help="Of the intervals, in per cent.")] = 95.0,
    draws: Annotated[int, typer.Option("--draws", help="How often frames, or bags, are drawn.")] = 2000,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the differences to this file.", show_default=False)
    ] = None,
) -> None:
    """Tell how far two evaluations differ; exit status 1 says that B is worse than A for sure."""
    from netwarp_ros.evaluation.comparison import compare as compare_results
    from netwarp_ros.evaluation.comparison import read_pair, select_gates
    from netwarp_ros.recordings.atomic import replacing

    units = read_pair(first, second)
    differences = compare_results(*units, draws=draws, confidence=confidence)
    failed = [difference for difference in select_gates(differences, gate or []) if difference.is_worse(margin)]
    table = Table(
        "measure", "A", "B", "B − A", f"{confidence:g} % from", "to", "B is",
        title=f"{len(units[0].names)} {'bags' if first.is_dir() else 'frames'}",
    )  # fmt: skip
    for difference in differences:
        verdict = "worse" if difference.is_worse() else "better" if difference.is_better() else ""
        values = (difference.first, difference.second)
        changes = (difference.second - difference.first, difference.low, difference.high)
        table.add_row(
            difference.measure, *(f"{value:.2f}" for value in values), *(f"{value:+.2f}" for value in changes), verdict
        )
    Console().print(table)
    if json_file:
        found = {
            "differences": [difference.to_json() for difference in differences],
            "failed": [difference.measure for difference in failed],
        }
        with replacing(json_file) as temporary:
            temporary.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    if failed:
        measures = ", ".join(difference.measure for difference in failed)
        by = f" by more than {margin:g}" if margin else ""
        sys.stderr.write(f"netwarp: {second} is worse than {first}{by} in {measures}\n")
        raise typer.Exit(1)


@app.command()
def table(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="models: scores and runtime beside the host's; classes: IoU by class; flows: a model with each flow; "
            "sweep: a recipe's NetWarp at each of its layers and at all, without FlowCNN and with it, or variants.",
        ),
    ],
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="RECIPE.yaml", help="Of sweep: the training that is varied.", show_default=False),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            metavar="KEYS",
            help="Of sweep: keys of model.netwarp to train with instead, such as '{remember: after, flow_cnn: false}', "
            "and others in full, such as optimiser.rate; may be given more than once. The recipe as it is comes first.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option("--steps", min=0, help="Of sweep: length of each training; 0: the recipe's.")
    ] = 0,
    images: ImagesOption = None,
    labels: LabelsOption = None,
    label_topic: LabelTopicOption = None,
    cityscapes: CityscapesOption = None,
    split: SplitOption = "val",
    clip: ClipOption = 2,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME|FILE",
            help="A shipped model or a .safetensors file; may be given more than once.",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "auto",
    flow: Annotated[
        list[str] | None,
        typer.Option(
            "--flow",
            metavar="NAME|FOLDER",
            help="As of `netwarp evaluate`; may be given more than once. By default ultrafast; for flows, all names.",
            show_default=False,
        ),
    ] = None,
    input_height: HeightOption = 0,
    window: WindowOption = 0,
    scales: ScalesOption = "1",
    flip: FlipOption = False,
    rate: RateOption = None,
    topic: TopicOption = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            "-o",
            help="Write each row to this file; those that it has are not judged again.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print a table of the paper, in Markdown, of any data; one that was stopped goes on where it was with -o."""
    from netwarp_ros.benchmarks import tables
    from netwarp_ros.evaluation.provenance import describe_input
    from netwarp_ros.evaluation.scoring import evaluate as evaluate_frames
    from netwarp_ros.flow import ESTIMATORS
    from netwarp_ros.models import DEFAULT_MODEL

    if kind not in tables.KINDS:
        raise ValueError(f"there is no table {kind!r}: give {', '.join(tables.KINDS)}")
    if kind == "sweep" and (recipe is None or model):
        raise ValueError("a sweep trains its models: give RECIPE.yaml, and leave out --model")
    if kind != "sweep" and (recipe or variant or steps):
        raise ValueError(f"nothing is trained for {kind}: leave out RECIPE.yaml, --variant and --steps")
    data = _open_data(images, labels, label_topic or [], topic or [], rate, cityscapes, split, clip)
    inputs = {name: describe_input(path)["sha256"] for name, path in data.inputs.items() if path}
    reading = {"topics": topic, "label_topics": label_topic, "rate": rate, "clip": clip if cityscapes else None}
    options: dict[str, Any] = {"device": device, "precision": precision, "input_height": input_height}
    judge = tables.RowEvaluator(
        partial(evaluate_frames, data.frames, data.labels, instances=data.instances, sizes=data.sizes),
        tables.first_images(data.frames),
        {**options, "inference": _inference(window, scales, flip)},
        {**inputs, **reading, **options, "window": window, "scales": scales, "flip": flip},
    )
    flows = flow or (list(ESTIMATORS) if kind == "flows" else ["ultrafast"])
    if recipe:
        if len(flows) > 1:
            raise ValueError(f"a sweep takes one flow, not {', '.join(flows)}")
        rows = tables.sweep_rows(judge, recipe, [_override(text) for text in variant or []], steps, flows[0])
    else:
        rows = tables.model_rows(judge, model or [DEFAULT_MODEL], flows, hosts=kind != "flows")
    results = tables.compute_rows(kind, rows, json_file, lambda line: typer.echo(line, err=True))
    typer.echo(tables.markdown(kind, results))


@app.command()
def bag(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="A folder of images, or a video.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A file that ends in .mcap, or a folder to make.", show_default=False)
    ],
    labels: Annotated[
        Path | None,
        typer.Argument(
            metavar="LABELS", help="A folder of label maps NAME.png, named like the images.", show_default=False
        ),
    ] = None,
    rate: Annotated[float, typer.Option("--rate", help="Frames per second.")] = 15.0,
    camera: Annotated[str, typer.Option("--camera", help="What the topics begin with.")] = "camera",
) -> None:
    """Make a rosbag2 of frames and their label maps: topics /CAMERA/image_raw and /CAMERA/labels."""
    from netwarp_ros.recordings.bag_writer import write_bag
    from netwarp_ros.recordings.images import LabelFolder
    from netwarp_ros.recordings.open import open_frames

    source = open_frames(images, rate=rate)
    # The first stamp is 1 s: ROS takes 0 for none.
    frames = (
        dataclasses.replace(frame, stamp_ns=frame.stamp_ns + 10**9)
        for frame in _progress(source, "recording", len(source))
    )
    count = write_bag(
        output,
        frames,
        topic=f"/{camera}/image_raw",
        labels=LabelFolder(labels) if labels else None,
        label_topic=f"/{camera}/labels",
        frame_id=camera,
    )
    Console().print(f"{count} frames in {output}", highlight=False)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="What to train on, and how.")],
) -> None:
    """Train an image CNN or a video CNN as a YAML file says; one that was stopped goes on from its checkpoint."""
    from netwarp_ros.training.config import load_config
    from netwarp_ros.training.trainer import train as train_model

    weights = train_model(load_config(config))
    Console().print(f"weights in {weights}", highlight=False)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="FILE", help="A state dict: .safetensors, or of torch.save.")],
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="The network that they are of, such as pspnet101; a wrong name brings up the list.",
            show_default=False,
        ),
    ],
    classes: Annotated[
        str,
        typer.Option(
            "--classes", metavar="NAME|FILE", help="camvid, cityscapes or a .yaml file, in order.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.", show_default=False)],
    input_height: Annotated[
        int, typer.Option("--input-height", min=1, help="Pixels that images are scaled to for the network.")
    ] = 360,
    caffe_mean: Annotated[
        tuple[float, float, float] | None,
        typer.Option(
            "--caffe-mean",
            metavar="B G R",
            help="The weights are for BGR values of 0 to 255 less this mean; by default for torchvision's RGB.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a model file of a public network's weights, and say what fitted."""
    import torch

    from netwarp_ros.classes import load_classes
    from netwarp_ros.models import ModelSpec, build, save_model
    from netwarp_ros.models.foreign import load_foreign, read_checkpoint

    weights = read_checkpoint(checkpoint)
    class_set = load_classes(classes)
    spec = ModelSpec(
        host,
        class_set,
        {"num_classes": len(class_set)},
        input_height=input_height,
        notes={"origin": f"converted from {checkpoint.name}"},
    )
    if caffe_mean:
        blue, green, red = caffe_mean
        spec = dataclasses.replace(spec, mean=(red / 255, green / 255, blue / 255), std=(1 / 255, 1 / 255, 1 / 255))
    network = build(spec)
    report = load_foreign(network.host, weights, bgr=bool(caffe_mean))
    output.parent.mkdir(parents=True, exist_ok=True)
    save_model(output, network, spec, dtype=torch.float32)
    Console().print(f"{report}\nmodel in {output}", highlight=False)


@app.command()
def view(
    cameras: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CAMERA...", help="What their topics begin with; by default, all there are.", show_default=False
        ),
    ] = None,
    namespace: Annotated[str, typer.Option("--namespace", help="Namespace of the cameras.")] = "",
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; any but 127.0.0.1 or ::1 is open to the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8080,
) -> None:
    """Show running segment nodes as a web page: overlays, timings, drops. Needs ROS 2."""
    try:
        from netwarp_ros.node.tools.view_node import view as serve_view
    except ImportError as error:
        raise ValueError(
            "view needs ROS 2 with netwarp_ros built for it, to be sourced, and starlette and uvicorn, to be installed "
            f"by pip ({error})"
        ) from error
    serve_view(cameras or [], namespace, host, port)


@app.command()
def models() -> None:
    """List the models that the package ships."""
    from netwarp_ros.models import DEFAULT_MODEL, read_spec, shipped_models
    from netwarp_ros.models.weights import find_weights

    table = Table("model", "host", "NetWarp at", "classes", "MB", "notes")
    for name in shipped_models():
        path = find_weights(name)
        spec = read_spec(path)
        table.add_row(
            f"{name} (default)" if name == DEFAULT_MODEL else name,
            spec.host,
            ", ".join(spec.netwarp.layers) if spec.netwarp else "none",
            spec.classes.name,
            f"{path.stat().st_size / 1e6:.1f}",
            "\n".join(f"{key}: {value}" for key, value in spec.notes.items()),
        )
    Console().print(table if table.row_count else "This package holds no weights; train a model with `netwarp train`.")


@benchmark_app.command("ops")
def benchmark_ops(
    device: DeviceOption = "cpu",
    compile_others: Annotated[
        bool, typer.Option("--compiled/--no-compiled", help="Also time grid_sample under torch.compile.")
    ] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.", show_default=False)
    ] = None,
) -> None:
    """Time the warp operator beside a copy of the same tensor and beside grid_sample."""
    import torch

    from netwarp_ros.benchmarks import ops
    from netwarp_ros.evaluation.provenance import environment

    target = torch.device(device)
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
    cases = ops.standard_cases(target)
    results = list(ops.run(cases, target, with_compiled=compile_others))
    for case in cases:
        shape = "×".join(map(str, case.shape))
        table = Table(
            "", "memory", "implementation", "ms", "GB/s", "× copy", "faster than grid_sample",
            title=f"{case.name}: {shape}, {str(case.dtype).removeprefix('torch.')}, {case.layout}",
        )  # fmt: skip
        for result in results:
            if result.case == case:
                faster = "" if result.vs_grid_sample is None else f"{result.vs_grid_sample:.1f}×"
                rate = result.bytes / result.time_ms / 1e6
                table.add_row(
                    result.direction, result.memory, result.implementation,
                    f"{result.time_ms:.3f}", f"{rate:.1f}", f"{result.vs_copy:.2f}", faster,
                )  # fmt: skip
        Console().print(table)
    if json_file:
        report = {"environment": environment(target), "results": [result.to_json() for result in results]}
        json_file.write_text(json.dumps(report, indent=1) + "\n")


@benchmark_app.command("model")
def benchmark_model(
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "auto",
    flow: EstimatorOption = "ultrafast",
    input_height: HeightOption = 0,
    compile_host: Annotated[
        str, typer.Option("--compile", help="Mode of torch.compile for the host: none, default or reduce-overhead.")
    ] = "none",
    frames: Annotated[int, typer.Option("--frames", help="Frames of the synthetic street, 480x360.")] = 40,
    passes: Annotated[int, typer.Option("--passes", help="How often they are taken.")] = 5,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.", show_default=False)
    ] = None,
) -> None:
    """Time a video CNN beside its own host, frame by frame: the overhead of NetWarp, flow included."""
    import torch

    from netwarp_ros.benchmarks import model as benchmark
    from netwarp_ros.evaluation.provenance import environment
    from netwarp_ros.flow import estimator
    from netwarp_ros.models import DEFAULT_MODEL, load_model
    from netwarp_ros.street import Street

    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
    loaded = load_model(DEFAULT_MODEL if model is None else model)
    street = Street(seed=0, rate=15)
    images = [street.frame(index).image for index in track(range(frames), "drawing", console=Console(stderr=True))]
    settings = {"flow": flow, "precision": precision, "input_height": input_height, "compile": compile_host}
    options = {**settings, "flow": estimator(flow)}
    result = benchmark.measure_overhead(images, loaded, passes=passes, device=device, **options)
    table = Table("stage, median ms", "host", "NetWarp", title=f"{loaded.name}, {result.frames} frames")
    for stage, value in result.stages_ms["host"].items():
        table.add_row(stage, f"{value:.2f}", f"{result.stages_ms['netwarp'][stage]:.2f}")
    table.caption = f"overhead {result.overhead_percent:.1f} %"
    Console().print(table)
    if json_file:
        settings["model"] = loaded.name
        report = {"environment": environment(torch.device(device)), "settings": settings, **result.to_json()}
        json_file.write_text(json.dumps(report, indent=1) + "\n")


@benchmark_app.command("node")
def benchmark_node(
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "auto",
    flow: PresetOption = "ultrafast",
    input_height: HeightOption = 0,
    nodes: Annotated[
        str,
        typer.Option(
            "--nodes", metavar="NAME,...", help="netwarp: the segment node; host: the same with host_only; plain."
        ),
    ] = "netwarp,host,plain",
    cameras: Annotated[str, typer.Option("--cameras", metavar="N,N,...", help="Numbers of cameras.")] = "1,2,4",
    sizes: Annotated[
        str, typer.Option("--sizes", metavar="WxH,WxH,...", help="Of their images.")
    ] = "480x360,1280x720,1920x1080",
    rates: Annotated[str, typer.Option("--rates", metavar="HZ,HZ,...", help="Of each camera.")] = "10,30,60",
    seconds: Annotated[float, typer.Option("--seconds", min=0.5, help="How long each load is measured.")] = 5.0,
    peak: Annotated[
        bool, typer.Option("--peak/--no-peak", help="Find the highest rate with less than 5 % dropped, too.")
    ] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", "-o", help="Write the figures to this file.", show_default=False)
    ] = None,
) -> None:
    """Put the segment node under load, beside its host frame by frame and the node that tutorials write. Needs ROS 2.

    Prints a table in Markdown; `netwarp plot node` draws the figures.
    """
    import torch

    from netwarp_ros.benchmarks.node import markdown
    from netwarp_ros.evaluation.provenance import describe_input, environment, versions
    from netwarp_ros.models.weights import DEFAULT_MODEL, find_weights

    try:
        from netwarp_ros.node.process import NodeError
        from netwarp_ros.node.tools.load import benchmark, middleware
    except ImportError as error:
        raise ValueError(f"it needs ROS 2 with netwarp_ros built for it, to be sourced ({error})") from error
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
    weights = find_weights(model or DEFAULT_MODEL)
    loads: dict[str, Any] = {
        "systems": nodes.split(","),
        "cameras": _positive("cameras", cameras, int, "1,2,4"),
        "sizes": _sizes(sizes),
        "rates": _positive("rates", rates, float, "10,30,60"),
        "seconds": seconds,
        "peak": peak,
    }
    parameters: dict[str, Any] = {
        "model": str(weights),
        "device": device,
        "precision": precision,
        "flow_preset": flow,
        "input_height": input_height,
    }
    runs = []
    with Console(stderr=True).status("starting the nodes") as status:
        try:
            for run in benchmark(**loads, **parameters):
                runs.append(run)
                status.update(f"{run.cameras} × {run.width}x{run.height} at {run.rate:.1f} Hz: {run.system} is done")
        except NodeError as error:
            sys.stderr.write(f"netwarp: {error}\n")
            raise typer.Exit(1) from None
    typer.echo(markdown(runs))
    if json_file:
        report = {
            "environment": {**environment(torch.device(device)), **middleware(), "versions": versions()},
            "settings": {**loads, **parameters, "model": model or DEFAULT_MODEL, "images": "the synthetic street"},
            "weights": describe_input(weights)["sha256"],
            "runs": [run.to_json() for run in runs],
        }
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


@plot_app.command("node")
def plot_node(
    results: Annotated[Path, typer.Argument(metavar="NODE.json", help="What `benchmark node --json` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The figure: .png, .svg or .pdf.", show_default=False)],
) -> None:
    """Draw the age of masks over the rate of the images, of each node."""
    from netwarp_ros.evaluation import plots

    plots.plot_node(results, output)
    Console().print(f"figure in {output}", highlight=False)


@plot_app.command("trimap")
def plot_trimap(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS.json...", help="What `evaluate --json` wrote; names the curve.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The figure: .png, .svg or .pdf.", show_default=False)],
) -> None:
    """Draw IoU near the borders of the labels over the width of the band, as in the paper's Fig. 4."""
    from netwarp_ros.evaluation import plots

    plots.plot_trimap(results, output)
    Console().print(f"figure in {output}", highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; input that cannot be used ends it with one line on standard error and exit status 2."""
    configure_libraries()
    try:
        app(arguments)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"netwarp: {' '.join(str(error).split())}\n")
        raise SystemExit(2) from None


def _inference(window: int, scales: str, flip: bool) -> Inference:
    from netwarp_ros.models import Inference

    try:
        factors = tuple(float(part) for part in scales.split(","))
    except ValueError:
        raise ValueError(f"scales is {scales!r}: give factors > 0, such as 0.5,1,1.5") from None
    return Inference(window, scales=factors, flip=flip)


class _Data(NamedTuple):
    """What models are evaluated on: arguments of `scoring.evaluate`, and the paths they come from."""

    frames: FrameSource
    labels: Labels | None
    instances: Labels | None
    sizes: Mapping[int, float] | None
    inputs: Mapping[str, Path | None]


def _open_data(
    images: Path | None,
    labels: Path | None,
    label_topics: Sequence[str],
    topics: Sequence[str],
    rate: float | None,
    cityscapes: Path | None,
    split: str,
    clip: int,
) -> _Data:
    from netwarp_ros.datasets.cityscapes import INSTANCE_SIZES, Cityscapes
    from netwarp_ros.datasets.samples import SampleFrames
    from netwarp_ros.recordings.open import open_frames, open_labels

    if cityscapes and not (images or labels):
        samples = SampleFrames(Cityscapes(cityscapes, split), clip, rate or 17.0)
        inputs = {"labels": cityscapes / "gtFine" / split}
        return _Data(samples, samples.label, samples.instances, INSTANCE_SIZES, inputs)
    if images and not cityscapes:
        frames = open_frames(images, rate=rate, topics=topics, leave_out=label_topics)
        label_of = open_labels(frames, images, labels, label_topics)
        return _Data(frames, label_of, None, None, {"images": images, "labels": labels})
    raise ValueError("give --images, with --labels or without, or --cityscapes")


def _segmenter(
    model: str | None,
    flow: FlowEstimator,
    device: str,
    precision: str,
    input_height: int,
    host_only: bool,
    inference: Inference,
) -> Segmenter:
    from netwarp_ros.models import DEFAULT_MODEL
    from netwarp_ros.segmenter import Segmenter

    return Segmenter(
        DEFAULT_MODEL if model is None else model,
        flow=flow,
        device=device,
        precision=precision,
        input_height=input_height,
        host_only=host_only,
        inference=inference,
    )


def _evaluate_slices(
    job: SliceSettings,
    slices: Sequence[Slice],
    folder: Path,
    context: Mapping[str, Any],
    weights: Path,
    ray: str | None,
    workers: int | None,
) -> tuple[EvaluationResults, list[str]]:
    """Judge slices, write the results of each recording to the folder, and return those of all, and the damage."""
    from netwarp_ros.evaluation.provenance import describe_input
    from netwarp_ros.evaluation.ray_runner import ray_cluster, run_on_ray
    from netwarp_ros.evaluation.results import write_json
    from netwarp_ros.evaluation.scoring import summarise
    from netwarp_ros.evaluation.slices import evaluate_slices, prefix_cameras, recording_name, run_serially

    inputs = {
        recording: {"images": describe_input(recording), "model": describe_input(weights)}
        for recording in dict.fromkeys(piece.recording for piece in slices)
    }
    origins = {
        recording: {
            "inputs": [source["sha256"] for source in described.values()],
            "settings": {**context["settings"], "host": job.host, "widths": list(job.widths), "rate": job.rate},
            "topics": [list(job.topics), list(job.label_topics)],
        }
        for recording, described in inputs.items()
    }
    with Progress(console=Console(stderr=True), transient=True) as progress, ExitStack() as stack:
        task = progress.add_task(f"evaluating {len(slices)} slices", total=len(slices))
        run = run_serially
        if ray:
            stack.enter_context(ray_cluster(ray, workers))
            run = run_on_ray
        found = evaluate_slices(job, slices, folder / "slices", origins, run, lambda piece: progress.advance(task))
    labelled = bool(job.label_topics)
    for recording, described in inputs.items():
        own = [each for piece, each in zip(slices, found, strict=True) if piece.recording == recording]
        report = summarise([each.results for each in own], job.classes, labelled=labelled, widths=job.widths)
        told = {"damage": _notes(own), "inputs": described, **context}
        write_json(folder / f"{recording_name(recording)}.json", {**report.to_json(), **told})
    parts = [each.results for each in found]
    if len(inputs) > 1:
        parts = [prefix_cameras(piece.recording, part) for piece, part in zip(slices, parts, strict=True)]
    return summarise(parts, job.classes, labelled=labelled, widths=job.widths), _notes(found)


def _notes(found: Iterable[SliceResults]) -> list[str]:
    """Return what is told of damage; what all slices of a recording tell, once."""
    return list(dict.fromkeys(note for each in found for note in each.damage))


def _refuse(options: Mapping[str, Any], why: str) -> None:
    """Refuse options that are given and have no meaning here."""
    given = [name for name, value in options.items() if value]
    if given:
        raise ValueError(f"{', '.join(given)} {why}")


def _settings(segmenter: Segmenter, flow: str, host_only: bool) -> dict[str, Any]:
    """Return what a segmenter was made of, as JSON can hold it."""
    return {
        "model": segmenter.model.name,
        "host_only": host_only,
        "flow": flow,
        "device": str(segmenter.device),
        "precision": segmenter.precision,
        "input_height": segmenter.input_height,
        "window": segmenter.inference.window,
        "scales": list(segmenter.inference.scales),
        "flip": segmenter.inference.flip,
    }


def _override(text: str) -> dict[str, Any]:
    """Read keys of a recipe and their values, in YAML."""
    try:
        override = yaml.safe_load(text)
    except yaml.YAMLError:
        override = None
    if not isinstance(override, dict) or not override:
        raise ValueError(f"variant is {text!r}: give keys of model.netwarp, such as '{{flow_cnn: false}}'")
    return override


def _widths(text: str) -> list[int]:
    """Read a list of whole numbers > 0, separated by commas."""
    try:
        widths = [int(part) for part in text.split(",")]
    except ValueError:
        widths = []
    if not widths or min(widths) <= 0:
        raise ValueError(f"trimap is {text!r}: give widths > 0 in whole pixels, such as 1,2,4")
    return widths


def _positive(name: str, text: str, kind: type[NumberT], example: str) -> list[NumberT]:
    """Read a list of numbers > 0, separated by commas."""
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise ValueError(f"{name} is {text!r}: give numbers > 0, such as {example}")
    return numbers


def _sizes(text: str) -> list[tuple[int, int]]:
    """Read a list of sizes, separated by commas."""
    try:
        sizes = [(int(width), int(height)) for width, height in (part.split("x") for part in text.split(","))]
    except ValueError:
        sizes = []
    if not sizes or min(map(min, sizes)) <= 0:
        raise ValueError(f"sizes is {text!r}: give sizes in whole pixels, such as 480x360,1920x1080")
    return sizes


def _progress(frames: Iterable[Frame], what: str, count: int) -> Iterable[Frame]:
    """Show progress on standard error while the frames are taken; a count of 0 is one that is not known."""
    return track(frames, what, total=count or None, console=Console(stderr=True), transient=True)


def _print_report(report: EvaluationResults, damage: Sequence[str]) -> None:
    console = Console()
    both = [report, report.host] if report.host else [report]
    titles = ["", "host's "][: len(both)]
    classes = Table("class", title=f"{report.frames} frames, {report.labelled} with labels")
    columns = [scores.iou for scores in both if report.labelled] + [scores.flicker for scores in both]
    for title in [f"{title}IoU %" for title in titles if report.labelled] + [f"{title}flicker %" for title in titles]:
        classes.add_column(title)
    for name in report.iou:
        classes.add_row(name, *(_shown(column[name], 1) for column in columns))
    console.print(classes)

    measures = Table("measure", *(f"{title}%" for title in titles))
    for name in report.measures():
        measures.add_row(name, *(_shown(scores.measures()[name], 2) for scores in both))
    if report.host:
        measures.add_row("disagreement with the host", _shown(report.disagreement, 2))
    console.print(measures)

    percent = report.segmenting_percent
    rate = f"{report.fps:.1f} frames per second, {percent:.1f} % of the time without scoring in flow and network"
    timing = Table("stage", "p50 ms", "p95 ms", "p99 ms", title=rate)
    for stage, values in report.stages_ms.items():
        timing.add_row(stage, *(f"{values[key]:.1f}" for key in ("p50", "p95", "p99")))
    if report.latency_ms:
        timing.caption = f"{sum(report.dropped.values())} frames dropped in real time"
        for name, values in (("arrival to mask", report.latency_ms), ("age of the mask", report.age_ms)):
            timing.add_row(name, *(f"{values[key]:.1f}" for key in ("p50", "p95", "p99")))
    console.print(timing)
    if damage:
        console.print(f"{len(damage)} notes on what was read:", *damage[:SHOWN], sep="\n  ", markup=False)
        if len(damage) > SHOWN:
            console.print(f"  and {len(damage) - SHOWN} more", markup=False)


def _shown(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"
