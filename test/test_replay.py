# SPDX-License-Identifier: Apache-2.0
"""The replay node, in a process of its own: it publishes all images of a recording, in order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from graph import (
    SECOND,
    SIZE,
    Graph,
    Program,
    header,
    lossless,
    moving_images,
    node_command,
    open_graph,
    running,
)
from sensor_msgs.msg import Image

from netwarp_ros.node.replay_node import MAX_PAUSE_S, Pacer
from netwarp_ros.recordings import messages
from netwarp_ros.recordings.bag_writer import BagWriter, write_bag
from netwarp_ros.recordings.frames import Frame
from netwarp_ros.recordings.image_messages import to_bgr
from netwarp_ros.recordings.open import open_frames

pytestmark = pytest.mark.ros

COUNT = 12


@pytest.fixture
def graph(ros_domain: int) -> Iterator[Graph]:
    with open_graph() as graph:
        yield graph


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return moving_images(COUNT)


@pytest.fixture(scope="module")
def folder(images: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index, image in enumerate(images):
        assert cv2.imwrite(str(folder / f"{index:02}.png"), image)
    return folder


@pytest.fixture(scope="module")
def bag(images: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bags") / "drive"
    frames = [Frame(index, 100 * SECOND + index**2 * 1000, "", image) for index, image in enumerate(images)]
    write_bag(path, frames, topic="/somewhere/image_raw")
    return path


def replay(log: Path, camera: str = "camera", **parameters: Any) -> AbstractContextManager[Program]:
    """Run a replay node whose queue loses no image, even before both ends have discovered each other."""
    return running(node_command("replay_node", camera=camera, **parameters, **lossless(camera)), log)


def replayed(graph: Graph, log: Path, camera: str, count: int, **parameters: Any) -> list[Image]:
    """Replay to the end, and return the received images."""
    with replay(log, camera, **parameters) as program:
        received = graph.subscribe(Image, f"{camera}/image_raw")
        graph.until(lambda: len(received) >= count, f"{count} images")
        assert program.wait() == 0
    assert len(received) == count
    return received


def test_a_bag_is_published_as_recorded(graph: Graph, bag: Path, images: list[np.ndarray], tmp_path: Path) -> None:
    received = replayed(graph, tmp_path / "log", "camera", COUNT, path=bag, stamp="recorded")
    for index, (message, image) in enumerate(zip(received, images, strict=True)):
        assert message.header == header(100 * SECOND + index**2 * 1000, "camera_optical_frame")
        np.testing.assert_array_equal(to_bgr(message), image)


def test_a_bag_is_played_at_the_times_of_recording_whatever_its_stamps(
    graph: Graph, images: list[np.ndarray], tmp_path: Path
) -> None:
    # The camera's clock is set twice.
    stamps = [12 * SECOND, 12 * SECOND + SECOND // 10, 1_700_000_000 * SECOND, SECOND]
    with BagWriter(tmp_path / "drive") as bag:
        for index, stamp_ns in enumerate(stamps):
            header_ = messages.header(stamp_ns, "camera")
            message = messages.image_message(images[index], "bgr8", header_)
            bag.write("/camera/image_raw", message, 1_700_000_000 * SECOND + index * SECOND // 10)
    received = replayed(graph, tmp_path / "log", "camera", len(stamps), path=tmp_path / "drive", stamp="recorded")
    assert [message.header for message in received] == [header(stamp, "camera_optical_frame") for stamp in stamps]
    assert (
        "image 000002 is stamped 1699999988.0 s after the first one, but was recorded 0.2 s after it: images are "
        "published at the times of recording"
    ) in (tmp_path / "log").read_text()


def frame_at(index: int, stamp_s: float, recorded_s: float) -> Frame:
    image = np.zeros((1, 1, 3), np.uint8)
    return Frame(index, round(stamp_s * SECOND), f"{index:06d}", image, recorded_ns=round(recorded_s * SECOND))


@pytest.mark.parametrize(
    ("stamps", "recorded", "waits", "warned"),
    [
        ([1.0, 1.1, 1.2], [5.0, 5.1, 5.3], [0, 0.1, 0.2], []),
        ([1.0, 9e8, 1.2], [5.0, 5.1, 5.2], [0, 0.1, 0.1], ["image 000001 is stamped 899999999.0 s after the first"]),
        ([0.0, 0.5, 2.0], [5.0, 6.0, 9.0], [0, 1, 3], ["image 000002 is stamped 2.0 s after the first one, but was"]),
        # The computer's clock is set while recording.
        ([1.0, 2.0, 9e8], [1.0, 2.0, 9e8], [0, 1, MAX_PAUSE_S], ["image 000002 was recorded 899999998.0 s after"]),
        ([7.0, 8.0, 1.0], [7.0, 8.0, 1.0], [0, 1, 0], []),
    ],
)
def test_images_are_due_at_the_intervals_of_their_recording(
    stamps: list[float], recorded: list[float], waits: list[float], warned: list[str]
) -> None:
    warnings: list[str] = []
    pacer = Pacer(warnings.append)
    frames = [frame_at(index, *times) for index, times in enumerate(zip(stamps, recorded, strict=True))]
    assert [pacer.wait_s(frame) for frame in frames] == pytest.approx(waits)
    assert len(warnings) == len(warned)
    assert all(warning.startswith(start) for warning, start in zip(warnings, warned, strict=True))


def test_a_given_rate_may_have_long_pauses() -> None:
    warnings: list[str] = []
    pacer = Pacer(warnings.append, math.inf)
    waits = [pacer.wait_s(frame_at(index, 60 * index, 60 * index)) for index in range(3)]
    assert waits == pytest.approx([0, 60, 60])
    assert warnings == []


def test_a_folder_is_published_at_the_given_rate_as_the_given_camera(
    graph: Graph, folder: Path, images: list[np.ndarray], tmp_path: Path
) -> None:
    parameters = {"path": folder, "frame_id": "left", "rate": 100.0, "stamp": "recorded"}
    received = replayed(graph, tmp_path / "log", "left/wide", COUNT, **parameters)
    for index, (message, image) in enumerate(zip(received, images, strict=True)):
        assert message.header == header(index * SECOND // 100, "left")
        np.testing.assert_array_equal(to_bgr(message), image)


def test_a_video_is_published_with_the_stamps_of_its_container(graph: Graph, tmp_path: Path) -> None:
    video = tmp_path / "drive.mp4"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"mp4v"), 20.0, SIZE)
    for image in moving_images(COUNT):
        writer.write(image)
    writer.release()
    received = replayed(graph, tmp_path / "log", "camera", COUNT, path=video, stamp="recorded")
    for message, frame in zip(received, open_frames(video), strict=True):
        assert message.header == header(frame.stamp_ns, "camera_optical_frame")
        np.testing.assert_array_equal(to_bgr(message), frame.image)


def test_loop_repeats_with_new_stamps_until_a_signal(graph: Graph, folder: Path, tmp_path: Path) -> None:
    with replay(tmp_path / "log", path=folder, rate=50.0, loop="true") as program:
        received = graph.subscribe(Image, "camera/image_raw")
        graph.until(lambda: len(received) > 2 * COUNT, "third round")
        assert program.end() == 0
    stamps = [(message.header.stamp.sec, message.header.stamp.nanosec) for message in received]
    assert stamps == sorted(set(stamps))
    assert received[0].data == received[COUNT].data == received[2 * COUNT].data
    assert received[0].data != received[1].data


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({}, "path is empty. Give a folder of images, an image, a video or a rosbag2."),
        ({"path": "/nowhere"}, "nothing at /nowhere: give a folder of images, an image, a video or a bag"),
        ({"path": "/nowhere", "stamp": "later"}, "stamp is 'later'. Give one of now, recorded."),
    ],
)
def test_unusable_recordings_are_named(
    ros_domain: int, tmp_path: Path, parameters: dict[str, str], problem: str
) -> None:
    program = Program(node_command("replay_node", **parameters), tmp_path / "log")
    assert program.wait() == 2
    assert program.output == f"replay_node: {problem}\n"
