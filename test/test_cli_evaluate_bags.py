# SPDX-License-Identifier: Apache-2.0
"""``netwarp evaluate`` on bags, whole and in slices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import run, scores_of, small_model, without_times, write_images, write_labels

from netwarp_ros.classes import load_classes
from netwarp_ros.recordings.bag_writer import BagWriter
from netwarp_ros.recordings.image_files import LabelFolder
from netwarp_ros.recordings.messages import header, image_message
from netwarp_ros.recordings.open import open_frames


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return small_model(tmp_path / "model" / "small.safetensors", monkeypatch)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


@pytest.fixture
def labels(tmp_path: Path, model: Path, images: Path) -> Path:
    return write_labels(tmp_path / "labels", model, images)


def test_a_bag_scores_as_its_folder_of_images_does(tmp_path: Path, model: Path, images: Path, labels: Path) -> None:
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


def test_bags_are_evaluated_in_slices(tmp_path: Path, model: Path, images: Path, labels: Path) -> None:
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
    assert [record["recording"] for record in both["per_frame"]] == ["a"] * 3 + ["b"] * 3
    assert run("evaluate", *arguments, "--slice", 0.1, "--warm-up", 2) == 0
    sliced = json.loads((out / "a.json").read_text())
    assert sliced["frames"] == 3 and (out / "slices" / "a-000002.json").is_file()
    assert sliced["settings"]["slice_s"] == 0.1 and sliced["inputs"]["images"] == whole["inputs"]["images"]


def test_slices_are_evaluated_again_if_the_ids_of_the_classes_change(
    tmp_path: Path, model: Path, images: Path, labels: Path
) -> None:
    bag, out, own = tmp_path / "a.mcap", tmp_path / "results", tmp_path / "own.yaml"
    run("bag", images, labels, "-o", bag)
    names = load_classes("camvid").names
    command = ["evaluate", bag, "--label-topic", "/camera/labels", "--model", model, "--classes", own, "-o", out]
    miou = []
    for order in (range(11), reversed(range(11))):
        entries = "".join(f"- {{name: {name}, id: {k}}}\n" for name, k in zip(names, order, strict=True))
        own.write_text(f"name: own\nclasses:\n{entries}")
        assert run(*command) == 0
        miou.append(json.loads((out / "a.json").read_text())["miou"])
    assert miou[0] == scores_of(model, "--images", images, "--labels", labels)["miou"] != miou[1]


def test_a_folder_of_results_is_of_one_model_and_its_settings(
    tmp_path: Path, model: Path, images: Path, labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`netwarp compare` takes all files of a folder, so an earlier run's must not stay among the new ones."""
    out, bags = tmp_path / "results", [tmp_path / "a.mcap", tmp_path / "b.mcap"]
    for bag in bags:
        run("bag", images, labels, "-o", bag)
    options = ["--topic", "/camera/image_raw", "--label-topic", "/camera/labels", "--model", model, "-o", out]
    assert run("evaluate", bags[0], *options) == 0
    (out / "notes.json").write_text("{}")  # in nobody's way
    (out / "empty.json").touch()
    assert run("evaluate", bags[1], *options) == 0
    before = (out / "a.json").read_bytes()
    assert run("evaluate", bags[1], *options, "--input-height", 32) == 2
    assert f"{out / 'a.json'} holds results of another model or other settings" in capsys.readouterr().err
    assert (out / "a.json").read_bytes() == before
    assert run("evaluate", *bags, *options, "--input-height", 32) == 0
    assert [json.loads((out / f"{name}.json").read_text())["settings"]["input_height"] for name in "ab"] == [32, 32]

    (out / "a.json").write_text("years of work")
    assert run("evaluate", *bags, *options) == 2
    assert f"{out / 'a.json'} exists already, and this command did not write it" in capsys.readouterr().err
    assert (out / "a.json").read_text() == "years of work"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.mcap", "--html", "x.html"], "--html cannot be used with BAG arguments, which are evaluated in slices"),
        (["a.mcap"], "there is no folder for the results of the bags: give --output"),
        (["--images", "a.mcap", "--slice", 2, "--ray", "local"], "--slice, --ray can only be used with BAG arguments"),
    ],
)
def test_options_of_slices_and_of_one_recording_do_not_mix(
    model: Path, arguments: list[object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", "--model", model, *arguments) == 2
    assert message in capsys.readouterr().err


def test_several_cameras_and_damage(
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
    assert "1 of the 4 label maps of /left/labels match no image by stamp" in scores["damage"][1]
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
def test_options_that_do_not_fit_the_bag_are_refused(
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
