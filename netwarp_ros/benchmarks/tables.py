# SPDX-License-Identifier: Apache-2.0
"""The paper's tables (Sec. 4) on any data. Each row is a model, scored and timed; finished rows are kept in a file."""

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
from netwarp_ros.recordings.atomic import replacing, written_by
from netwarp_ros.recordings.frames import FrameSource
from netwarp_ros.rivals import check_rival
from netwarp_ros.segmenter import KeyFrames, Segmenter
from netwarp_ros.training.config import FREE_KEYS, TrainingConfig, load_config
from netwarp_ros.training.trainer import train

KINDS = ("sweep", "flows", "models", "classes")
"""``sweep``: layers of NetWarp with and without FlowCNN, or other variants of a training (the paper's Table 1).
``flows``: flow methods (Table 2). ``models``: IoU, trimap IoU and runtime of models and their hosts (Tables 3 and 4).
``classes``: IoU by class (Table 5)."""

TRIMAP_WIDTH = 2
"""Width of the trimap in pixels, as in the paper."""

TIMED_FRAMES = 20
"""Number of frames on which a model and its host are timed."""


@dataclass(frozen=True)
class RowEvaluator:
    """Scores and times models on given data.

    Attributes:
        evaluate: `netwarp_ros.evaluation.scoring.evaluate`, with frames and labels bound.
        images: Images to time on; see `first_images`.
        options: Arguments of `Segmenter`, without the flow.
        origin: Plain values that identify data and options.
    """

    evaluate: Callable[..., EvaluationResults]
    images: Sequence[np.ndarray]
    options: Mapping[str, Any]
    origin: Mapping[str, Any]

    def evaluate_model(
        self, model: Model, flow: str, *, host: bool, rival: str = "", keyframes: str = "none"
    ) -> dict[str, Any]:
        """Score and time a model.

        Args:
            model: The model.
            flow: Name of an estimator, or folder of precomputed flow, as `open_flow` takes it.
            host: Also score the host on its own, if the model has NetWarp.
            rival: As `Segmenter` takes it.
            keyframes: As `Segmenter` takes it.

        Returns:
            `EvaluationResults.to_json`, and ``runtime`` (of `Overhead.to_json`; None without NetWarp or
            with precomputed flow), ``flow``, ``netwarp`` and ``environment``.
        """
        estimator, flows = open_flow(flow)
        options = {**self.options, "flow": estimator, "flow_device": "cpu"}  # by OpenCV, on every device
        segmenter = Segmenter(model, rival=rival, keyframes=keyframes, **options)
        classes, video = model.spec.classes, segmenter.uses_netwarp
        scores = self.evaluate(segmenter, classes, flows=flows, host=host and video, widths=[TRIMAP_WIDTH]).to_json()
        timed = video and not rival and keyframes == "none" and flows is None and len(self.images) > 1
        return {
            "flow": flow if segmenter.uses_flow else "",
            "keyframes": keyframes,
            **scores,
            "runtime": measure_overhead(self.images, model, **options).to_json() if timed else None,
            "netwarp": model.spec.netwarp and dataclasses.asdict(model.spec.netwarp),
            "environment": {**environment(segmenter.device), "versions": versions()},
        }


@dataclass(frozen=True)
class Row:
    """A row to compute.

    Attributes:
        name: Name of the row, unique within the table.
        origin: Plain values that the result depends on.
        compute: Computes the result, as `RowEvaluator.evaluate_model` returns it.
    """

    name: str
    origin: Mapping[str, Any]
    compute: Callable[[], dict[str, Any]]


def first_images(frames: FrameSource, count: int = TIMED_FRAMES) -> list[np.ndarray]:
    """Return the first images of the first camera, up to ``count``, and up to a change of their size."""
    images: list[np.ndarray] = []
    for frame in frames:
        if frame.camera == frames.cameras[0]:
            if len(images) == count or (images and frame.image.shape != images[0].shape):
                break
            images.append(frame.image)
    return images


def model_rows(
    evaluator: RowEvaluator,
    models: Sequence[str],
    flows: Sequence[str],
    rivals: Sequence[str] = (),
    keyframes: Sequence[str] = (),
    *,
    hosts: bool,
) -> list[Row]:
    """Return a row for each video CNN with each flow, and one for each image CNN; then one by rival and by key frames.

    Args:
        evaluator: Scores and times the models.
        models: Names or files of models.
        flows: Names of estimators, or folders of precomputed flow.
        rivals: Names of rivals, which refine the scores of each model's host along the first flow.
        keyframes: Kinds of key frames, as `KeyFrames` takes them; along the first flow.
        hosts: Whether to also score the hosts of video CNNs on their own.

    Raises:
        WeightsError: If there is no such model.
        ValueError: If a flow is neither an estimator nor a folder, or there is no such rival.
    """
    for rival in rivals:
        check_rival(rival)
    sources = {flow: _flow_source(flow) for flow in flows}
    rows = []
    for name in models:
        weights = find_weights(name)
        temporal = read_spec(weights).netwarp is not None
        for flow in flows if temporal else flows[:1]:
            origin = {**evaluator.origin, "weights": describe_input(weights)["sha256"], "host": hosts}
            if temporal:
                origin["flow"] = sources[flow]
            compute = partial(_evaluate_weights, evaluator, weights, flow, host=hosts)
            rows.append(Row(f"{name}, {flow}" if temporal and len(flows) > 1 else name, origin, compute))
        for rival in rivals:
            origin = {**evaluator.origin, "weights": describe_input(weights)["sha256"], "flow": sources[flows[0]]}
            compute = partial(_evaluate_weights, evaluator, weights, flows[0], host=False, rival=rival)
            rows.append(Row(f"{name}: host with {rival}", {**origin, "rival": rival}, compute))
        for kind in keyframes:
            origin = {**evaluator.origin, "weights": describe_input(weights)["sha256"], "flow": sources[flows[0]]}
            compute = partial(_evaluate_weights, evaluator, weights, flows[0], host=False, keyframes=kind)
            rows.append(Row(f"{name}, key frames {KeyFrames(kind).text}", {**origin, "keyframes": kind}, compute))
    return rows


def sweep_rows(
    evaluator: RowEvaluator, recipe: Path, overrides: Sequence[Mapping[str, Any]], steps: int, flow: str
) -> list[Row]:
    """Return a row for the image CNN that a recipe starts from, and for each of the recipe's `variants`.

    A variant is trained when its row is computed. A training that was stopped continues from its checkpoint.
    """
    configs = variants(recipe, overrides, steps)
    initial = next(iter(configs.values())).model.initial
    source: dict[str, Any] = {**evaluator.origin, "flow": _flow_source(flow)}
    rows = []
    if initial:
        weights = find_weights(initial)
        source["initial"] = describe_input(weights)["sha256"]
        rows.append(Row("without NetWarp", source, partial(_evaluate_weights, evaluator, weights, flow, host=False)))
    for name, config in configs.items():
        training = {key: value for key, value in dataclasses.asdict(config).items() if key not in FREE_KEYS}
        rows.append(Row(name, {**source, "training": training}, partial(_train_and_evaluate, evaluator, config, flow)))
    return rows


def variants(recipe: Path, overrides: Sequence[Mapping[str, Any]], steps: int = 0) -> dict[str, TrainingConfig]:
    """Return the variants of a recipe by name, and write each to ``sweep/NAME/recipe.yaml`` in the recipe's ``output``.

    Args:
        recipe: YAML file of a training.
        overrides: For each variant, its values by key. Keys of ``model.netwarp`` are short, others have their full
            name, such as ``optimiser.rate``. The unchanged recipe is the first variant. If there are no overrides, the
            variants are each layer of the recipe alone and all layers together, without FlowCNN and with it.
        steps: Steps of each training; 0 for those of the recipe.

    Raises:
        ValueError: If the recipe or a variant is not valid, or the recipe has no NetWarp.
    """
    base = load_config(recipe)
    if base.model.netwarp is None:
        raise ValueError(f"{recipe} has no model.netwarp, which variants change: give a recipe with NetWarp")
    layers = base.model.netwarp.layers
    if overrides:
        overrides = [{}, *overrides]
    else:
        places = dict.fromkeys([*((layer,) for layer in layers), layers])
        overrides = [{"layers": list(place), "flow_cnn": on} for place in places for on in (False, True)]
    configs: dict[str, TrainingConfig] = {}
    for override in overrides:
        name = ", ".join(f"{key}: {_text(value)}" for key, value in override.items()) or "as in the recipe"
        folder = Path(base.output) / "sweep" / re.sub(r"[^\w.]+", "-", name)
        while str(folder) in (config.output for config in configs.values()):
            folder = folder.with_name(f"{folder.name}-")
        content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        content.pop("validation", None)
        content["output"] = str(folder)
        if steps:
            _change(content, "optimiser.steps", steps)
        for key, value in override.items():
            _change(content, key if "." in key else f"model.netwarp.{key}", value)
        if content["model"]["netwarp"].get("flow_cnn") is False:
            content.get("optimiser", {}).pop("flow_cnn_rate", None)  # a recipe without FlowCNN must not have its rate
        mark = written_by("table")
        with replacing(folder / "recipe.yaml", mark) as temporary:
            temporary.write_text(f"# {mark}\n{yaml.safe_dump(content, sort_keys=False)}", encoding="utf-8")
        configs[name] = load_config(folder / "recipe.yaml")
    return configs


def _change(content: dict[str, Any], key: str, value: Any) -> None:
    """Set a key of a recipe, given by its full name."""
    *sections, last = key.split(".")
    section = content
    for name in sections:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise ValueError(f"{key} cannot be set: {name} is not a section of the recipe")
    section[last] = value


def compute_rows(kind: str, rows: Sequence[Row], file: Path | None, log: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return the results of all rows, in order, with their ``name`` and ``origin``.

    Args:
        kind: One of `KINDS`.
        rows: The rows.
        file: JSON file that each result is written to as soon as it is computed. A row in the file with the same
            name and origin is not computed again. Other rows stay in the file.
        log: Called with a line before each row is computed.

    Raises:
        ValueError: If the file is not a table of this kind.
    """
    kept = _read(file, kind) if file and file.exists() else {}
    for number, row in enumerate(rows, 1):
        origin = json.loads(json.dumps(row.origin))  # as read from the file: tuples become lists
        if row.name in kept and kept[row.name]["origin"] == origin:
            continue
        log(f"{row.name} ({number} of {len(rows)})")
        kept[row.name] = {"name": row.name, "origin": origin, **row.compute()}
        if file:
            table = {"table": kind, "rows": list(kept.values())}
            with replacing(file) as temporary:
                temporary.write_text(json.dumps(table, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return [kept[row.name] for row in rows]


def markdown(kind: str, results: Iterable[Mapping[str, Any]]) -> str:
    """Return results of `compute_rows` as a Markdown table without empty columns; scores in per cent, times in ms."""
    lines = []
    for result in results:
        name, runtime, host_ms = result["name"], result["runtime"], None
        timing = {"flow ms": None, "ms": result["stages_ms"]["total"]["p50"]}
        if result.get("keyframes", "none") != "none":  # the median would be of key frames alone, or of the others
            timing["ms"] = 1e3 / result["fps"]
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
    """Return the cells of a line by column."""
    if kind == "classes":
        values = {**scores["iou"], "mean": scores["miou"]}
    else:
        tiou = scores["tiou"][str(TRIMAP_WIDTH)]
        values = {"mIoU": scores["miou"], "tIoU": tiou, "iIoU": scores["miiou"], "TC": scores["tc"], **timing}
    texts = {column: "" if value is None else f"{value:.2f}" for column, value in values.items()}
    return {"variant" if kind == "sweep" else "model": name, **texts}


def _evaluate_weights(
    evaluator: RowEvaluator, weights: Path, flow: str, *, host: bool, rival: str = "", keyframes: str = "none"
) -> dict[str, Any]:
    return evaluator.evaluate_model(load_model(weights), flow, host=host, rival=rival, keyframes=keyframes)


def _train_and_evaluate(evaluator: RowEvaluator, config: TrainingConfig, flow: str) -> dict[str, Any]:
    return evaluator.evaluate_model(load_model(train(config)), flow, host=False)


def _flow_source(flow: str) -> str:
    """Identify a flow: by the name of the estimator, or the hash of the folder."""
    precomputed = open_flow(flow)[1]
    return describe_input(precomputed.folder)["sha256"] if precomputed else flow


def _read(file: Path, kind: str) -> dict[str, dict[str, Any]]:
    """Read the rows of a table, by name."""
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        if table["table"] == kind:
            return {row["name"]: row for row in table["rows"] if row["origin"] is not None}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{file} is not a table: give a file of `netwarp table {kind}`, or a new one") from error
    raise ValueError(f"{file} is the table {table['table']}, not {kind}: give another file")


def _text(value: Any) -> str:
    """Format a value of a recipe for the name of a row."""
    if isinstance(value, list):
        return " + ".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
