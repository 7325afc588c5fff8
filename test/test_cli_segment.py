# SPDX-License-Identifier: Apache-2.0
"""``netwarp segment`` from its arguments to its files."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import masks_of, run, scores_of, small_model, write_images

from netwarp_ros.flow import create_estimator, write_flo
from netwarp_ros.models import Inference
from netwarp_ros.recordings.bag_writer import write_bag
from netwarp_ros.recordings.bags import BagLabels
from netwarp_ros.recordings.frames import Frame, stamp
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.segmenter import Segmenter


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return small_model(tmp_path / "model" / "small.safetensors", monkeypatch)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


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


def test_segment_writes_a_video_by_default(tmp_path: Path, model: Path, images: Path) -> None:
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


def test_segment_overwrites_neither_masks_nor_its_input(
    tmp_path: Path, model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The masks of a longer earlier run would stay among the new ones; OUT.mp4 would replace the input."""
    labels = tmp_path / "drive" / "masks"
    labels.mkdir(parents=True)
    (labels / "f0.png").write_text("labels made by hand")
    assert run("segment", images, "-o", tmp_path / "drive", "--model", model) == 2
    assert f"netwarp: {labels} exists already" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.glob("drive/**/*.*")] == ["labels made by hand"]

    assert run("segment", images, "-o", tmp_path / "first", "--model", model) == 0
    video = (tmp_path / "first" / "overlay.mp4").rename(tmp_path / "drive.mp4")
    before = video.read_bytes()
    assert run("segment", video, "-o", tmp_path / "drive.mcap", "--model", model, "--video") == 2
    assert f"netwarp: {video} exists already" in capsys.readouterr().err
    assert run("segment", video, "-o", tmp_path / "first", "--model", model, "--no-video") == 2
    assert video.read_bytes() == before and len(list((tmp_path / "first" / "masks").iterdir())) == 3


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


def read_masks(folder: Path) -> list[np.ndarray]:
    return [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted((folder / "masks").iterdir())]


def test_flow_files_give_the_masks_of_the_same_estimated_flow(tmp_path: Path, model: Path, images: Path) -> None:
    deep, known, far = create_estimator("deepflow"), tmp_path / "known", tmp_path / "far"
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
