# SPDX-License-Identifier: Apache-2.0
"""The command line from its arguments to its files, with a small host of random weights in a real weights file."""

from __future__ import annotations

import csv
import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from netwarp_ros import cli
from netwarp_ros.classes import ClassEntry, ClassSet, load_classes
from netwarp_ros.cli.options import InferenceOptions, ModelOptions
from netwarp_ros.datasets.bag import BagDataset
from netwarp_ros.evaluation import plots
from netwarp_ros.evaluation.scoring import TRIMAP_WIDTHS
from netwarp_ros.flow import estimator, write_flo
from netwarp_ros.models import Inference, ModelSpec, NetWarpSpec, build, save_model
from netwarp_ros.models import weights as weights_module
from netwarp_ros.recordings.bag_writer import BagWriter, write_bag
from netwarp_ros.recordings.bags import BagFrames, BagLabels
from netwarp_ros.recordings.frames import Frame, stamp
from netwarp_ros.recordings.images import LabelFolder
from netwarp_ros.recordings.messages import header, image_message
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.segmenter import Segmenter
from netwarp_ros.training import trainer as training
from netwarp_ros.training.config import TrainingConfig

SPEC = ModelSpec(
    host="small",
    classes=load_classes("camvid"),
    host_arguments={"num_classes": 11},
    netwarp=NetWarpSpec(layers=("features",), flow_grid="features"),
    input_height=48,
    notes={"miou": "none, random weights"},
)


class SmallHost(nn.Sequential):
    """One layer of features and a classifier, at stride 4."""

    def __init__(self, num_classes: int) -> None:
        features, classifier = nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.Conv2d(8, num_classes, 1)
        super().__init__(OrderedDict(features=features, squash=nn.Tanh(), classifier=classifier))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(weights_module.HOSTS, "small", SmallHost)
    torch.manual_seed(0)
    network = build(SPEC).eval()
    nn.init.constant_(network.netwarps[0].w2, 0.5)
    (tmp_path / "model").mkdir()
    return save_model(tmp_path / "model" / "small.safetensors", network, SPEC)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    for index in range(3):
        cv2.imwrite(str(folder / f"f{index}.png"), np.roll(cv2.GaussianBlur(noise, (0, 0), 2), 2 * index, axis=1))
    return folder


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def masks_of(model: Path, recording: Path) -> list[np.ndarray]:
    stream = Segmenter(model).stream()
    return [stream.segment(frame.image, frame.stamp_ns).mask for frame in open_frames(recording)]


# segment


def test_segment_writes_the_masks_of_the_segmenter(tmp_path: Path, model: Path, images: Path) -> None:
    out = tmp_path / "out"
    assert run("segment", images, "-o", out, "--model", model) == 0
    assert sorted(path.name for path in (out / "masks").iterdir()) == ["f0.png", "f1.png", "f2.png"]
    for index, expected in enumerate(masks_of(model, images)):
        mask = cv2.imread(str(out / "masks" / f"f{index}.png"), cv2.IMREAD_UNCHANGED)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, expected)


def test_segment_writes_timings(tmp_path: Path, model: Path, images: Path) -> None:
    run("segment", images, "-o", tmp_path, "--model", model, "--rate", 10, "--no-video")
    with (tmp_path / "timing.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["index"], row["name"], row["stamp_ns"]) for row in rows] == [
        ("0", "f0", "0"),
        ("1", "f1", "100000000"),
        ("2", "f2", "200000000"),
    ]
    assert [(row["memory"], row["reason"]) for row in rows] == [("new", "first frame"), ("kept", ""), ("kept", "")]
    for row in rows:
        parts = [float(row[f"{stage}_ms"]) for stage in ("prepare", "flow", "network")]
        assert float(row["total_ms"]) == pytest.approx(sum(parts), abs=0.002) and parts[2] > 0


def test_segment_writes_a_video_unless_told_not_to(tmp_path: Path, model: Path, images: Path) -> None:
    run("segment", images, "-o", tmp_path / "with", "--model", model)
    assert len(list(open_frames(tmp_path / "with" / "overlay.mp4"))) == 3
    run("segment", images, "-o", tmp_path / "without", "--model", model, "--no-video")
    assert not (tmp_path / "without" / "overlay.mp4").exists()


def test_segment_a_bag(tmp_path: Path, model: Path, images: Path) -> None:
    pictures = [frame.image for frame in open_frames(images)]
    frames = (Frame(index, 10**18 + stamp(index, 15), "", image) for index, image in enumerate(pictures))
    write_bag(tmp_path / "bag", frames, topic="/camera/image_raw")
    assert run("segment", tmp_path / "bag", "-o", tmp_path / "out", "--model", model, "--no-video") == 0
    for index, expected in enumerate(masks_of(model, images)):
        mask = cv2.imread(str(tmp_path / "out" / "masks" / f"{index:06d}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(mask, expected)


def read_masks(folder: Path) -> list[np.ndarray]:
    return [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted((folder / "masks").iterdir())]


def test_flow_from_files_serves_as_estimated_flow_does(tmp_path: Path, model: Path, images: Path) -> None:
    deep, known, far = estimator("deepflow"), tmp_path / "known", tmp_path / "far"
    recording = [(frame.name, frame.image) for frame in open_frames(images)]
    for folder in (known, far):
        folder.mkdir()
    for (name, present), (_, previous) in zip(recording[1:], recording, strict=False):
        write_flo(known / f"{name}.flo", deep(present, previous))
        write_flo(far / f"{name}.flo", np.full((48, 64, 2), 30, np.float32))
    for flow in ("deepflow", known, far):
        out = tmp_path / f"by_{Path(flow).name}"
        assert run("segment", images, "-o", out, "--model", model, "--flow", flow, "--no-video") == 0
    estimated, given, wrong = (read_masks(tmp_path / f"by_{name}") for name in ("deepflow", "known", "far"))
    np.testing.assert_array_equal(given, estimated)
    assert (wrong[1] != given[1]).any() and (wrong[0] == given[0]).all()


def test_flow_that_is_missing_or_does_not_fit(
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
    assert f"{folder}/f2.flo is of 32x24 pixels, its image of 64x48" in capsys.readouterr().err
    write_flo(folder / "f2.flo", np.zeros((48, 64, 2), np.float32))
    assert run(*command, "--realtime") == 2
    assert "precomputed flow cannot be used in real time" in capsys.readouterr().err
    assert run(*command, "--json", tmp_path / "known.json") == 0
    result = json.loads((tmp_path / "known.json").read_text())
    assert result["settings"]["flow"] == result["inputs"]["flow"]["path"] == str(folder)
    assert result["stages_ms"]["flow"]["p99"] == 0


def test_segment_to_a_bag(tmp_path: Path, model: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("bag", images, "-o", tmp_path / "drive.mcap", "--camera", "front")
    out = tmp_path / "out.mcap"
    assert run("segment", tmp_path / "drive.mcap", "-o", out, "--model", model, "--video") == 0
    assert f"3 masks in {out}" in capsys.readouterr().out.replace("\n", "")
    names = {"drive.mcap", "images", "model", "out.mcap", "out.mp4"}
    assert {path.name for path in tmp_path.iterdir()} == names
    masks = BagLabels(out, {"/front/image_raw": "/front/segmentation/mask"})
    for frame, expected in zip(open_frames(tmp_path / "drive.mcap"), masks_of(model, images), strict=True):
        np.testing.assert_array_equal(masks(frame), expected)
    assert len(list(open_frames(tmp_path / "out.mp4"))) == 3
    # The masks of one model are labels for another.
    options = ["--images", tmp_path / "drive.mcap", "--labels", out, "--label-topic", "/front/segmentation/mask"]
    assert scores_of(model, *options)["miou"] == 100
    assert run("segment", tmp_path / "drive.mcap", "-o", out, "--model", model) == 2
    assert f"{out} exists already" in capsys.readouterr().err


def test_host_only_uses_no_memory(tmp_path: Path, model: Path, images: Path) -> None:
    run("segment", images, "-o", tmp_path, "--model", model, "--host-only", "--no-video")
    with (tmp_path / "timing.csv").open() as file:
        assert [row["memory"] for row in csv.DictReader(file)] == ["new"] * 3


def test_segment_through_windows(tmp_path: Path, model: Path, images: Path) -> None:
    out = tmp_path / "out"
    options = ["--window", 32, "--scales", "0.5,1.5", "--flip"]
    assert run("segment", images, "-o", out, "--model", model, "--no-video", *options) == 0
    stream = Segmenter(model, inference=Inference(32, scales=(0.5, 1.5), flip=True)).stream()
    for frame, whole in zip(open_frames(images), masks_of(model, images), strict=True):
        mask = cv2.imread(str(out / "masks" / f"{frame.name}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(mask, stream.segment(frame.image, frame.stamp_ns).mask)
        assert (mask != whole).any()


# evaluate


def test_evaluate_writes_what_the_contract_says(tmp_path: Path, model: Path, images: Path) -> None:
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


def test_evaluate_takes_any_widths_of_the_trimap(tmp_path: Path, model: Path, images: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    cv2.imwrite(str(labels / "f0.png"), masks_of(model, images)[0])
    file = tmp_path / "scores.json"
    arguments = ["evaluate", "--images", images, "--labels", labels, "--model", model, "--json", file]
    run(*arguments, "--trimap", "3, 12")
    assert json.loads(file.read_text())["tiou"] == {"3": 100, "12": 100}
    run(*arguments)
    assert [int(width) for width in json.loads(file.read_text())["tiou"]] == list(TRIMAP_WIDTHS)


def test_model_of_classes_of_its_own_needs_no_class_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Path
) -> None:
    monkeypatch.setitem(weights_module.HOSTS, "small", SmallHost)
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


def test_evaluate_on_cityscapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Path) -> None:
    monkeypatch.setitem(weights_module.HOSTS, "small", SmallHost)
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
    # All is one car: so many of its pixels were found, and none was wrongly taken for one.
    assert 0 < scores["iou"]["car"] < 100 and scores["iiou"] == {"car": pytest.approx(scores["iou"]["car"])}
    assert scores["miiou"] == scores["iiou"]["car"]
    assert scores["inputs"]["labels"]["path"] == str(tmp_path / "gtFine" / "val")


# bag


def test_bag_records_images_and_labels(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    cv2.imwrite(str(labels / "f1.png"), np.full((48, 64), 3, np.uint8))
    drive = tmp_path / "drive.mcap"
    assert run("bag", images, labels, "-o", drive, "--rate", 10) == 0
    assert "3 frames in" in capsys.readouterr().out
    video = BagDataset(drive, "/camera/image_raw", "/camera/labels", load_classes("camvid"))
    assert len(video) == 1 and video.frames_before(0) == 1 and (video[0].label == 3).all()
    np.testing.assert_array_equal(video[0].image, cv2.imread(str(images / "f1.png")))
    recorded = open_frames(drive, leave_out=["/camera/labels"])
    assert [frame.stamp_ns for frame in recorded] == [10**9, 1_100_000_000, 1_200_000_000]


def test_bag_without_labels_and_for_another_camera(tmp_path: Path, images: Path) -> None:
    assert run("bag", images, "-o", tmp_path / "drive", "--camera", "front/wide") == 0
    recorded = open_frames(tmp_path / "drive")
    assert isinstance(recorded, BagFrames) and recorded.cameras == ["/front/wide/image_raw"] and len(recorded) == 3
    assert recorded.rate == pytest.approx(15)


# evaluate on bags, and without labels


@pytest.fixture
def labels(tmp_path: Path, model: Path, images: Path) -> Path:
    """The model's own masks, a quarter of each replaced."""
    folder = tmp_path / "labels"
    folder.mkdir()
    for index, mask in enumerate(masks_of(model, images)):
        mask[:12] = index
        cv2.imwrite(str(folder / f"f{index}.png"), mask)
    return folder


def scores_of(model: Path, *arguments: object) -> dict[str, Any]:
    """Evaluate, and return what the JSON file beside the model holds."""
    file = model.with_name("scores.json")
    assert run("evaluate", "--model", model, *arguments, "--json", file) == 0
    return json.loads(file.read_text())


def without_times(scores: dict[str, Any]) -> dict[str, Any]:
    """Return what must be the same wherever the same frames come from."""
    kept = {key: scores[key] for key in ("frames", "labelled", "miou", "iou", "tiou", "tc", "flicker", "vc", "host")}
    records = ("stamp_ns", "confusion", "tiou", "tc", "tc_unmasked", "disagreement", "reason")
    first_ns = scores["per_frame"][0]["stamp_ns"]
    frames = [{key: record[key] for key in records} for record in scores["per_frame"]]
    return {**kept, "per_frame": [{**frame, "stamp_ns": frame["stamp_ns"] - first_ns} for frame in frames]}


def test_a_bag_and_its_folder_score_the_same(tmp_path: Path, model: Path, images: Path, labels: Path) -> None:
    bag = tmp_path / "drive.mcap"
    run("bag", images, labels, "-o", bag)
    folder = scores_of(model, "--images", images, "--labels", labels, "--host")
    expected = without_times(folder)
    assert 0 < expected["miou"] < 100 and expected["host"]["miou"] != expected["miou"]
    topic = ["--label-topic", "/camera/labels"]
    for options in (["--images", bag, *topic], ["--images", bag, "--labels", bag, *topic]):
        assert without_times(scores_of(model, *options, "--host")) == expected
    (tmp_path / "numbered").mkdir()
    for index in range(3):
        shutil.copy(labels / f"f{index}.png", tmp_path / "numbered" / f"{index:06d}.png")
    options = ["--images", bag, "--topic", "/camera/image_raw", "--labels", tmp_path / "numbered"]
    assert without_times(scores_of(model, *options, "--host")) == expected


def test_bags_are_judged_slice_by_slice(tmp_path: Path, model: Path, images: Path, labels: Path) -> None:
    out, all_of_them, topic = tmp_path / "out", tmp_path / "all.json", ["--label-topic", "/camera/labels"]
    bags = [tmp_path / "a.mcap", tmp_path / "b.mcap"]
    for bag in bags:
        run("bag", images, labels, "-o", bag)
    whole = scores_of(model, "--images", bags[0], *topic, "--host")
    arguments = ["--model", model, *bags, *topic, "--host", "-o", out, "--json", all_of_them]
    assert run("evaluate", *arguments) == 0
    for name in "ab":
        assert without_times(json.loads((out / f"{name}.json").read_text())) == without_times(whole)
    both = json.loads(all_of_them.read_text())
    assert (both["frames"], both["miou"], both["resets"]) == (6, whole["miou"], {"first frame": 2})
    assert {record["camera"] for record in both["per_frame"]} == {"a /camera/image_raw", "b /camera/image_raw"}
    assert run("evaluate", *arguments, "--slice", 0.1, "--warm-up", 2) == 0
    sliced = json.loads((out / "a.json").read_text())
    assert sliced["frames"] == 3 and (out / "slices" / "a-000002.json").is_file()
    assert sliced["settings"]["slice_s"] == 0.1 and sliced["inputs"]["images"] == whole["inputs"]["images"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.mcap", "--html", "x.html"], "--html cannot be used with BAG arguments, which are evaluated in slices"),
        (["a.mcap"], "there is no folder for the results of the bags: give --output"),
        (["--images", "a.mcap", "--slice", 2, "--ray", "local"], "--slice, --ray can only be used with BAG arguments"),
    ],
)
def test_slices_have_options_of_their_own(
    model: Path, arguments: list[object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", "--model", model, *arguments) == 2
    assert message in capsys.readouterr().err


def test_the_json_says_where_it_comes_from(tmp_path: Path, model: Path, images: Path, labels: Path) -> None:
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


def test_evaluate_several_cameras_and_says_what_it_could_not_use(
    tmp_path: Path, model: Path, images: Path, labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drive = tmp_path / "drive.mcap"
    label_of = LabelFolder(labels)
    with BagWriter(drive) as bag:
        for frame in open_frames(images, rate=15):
            common = header(10**9 + frame.stamp_ns, "camera")
            for camera in ("/left", "/right"):
                bag.write(f"{camera}/image_raw", image_message(frame.image, "bgr8", common), frame.stamp_ns)
                bag.write(f"{camera}/labels", image_message(label_of(frame), "mono8", common), frame.stamp_ns)
        bag.write("/left/image_raw", image_message(frame.image, "cmyk8", common), frame.stamp_ns)
        bag.write("/left/labels", image_message(label_of(frame), "mono8", header(9, "camera")), frame.stamp_ns)
    cameras = ["--topic", "/left/image_raw", "--topic", "/right/image_raw"]
    topics = ["--label-topic", "/left/labels", "--label-topic", "/right/labels"]
    scores = scores_of(model, "--images", drive, *cameras, *topics)
    alone = scores_of(model, "--images", images, "--labels", labels)
    assert (scores["frames"], scores["labelled"]) == (6, 6) and scores["resets"] == {"first frame": 2}
    assert scores["iou"] == alone["iou"] and scores["tc"] == alone["tc"] and scores["vc"] == alone["vc"]
    assert [record["camera"] for record in scores["per_frame"]] == ["/left/image_raw", "/right/image_raw"] * 3
    assert len(scores["damage"]) == 2
    assert "image 3 of /left/image_raw cannot be read: encoding is 'cmyk8'" in scores["damage"][0]
    assert "1 of the 4 label maps of /left/labels have the stamp of no image" in scores["damage"][1]
    assert "2 notes on what was read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "{bag}"], "2 image topics, /camera/image_raw, /camera/labels: name the topic"),
        (["--images", "{bag}", "--topic", "/camera/image_raw", "--labels", "{bag}"], "{bag} is a bag: name the topic"),
        (
            ["--images", "{bag}", "--topic", "/camera/image_raw", "--label-topic", "/masks"],
            "no image topic '/masks': choose one of /camera/image_raw, /camera/labels",
        ),
        (
            ["--images", "{bag}", "--label-topic", "/camera/labels", "--label-topic", "/b"],
            "2 topics of label maps are named (/camera/labels, /b) for 1 cameras (/camera/image_raw): name one",
        ),
        (["--images", "{images}", "--label-topic", "/l"], "of label maps is named, but {images} is not a bag"),
        (["--images", "{images}", "--topic", "/l"], "the topic /l is named, but {images} is not a bag"),
        (["--images", "{images}", "--realtime", "--host"], "the host cannot be scored in real time"),
    ],
)
def test_what_does_not_fit_a_bag_is_told(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    model: Path,
    images: Path,
    labels: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("bag", images, labels, "-o", tmp_path / "drive.mcap")
    places = {"bag": tmp_path / "drive.mcap", "images": images}
    assert run("evaluate", "--model", model, *(argument.format(**places) for argument in arguments)) == 2
    assert message.format(**places) in capsys.readouterr().err.splitlines()[-1]


# plot


def test_plot_trimap_draws_each_file_as_a_curve(tmp_path: Path) -> None:
    for name, tiou in (("host", {"1": 30.0, "16": 60.0}), ("netwarp", {"1": 33.0, "4": None, "16": 61.5})):
        (tmp_path / f"{name}.json").write_text(json.dumps({"miou": 70, "tiou": tiou}))
    files = [tmp_path / "host.json", tmp_path / "netwarp.json"]
    assert plots.trimap_curves(files) == {"host": {1: 30, 16: 60}, "netwarp": {1: 33, 16: 61.5}}
    assert run("plot", "trimap", *files, "-o", tmp_path / "deep" / "fig4.svg") == 0
    drawing = (tmp_path / "deep" / "fig4.svg").read_text()
    for text in ("host", "netwarp", "trimap width in pixels", "mean IoU in %"):
        assert f"<!-- {text} -->" in drawing
    assert run("plot", "trimap", *files, "-o", tmp_path / "fig4.png") == 0
    assert cv2.imread(str(tmp_path / "fig4.png")) is not None


@pytest.mark.parametrize("content", ["no json", "[1]", "{}", '{"tiou": {"a": 1}}', '{"tiou": 3}'])
def test_plot_trimap_says_which_file_is_none_of_results(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.json").write_text(content)
    assert run("plot", "trimap", tmp_path / "bad.json", "-o", tmp_path / "figure.png") == 2
    assert "bad.json has no trimap IoU (tiou): give what" in capsys.readouterr().err


def test_plot_trimap_cannot_name_two_curves_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / folder / "scores.json" for folder in ("host", "video")]
    for file in files:
        file.parent.mkdir()
        file.write_text('{"tiou": {"1": 30}}')
    assert run("plot", "trimap", *files, "-o", tmp_path / "figure.png") == 2
    assert "two files are called scores" in capsys.readouterr().err


# models and train


def test_models_lists_what_is_shipped(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(weights_module, "WEIGHTS_FOLDER", model.parent)
    assert run("models") == 0
    table = capsys.readouterr().out
    for text in ("small", "features", "camvid", "miou"):
        assert text in table
    monkeypatch.setattr(weights_module, "WEIGHTS_FOLDER", tmp_path)
    assert run("models") == 0
    assert "holds no weights" in capsys.readouterr().out


def test_train_hands_over_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text("model: {host: pspnet50}\ndata: [{kind: street}]\n")

    def train(config: TrainingConfig) -> Path:
        return tmp_path / f"trained {config.model.host}.safetensors"

    monkeypatch.setattr(training, "train", train)
    assert run("train", config) == 0
    assert "trained pspnet50.safetensors" in " ".join(capsys.readouterr().out.split())


# What goes wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment", "absent", "-o", "out"], "nothing at absent: give a folder of images"),
        (["segment", "{images}", "-o", "out", "--model", "unheard-of"], "no model named 'unheard-of'"),
        (["segment", "{images}", "-o", "out", "--model", "{model}", "--flow", "best"], "flow is 'best': give ultra"),
        (["segment", "{images}", "-o", "out", "--model", "{model}", "--device", "tpu"], "device is 'tpu'"),
        (["segment", "{images}", "-o", "out", "--model", "{model}", "--precision", "int8"], "precision is 'int8'"),
        (["segment", "{images}", "-o", "out", "--model", "{model}", "--alpha", "2"], "alpha is 2.0: give 0 to 1"),
        (["segment", "{images}", "-o", "out", "--model", "{model}", "--rate", "0"], "rate is 0.0"),
        (
            ["segment", "{images}", "-o", "out", "--model", "{model}", "--scales", "1,a"],
            "scales is '1,a': give factors",
        ),
        (["segment", "{images}", "-o", "out", "--model", "{model}", "--window", "-9"], "window is -9: give pixels"),
        (["evaluate", "--images", "{images}", "--labels", "absent"], "no folder absent"),
        (
            ["evaluate", "--images", "{images}", "--labels", "{images}", "--trimap", "2,0"],
            "trimap is '2,0': give widths",
        ),
        (["evaluate", "--images", "{images}", "--labels", "{images}", "--trimap", "a"], "trimap is 'a': give widths"),
        (["evaluate", "--labels", "{images}"], "give --images, with --labels or without"),
        (["evaluate", "--cityscapes", "absent"], "unpack gtFine_trainvaltest.zip"),
        (["plot", "trimap", "absent.json", "-o", "out.png"], "absent.json"),
        (["evaluate", "--images", "{images}", "--labels", "{images}", "--model", "{model}"], "holds class ids"),
        (
            ["evaluate", "--images", "{images}", "--labels", "{images}", "--model", "{model}", "--classes", "ade"],
            "no class set named 'ade'",
        ),
        (["bag", "{images}", "absent", "-o", "x.mcap"], "no folder absent"),
        (["bag", "{images}", "-o", "{images}"], "exists already"),
        (["train", "absent.yaml"], "absent.yaml"),
    ],
)
def test_input_that_cannot_be_used_is_told_in_one_line(
    arguments: list[str],
    message: str,
    model: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*(argument.format(model=model, images=images) for argument in arguments)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("netwarp: ") and message in last


def test_a_missing_argument_is_told_with_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("segment", "somewhere") == 2
    assert "--output" in capsys.readouterr().err


def test_defaults_are_those_of_the_segmenter() -> None:
    segmenter, ours = inspect.signature(Segmenter).parameters, ModelOptions()
    for name in ("flow", "device", "precision", "input_height", "host_only"):
        assert getattr(ours, name) == segmenter[name].default
    assert InferenceOptions().inference() == segmenter["inference"].default


def test_help_does_not_wait_for_pytorch() -> None:
    program = (
        "import sys; from netwarp_ros.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'cv2', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert all(command in result.stdout for command in ("segment", "evaluate", "plot", "train", "models"))
    assert result.stdout.splitlines()[-1] == "[]"


def test_libraries_are_configured_where_the_environment_has_not() -> None:
    program = "import os, netwarp_ros.cli as c; c.app = lambda _: print(os.environ.get('GOMP_SPINCOUNT')); c.main([])"
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    bare = {name: value for name, value in os.environ.items() if name not in names}
    for setting, expected in (({}, "1000"), ({names[0]: "7"}, "7"), ({names[1]: "passive"}, "None")):
        command = [sys.executable, "-c", program]
        assert subprocess.check_output(command, env=bare | setting, text=True, timeout=60) == f"{expected}\n"
