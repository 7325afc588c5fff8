# SPDX-License-Identifier: Apache-2.0
"""The segment node with key frames: timings say which frames they are, and the diagnostics count them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from graph import (
    FRAME_ID,
    SECOND,
    Graph,
    SegmentClient,
    array_of,
    image_message,
    lossless,
    moving_images,
    node_command,
    open_graph,
    own_domain,
    running,
)
from std_srvs.srv import Trigger

from netwarp_ros.node.parameters import ParameterError, declare, specs_of
from netwarp_ros.node.segment_parameters import SegmentParameters
from netwarp_ros.segmenter import Segmenter

pytestmark = pytest.mark.ros

PERIOD = SECOND // 10


@pytest.fixture
def graph(model: Path, tmp_path: Path) -> Iterator[Graph]:
    """The graph, with an active node whose every third frame is a key frame."""
    command = node_command("segment_node", model=model, keyframes="'3'", **lossless("camera"))
    with own_domain(), running(command, tmp_path / "log"), open_graph() as graph:
        lifecycle = graph.lifecycle()
        lifecycle.configure()
        lifecycle.activate()
        yield graph
        lifecycle.deactivate()


def test_timings_say_which_frames_are_key_frames_and_the_diagnostics_count_them(graph: Graph, model: Path) -> None:
    client, stream = SegmentClient(graph), Segmenter(model, keyframes="3").stream()
    made = []
    for index, image in enumerate(moving_images(8)):
        if index == 5:
            graph.call(Trigger, "segmenter/reset", Trigger.Request())
            stream.reset()
        mask, timing = client.segment(image_message(image, SECOND + index * PERIOD))
        expected = stream.segment(image, SECOND + index * PERIOD, FRAME_ID)
        np.testing.assert_array_equal(array_of(mask), expected.mask)
        assert (timing.is_key, timing.memory, timing.reason) == (expected.is_key, expected.memory, expected.reason)
        made.append(timing.is_key)
    assert made == [True, False, False, True, False, True, False, False]
    values = graph.wait_for_status("segmenter: camera", lambda status, values: values["published"] == "8")
    assert values["key frames"] == "3"


@pytest.mark.parametrize("given", ["keyframes:='1'", "keyframes:=often", "keyframes:='101'"])
def test_wrong_values_are_refused_with_what_to_give(given: str) -> None:
    problem = r"keyframes is '\w+'\. Give none, adaptive, or a number from 2 to 100, such as '4'"
    with own_domain(), open_graph("-p", given) as graph, pytest.raises(ParameterError, match=problem):
        declare(graph.node, specs_of(SegmentParameters))


def test_a_number_without_quotation_marks_is_refused_as_no_text() -> None:
    with own_domain(), open_graph("-p", "keyframes:=4") as graph, pytest.raises(ParameterError, match="Give"):
        declare(graph.node, specs_of(SegmentParameters))
