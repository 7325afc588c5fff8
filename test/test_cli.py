# SPDX-License-Identifier: Apache-2.0
"""The small commands of ``netwarp``, and what holds for all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import run, small_model, write_images
from recorded import write_film

from netwarp_ros.classes import load_classes
from netwarp_ros.datasets.bag import BagDataset
from netwarp_ros.evaluation import plots
from netwarp_ros.models import shipped_models
from netwarp_ros.models import weights as weights_module
from netwarp_ros.recordings.bags import BagFrames
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.training import trainer as training
from netwarp_ros.training.config import TrainingConfig


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return small_model(tmp_path / "model" / "small.safetensors", monkeypatch)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


@pytest.mark.parametrize(
    "command", ["", "segment", "evaluate", "table", "quantize", "export", "benchmark node", "plot trimap"]
)
def test_help_does_not_load_pytorch(command: str) -> None:
    program = (
        "import sys; from netwarp_ros.cli import main\n"
        f"try: main([*{command.split()}, '--help'])\n"
        "except SystemExit: print(sorted({'torch', 'cv2', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert f"Usage: -c {command}".strip() in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    listed = [line.split()[1] for line in capsys.readouterr().out.split("Commands")[1].splitlines()[1:-2]]
    commands = [
        "segment", "evaluate", "compare", "table", "bag", "train", "convert", "quantize", "export", "view", "models",
    ]  # fmt: skip
    assert [word for word in listed if word in {*commands, "benchmark", "plot"}] == [*commands, "benchmark", "plot"]


def test_ctrl_c_while_the_commands_are_imported_ends_quietly() -> None:
    program = """
import os, signal, sys
from netwarp_ros.cli import main
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "rich":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
main(["--help"])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_main_sets_the_spin_count_unless_the_environment_does() -> None:
    program = (
        "import os; from netwarp_ros.cli import app, main\n"
        "app.app = lambda _: print(os.environ.get('GOMP_SPINCOUNT')); main([])"
    )
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    bare = {name: value for name, value in os.environ.items() if name not in names}
    for setting, expected in (({}, "1000"), ({names[0]: "7"}, "7"), ({names[1]: "passive"}, "None")):
        command = [sys.executable, "-c", program]
        assert subprocess.check_output(command, env=bare | setting, text=True, timeout=60) == f"{expected}\n"


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
        (
            ["evaluate", "--images", "{images}", "--labels", "{images}", "--model", "{model}"],
            "which no class of camvid has: give it to a class or to void_colors",
        ),
        (
            ["evaluate", "--images", "{images}", "--labels", "{images}", "--model", "{model}", "--classes", "ade"],
            "no class set named 'ade'",
        ),
        (["bag", "{images}", "absent", "-o", "x.mcap"], "no folder absent"),
        (["bag", "{images}", "-o", "{images}"], "exists already"),
        (["train", "absent.yaml"], "absent.yaml"),
    ],
)
def test_invalid_input_gives_one_line_and_exit_status_2(
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


def test_a_missing_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("segment", "somewhere") == 2
    assert "--output" in capsys.readouterr().err


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


def test_bag_without_labels_for_another_camera(tmp_path: Path, images: Path) -> None:
    assert run("bag", images, "-o", tmp_path / "drive", "--camera", "front/wide") == 0
    recorded = open_frames(tmp_path / "drive")
    assert isinstance(recorded, BagFrames) and recorded.cameras == ["/front/wide/image_raw"] and len(recorded) == 3
    assert recorded.rate == pytest.approx(15)


def test_bag_of_a_video_keeps_its_stamps(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mkv", [0, 30, 130, 150, 350], "mjpeg", strict="unofficial")
    assert run("bag", film, "-o", tmp_path / "drive.mcap") == 0
    assert [frame.stamp_ns for frame in open_frames(tmp_path / "drive.mcap")] == [
        10**9 + 10**6 * stamp_ms for stamp_ms in (0, 30, 130, 150, 350)
    ]


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
def test_plot_trimap_names_the_file_that_holds_no_results(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.json").write_text(content)
    assert run("plot", "trimap", tmp_path / "bad.json", "-o", tmp_path / "figure.png") == 2
    assert "bad.json has no trimap IoU (tiou): give a file of `netwarp evaluate --json`" in capsys.readouterr().err


def test_plot_trimap_refuses_two_files_of_the_same_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / folder / "scores.json" for folder in ("host", "video")]
    for file in files:
        file.parent.mkdir()
        file.write_text('{"tiou": {"1": 30}}')
    assert run("plot", "trimap", *files, "-o", tmp_path / "figure.png") == 2
    assert "two files are called scores" in capsys.readouterr().err


def test_models_lists_the_shipped_models(
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


def test_names_of_models_are_whole_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("models") == 0
    table, _, notes = capsys.readouterr().out.partition("└")
    for name in shipped_models():
        assert f" {name} " in table and f"\n{name}\n  host: " in notes


def test_train_passes_the_recipe_to_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text("model: {host: pspnet50}\ndata: [{kind: street}]\n")

    def train(config: TrainingConfig) -> Path:
        return tmp_path / f"trained {config.model.host}.safetensors"

    monkeypatch.setattr(training, "train", train)
    assert run("train", config) == 0
    assert "trained pspnet50.safetensors" in " ".join(capsys.readouterr().out.split())
