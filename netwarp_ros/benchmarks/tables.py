# SPDX-License-Identifier: Apache-2.0
"""The paper's tables (Sec. 4) on any data: each row is a model that is judged and timed, and kept once it is there."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from netwarp_ros.benchmarks.model import measure_overhead
from netwarp_ros.evaluation.provenance import describe_input, environment, versions
from netwarp_ros.evaluation.results import EvaluationResults
from netwarp_ros.flow import open_flow
from netwarp_ros.models import Model, load_model, read_spec
from netwarp_ros.models.weights import find_weights
from netwarp_ros.recordings.atomic import replacing
from netwarp_ros.recordings.frames import FrameSource
from netwarp_ros.segmenter import Segmenter
from netwarp_ros.training.config import FREE_KEYS, TrainingConfig, load_config
from netwarp_ros.training.trainer import train

KINDS = ("sweep", "flows", "models", "classes")
"""Insertion points with and without Λ, or other variants of a training (the paper's Table 1); flow methods (Table 2);
IoU, trimap IoU and runtime of models and their hosts (Tables 3 and 4); IoU by class (Table 5)."""

WIDTH = 2
"""Half width in pixels of the band that trimap IoU is of, as in the paper."""

TIMED = 20
"""Frames that a model and its host are timed on, by turns."""


@dataclass(frozen=True)
class RowEvaluator:
    """What models are judged on, and how they are run there.

    Attributes:
        evaluate: `netwarp_ros.evaluation.scoring.evaluate` with its frames and labels.
        images: The first of the frames, to time on; see `first_images`.
        options: Of the `Segmenter`, but for the flow.
        origin: Plain values that tell all this from others.
    """

    evaluate: Callable[..., EvaluationResults]
    images: Sequence[np.ndarray]
    options: Mapping[str, Any]
    origin: Mapping[str, Any]

    def evaluate_model(self, model: Model, flow: str, *, host: bool) -> dict[str, Any]:
        """Return the scores of a model, as of `EvaluationResults.to_json` without frames, and its ``runtime``.

        Args:
            model: Belongs to this function from then on.
            flow: What `open_flow` takes. There is no ``runtime`` with flow that is known, or without NetWarp.
            host: Score the host by itself, too, if the model has NetWarp.
        """
        estimator, flows = open_flow(flow)
        options = {**self.options, "flow": estimator}
        segmenter = Segmenter(model, **options)
        classes, video = model.spec.classes, segmenter.uses_netwarp
        scores = self.evaluate(segmenter, classes, flows=flows, host=host and video, widths=[WIDTH]).to_json()
        del scores["per_frame"]
        timed = video and flows is None and len(self.images) > 1
        return {
            "flow": flow if video else "",
            **scores,
            "runtime": measure_overhead(self.images, model, **options).to_json() if timed else None,
            "netwarp": model.spec.netwarp and dataclasses.asdict(model.spec.netwarp),
            "environment": {**environment(segmenter.device), "versions": versions()},
        }


@dataclass(frozen=True)
class Row:
    """A row that is to be filled.

    Attributes:
        name: What tells it from the others.
        origin: Plain values that its result depends on.
        find: Finds the result, as `RowEvaluator.evaluate_model` returns it.
    """

    name: str
    origin: Mapping[str, Any]
    find: Callable[[], dict[str, Any]]


def first_images(frames: FrameSource, count: int = TIMED) -> list[np.ndarray]:
    """Return the first images of one camera, as many as there are of one size, up to a count."""
    images: list[np.ndarray] = []
    for frame in frames:
        if frame.camera == frames.cameras[0]:
            if len(images) == count or (images and frame.image.shape != images[0].shape):
                break
            images.append(frame.image)
    return images


def model_rows(judge: RowEvaluator, models: Sequence[str], flows: Sequence[str], *, hosts: bool) -> list[Row]:
    """Return a row for each model with each flow; image CNNs have one.

    Args:
        judge: What they are judged on.
        models: Names or files.
        flows: Names of estimators, or folders of known flow.
        hosts: Whether a video CNN's host is judged by itself, too.

    Raises:
        WeightsError: If there is no such model.
        ValueError: If there is no such flow.
    """
    sources = {flow: _flow_source(flow) for flow in flows}
    rows = []
    for name in models:
        weights = find_weights(name)
        temporal = read_spec(weights).netwarp is not None
        for flow in flows if temporal else flows[:1]:
            origin = {**judge.origin, "weights": describe_input(weights)["sha256"], "host": hosts}
            if temporal:
                origin["flow"] = sources[flow]
            find = partial(_judge_weights, judge, weights, flow, host=hosts)
            rows.append(Row(f"{name}, {flow}" if temporal and len(flows) > 1 else name, origin, find))
    return rows


def sweep_rows(
    judge: RowEvaluator, recipe: Path, overrides: Sequence[Mapping[str, Any]], steps: int, flow: str
) -> list[Row]:
    """Return a row for the image CNN that a recipe starts from, and for each of its `variants`, which is trained first.

    A training that was stopped goes on from its checkpoint.
    """
    configs = variants(recipe, overrides, steps)
    initial = next(iter(configs.values())).model.initial
    source: dict[str, Any] = {**judge.origin, "flow": _flow_source(flow)}
    rows = []
    if initial:
        weights = find_weights(initial)
        source["initial"] = describe_input(weights)["sha256"]
        rows.append(Row("without NetWarp", source, partial(_judge_weights, judge, weights, flow, host=False)))
    for name, config in configs.items():
        training = {key: value for key, value in dataclasses.asdict(config).items() if key not in FREE_KEYS}
        rows.append(Row(name, {**source, "training": training}, partial(_judge_training, judge, config, flow)))
    return rows


def variants(recipe: Path, overrides: Sequence[Mapping[str, Any]], steps: int = 0) -> dict[str, TrainingConfig]:
    """Return a recipe's variants by name; each is written to ``recipe.yaml`` in a folder of the recipe's ``output``.

    Args:
        recipe: A training's YAML file.
        overrides: What each variant has otherwise, by key: those of ``model.netwarp`` as they are, others in full, such
            as ``optimiser.rate``. The recipe as it is comes before them. Where there are none, the variants are each of
            its layers by itself and all of them, without Λ and with it.
        steps: Of each training; 0 is as many as the recipe has.

    Raises:
        ValueError: If the recipe, or what becomes of it, is not valid, or it has no NetWarp.
    """
    base = load_config(recipe)
    if base.model.netwarp is None:
        raise ValueError(f"{recipe} has no model.netwarp, which is what variants differ in: give a recipe with NetWarp")
    layers = base.model.netwarp.layers
    if overrides:
        overrides = [{}, *overrides]
    else:
        places = dict.fromkeys([*((layer,) for layer in layers), layers])
        overrides = [{"layers": list(place), "flow_cnn": on} for place in places for on in (False, True)]
    configs = {}
    for override in overrides:
        name = ", ".join(f"{key}: {_text(value)}" for key, value in override.items()) or "as in the recipe"
        folder = Path(base.output) / "sweep" / re.sub(r"[^\w.]+", "-", name)
        content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        content.pop("validation", None)
        content["output"] = str(folder)
        if steps:
            _change(content, "optimiser.steps", steps)
        for key, value in override.items():
            _change(content, key if "." in key else f"model.netwarp.{key}", value)
        if content["model"]["netwarp"].get("flow_cnn") is False:
            content.get("optimiser", {}).pop("flow_cnn_rate", None)  # a rate of what is not there would be refused
        with replacing(folder / "recipe.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        configs[name] = load_config(folder / "recipe.yaml")
    return configs


def _change(content: dict[str, Any], key: str, value: Any) -> None:
    """Set a key of a recipe, given in full."""
    *sections, last = key.split(".")
    section = content
    for name in sections:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise ValueError(f"{key} cannot be set: {name} is no section of the recipe")
    section[last] = value


def compute_rows(kind: str, rows: Sequence[Row], file: Path | None, log: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return the results of all rows, in their order, with their names and origins.

    Args:
        kind: Of `KINDS`.
        rows: What to fill; of different names.
        file: JSON to which each result is written at once. One of the same name and origin that it holds already is
            not found again; of other rows it keeps what it has.
        log: Is given a line on each row before it is filled.

    Raises:
        ValueError: If the file is no table of this kind.
    """
    kept = _read(file, kind) if file and file.exists() else {}
    for number, row in enumerate(rows, 1):
        origin = json.loads(json.dumps(row.origin))  # as it is read again: tuples are lists
        if row.name in kept and kept[row.name]["origin"] == origin:
            continue
        log(f"{row.name} ({number} of {len(rows)})")
        kept[row.name] = {"name": row.name, "origin": origin, **row.find()}
        if file:
            table = {"table": kind, "rows": list(kept.values())}
            with replacing(file) as temporary:
                temporary.write_text(json.dumps(table, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return [kept[row.name] for row in rows]


def markdown(kind: str, results: Iterable[Mapping[str, Any]]) -> str:
    """Return the table of what `compute_rows` returned, without columns that would be empty; scores are in per cent."""
    lines = []
    for result in results:
        name, runtime, host_ms = result["name"], result["runtime"], None
        timing = {"flow ms": None, "ms": result["stages_ms"]["total"]["p50"]}
        if runtime:
            host_ms, video = runtime["stages_ms"]["host"]["total"], runtime["stages_ms"]["netwarp"]
            timing = {"flow ms": video["flow"], "ms": video["total"], "overhead %": runtime["overhead"]}
        if result["host"]:
            lines.append(_line(kind, f"{name}: host alone", result["host"], {"flow ms": None, "ms": host_ms}))
        lines.append(_line(kind, name, result, timing))
    columns = list(dict.fromkeys(column for line in lines for column in line))
    columns = [column for column in columns if any(line.get(column) for line in lines)]
    head = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    return "\n".join(head + [f"| {' | '.join(line.get(column, '') for column in columns)} |" for line in lines])


def _line(kind: str, name: str, scores: Mapping[str, Any], timing: Mapping[str, float | None]) -> dict[str, str]:
    """Return a line's texts by column."""
    if kind == "classes":
        values = {**scores["iou"], "mean": scores["miou"]}
    else:
        tiou = scores["tiou"][str(WIDTH)]
        values = {"mIoU": scores["miou"], "tIoU": tiou, "iIoU": scores["miiou"], "TC": scores["tc"], **timing}
    texts = {column: "" if value is None else f"{value:.2f}" for column, value in values.items()}
    return {"variant" if kind == "sweep" else "model": name, **texts}


def _judge_weights(judge: RowEvaluator, weights: Path, flow: str, *, host: bool) -> dict[str, Any]:
    return judge.evaluate_model(load_model(weights), flow, host=host)


def _judge_training(judge: RowEvaluator, config: TrainingConfig, flow: str) -> dict[str, Any]:
    return judge.evaluate_model(load_model(train(config)), flow, host=False)


def _flow_source(flow: str) -> str:
    """Return what tells a flow from others: the name of an estimator, or the hash of a folder."""
    known = open_flow(flow)[1]
    return describe_input(known.folder)["sha256"] if known else flow


def _read(file: Path, kind: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a table by name."""
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        if table["table"] == kind:
            return {row["name"]: row for row in table["rows"] if row["origin"] is not None}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is no table: give a file that `netwarp table {kind}` wrote, or a new one") from error
    raise ValueError(f"{file} is the table {table['table']}, not {kind}: give another file")


def _text(value: Any) -> str:
    """Return a value of a recipe in a row's name."""
    if isinstance(value, list):
        return " + ".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
