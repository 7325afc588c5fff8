# SPDX-License-Identifier: Apache-2.0
"""What tests share. Those of the ROS graph skip where there is none, and run each in a domain of its own."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import hypothesis
import numpy as np
import pytest
import torch

# The networks of the tests are small: on a machine with other work to do, threads wait for one another longer than they
# compute. The environment is for the processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("netwarp_ros", deadline=None)
hypothesis.settings.load_profile("netwarp_ros")


def why_no_ros() -> str | None:
    """Why tests of the ROS graph cannot run here, or None where they can."""
    if importlib.util.find_spec("rclpy") is None:
        return "no ROS 2 in this environment: `make setup`, then `. tools/env.sh`"
    if importlib.util.find_spec("netwarp_ros.msg") is None:
        return "netwarp_ros is imported from where it has no messages: `. tools/env.sh`, and leave PYTHONPATH to it"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if reason := why_no_ros():
        for item in items:
            if item.get_closest_marker("ros"):
                item.add_marker(pytest.mark.skip(reason=reason))


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
