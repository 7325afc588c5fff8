# SPDX-License-Identifier: Apache-2.0
"""``netwarp table`` with tiny networks on four stills: rows have the scores of ``evaluate``, and are computed once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tiny
import torch
import yaml
from torch import nn

from netwarp_ros import cli
from netwarp_ros.benchmarks import tables
from netwarp_ros.benchmarks.tables import Row, compute_rows, first_images, markdown, variants
from netwarp_ros.classes import load_classes
from netwarp_ros.flow import write_flo
from netwarp_ros.models import ModelSpec, NetWarpSpec, build, load_model, save_model
from netwarp_ros.models.hosts import HOSTS
from netwarp_ros.recordings.image_files import ImageFiles
from netwarp_ros.training import trainer as training
from netwarp_ros.training.config import TrainingConfig

CAMVID = load_classes("camvid")
SPEC = ModelSpec("tiny", CAMVID, {"num_classes": 11}, input_height=64)


@pytest.fixture(autouse=True)
def tiny_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HOSTS, "tiny", tiny.TinyHost)


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """An image CNN of random weights, and the same with NetWarp."""
    torch.manual_seed(0)
    host = build(SPEC)
    video_spec = ModelSpec("tiny", CAMVID, {"num_classes": 11}, NetWarpSpec(("features",)), input_height=64)
    video = build(video_spec)
    video.load_state_dict(host.state_dict(), strict=False)
    nn.init.constant_(video.netwarps[0].w2, 3.0)
    return (
        save_model(tmp_path / "host.safetensors", host, SPEC),
        save_model(tmp_path / "video.safetensors", video, video_spec),
    )


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def on(camvid: Path) -> list[object]:
    return ["--images", camvid / "images", "--labels", camvid / "labels"]


def read_rows(file: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(file.read_text())["rows"]}


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def result(name: str, miou: float | None, **others: Any) -> dict[str, Any]:
    scores = {"miou": miou, "tiou": {"2": miou and miou / 2}, "miiou": None, "tc": 90.0}
    scores["iou"] = {"sky": miou, "road": None}
    return {"name": name, **scores, "host": None, "runtime": None, "stages_ms": {"total": {"p50": 7.0}}, **others}


def test_markdown_by_hand() -> None:
    host = {"miou": 40.0, "tiou": {"2": 20.0}, "miiou": None, "tc": 80.0, "iou": {"sky": 40.0, "road": None}}
    runtime = {"stages_ms": {"host": {"total": 10.0}, "netwarp": {"flow": 1.0, "total": 11.5}}, "overhead": 15.0}
    results = [result("a", 50.0, host=host, runtime=runtime), result("b", 60.0)]
    assert markdown("models", results).splitlines() == [
        "| model | mIoU | tIoU | TC | flow ms | ms | overhead % |",
        "|---|---:|---:|---:|---:|---:|---:|",
        "| a: host alone | 40.00 | 20.00 | 80.00 |  | 10.00 |  |",
        "| a | 50.00 | 25.00 | 90.00 | 1.00 | 11.50 | 15.00 |",
        "| b | 60.00 | 30.00 | 90.00 |  | 7.00 |  |",
    ]
    assert markdown("classes", results).splitlines() == [
        "| model | sky | mean |",
        "|---|---:|---:|",
        "| a: host alone | 40.00 | 40.00 |",
        "| a | 50.00 | 50.00 |",
        "| b | 60.00 | 60.00 |",
    ]
    assert markdown("sweep", [result("layers: x", None)]).splitlines() == [
        "| variant | TC | ms |",
        "|---|---:|---:|",
        "| layers: x | 90.00 | 7.00 |",
    ]


def test_rows_are_kept_as_they_come_and_computed_once(tmp_path: Path) -> None:
    file, logged, computed = tmp_path / "new" / "table.json", [], []

    def row(name: str, weights: str) -> Row:
        def compute() -> dict[str, Any]:
            if weights == "broken":
                raise KeyboardInterrupt
            computed.append(weights)
            return {"miou": float(len(computed))}

        return Row(name, {"weights": weights, "layers": ("x", "y")}, compute)

    with pytest.raises(KeyboardInterrupt):
        compute_rows("models", [row("a", "1"), row("b", "broken"), row("c", "3")], file, logged.append)
    assert computed == ["1"] and [row["name"] for row in json.loads(file.read_text())["rows"]] == ["a"]
    results = compute_rows("models", [row("b", "2"), row("a", "1")], file, logged.append)
    assert computed == ["1", "2"] and [(row["name"], row["miou"]) for row in results] == [("b", 2), ("a", 1)]
    (changed,) = compute_rows("models", [row("a", "1 anew")], file, logged.append)
    assert changed["miou"] == 3 and read_rows(file)["a"] == changed
    assert read_rows(file)["b"]["miou"] == 2
    assert logged == ["a (1 of 3)", "b (2 of 3)", "b (1 of 2)", "a (1 of 1)"]
    with pytest.raises(ValueError, match=r"table\.json is the table models, not flows: give another file"):
        compute_rows("flows", [], file, logged.append)
    file.write_text('{"rows": 1}')
    with pytest.raises(ValueError, match=r"table\.json is not a table: give a file of `netwarp table flows`"):
        compute_rows("flows", [], file, logged.append)


def test_models_score_as_evaluate_says(
    tmp_path: Path, camvid: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    host, video = models
    for model in models:
        command = ["evaluate", *on(camvid), "--model", model, "--flow", "medium", "--trimap", "2"]
        assert run(*command, "--json", tmp_path / f"{model.stem}.json") == 0
    alone, blended = (json.loads((tmp_path / f"{model.stem}.json").read_text()) for model in models)
    assert blended["miou"] != alone["miou"]
    capsys.readouterr()
    options = ["--model", host, "--model", video, "--flow", "medium", "-o", tmp_path / "table.json"]
    assert run("table", "models", *on(camvid), *options) == 0
    header, _, *lines = cells(capsys.readouterr().out)
    assert header == ["model", "mIoU", "tIoU", "TC", "flow ms", "ms", "overhead %"]
    assert [line[0] for line in lines] == [str(host), f"{video}: host alone", str(video)]
    wanted = [[f"{scores[key]:.2f}" for key in ("miou", "tc")] for scores in (alone, alone, blended)]
    assert [[line[1], line[3]] for line in lines] == wanted
    rows = read_rows(tmp_path / "table.json")
    assert rows[str(video)]["iou"] == blended["iou"] and rows[str(video)]["host"]["iou"] == alone["iou"]
    assert rows[str(video)]["netwarp"]["layers"] == ["features"] and rows[str(host)]["netwarp"] is None
    assert rows[str(video)]["runtime"]["frames"] == 3 * 3  # three passes over four frames, of which one is the first

    assert run("table", "classes", *on(camvid), "--model", host) == 0
    header, _, line = cells(capsys.readouterr().out)
    seen = {name: value for name, value in alone["iou"].items() if value is not None}  # labelled or predicted
    assert header == ["model", *seen, "mean"] and {"sky", "road"} <= seen.keys() and len(seen) < 11
    assert line[1:] == [f"{value:.2f}" for value in (*seen.values(), alone["miou"])]


def test_a_second_run_computes_only_rows_that_changed(
    tmp_path: Path, camvid: Path, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated, evaluate_model = [], tables.RowEvaluator.evaluate_model

    def counting(self: tables.RowEvaluator, *arguments: Any, **options: Any) -> dict[str, Any]:
        evaluated.append(arguments[0].name)
        return evaluate_model(self, *arguments, **options)

    monkeypatch.setattr(tables.RowEvaluator, "evaluate_model", counting)
    host, video = models
    command = ["table", "models", *on(camvid), "--model", host, "--model", video, "-o", tmp_path / "table.json"]
    assert [run(*command), run(*command)] == [0, 0]
    assert evaluated == ["host", "video"]
    label = cv2.imread(str(camvid / "labels" / "0.png"), cv2.IMREAD_UNCHANGED)
    save_model(host, build(SPEC), SPEC)
    assert run(*command) == 0 and evaluated[2:] == ["host"]
    cv2.imwrite(str(camvid / "labels" / "0.png"), np.flipud(label))
    assert run(*command) == 0 and evaluated[3:] == ["host", "video"]


def test_a_row_for_each_flow(
    tmp_path: Path, camvid: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    video, known = models[1], tmp_path / "known"
    known.mkdir()
    for number in (1, 2, 3):
        write_flo(known / f"{number}.flo", np.full((64, 64, 2), 9, np.float32))
    flows = ["--flow", "deepflow", "--flow", known]
    assert run("table", "flows", *on(camvid), "--model", video, *flows, "-o", tmp_path / "table.json") == 0
    rows = read_rows(tmp_path / "table.json")
    assert list(rows) == [f"{video}, deepflow", f"{video}, {known}"]
    estimated, given = rows.values()
    assert (estimated["flow"], given["flow"]) == ("deepflow", str(known))
    assert estimated["miou"] != given["miou"] and estimated["host"] is None
    assert estimated["runtime"]["stages_ms"]["netwarp"]["flow"] > 0 and given["runtime"] is None
    assert len(cells(capsys.readouterr().out)) == 4


def recipe(tmp_path: Path, camvid: Path, **sections: Any) -> Path:
    content = {
        "model": {"host": "tiny", "netwarp": {"layers": ["features", "backbone"], "flow_grid": "features"}},
        "data": [{"kind": "camvid", "root": str(camvid), "stills": True, "per_batch": 2}],
        "validation": [{"kind": "camvid", "root": str(camvid)}],
        "clip": {"length": 2},
        "augment": {"height": 32, "width": 48},
        "optimiser": {"steps": 3, "rate": 0.01, "warm_up": 0, "flow_cnn_rate": 0.5},
        "output": str(tmp_path / "out"),
        "precision": "float32",
        "workers": 0,
        **sections,
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_variants_are_the_papers_by_default(tmp_path: Path, camvid: Path) -> None:
    configs = variants(recipe(tmp_path, camvid), [], steps=2)
    assert [(config.model.netwarp.layers, config.model.netwarp.flow_cnn) for config in configs.values()] == [
        (layers, on) for layers in (("features",), ("backbone",), ("features", "backbone")) for on in (False, True)
    ]
    assert list(configs)[-1] == "layers: features + backbone, flow_cnn: true"
    for config in configs.values():
        assert config.optimiser.steps == 2 and config.validation == () and config.model.netwarp.flow_grid == "features"
        assert config.optimiser.flow_cnn_rate == (0.5 if config.model.netwarp.flow_cnn else 1)
    assert len({config.output for config in configs.values()}) == 6


def test_variants_with_names_alike_have_folders_of_their_own(tmp_path: Path, camvid: Path) -> None:
    alike = [{"layers": ["a", "b"]}, {"layers": ["a-b"]}, {"layers": ["a:b"]}]
    configs = variants(recipe(tmp_path, camvid), alike).values()
    names = ["as-in-the-recipe", "layers-a-b", "layers-a-b-", "layers-a-b--"]
    assert [Path(config.output).name for config in configs] == names
    assert [config.model.netwarp.layers for config in configs][1:] == [("a", "b"), ("a-b",), ("a:b",)]


def test_variants_of_any_key(tmp_path: Path, camvid: Path) -> None:
    file = recipe(tmp_path, camvid)
    overrides = [{"remember": "after"}, {"blend": "concatenation", "optimiser.rate": 0.5}]
    plain, after, concatenation = variants(file, overrides).values()
    assert plain.output == str(tmp_path / "out" / "sweep" / "as-in-the-recipe")
    assert (plain.model.netwarp.remember, after.model.netwarp.remember) == ("before", "after")
    assert concatenation.model.netwarp.blend == "concatenation"
    assert [config.optimiser.rate for config in (plain, after, concatenation)] == [0.01, 0.01, 0.5]
    assert plain.optimiser.steps == 3
    with pytest.raises(ValueError, match=r"model\.netwarp has the unknown key remembr: did you mean remember"):
        variants(file, [{"remembr": "after"}])
    with pytest.raises(ValueError, match="data.root cannot be set: data is not a section of the recipe"):
        variants(file, [{"data.root": "x"}])
    with pytest.raises(ValueError, match=r"recipe\.yaml has no model\.netwarp, which variants change"):
        variants(recipe(tmp_path, camvid, model={"host": "tiny"}, optimiser={"steps": 3}), [])


def test_a_sweep_that_was_stopped_goes_on(
    tmp_path: Path,
    camvid: Path,
    models: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = {"initial": str(models[0]), "train_host": False, "netwarp": {"layers": ["features"], "flow_cnn": False}}
    optimiser = {"steps": 20, "rate": 0.3, "warm_up": 0, "average": 0.0}
    file = recipe(tmp_path, camvid, model=model, optimiser=optimiser)
    options = ["--steps", 2, "--variant", "flow_cnn: true", "-o", tmp_path / "t.json"]
    command = ["table", "sweep", file, *on(camvid), *options]
    trained: list[str] = []

    def train(config: TrainingConfig) -> Path:
        trained.append(Path(config.output).name)
        if len(trained) == 2:
            raise OSError("the disk is full")
        return training.train(config)

    monkeypatch.setattr(tables, "train", train)
    assert run(*command) == 2
    assert list(read_rows(tmp_path / "t.json")) == ["without NetWarp", "as in the recipe"]
    assert run(*command) == 0
    assert trained == ["as-in-the-recipe", "flow_cnn-true", "flow_cnn-true"]
    rows = read_rows(tmp_path / "t.json")
    assert list(rows) == ["without NetWarp", "as in the recipe", "flow_cnn: true"]
    assert rows["as in the recipe"]["origin"]["training"]["optimiser"]["steps"] == 2
    varied = load_model(tmp_path / "out" / "sweep" / "flow_cnn-true" / "model.safetensors")
    assert varied.spec.netwarp is not None and varied.spec.netwarp.flow_cnn
    *_, first, second, third = cells(capsys.readouterr().out)
    assert [line[0] for line in (first, second, third)] == list(rows)
    assert first[1] == f"{rows['without NetWarp']['miou']:.2f}" and first[-1] == "" and second[-1] != ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speeds"], "there is no table 'speeds': give sweep, flows, models, classes"),
        (["sweep"], "a sweep trains its models: give RECIPE.yaml"),
        (["sweep", "recipe.yaml", "--model", "x"], "a sweep trains its models"),
        (["models", "recipe.yaml"], "nothing is trained for models"),
        (["models", "--steps", "3"], "nothing is trained for models"),
        (["models"], "give --images, with --labels or without, or --cityscapes"),
        (["sweep", "{recipe}", "--images", "{images}", "--variant", "7"], "variant is '7': give keys of model.netwarp"),
        (["sweep", "{recipe}", "--images", "{images}", "--variant", "{a"], "variant is '{a': give keys"),
        (
            ["sweep", "{recipe}", "--images", "{images}", "--flow", "fast", "--flow", "medium"],
            "takes one flow, not fast",
        ),
        (["models", "--images", "{images}", "--flow", "best"], "flow is 'best': give ultrafast"),
        (["models", "--images", "{images}", "--model", "unheard-of"], "no model named 'unheard-of'"),
    ],
)
def test_errors_say_what_to_give(
    tmp_path: Path, camvid: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    paths = {"{recipe}": str(recipe(tmp_path, camvid)), "{images}": str(camvid / "images")}
    assert run("table", *(paths.get(argument, argument) for argument in arguments)) == 2
    assert message in capsys.readouterr().err


def test_images_to_time_on_have_one_size(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    for path, width in zip(paths, (8, 8, 8, 9), strict=True):
        cv2.imwrite(str(path), np.full((6, width, 3), width, np.uint8))
    assert [image.shape for image in first_images(ImageFiles(paths))] == [(6, 8, 3)] * 3
    assert len(first_images(ImageFiles(paths), 2)) == 2
