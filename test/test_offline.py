# SPDX-License-Identifier: Apache-2.0
"""Recordings segmented to files, bags and videos, and the resumption of killed runs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from rosbags.interfaces import QosDurability
from rosbags.rosbag2 import Reader
from torch import nn

from netwarp_ros import offline
from netwarp_ros.classes import load_classes
from netwarp_ros.models import Inference, Model, ModelSpec, augment
from netwarp_ros.offline import (
    PRODUCT_MARK,
    TimingRow,
    remove_masks,
    segment_recording,
    video_names,
    write_masks,
    write_video,
)
from netwarp_ros.recordings.frames import Frame, FrameSource, stamp
from netwarp_ros.recordings.messages import FRAME_TIMING, IMAGE, LABEL_INFO, typestore
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.segmenter import Segmenter

CAMVID = load_classes("camvid")
SPEC = ModelSpec(host="ddrnet23slim", classes=CAMVID, host_arguments={"num_classes": 11}, input_height=48)
ORIGIN = {"recording": "drive", "model": "small"}
TIMING_ROW = TimingRow(0, "", "", "", 0, 0, 0.0, 0.0, 0.0, 0.0, "new", "first frame")
T0 = 10**18


class Recording(FrameSource):
    """Frames of two cameras in turn; iteration is interrupted at index ``until``."""

    cameras = ("/left/image_raw", "/right/cam/compressed")
    rate = 10.0

    def __init__(self, count: int, until: int | None = None) -> None:
        super().__init__()
        self.count, self.until = count, until

    def __len__(self) -> int:
        return self.count

    def read(self, begin: int = 0, end: int | None = None) -> Iterator[Frame]:
        noise = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8), (0, 0), 2)
        for index in range(self.count):
            if index == self.until:
                raise KeyboardInterrupt
            stamp_ns = T0 + stamp(index // 2, 10)
            image = np.roll(noise, 2 * index, axis=1)
            camera = self.cameras[index % 2]
            yield Frame(index, stamp_ns, f"{index:06d}", image, camera, "optical", recorded_ns=stamp_ns + 10**6 * index)


def make_segmenter(**options: Any) -> Segmenter:
    torch.manual_seed(0)
    host = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.Tanh(), nn.Conv2d(8, 11, 1, bias=False)).eval()
    network = augment(host, ["0"], flow_grid="features", remember="after")  # the last mask then depends on every frame
    nn.init.constant_(network.netwarps[0].w2, 0.8)
    return Segmenter(Model(network, SPEC, "small"), precision="float32", **options)


def masks_in(folder: Path) -> list[np.ndarray]:
    return [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted((folder / "masks").iterdir())]


@pytest.fixture
def complete_run(tmp_path: Path) -> Path:
    """Return the folder of a run that was not interrupted."""
    segment_recording(Recording(12), make_segmenter(), tmp_path / "whole", ORIGIN)
    return tmp_path / "whole"


@pytest.mark.parametrize("inference", [Inference(), Inference(32, scales=(1.0, 0.5))], ids=["whole", "windows"])
def test_a_killed_run_is_resumed_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inference: Inference
) -> None:
    monkeypatch.setattr(offline, "CHECKPOINT_INTERVAL", 4)
    expected = segment_recording(Recording(12), make_segmenter(inference=inference), tmp_path / "whole", ORIGIN)
    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        segment_recording(Recording(12, until=7), make_segmenter(inference=inference), folder, ORIGIN)
    assert sorted(path.name for path in folder.iterdir()) == ["masks", "resume.pt", "timing.part.csv"]

    resumed, calls = make_segmenter(inference=inference), []
    infer = resumed.infer
    monkeypatch.setattr(resumed, "infer", lambda *arguments, **options: calls.append(0) or infer(*arguments, **options))
    segmented = segment_recording(Recording(12), resumed, folder, ORIGIN)
    assert len(calls) == 8  # all frames after the checkpoint
    assert sorted(path.name for path in folder.iterdir()) == ["masks", "timing.csv"]
    for mask, expected_mask in zip(masks_in(folder), masks_in(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(mask, expected_mask)
    no_times = dict.fromkeys(("prepare_ms", "flow_ms", "network_ms", "total_ms"), 0.0)
    assert [dataclasses.replace(row, **no_times) for row in segmented.rows] == [
        dataclasses.replace(row, **no_times) for row in expected.rows
    ]
    assert len((folder / "timing.csv").read_text().splitlines()) == 13


def test_an_unfinished_run_with_other_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "CHECKPOINT_INTERVAL", 2)
    with pytest.raises(KeyboardInterrupt):
        segment_recording(Recording(6, until=5), make_segmenter(), tmp_path, ORIGIN)
    with pytest.raises(
        ValueError, match=r"an unfinished run with other settings \(model small\): finish that run, or remove"
    ):
        segment_recording(Recording(6), make_segmenter(), tmp_path, {**ORIGIN, "model": "large"})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("existing", ["masks/mine.png", "timing.csv", "timing.part.csv", "overlay.mp4"])
def test_what_is_in_the_folder_already_is_not_touched(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).parent.mkdir(exist_ok=True)
    (tmp_path / existing).write_text("years of work")
    (tmp_path / "other.txt").write_text("in nobody's way")
    before, product = contents(tmp_path), tmp_path / "overlay.mp4"
    way = re.escape(str(tmp_path / existing.partition("/")[0]))
    with pytest.raises(FileExistsError, match=f"{way} exists already, .*: remove it, or give another output"):
        segment_recording(Recording(2), make_segmenter(), tmp_path, ORIGIN, products=[product])
    assert contents(tmp_path) == before


def test_a_finished_run_is_not_mixed_with_another(complete_run: Path) -> None:
    before = contents(complete_run)
    for origin in (ORIGIN, {"another": "run"}):
        with pytest.raises(FileExistsError, match=r"whole/masks exists already"):
            segment_recording(Recording(2), make_segmenter(), complete_run, origin)
    assert contents(complete_run) == before


def test_a_run_that_is_killed_before_its_first_checkpoint_is_resumed(tmp_path: Path, complete_run: Path) -> None:
    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        segment_recording(Recording(12, until=3), make_segmenter(), folder, ORIGIN)
    assert len(segment_recording(Recording(12), make_segmenter(), folder, ORIGIN).rows) == 12
    for mask, expected in zip(masks_in(folder), masks_in(complete_run), strict=True):
        np.testing.assert_array_equal(mask, expected)


def test_a_run_that_is_killed_while_it_finishes_only_finishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = tmp_path / "overlay.mp4"

    def interrupted(rows: object) -> None:
        video.write_text(PRODUCT_MARK)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment_recording(Recording(4), make_segmenter(), tmp_path, ORIGIN, finish=interrupted, products=[video])
    resumed, counts = make_segmenter(), []
    monkeypatch.setattr(resumed, "infer", None)  # no frame is segmented again
    segment_recording(
        Recording(4), resumed, tmp_path, ORIGIN, finish=lambda rows: counts.append(len(rows)), products=[video]
    )
    assert counts == [4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks", "overlay.mp4", "timing.csv"]


def test_a_video_that_a_resumed_run_did_not_write_is_not_touched(tmp_path: Path) -> None:
    folder, video = tmp_path / "drive.mcap.unfinished", tmp_path / "drive.mp4"
    with pytest.raises(KeyboardInterrupt):
        segment_recording(Recording(4, until=2), make_segmenter(), folder, ORIGIN)
    video.write_text("years of work")
    with pytest.raises(FileExistsError, match="drive.mp4 exists already, and this command did not write it"):
        segment_recording(Recording(4), make_segmenter(), folder, ORIGIN, products=[video])
    segmented = segment_recording(Recording(4), make_segmenter(), folder, ORIGIN)
    with pytest.raises(FileExistsError, match="drive.mp4 exists already, and this command did not write it"):
        write_video(video, Recording(4), folder, segmented.rows[0].camera, CAMVID, 1.0)
    assert video.read_text() == "years of work"
    video.unlink()
    for _ in range(2):
        write_video(video, Recording(4), folder, segmented.rows[0].camera, CAMVID, 1.0)


def test_a_run_that_fails_at_its_first_frame_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        segment_recording(Recording(4, until=0), make_segmenter(), tmp_path / "new", ORIGIN)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign", "no timings", "half the timings", "version"])
def test_a_damaged_checkpoint_is_named_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(offline, "CHECKPOINT_INTERVAL", 2)
    with pytest.raises(KeyboardInterrupt):
        segment_recording(Recording(6, until=5), make_segmenter(), tmp_path, ORIGIN)
    checkpoint, timing = tmp_path / "resume.pt", tmp_path / "timing.part.csv"
    match damage:
        case "empty":
            checkpoint.write_bytes(b"")
        case "cut":
            checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
        case "foreign":
            torch.save({"network": {}}, checkpoint)
        case "no timings":
            timing.unlink()
        case "version":
            content = torch.load(checkpoint, weights_only=True)
            del content["streams"]["/left/image_raw"]["pending"]
            torch.save(content, checkpoint)
        case _:
            timing.write_bytes(timing.read_bytes()[:200])
    before = contents(tmp_path)
    named = {"version": tmp_path, "no timings": timing, "half the timings": timing}.get(damage, checkpoint)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(named))} .* resumed. To start anew, remove") as caught:
        segment_recording(Recording(6), make_segmenter(), tmp_path, ORIGIN)
    assert str(caught.value).endswith(", timing.part.csv and the masks")  # while one of these is there, no run begins
    assert len(str(caught.value)) < 500 and contents(tmp_path) == before


def test_only_the_runs_own_masks_are_removed(complete_run: Path) -> None:
    rows = [dataclasses.replace(TIMING_ROW, name=f"{index:06d}") for index in range(12)]
    (complete_run / "masks" / "mine.png").write_text("years of work")
    remove_masks(complete_run, rows)
    assert contents(complete_run) == {"masks/mine.png": b"years of work"}
    (complete_run / "masks" / "mine.png").unlink()
    remove_masks(complete_run, rows)
    assert not complete_run.exists()


def test_a_bag_of_masks_has_the_topics_and_messages_of_the_node(tmp_path: Path, complete_run: Path) -> None:
    segmented = segment_recording(Recording(12), make_segmenter(), tmp_path / "again", ORIGIN)
    assert 0 < segmented.segmenting_percent <= 100
    write_masks(tmp_path / "masks.mcap", complete_run, segmented.rows, CAMVID)
    messages: dict[str, list[Any]] = {}
    with Reader(tmp_path / "masks.mcap") as reader:
        assert {connection.topic: connection.msgtype for connection in reader.connections} == {
            f"{camera}/segmentation/{name}": kind
            for camera in ("/left", "/right/cam")
            for name, kind in (("mask", IMAGE), ("timing", FRAME_TIMING), ("label_info", LABEL_INFO))
        }
        for connection in reader.connections:
            latched = [qos.durability for qos in connection.ext.offered_qos_profiles] == [QosDurability.TRANSIENT_LOCAL]
            assert latched == connection.topic.endswith("label_info")
        for connection, recorded_ns, data in reader.messages():
            message = typestore.deserialize_cdr(data, connection.msgtype)
            messages.setdefault(connection.topic, []).append((recorded_ns, message))
    frames = [frame for frame in Recording(12) if frame.camera == "/right/cam/compressed"]
    masks = masks_in(complete_run)
    for sequence, (frame, mask, timing) in enumerate(
        zip(frames, messages["/right/cam/segmentation/mask"], messages["/right/cam/segmentation/timing"], strict=True)
    ):
        assert mask[0] == timing[0] == frame.recorded_ns
        assert mask[1].header == timing[1].header and mask[1].header.frame_id == "optical"
        assert mask[1].header.stamp.sec * 10**9 + mask[1].header.stamp.nanosec == frame.stamp_ns
        assert mask[1].encoding == "mono8"
        np.testing.assert_array_equal(mask[1].data.reshape(48, 64), masks[frame.index])
        row = segmented.rows[frame.index]
        assert (timing[1].sequence, timing[1].reason) == (sequence, row.reason)
        assert timing[1].network_ms == pytest.approx(row.network_ms) and timing[1].memory == (sequence > 0)
    ((recorded_ns, info),) = messages["/left/segmentation/label_info"]
    assert recorded_ns == T0 and info.class_map[8].class_name == "car"


def test_masks_of_images_without_a_topic_are_on_camera(tmp_path: Path, complete_run: Path) -> None:
    rows = [
        dataclasses.replace(row, camera="")
        for row in segment_recording(Recording(2), make_segmenter(), tmp_path / "short", {}).rows
    ]
    write_masks(tmp_path / "masks.mcap", complete_run, rows, CAMVID)
    assert [frame.camera for frame in open_frames(tmp_path / "masks.mcap")] == ["/camera/segmentation/mask"] * 2


def test_each_camera_has_a_video_of_its_own(tmp_path: Path, complete_run: Path) -> None:
    names = video_names(Recording.cameras, "overlay")
    assert names == {
        "/left/image_raw": "overlay-left-image_raw.mp4",
        "/right/cam/compressed": "overlay-right-cam-compressed.mp4",
    }
    assert video_names(["/left/image_raw"], "out") == {"/left/image_raw": "out.mp4"}
    alike = video_names(["/a/b", "/a-b", "/a-b/2", "/a-b-2", "/a/b/"], "o")
    assert list(alike.values()) == ["o-a-b.mp4", "o-a-b-2.mp4", "o-a-b-2-2.mp4", "o-a-b-2-3.mp4", "o-a-b-3.mp4"]
    write_video(tmp_path / "out.mp4", Recording(12), complete_run, "/left/image_raw", CAMVID, 1.0)
    assert not (tmp_path / "out.part.mp4").exists()
    video = list(open_frames(tmp_path / "out.mp4"))
    assert len(video) == 6
    colors = CAMVID.colorize(masks_in(complete_run)[2])[..., ::-1].astype(int)
    assert np.median(np.abs(video[1].image - colors)) < 8  # lossy
