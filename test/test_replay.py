# SPDX-License-Identifier: Apache-2.0
"""The replay node, in a process of its own: it publishes all images of a recording, in order."""

from __future__ import annotations

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

from netwarp_ros.recordings.bag_writer import write_bag
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
