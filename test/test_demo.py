# SPDX-License-Identifier: Apache-2.0
"""The demonstration with a few frames and random weights: it writes all files, and counts every frame.

Not asserted: how many frames are dropped. This depends on the machine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from graph import Program, tiny_model
from rich.progress import Progress

from netwarp_ros.classes import load_classes
from netwarp_ros.node.process import NodeError
from netwarp_ros.recordings.open import open_frames

pytestmark = pytest.mark.ros

FRAMES = 8


def demo(log: Path, *arguments: object) -> Program:
    return Program([sys.executable, "-m", "netwarp_ros.node.tools.demo", *map(str, arguments)], log)


def test_every_frame_comes_out_or_is_counted(ros_domain: int, tmp_path: Path) -> None:
    out, model = tmp_path / "out", tiny_model(tmp_path / "tiny.safetensors")
    program = demo(tmp_path / "log", "--out", out, "--model", model, "--frames", FRAMES)
    assert program.wait() == 0, program.output

    summary = json.loads((out / "summary.json").read_text())
    assert summary["frames_in"] == FRAMES
    assert summary["frames_out"] >= 1
    assert summary["frames_in"] == summary["frames_out"] + summary["frames_dropped"]
    assert set(summary["latency_ms"]) == {"p50", "p95", "p99"}
    assert set(summary["stages_ms"]) == {"wait", "decode", "prepare", "flow", "network", "publish"}
    assert all(set(values) == {"p50", "p95", "p99"} for values in summary["stages_ms"].values())
    assert 0 <= summary["miou"] <= 100
    assert (summary["device"], summary["model"]) == ("cpu", str(model))
    assert summary["engine"] == "openvino" and summary["precision"] in ("float32", "bfloat16")
    assert summary["ros_distro"]

    video = cv2.VideoCapture(str(out / "overlay.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == summary["frames_out"]
    assert video.get(cv2.CAP_PROP_FRAME_WIDTH) == 960
    assert "frames in" in program.output
    assert sorted(path.name for path in out.iterdir()) == ["overlay.mp4", "overlay.png", "summary.json"]


def test_only_the_results_of_an_earlier_demonstration_are_replaced(tmp_path: Path) -> None:
    from netwarp_ros.node.tools.demo import PICTURES, publish, refuse_foreign_results

    out = tmp_path / "out"
    (out / "street").mkdir(parents=True)
    (out / "street" / "thesis.txt").write_text("years of work")

    def publish_run(run: str) -> None:
        results = tmp_path / run
        results.mkdir()
        for name in PICTURES:
            (results / name).write_text(run)
        publish(results, {"frames_in": run}, out)

    for run in ("first", "second"):
        publish_run(run)
        assert json.loads((out / "summary.json").read_text())["frames_in"] == run
        assert [(out / name).read_text() for name in PICTURES] == [run, run]
    for name in (*PICTURES, "summary.json"):
        written = (out / name).read_bytes()
        (out / name).write_text("years of work")
        with pytest.raises(
            FileExistsError, match="exists already, and is no unchanged result of a demonstration: remove it"
        ):
            refuse_foreign_results(out)
        with pytest.raises(FileExistsError):
            publish_run(f"third, over {name}")
        assert (out / name).read_text() == "years of work"
        (out / name).write_bytes(written)
    refuse_foreign_results(out)
    assert (out / "street" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("masked", [[1, 2, 3], [0, 3], [3], []])
def test_the_picture_is_of_the_frame_with_a_mask_that_is_nearest_to_the_middle(
    tmp_path: Path, masked: list[int]
) -> None:
    from netwarp_ros.node.tools.demo import draw, write_clip

    classes = load_classes("camvid")
    with Progress(disable=True) as progress:
        labels = write_clip(tmp_path / "clip", 4, 10.0, progress)
        stamps = sorted(labels)
        recorder = Mock(
            masks={stamps[index]: labels[stamps[index]] % len(classes) for index in masked},
            timings={stamps[index]: Mock(network_ms=1.0, total_ms=2.0) for index in masked},
        )
        if not masked:
            with pytest.raises(NodeError, match="the node segmented no frame"):
                draw(tmp_path / "clip", labels, recorder, classes, tmp_path, progress)
            return
        draw(tmp_path / "clip", labels, recorder, classes, tmp_path, progress)
    frames = list(open_frames(tmp_path / "clip"))
    nearest = min(masked, key=lambda index: abs(index - 2))
    picture = cv2.imread(str(tmp_path / "overlay.png"))
    height, width = frames[nearest].image.shape[:2]
    assert np.array_equal(picture[:height, :width], frames[nearest].image)


def test_the_clip_does_not_replace_what_is_at_its_path(tmp_path: Path) -> None:
    from netwarp_ros.node.tools.demo import write_clip

    (tmp_path / "street").mkdir()
    (tmp_path / "street" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="street exists already"), Progress(disable=True) as progress:
        write_clip(tmp_path / "street", 2, 10.0, progress)
    assert (tmp_path / "street" / "thesis.txt").read_text() == "years of work"


def test_files_in_the_way_are_named_before_the_demonstration(ros_domain: int, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "overlay.png").write_text("years of work")
    program = demo(tmp_path / "log", "--out", tmp_path / "out")
    assert program.wait() == 2
    assert program.output.startswith(f"demo: {tmp_path / 'out' / 'overlay.png'} exists already")


def test_a_missing_model_is_named(ros_domain: int, tmp_path: Path) -> None:
    program = demo(tmp_path / "log", "--out", tmp_path / "out", "--model", "nonesuch")
    assert program.wait() == 2
    assert program.output.startswith("demo: no model named 'nonesuch'")
