# SPDX-License-Identifier: Apache-2.0
"""Recordings segmented to files, bags and videos, and the resumption of killed runs."""

from __future__ import annotations

import dataclasses
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
from netwarp_ros.offline import segment_recording, video_names, write_masks, write_video
from netwarp_ros.recordings.frames import Frame, FrameSource, stamp
from netwarp_ros.recordings.messages import FRAME_TIMING, IMAGE, LABEL_INFO, typestore
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.segmenter import Segmenter

CAMVID = load_classes("camvid")
SPEC = ModelSpec(host="ddrnet23slim", classes=CAMVID, host_arguments={"num_classes": 11}, input_height=48)
ORIGIN = {"recording": "drive", "model": "small"}
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
    monkeypatch.setattr(resumed, "infer", lambda *arguments: calls.append(0) or infer(*arguments))
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


def test_a_finished_run_is_overwritten(tmp_path: Path, complete_run: Path) -> None:
    segmented = segment_recording(Recording(2), make_segmenter(), complete_run, {"another": "run"})
    assert len(segmented.rows) == 2 and len((complete_run / "timing.csv").read_text().splitlines()) == 3
    assert 0 < segmented.segmenting_percent <= 100


def test_a_bag_of_masks_has_the_topics_and_messages_of_the_node(tmp_path: Path, complete_run: Path) -> None:
    segmented = segment_recording(Recording(12), make_segmenter(), complete_run, ORIGIN)
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
        for row in segment_recording(Recording(2), make_segmenter(), complete_run, {}).rows
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
    write_video(tmp_path / "out.mp4", Recording(12), complete_run, "/left/image_raw", CAMVID, 1.0)
    assert not (tmp_path / "out.part.mp4").exists()
    video = list(open_frames(tmp_path / "out.mp4"))
    assert len(video) == 6
    colors = CAMVID.colorize(masks_in(complete_run)[2])[..., ::-1].astype(int)
    assert np.median(np.abs(video[1].image - colors)) < 8  # lossy
