# SPDX-License-Identifier: Apache-2.0
"""The layouts for RViz and Foxglove: well formed, with topics and fields that the node publishes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from netwarp_ros.classes import load_classes
from netwarp_ros.resources import resource

TIMING = "/camera/segmentation/timing"
DISPLAY = {"Class", "Enabled", "Max Value", "Median window", "Min Value", "Name", "Normalize Range", "Topic", "Value"}
TOPIC = {"Depth", "Durability Policy", "History Policy", "Reliability Policy", "Value"}
PANELS = {
    "Image": {"imageMode"},
    "Plot": {
        "title", "paths", "showLegend", "legendDisplay", "showPlotValuesInLegend", "showXAxisLabels", "showYAxisLabels",
        "isSynced", "xAxisVal", "followingViewWidth", "sidebarDimension",
    },
    "DiagnosticSummary": {"topicToRender", "minLevel", "pinnedIds", "hardwareIdFilter", "sortByLevel"},
    "DiagnosticStatusPanel": {"topicToRender", "selectedHardwareId", "selectedName"},
}  # fmt: skip


@pytest.fixture
def rviz() -> dict[str, Any]:
    return yaml.safe_load(resource("segmenter.rviz").read_text(encoding="utf-8"))


@pytest.fixture
def foxglove() -> dict[str, Any]:
    return json.loads(resource("foxglove_layout.json").read_text(encoding="utf-8"))


def displayed_topics(rviz: dict[str, Any]) -> list[str]:
    return [display["Topic"]["Value"] for display in rviz["Visualization Manager"]["Displays"]]


def plotted_fields(foxglove: dict[str, Any]) -> list[str]:
    """Return the plotted fields of FrameTiming."""
    values = [path["value"] for panel in foxglove["configById"].values() for path in panel.get("paths", [])]
    assert {value.rpartition(".")[0] for value in values} == {TIMING}
    return [value.rpartition(".")[2] for value in values]


def image_topics(foxglove: dict[str, Any]) -> list[str]:
    return [panel["imageMode"]["imageTopic"] for panel in foxglove["configById"].values() if "imageMode" in panel]


def panels(layout: str | dict[str, Any]) -> Iterator[str]:
    if isinstance(layout, str):
        yield layout
    else:
        assert set(layout) == {"direction", "splitPercentage", "first", "second"}
        assert layout["direction"] in ("row", "column") and 0 < layout["splitPercentage"] < 100
        yield from (*panels(layout["first"]), *panels(layout["second"]))


def test_rviz_shows_image_mask_and_overlay(rviz: dict[str, Any]) -> None:
    assert set(rviz) == {"Panels", "Visualization Manager", "Window Geometry"}
    displays = rviz["Visualization Manager"]["Displays"]
    assert [display["Name"] for display in displays] == ["Overlay", "Mask", "Image"]
    for display in displays:
        assert set(display) == DISPLAY and set(display["Topic"]) == TOPIC
        assert (display["Class"], display["Enabled"]) == ("rviz_default_plugins/Image", True)
        # Best effort matches every camera driver; the node offers reliable.
        reliability = "Reliable" if "segmentation" in display["Topic"]["Value"] else "Best Effort"
        assert display["Topic"]["Reliability Policy"] == reliability
        assert display["Name"] in rviz["Window Geometry"]
    assert rviz["Visualization Manager"]["Global Options"]["Fixed Frame"] == "camera_optical_frame"


def test_foxglove_lays_out_every_panel(foxglove: dict[str, Any]) -> None:
    assert set(foxglove) == {"configById", "globalVariables", "userNodes", "playbackConfig", "layout"}
    assert sorted(panels(foxglove["layout"])) == sorted(foxglove["configById"])
    for name, panel in foxglove["configById"].items():
        assert set(panel) == PANELS[name.partition("!")[0]], name
        for path in panel.get("paths", []):
            assert set(path) == {"value", "label", "color", "enabled", "timestampMethod"} and path["enabled"]


@pytest.mark.ros
def test_both_show_topics_and_fields_of_the_node(
    ros_domain: int, rviz: dict[str, Any], foxglove: dict[str, Any]
) -> None:
    from graph import open_graph

    from netwarp_ros.msg import FrameTiming
    from netwarp_ros.node.outputs import Outputs
    from netwarp_ros.recordings.messages import STAGES

    with open_graph() as graph:
        outputs = Outputs(graph.node, "camera", load_classes("camvid"), "mono8", {})
        outputs.advertise(0.0)
        published = dict(graph.node.get_publisher_names_and_types_by_node("test", "/"))
        outputs.close()
    images = {topic for topic, types in published.items() if types == ["sensor_msgs/msg/Image"]} | {"/camera/image_raw"}
    assert set(displayed_topics(rviz)) <= images and set(image_topics(foxglove)) <= images
    assert published[TIMING] == ["netwarp_ros/msg/FrameTiming"]
    assert plotted_fields(foxglove) == [f"{name}_ms" for name in (*STAGES, "total", "age")]
    assert set(plotted_fields(foxglove)) <= set(FrameTiming.get_fields_and_field_types())
    diagnostics_topics = [
        panel["topicToRender"] for panel in foxglove["configById"].values() if "topicToRender" in panel
    ]
    assert set(diagnostics_topics) == {"/diagnostics"}
