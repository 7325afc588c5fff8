# SPDX-License-Identifier: Apache-2.0
"""Tests of the ROS graph skip where there is none, and where there is, each runs in a domain of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import hypothesis
import pytest

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
