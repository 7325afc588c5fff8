# SPDX-License-Identifier: Apache-2.0
"""``netwarp evaluate`` on folders and on Cityscapes, from its arguments to its files."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from commands import SmallHost, masks_of, run, scores_of, small_model, without_times, write_images, write_labels
from PIL import Image

from netwarp_ros.classes import ClassEntry, ClassSet, load_classes
from netwarp_ros.evaluation.scoring import TRIMAP_WIDTHS
from netwarp_ros.flow import write_flo
from netwarp_ros.models import ModelSpec, build, save_model
from netwarp_ros.models.hosts import HOSTS


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return small_model(tmp_path / "model" / "small.safetensors", monkeypatch)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


@pytest.fixture
def labels(tmp_path: Path, model: Path, images: Path) -> Path:
    return write_labels(tmp_path / "labels", model, images)


def test_missing_or_misfit_flow_files_are_refused(
    tmp_path: Path, model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "known"
    folder.mkdir()
    write_flo(folder / "f1.flo", np.zeros((48, 64, 2), np.float32))
    command = ["evaluate", "--images", images, "--model", model, "--flow", folder]
    assert run(*command) == 2
    assert f"there is no {folder}/f2.flo, the flow from f2 to the frame before" in capsys.readouterr().err
    write_flo(folder / "f2.flo", np.zeros((24, 32, 2), np.float32))
    assert run(*command) == 2
    assert f"{folder}/f2.flo is 32x24, but its image is 64x48" in capsys.readouterr().err
    write_flo(folder / "f2.flo", np.zeros((48, 64, 2), np.float32))
    assert run(*command, "--realtime") == 2
    assert "precomputed flow cannot be used in real time" in capsys.readouterr().err
    assert run(*command, "--json", tmp_path / "known.json") == 0
    result = json.loads((tmp_path / "known.json").read_text())
    assert result["settings"]["flow"] == result["inputs"]["flow"]["path"] == str(folder)
    assert result["stages_ms"]["flow"]["p99"] == 0


def test_evaluate_writes_the_documented_scores(tmp_path: Path, model: Path, images: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    for index, mask in enumerate(masks_of(model, images)):
        cv2.imwrite(str(labels / f"f{index}.png"), mask)
    file = tmp_path / "deep" / "scores.json"
    arguments = ["evaluate", "--images", images, "--labels", labels, "--classes", "camvid", "--model", model]
    assert run(*arguments, "--json", file) == 0
    scores = json.loads(file.read_text())
    assert scores["frames"] == 3 and scores["miou"] == 100
    assert list(scores["iou"])[:2] == ["sky", "building"] and len(scores["iou"]) == 11
    assert scores["tiou"]["2"] == 100
    assert 0 < scores["tc"] <= 100 and 0 < scores["tc_unmasked"] <= 100
    assert scores["vc"] == {"8": None, "16": None}  # there are three frames
    assert set(scores["stages_ms"]["network"]) == {"p50", "p95", "p99"}
    assert scores["fps"] > 0
    assert scores["settings"]["model"] == "small" and scores["settings"]["host_only"] is False
    assert [scores["settings"][name] for name in ("window", "scales", "flip")] == [0, [1.0], False]
    assert run(*arguments, "--stills", "--json", file) == 0
    stills = json.loads(file.read_text())
    assert (
        stills["tc"] is None
        and stills["tc_unmasked"] is None
        and stills["resets"] == {"request": 3}
        and stills["miou"] < 100
    )


def test_evaluate_with_other_trimap_widths(tmp_path: Path, model: Path, images: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    cv2.imwrite(str(labels / "f0.png"), masks_of(model, images)[0])
    file = tmp_path / "scores.json"
    arguments = ["evaluate", "--images", images, "--labels", labels, "--model", model, "--json", file]
    run(*arguments, "--trimap", "3, 12")
    assert json.loads(file.read_text())["tiou"] == {"3": 100, "12": 100}
    run(*arguments)
    assert [int(width) for width in json.loads(file.read_text())["tiou"]] == list(TRIMAP_WIDTHS)


def test_a_model_with_its_own_classes_needs_no_class_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Path
) -> None:
    monkeypatch.setitem(HOSTS, "small", SmallHost)
    things = ClassSet("things", 255, (ClassEntry("near", (9, 8, 7)), ClassEntry("far", (1, 2, 3))))
    spec = ModelSpec("small", things, {"num_classes": 2}, input_height=48)
    model = save_model(tmp_path / "things.safetensors", build(spec), spec)
    labels = tmp_path / "labels"
    labels.mkdir()
    cv2.imwrite(str(labels / "f0.png"), np.full((48, 64), 1, np.uint8))
    file, out = tmp_path / "scores.json", tmp_path / "out"
    assert run("evaluate", "--images", images, "--labels", labels, "--model", model, "--json", file) == 0
    scores = json.loads(file.read_text())
    assert scores["settings"]["classes"] == "things" and set(scores["iou"]) == {"near", "far"}
    assert run("segment", images, "-o", out, "--model", model, "--no-video") == 0
    assert set(np.unique(cv2.imread(str(out / "masks" / "f0.png"), cv2.IMREAD_UNCHANGED))) <= {0, 1}


@pytest.mark.parametrize("stored", ["ids", "16 bits", "indexed", "colors"])
def test_label_maps_of_any_kind_give_the_same_scores(
    tmp_path: Path, model: Path, images: Path, labels: Path, stored: str
) -> None:
    camvid = load_classes("camvid")
    entries = "".join(
        f"- {{name: {name}, ids: [{1000 * k if stored == '16 bits' else k + 20}, {k + 40}], color: [{k}, 0, 200]}}\n"
        for k, name in enumerate(camvid.names)
    )
    own = tmp_path / "own.yaml"
    own.write_text(f"name: own\nvoid: [17, 18]\nvoid_colors: [[0, 0, 0]]\nclasses:\n{entries}")
    converted = tmp_path / "converted"
    converted.mkdir()
    for file in labels.glob("*.png"):
        label = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        label[:9] = camvid.void
        cv2.imwrite(str(file), label)
        scale, offset = (1000, 0) if stored == "16 bits" else (1, 20)
        ids = np.where(label == camvid.void, 17, scale * label.astype(np.uint16) + offset)
        ids[:4] = 255
        if stored == "colors":
            ids = load_classes(own).colorize(label)[..., ::-1]
        elif stored == "indexed":
            image = Image.fromarray(ids.astype(np.uint8))
            image.putpalette(bytes(768))
            image.save(converted / file.name)
            continue
        cv2.imwrite(str(converted / file.name), ids if stored == "16 bits" else ids.astype(np.uint8))
    plain = scores_of(model, "--images", images, "--labels", labels)
    scores = scores_of(model, "--images", images, "--labels", converted, "--classes", own)
    assert scores["settings"]["classes"] == "own" and 0 < scores["miou"] < 100
    assert without_times(scores) == without_times(plain)
    bag = tmp_path / "drive.mcap"
    assert run("bag", images, converted, "-o", bag) == 0
    scores = scores_of(model, "--images", bag, "--label-topic", "/camera/labels", "--classes", own)
    assert scores["iou"] == plain["iou"]


def test_a_label_map_that_does_not_fit_its_classes_is_named(
    tmp_path: Path, model: Path, images: Path, labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(labels / "f1.png"), np.full((48, 64), 700, np.uint16))
    assert run("evaluate", "--images", images, "--labels", labels, "--model", model) == 2
    error = capsys.readouterr().err
    assert (
        f"{labels}/f1.png holds class id 700 at x 0, y 0; the ids of camvid are 0 to 10, and 11, 255 for void" in error
    )


def test_evaluate_on_cityscapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Path) -> None:
    monkeypatch.setitem(HOSTS, "small", SmallHost)
    torch.manual_seed(0)
    spec = ModelSpec("small", load_classes("cityscapes"), {"num_classes": 19}, input_height=48)
    network = build(spec).eval()
    network.host.classifier.bias.data[13] += 0.5  # so that some pixels are taken for a car, and some not
    model = save_model(tmp_path / "cityscapes.safetensors", network, spec)
    folders = [tmp_path / folder / "val" / "ulm" for folder in ("leftImg8bit_sequence", "gtFine")]
    for folder in folders:
        folder.mkdir(parents=True)
    for number, name in ((18, "f0"), (19, "f1")):
        shutil.copy(images / f"{name}.png", folders[0] / f"ulm_000000_{number:06d}_leftImg8bit.png")
    for kind, value in (("labelIds", np.uint8(26)), ("instanceIds", np.uint16(26001))):
        cv2.imwrite(str(folders[1] / f"ulm_000000_000019_gtFine_{kind}.png"), np.full((48, 64), value))
    file = tmp_path / "scores.json"
    assert run("evaluate", "--cityscapes", tmp_path, "--model", model, "--json", file) == 0
    scores = json.loads(file.read_text())
    assert (scores["frames"], scores["labelled"]) == (2, 1)
    # The label is one car, so no pixel is a false positive, and instance IoU equals IoU.
    assert 0 < scores["iou"]["car"] < 100 and scores["iiou"] == {"car": pytest.approx(scores["iou"]["car"])}
    assert scores["miiou"] == scores["iiou"]["car"]
    assert scores["inputs"]["labels"]["path"] == str(tmp_path / "gtFine" / "val")


def test_the_json_names_inputs_and_versions(tmp_path: Path, model: Path, images: Path, labels: Path) -> None:
    scores = scores_of(model, "--images", images, "--labels", labels)
    assert set(scores["inputs"]) == {"images", "labels", "model"}
    assert scores["inputs"]["model"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    lines = "".join(f"{hashlib.sha256((images / f'f{i}.png').read_bytes()).hexdigest()}  f{i}.png\n" for i in range(3))
    assert scores["inputs"]["images"]["sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert scores["environment"]["versions"]["opencv"] == cv2.__version__
    assert sum(scores["wall_s"].values()) > 0 and 0 < scores["share"] <= 100
    file = model.with_name("scores.json")
    assert len([line for line in file.read_text().splitlines() if '"name": "f' in line]) == 3  # a line for each frame
    assert not list(tmp_path.rglob("*.part*"))


def test_evaluate_without_labels(tmp_path: Path, model: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = scores_of(model, "--images", images, "--csv", tmp_path / "deep" / "frames.csv")
    assert (scores["frames"], scores["labelled"], scores["miou"]) == (3, 0, None)
    assert scores["host"]["tc"] > 0 and scores["disagreement"] > 0
    assert "disagreement with the host" in capsys.readouterr().out
    with (tmp_path / "deep" / "frames.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["reason"], row["miou"]) for row in rows] == [
        ("f0", "first frame", ""),
        ("f1", "", ""),
        ("f2", "", ""),
    ]
    assert float(rows[1]["total_ms"]) > 0 and rows[0]["tc"] == "" and 0 < float(rows[1]["tc"]) <= 100
    alone = scores_of(model, "--images", images, "--no-host")
    assert alone["host"] is None and alone["disagreement"] is None and alone["tc"] == scores["tc"]
    host = scores_of(model, "--images", images, "--host-only")
    assert host["host"] is None and host["tc"] == scores["host"]["tc"]


def test_evaluate_writes_a_report(tmp_path: Path, model: Path, images: Path, labels: Path) -> None:
    arguments = ["evaluate", "--model", model, "--images", images, "--labels", labels]
    assert run(*arguments, "--html", tmp_path / "deep" / "report.html", "--json", tmp_path / "scores.json") == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["host"] is not None  # a report shows the host
    page = (tmp_path / "deep" / "report.html").read_text()
    for part in (f"<b>{scores['miou']:.2f} %</b>", scores["inputs"]["model"]["sha256"], "Best, by mean IoU gained"):
        assert part in page


def test_evaluate_in_real_time(model: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = scores_of(model, "--images", images, "--realtime", "--rate", 0.001)
    assert scores["frames"] == 3 and scores["dropped"] == {} and scores["settings"]["realtime"] is True
    assert 0 < scores["latency_ms"]["p50"] == pytest.approx(scores["age_ms"]["p50"], abs=0.01)
    assert "0 frames dropped in real time" in capsys.readouterr().out
