# SPDX-License-Identifier: Apache-2.0
"""Permissions of the segment node: its topics and services under SROS 2, and the files it writes."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from graph import (
    SECOND,
    Graph,
    SegmentClient,
    image_message,
    moving_images,
    node_command,
    open_graph,
    running,
    tiny_model,
)

from netwarp_ros.resources import resource

pytestmark = pytest.mark.ros

RARE = {
    ("topics", "subscribe"): {"/camera/image_raw/compressed", "/clock"},
    ("topics", "publish"): {"/camera/segmentation/label_info"},
    ("services", "reply"): set(),
}
"""Names that the policy allows and a node with default parameters and without vision_msgs does not use."""


def allowed() -> dict[tuple[str, str], set[str]]:
    """Return the names in the policy, by kind and permission."""
    (profile,) = ElementTree.parse(resource("sros2_policy.xml")).getroot().findall("enclaves/enclave/profiles/profile")
    assert profile.attrib == {"ns": "/", "node": "segmenter"}
    names = {}
    for rules in profile:
        ((permission, value),) = rules.attrib.items()
        assert value == "ALLOW"
        names[rules.tag, permission] = {(name.text or "").strip() for name in rules}
    return names


def offered(graph: Graph) -> dict[tuple[str, str], set[str]]:
    """Return the names that the running node publishes, subscribes to and serves."""
    kinds = {
        ("topics", "subscribe"): "subscriber",
        ("topics", "publish"): "publisher",
        ("services", "reply"): "service",
    }
    return {
        rule: {name for name, _ in getattr(graph.node, f"get_{kind}_names_and_types_by_node")("segmenter", "/")}
        for rule, kind in kinds.items()
    }


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_the_node_does_what_the_policy_allows_and_writes_nothing_but_its_log(
    ros_domain: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, home = tiny_model(tmp_path / "tiny.safetensors"), tmp_path / "home"
    for name, folder in (("HOME", home), ("TMPDIR", tmp_path / "tmp"), ("XDG_CACHE_HOME", tmp_path / "cache")):
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    for name in ("ROS_HOME", "ROS_LOG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (work := tmp_path / "work").mkdir()
    monkeypatch.chdir(work)
    with open_graph() as graph, running(node_command("segment_node", model=model), tmp_path / "log"):
        before = files(tmp_path)
        lifecycle = graph.lifecycle()
        lifecycle.configure()
        lifecycle.activate()
        SegmentClient(graph).segment(image_message(moving_images(1)[0], SECOND))
        permitted, used = allowed(), offered(graph)
        assert {rule: names - RARE[rule] for rule, names in permitted.items()} == {
            rule: names - RARE[rule] for rule, names in used.items()
        }
        assert all(RARE[rule] <= permitted[rule] for rule in RARE)
        assert graph.node.get_client_names_and_types_by_node("segmenter", "/") == []
    written = files(tmp_path) - before
    assert written and all(name.startswith("home/.ros/log/") for name in written), written
