# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several test files use, the skipping of tests without ROS 2, and the list of what was skipped."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import hypothesis
import numpy as np
import pytest
import torch

from netwarp_ros.engines import choice

if TYPE_CHECKING:
    from graph import Graph

# The tests' networks are small: on a busy machine, several threads wait longer for each other than they compute. The
# variable is for the processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# PyTorch starts at once, other engines compile the network first.
AUTO_ENGINES, choice.AUTO = choice.AUTO, {"cpu": ("torch",), "cuda": ("torch",)}

# PyTorch's exporter describes every step in this logger if it has a handler, and pytest gives one to all that do not
# propagate: that takes longer than the export.
logging.getLogger("torch.__trace").propagate = True

# The time that an example takes depends on the machine.
hypothesis.settings.register_profile("netwarp_ros", deadline=None)
hypothesis.settings.load_profile("netwarp_ros")


def why_no_ros() -> str | None:
    """Return why tests of the ROS graph cannot run here and what to do, or None if they can."""
    if importlib.util.find_spec("rclpy") is None:
        return "no ROS 2: `make setup`, then `. tools/env.sh`"
    if importlib.util.find_spec("netwarp_ros.msg") is None:
        return "Python imports a netwarp_ros that has no messages: `. tools/env.sh`, and do not set PYTHONPATH"
    return None


ROS_TIMEOUT_S = 600
"""Longest duration of a test marked `ros`. Each of its waits ends after `DEADLINE_S` of graph.py, which names it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests marked `ros` their timeout, and skip them if there is no ROS 2."""
    reason = why_no_ros()
    for item in items:
        if item.get_closest_marker("ros"):
            item.add_marker(pytest.mark.timeout(ROS_TIMEOUT_S))
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """List the skipped tests by reason, after everything else that pytest reports."""
    yield
    skipped: dict[str, list[str]] = defaultdict(list)
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[-1] if isinstance(report.longrepr, (tuple, list)) else str(report.longrepr)
        skipped[reason.removeprefix("Skipped: ")].append(Path(report.nodeid.split("::")[0]).name)
    if not skipped:
        return
    terminalreporter.section("skipped tests, and what they need")
    for reason, names in sorted(skipped.items(), key=lambda group: -len(group[1])):
        terminalreporter.write_line(f"{len(names):4d} in {', '.join(sorted(set(names)))}: {reason}")


@pytest.fixture(autouse=True)
def auto_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let engine ``auto`` be what it is for users, in tests that are marked `auto_engine`."""
    if request.node.get_closest_marker("auto_engine"):
        monkeypatch.setattr(choice, "AUTO", AUTO_ENGINES)


@pytest.fixture
def ros_domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A ROS_DOMAIN_ID that no other test on this machine uses, set for this process and those that it starts.

    Ask for it before `rclpy.init()`, which is when the variable is read.
    """
    from domain_coordinator import domain_id

    with domain_id() as domain:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
        monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        yield domain


@pytest.fixture
def graph(ros_domain: int) -> Iterator[Graph]:
    """A node for what other programs do, in a domain of its own."""
    from graph import open_graph

    with open_graph() as graph:
        yield graph


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a tiny model with the classes of the shipped ones. Tests only read it."""
    from graph import tiny_model

    return tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """Four stills: bright sky (0) over a dark road (3), the horizon at a height of its own in each."""
    root = tmp_path / "camvid"
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number, horizon in enumerate((20, 28, 36, 44)):
        label = np.zeros((64, 64), np.uint8)
        label[horizon:] = 3
        image = np.where(label[..., None] == 0, 200, 60) + rng.integers(-20, 20, (64, 64, 3))
        cv2.imwrite(str(root / "images" / f"{number}.png"), image.astype(np.uint8))
        cv2.imwrite(str(root / "labels" / f"{number}.png"), label)
    return root
