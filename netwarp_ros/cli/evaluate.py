# SPDX-License-Identifier: Apache-2.0
"""``netwarp evaluate``: scores of a model on one recording, or on many bags in slices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netwarp_ros.cli.evaluate_options import ResultFiles, ScoringOptions, SliceOptions
from netwarp_ros.cli.option_groups import expand_groups
from netwarp_ros.cli.options import DataOptions, InferenceOptions, ModelOptions, RecordingOptions
from netwarp_ros.cli.printing import print_results, progress_bar

if TYPE_CHECKING:
    from netwarp_ros.classes import ClassSet
    from netwarp_ros.evaluation.report import FrameGallery
    from netwarp_ros.evaluation.result_files import FrameSpool
    from netwarp_ros.evaluation.results import EvaluationResults
    from netwarp_ros.evaluation.scoring import ScoredFrame
    from netwarp_ros.recordings.ego_masks import EgoMasks
    from netwarp_ros.segmenter import Segmenter


@expand_groups
def evaluate(
    *,
    bags: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[BAG]...",
            help="Bags to evaluate in slices, instead of --images; needs --output.",
            show_default=False,
        ),
    ] = None,
    data: DataOptions,
    scoring: ScoringOptions,
    model: ModelOptions,
    inference: InferenceOptions,
    reading: RecordingOptions,
    files: ResultFiles,
    slicing: SliceOptions,
) -> None:
    """Score a model on recorded frames, with labels or without. Each camera is one stream."""
    from netwarp_ros.evaluation.report import check_requirements

    if files.html_file:
        check_requirements()
    setup = _set_up(scoring, model, inference, reading)
    files.make_folders()
    if bags:
        _check_options_for_bags(data, scoring, model, files)
        _write(files, setup, _evaluate_bags(bags, setup, data.label_topics or [], slicing))
        return
    _check_options_for_one_recording(slicing)
    with files.spool() as frames:
        _write(files, setup, _evaluate_recording(data, setup, frames, with_gallery=files.html_file is not None))


@dataclass(frozen=True)
class _Setup:
    """The model and how it is scored: the same for one recording and for bags.

    Attributes:
        scoring: How frames are segmented, and what is scored.
        model: The options of the model.
        reading: How recordings are read.
        segmenter: The loaded model.
        classes: What the ids of labels and masks mean.
        widths: Of the trimap bands, in pixels.
        settings: All settings, for the JSON files.
        environment: Machine and versions, for the JSON files.
        ego_masks: What is left out of masks and scores.
    """

    scoring: ScoringOptions
    model: ModelOptions
    reading: RecordingOptions
    segmenter: Segmenter
    classes: ClassSet
    widths: Sequence[int]
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    ego_masks: EgoMasks


@dataclass(frozen=True)
class _Outcome:
    """The results of an evaluation, and what is written beside them.

    Attributes:
        results: Scores, times and records of all frames.
        damage: Notes on what could not be read or matched.
        settings: Settings in addition to those of the setup.
        inputs: Paths of what was read, by name.
        frames: The JSON of each frame.
        gallery: Frames for the report, if there is one.
    """

    results: EvaluationResults
    damage: Sequence[str]
    settings: Mapping[str, Any]
    inputs: Mapping[str, Path | None]
    frames: Iterable[Mapping[str, Any]]
    gallery: FrameGallery | None = None


def _set_up(
    scoring: ScoringOptions, model: ModelOptions, inference: InferenceOptions, reading: RecordingOptions
) -> _Setup:
    import torch

    from netwarp_ros.evaluation.provenance import environment, versions

    widths, ego_masks = scoring.widths(), model.ego_masks()
    segmenter = model.segmenter(inference.inference())
    classes = scoring.class_set(segmenter)
    settings = {
        **model.settings(segmenter), "classes": classes.name, "stills": scoring.stills, "realtime": scoring.realtime,
    }  # fmt: skip
    system = {**environment(torch.device(model.device)), "versions": versions()}
    return _Setup(scoring, model, reading, segmenter, classes, widths, settings, system, ego_masks)


def _check_options_for_bags(
    data: DataOptions, scoring: ScoringOptions, model: ModelOptions, files: ResultFiles
) -> None:
    _refuse(
        {
            "--images": data.images, "--labels": data.labels, "--cityscapes": data.cityscapes,
            "--realtime": scoring.realtime, "--html": files.html_file, "--flow FOLDER": model.flow_folder(),
        },
        "cannot be used with BAG arguments, which are evaluated in slices: give one recording by --images",
    )  # fmt: skip


def _check_options_for_one_recording(slicing: SliceOptions) -> None:
    _refuse(
        {
            "--output": slicing.output, "--slice": slicing.slice_s, "--ray": slicing.ray, "--workers": slicing.workers,
        },
        "can only be used with BAG arguments: give them in place of --images",
    )  # fmt: skip


def _refuse(options: Mapping[str, Any], reason: str) -> None:
    """Raise ValueError if one of the options is given."""
    given = [name for name, value in options.items() if value]
    if given:
        raise ValueError(f"{', '.join(given)} {reason}")


def _evaluate_recording(data: DataOptions, setup: _Setup, frames: FrameSpool | None, *, with_gallery: bool) -> _Outcome:
    """Evaluate one recording, or Cityscapes, as a whole."""
    from netwarp_ros.classes import load_classes
    from netwarp_ros.evaluation.report import FrameGallery
    from netwarp_ros.evaluation.scoring import evaluate as evaluate_frames

    if data.cityscapes and setup.model.label_map:
        setup.classes.check_names(load_classes("cityscapes"), "--cityscapes")
    opened = data.open(setup.reading, setup.classes)
    setup.ego_masks.check_cameras(opened.frames.cameras)
    labelled, realtime, flows = opened.labels is not None, setup.scoring.realtime, setup.model.flow_folder()
    host = setup.scoring.host
    if host is None:
        host = (with_gallery or not labelled) and setup.segmenter.uses_netwarp and not realtime
    gallery = FrameGallery(setup.classes, labelled=labelled, host=host) if with_gallery else None
    with progress_bar() as progress:
        task = progress.add_task("evaluating", total=len(opened.frames) or None)

        def on_frame(frame: ScoredFrame) -> None:
            progress.advance(task)
            if frames:
                frames.add(frame.to_json())
            if gallery:
                gallery.add(frame)

        results = evaluate_frames(
            opened.frames, opened.labels, setup.segmenter, setup.classes, stills=setup.scoring.stills,
            realtime=realtime, host=host, widths=setup.widths, instances=opened.instances, sizes=opened.sizes,
            flows=flows, ego_masks=setup.ego_masks, on_frame=on_frame,
        )  # fmt: skip
    inputs = {**opened.inputs, "model": setup.model.weights(), "flow": flows.folder if flows else None}
    return _Outcome(results, opened.damage(), {"cameras": list(opened.frames.cameras)}, inputs, frames or (), gallery)


def _evaluate_bags(bags: Sequence[Path], setup: _Setup, label_topics: Sequence[str], slicing: SliceOptions) -> _Outcome:
    """Evaluate bags in slices, and write the results of each bag to a file of its own."""
    from netwarp_ros.classes import label_map_file
    from netwarp_ros.evaluation.many_recordings import evaluate_recordings
    from netwarp_ros.evaluation.slices import SliceSettings, cut_slices, recording_name

    if slicing.output is None:
        raise ValueError("there is no folder for the results of the bags: give --output")
    scoring, model, weights = setup.scoring, setup.model, setup.model.weights()
    mapped = None if model.label_map is None else label_map_file(model.label_map)
    host = not label_topics and setup.segmenter.uses_netwarp if scoring.host is None else scoring.host
    settings = SliceSettings(
        segmenter={
            "model": str(weights.resolve()), "flow": model.flow,
            "flow_device": model.flow_device, **model.engine_arguments(),
            "engine": setup.segmenter.engine.name.split(",")[0], "precision": setup.segmenter.precision,
            "input_height": model.input_height,
            "max_input_width": model.max_input_width, "host_only": model.host_only, "rival": model.rival,
            "keyframes": model.keyframes,
            "inference": setup.segmenter.inference, "label_map": mapped and str(mapped.resolve()),
        },
        classes=setup.classes, topics=setup.reading.topics or [], label_topics=label_topics, rate=setup.reading.rate,
        stills=scoring.stills, host=host, widths=setup.widths, ego_masks=setup.ego_masks,
    )  # fmt: skip
    slices = cut_slices(settings, [bag.resolve() for bag in bags], seconds=slicing.slice_s, warm_up=slicing.warm_up)
    lengths = {"slice_s": slicing.slice_s, "warm_up": slicing.warm_up}
    context = {"settings": {**setup.settings, **lengths}, "environment": setup.environment}
    with progress_bar() as progress, slicing.runner() as run:
        task = progress.add_task(f"evaluating {len(slices)} slices", total=len(slices))
        results, damage, frames = evaluate_recordings(
            settings, slices, slicing.output, weights, context, run, lambda slice_: progress.advance(task)
        )
    inputs = {**{recording_name(bag): bag for bag in bags}, "model": weights}
    return _Outcome(results, damage, lengths, inputs, frames)


def _write(files: ResultFiles, setup: _Setup, outcome: _Outcome) -> None:
    """Print the results and write them to files."""
    from netwarp_ros.evaluation.provenance import describe_input
    from netwarp_ros.evaluation.report import write_page
    from netwarp_ros.evaluation.result_files import write_csv, write_json

    print_results(outcome.results, outcome.damage)
    if files.csv_file:
        write_csv(files.csv_file, outcome.results.records)
    if not (files.json_file or files.html_file):
        return
    context = {
        "damage": list(outcome.damage),
        "settings": {**setup.settings, **outcome.settings},
        "inputs": {name: describe_input(path) for name, path in outcome.inputs.items() if path},
        "environment": setup.environment,
    }
    if files.json_file:
        write_json(files.json_file, {**outcome.results.to_json(), **context}, outcome.frames)
    if files.html_file and outcome.gallery:
        write_page(files.html_file, outcome.results, setup.classes, outcome.gallery, context)
