# SPDX-License-Identifier: Apache-2.0
"""Parameters: the defaults are declared once, and every wrong value gets a message that says what to give."""

from __future__ import annotations

import ast
import dataclasses
import re
import typing
from pathlib import Path

import pytest
import yaml
from graph import open_graph
from rcl_interfaces.msg import ParameterType

from netwarp_ros.node.parameters import ParameterError, declare, read, specs_of
from netwarp_ros.node.replay_node import ReplayParameters
from netwarp_ros.node.segment_node import PARAMETERS, SegmentParameters
from netwarp_ros.resources import resource

pytestmark = [pytest.mark.ros, pytest.mark.usefixtures("ros_domain")]


@pytest.mark.parametrize("group", [*PARAMETERS, ReplayParameters])
def test_declared_defaults_are_those_of_the_dataclass(group: type) -> None:
    with open_graph() as graph:
        declare(graph.node, group)
        assert read(graph.node, group) == group()


def test_the_file_of_parameters_holds_the_defaults() -> None:
    file = yaml.safe_load(resource("segmenter.yaml").read_text())
    assert list(file) == ["/**"]
    values = file["/**"]["ros__parameters"]
    values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    assert values == {field.name: field.default for group in PARAMETERS for field in dataclasses.fields(group)}


def test_the_launch_file_has_every_parameter_as_an_argument_without_a_default_of_its_own() -> None:
    text = (Path(__file__).parent.parent / "launch" / "segment.launch.py").read_text()
    (table,) = (
        node.value
        for node in ast.parse(text).body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "PARAMETERS" and node.value
    )
    arguments = eval(ast.unparse(table), {})
    arguments.pop("use_sim_time")  # which every node of ROS has
    assert arguments == {name: described for group in PARAMETERS for name, described in as_arguments(group).items()}
    assert (
        'DeclareLaunchArgument(name, default_value="", description=_description(name)) for name in PARAMETERS' in text
    )


def as_arguments(group: type) -> dict[str, tuple[type, str]]:
    """Return the type and the text that each parameter should have as a launch argument."""
    types, arguments = typing.get_type_hints(group), {}
    for spec in specs_of(group):
        one_of = f" One of {', '.join(spec.choices)}." if spec.choices else ""
        between = " From {:g} to {:g}.".format(*spec.limits) if spec.limits else ""
        kind = list[str] if types[spec.name] == tuple[str, ...] else types[spec.name]
        arguments[spec.name] = kind, f"{spec.description}{one_of}{between}"
    return arguments


def test_given_values_override_defaults_and_descriptors_have_types_and_ranges() -> None:
    given = (
        "-p",
        "cameras:=[front, left/wide]",
        "-p",
        "max_gap:=2.5",
        "-p",
        "host_only:=true",
        "-p",
        "input_height:=240",
    )
    with open_graph(*given) as graph:
        declare(graph.node, SegmentParameters)
        assert read(graph.node, SegmentParameters) == SegmentParameters(
            cameras=("front", "left/wide"), max_gap=2.5, host_only=True, input_height=240
        )
        descriptors = {
            name: graph.node.describe_parameter(name)
            for name in ("cameras", "transport", "max_gap", "input_height", "host_only")
        }
        assert descriptors["cameras"].type == ParameterType.PARAMETER_STRING_ARRAY
        fixed = "read when the node is configured"
        assert descriptors["transport"].additional_constraints == f"one of raw, compressed; {fixed}"
        assert descriptors["input_height"].additional_constraints == fixed
        assert descriptors["max_gap"].additional_constraints == "taken at once"
        gap, height = descriptors["max_gap"].floating_point_range[0], descriptors["input_height"].integer_range[0]
        assert (gap.from_value, gap.to_value) == (0.001, 3600.0)
        assert (height.from_value, height.to_value) == (0, 4320)
        assert all(descriptor.description for descriptor in descriptors.values())
        assert not any(descriptor.read_only for descriptor in descriptors.values())


def test_every_descriptor_has_the_range_and_says_when_the_parameter_is_read() -> None:
    with open_graph() as graph:
        for group in PARAMETERS:
            declare(graph.node, group)
            for field in dataclasses.fields(group):
                descriptor = graph.node.describe_parameter(field.name)
                assert descriptor.description and not descriptor.read_only
                assert descriptor.additional_constraints.endswith(("read when the node is configured", "taken at once"))
                assert bool(descriptor.floating_point_range) == (type(field.default) is float)
                assert bool(descriptor.integer_range) == (type(field.default) is int)


def test_parameters_of_the_replay_node_are_read_only() -> None:
    with open_graph() as graph:
        declare(graph.node, ReplayParameters, read_only=True)
        for field in dataclasses.fields(ReplayParameters):
            assert graph.node.describe_parameter(field.name).read_only


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("cameras:=front", "'front'.*Give a list of different names"),
        ("cameras:=[]", "cameras is None. Give a list of different names"),
        ("cameras:=[front, front]", "cameras is ['front', 'front']. Give a list of different names"),
        (
            "cameras:=[front, 2nd]",
            "cameras is ['front', '2nd']. Give a list of different names, of letters, digits, _ and /",
        ),
        ("cameras:=[/front]", "cameras is ['/front']. Give a list"),
        ("transport:=theora", "transport is 'theora'. Give one of raw, compressed."),
        ("precision:=int4", "precision is 'int4'. Give one of auto, float32, bfloat16, float16, int8."),
        ("flow_preset:=best", "flow_preset is 'best'. Give one of ultrafast, fast, medium."),
        ("model:=5", "model.*'5'.*Give a text."),
        ("device:=0", "device.*'0'.*Give a text."),
        ("input_height:=-1", "input_height.*-1.*Give a whole number from 0 to 4320."),
        ("input_height:=5000", "input_height.*5000.*Give a whole number from 0 to 4320."),
        ("input_height:=240.5", "'240.5'.*input_height. Give a whole number from 0 to 4320."),
        ("max_gap:=0.0", "max_gap.*0.0.*Give a number with a decimal point from 0.001 to 3600.0."),
        ("max_gap:=.nan", "max_gap.*nan.*Give a number with a decimal point from 0.001 to 3600.0."),
        ("max_gap:=1", "'1'.*max_gap. Give a number with a decimal point from 0.001 to 3600.0."),
        ("image_sizes:=[640x480, big]", "['640x480', 'big']. Give a list of different widths and heights in pixels"),
        ("image_sizes:=[640x48000]", "['640x48000']. Give a list of different widths and heights in pixels"),
        ("image_sizes:=[640x480, 640x480]", "image_sizes is ['640x480', '640x480']. Give a list of different widths"),
        ("image_sizes:=[]", "image_sizes is None. Give a list of different widths and heights in pixels, at most 9999"),
        ("host_only:=maybe", "'maybe'.*host_only. Give true or false."),
        ("overlay_alpha:=1.5", "overlay_alpha.*1.5.*Give a number with a decimal point from 0.0 to 1.0."),
    ],
)
def test_wrong_values_are_named_with_what_to_give(given: str, problem: str) -> None:
    pattern = re.escape(problem).replace(r"\.\*", ".*")
    with open_graph("-p", given) as graph, pytest.raises(ParameterError, match=pattern):
        declare(graph.node, SegmentParameters)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("camera:=front camera", "camera is 'front camera'. Give a name of letters, digits, _ and /, such as"),
        ("rate:=-1.0", "rate.*-1.0.*Give a number with a decimal point from 0.0 to 1000.0."),
        ("stamp:=later", "stamp is 'later'. Give one of now, recorded."),
        ("subscribers:=-1", "subscribers.*-1.*Give a whole number from 0 to 100."),
    ],
)
def test_wrong_values_for_replay(given: str, problem: str) -> None:
    pattern = re.escape(problem).replace(r"\.\*", ".*")
    with open_graph("-p", given) as graph, pytest.raises(ParameterError, match=pattern):
        declare(graph.node, ReplayParameters)
