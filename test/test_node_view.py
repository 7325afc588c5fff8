# SPDX-License-Identifier: Apache-2.0
"""`netwarp view` beside a segment node, over DDS, and in headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pytest
from browser import Browser
from graph import (
    SECOND,
    Graph,
    Program,
    SegmentClient,
    array_of,
    image_message,
    lossless,
    moving_images,
    node_command,
    open_graph,
    own_domain,
    running,
    tiny_model,
)
from sensor_msgs.msg import Image

from netwarp_ros.recordings.messages import STAGES

pytestmark = pytest.mark.ros

FRONT, REAR = "/robot/front", "/robot/rear"


def view_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "netwarp_ros.cli", "view", "--port", "0", *arguments]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A segment node with two cameras, in a namespace."""
    folder = tmp_path_factory.mktemp("segment_node")
    model = tiny_model(folder / "tiny.safetensors")
    qos = lossless(FRONT.removeprefix("/"), REAR.removeprefix("/"))
    never = {"stale_warn": 0.0, "stale_error": 0.0}
    command = node_command("segment_node", model=model, cameras="[front, rear]", precision="float32", **never, **qos)
    with own_domain(), running([*command, "-r", "__ns:=/robot"], folder / "log") as program:
        yield program


@pytest.fixture
def graph(program: Program) -> Iterator[Graph]:
    with open_graph() as graph:
        lifecycle = graph.lifecycle("/robot/segmenter")
        lifecycle.configure()
        yield graph
        if lifecycle.state() == "active":
            lifecycle.deactivate()
        lifecycle.cleanup()


class Page:
    """A client of `netwarp view`, as a page is, with an open stream of states."""

    def __init__(self, graph: Graph, address: str) -> None:
        self._graph, self._host = graph, address.removeprefix("http://")
        self._stream = HTTPConnection(self._host, timeout=60)
        self._stream.request("GET", "/states")
        self._states = self._stream.getresponse()

    def until(self, condition: Callable[[dict[str, Any]], object], what: str) -> dict[str, Any]:
        """Wait for states, by the cameras' names, that meet a condition."""

        def matching() -> dict[str, Any] | None:
            states = self.next()
            return states if states and condition(states) else None

        return self._graph.until(matching, what)

    def next(self) -> dict[str, Any]:
        """Return the next states."""
        message = self._states.readline() + self._states.readline()
        return {state["name"]: state for state in json.loads(message.removeprefix(b"data: "))}

    def picture(self, camera: str) -> np.ndarray:
        connection = HTTPConnection(self._host, timeout=60)
        connection.request("GET", f"/picture?camera={quote(camera, safe='')}")
        return cv2.imdecode(np.frombuffer(connection.getresponse().read(), np.uint8), cv2.IMREAD_COLOR)

    def close(self) -> None:
        self._states.close()
        self._stream.close()


def address_of(graph: Graph, program: Program) -> str:
    return graph.until(lambda: re.search(r"http://127\.0\.0\.1:\d+", program.output), "address")[0]


def test_the_page_gets_the_state_of_every_camera(graph: Graph, tmp_path: Path) -> None:
    with running(view_command("--namespace", "robot"), tmp_path / "log") as program:
        page = Page(graph, address_of(graph, program))
        states = page.until(
            lambda states: len(states) == 2 and all(state["about"] for state in states.values()), "both cameras"
        )
        assert set(states) == {FRONT, REAR}
        front = states[FRONT]
        assert (front["node"], front["about"]["state"], front["level"]) == ("/robot/segmenter", "inactive", "WARN")
        assert front["message"] == "the node is inactive: activate it"
        assert (front["picture"], front["silence"], front["frames"]) == (0, None, [])

        graph.lifecycle("/robot/segmenter").activate()
        overlays = graph.subscribe(Image, "robot/front/segmentation/overlay")
        client, image = SegmentClient(graph, "robot/front"), moving_images(1)[0]
        stamps = count(SECOND, SECOND // 10)
        # The page may not have subscribed to overlays before the first images.
        graph.until(
            lambda: client.segment(image_message(image, next(stamps))) and page.next()[FRONT]["picture"], "picture"
        )
        expected = [
            [*(getattr(timing, f"{stage}_ms") for stage in (*STAGES, "total", "age")), timing.reason == "first frame"]
            for timing in client.timings
        ]

        def complete(states: dict[str, Any]) -> bool:
            front = states[FRONT]
            counted = front["values"].get("published") == str(len(expected))
            return counted and len(front["frames"]) > 0 and np.allclose(front["frames"][-1], expected[-1], atol=0.051)

        front = page.until(complete, "counts and times")[FRONT]
        np.testing.assert_allclose(front["frames"], expected[-len(front["frames"]) :], rtol=1e-6, atol=0.051)
        assert (front["level"], front["message"]) == ("OK", "segmenting")
        assert front["values"]["resets: first frame"] == "1"
        assert front["silence"] is not None
        graph.until(lambda: overlays, "overlay")
        np.testing.assert_allclose(page.picture(FRONT), array_of(overlays[-1])[..., ::-1], atol=60)
        rear = page.next()[REAR]
        assert (rear["level"], rear["picture"]) == ("WARN", 0)
        assert rear["message"] == "no image yet on /robot/rear/image_raw"

        topic = f"{FRONT}/segmentation/overlay"
        graph.until(lambda: graph.node.count_subscribers(topic) == 2, "the page's subscription beside this test's")
        page.close()
        graph.until(lambda: graph.node.count_subscribers(topic) == 1, "end of the page's subscription")


def test_named_cameras_are_shown_before_they_exist(graph: Graph, tmp_path: Path) -> None:
    with running(view_command("--namespace", "robot", "rear", "/elsewhere/wide"), tmp_path / "log") as program:
        page = Page(graph, address_of(graph, program))
        states = page.until(lambda states: states[REAR]["node"], "node of the rear camera")
        assert set(states) == {REAR, "/elsewhere/wide"}
        wide = states["/elsewhere/wide"]
        assert (wide["node"], wide["level"]) == ("", "ERROR")
        assert wide["message"] == "nothing publishes /elsewhere/wide/segmentation/timing"
        page.close()


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium: apt-get install chromium")
def test_chromium_shows_the_cameras_until_the_view_ends(graph: Graph, tmp_path: Path) -> None:
    graph.lifecycle("/robot/segmenter").activate()
    program = Program(view_command("--namespace", "robot"), tmp_path / "log")
    client, image = SegmentClient(graph, "robot/front"), moving_images(1)[0]
    stamps = count(SECOND, SECOND // 10)
    with Browser(tmp_path / "profile") as browser:
        browser.open(address_of(graph, program))
        browser.until(
            "document.querySelector('article img[src]')?.naturalWidth === 64",
            lambda: client.segment(image_message(image, next(stamps))),
        )
        browser.until(  # diagnostics are published once a second
            "document.querySelector('article').innerText.includes('segmenting')",
            lambda: client.segment(image_message(image, next(stamps))),
        )
        browser.until("document.querySelectorAll('article').length === 2")
        browser.until("document.querySelector('[data-figure=dropped] b').textContent === '0'")
        front = browser.value("document.querySelector('article').innerText")
        for part in (FRONT, "OK", "segmenting", "first frame 1", "/robot/segmenter · tiny · cpu, float32"):
            assert part in front
        shown = "JSON.stringify([...document.querySelectorAll('.legend li')].slice(0, 6).map(item => item.innerText))"
        assert [re.fullmatch(r"(\w+)\s+[\d.]+ ms", text)[1] for text in json.loads(browser.value(shown))] == list(
            STAGES
        )
        rear = browser.value("document.querySelectorAll('article')[1].innerText")
        assert "no image yet on /robot/rear/image_raw" in rear
        browser.screenshot(tmp_path / "page.png")
        picture = cv2.imread(str(tmp_path / "page.png")).astype(int)
        network = np.abs(picture - (43, 154, 240)).sum(axis=2) < 6  # the bar, in the network's color
        assert network.any(axis=1).sum() > 10
        assert browser.complaints == []

        status = program.end(signal.SIGINT)
        assert (status, program.output.count("\n")) == (0, 1), program.output
        browser.until("document.getElementById('link').textContent === 'connection lost, trying again'")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--namespace", "9robot"], "namespace"),
        (["front camera"], "topic name"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1, port 0: "),
    ],
)
def test_wrong_arguments_are_named(ros_domain: int, tmp_path: Path, arguments: list[str], problem: str) -> None:
    program = Program(view_command(*arguments), tmp_path / "log")
    assert program.wait() == 2
    assert program.output.startswith("netwarp view: ") and program.output.count("\n") == 1
    assert problem in program.output
