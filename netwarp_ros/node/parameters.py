# SPDX-License-Identifier: Apache-2.0
"""Declares the fields of a dataclass as a node's parameters, and checks their values.

The parameters themselves are the fields of `SegmentParameters` (``segment_node.py``), `Thresholds` (``diagnostics.py``)
and `ReplayParameters` (``replay_node.py``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import Field, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ParametersT = TypeVar("ParametersT", bound="DataclassInstance")

_TOPIC = re.compile(r"[A-Za-z_]\w*(/[A-Za-z_]\w*)*", re.ASCII)


class ParameterError(ValueError):
    """A parameter's value is of the wrong type or out of its range."""


def parameter(
    default: Any,
    description: str,
    *,
    choices: Sequence[str] = (),
    limits: tuple[int, int] | tuple[float, float] | None = None,
    is_topic: bool = False,
    live: bool = False,
) -> Any:
    """Return a dataclass field that is a parameter.

    Args:
        default: Default value. It also sets the type; a tuple of strings is a list of strings in ROS.
        description: Text for `ros2 param describe`.
        choices: The allowed strings.
        limits: The least and the greatest allowed number.
        is_topic: Whether the string must be a relative topic name. The names in a list must also differ.
        live: Whether the parameter may be changed while the node is configured.
    """
    metadata = {"description": description, "choices": choices, "limits": limits, "is_topic": is_topic, "live": live}
    return field(default=default, metadata=metadata)


def declare(node: Node, group: type[DataclassInstance], *, read_only: bool = False) -> None:
    """Declare all parameters of a dataclass. Values given to the process override the defaults.

    Raises:
        ParameterError: If a given value is of the wrong type or out of its range.
    """
    for spec in fields(group):
        default = list(spec.default) if isinstance(spec.default, tuple) else spec.default
        try:
            value = node.declare_parameter(spec.name, default, _descriptor(spec, read_only)).value
        except ParameterException as error:
            raise ParameterError(f"{error}. {_hint(spec)}") from error
        if problem := _problem(spec, value):
            raise ParameterError(problem)


def read(node: Node, group: type[ParametersT]) -> ParametersT:
    """Return the current values of a dataclass's parameters, which must be declared."""
    values: dict[str, Any] = {}
    for spec in fields(group):
        value = node.get_parameter(spec.name).value
        values[spec.name] = tuple(value) if isinstance(value, list) else value
    return group(**values)


def check_changes(group: type[DataclassInstance], changes: Sequence[Parameter], *, configured: bool) -> list[str]:
    """Return why changes must be rejected; empty if they may be made.

    ROS itself checks types, limits and read-only parameters.

    Args:
        group: Dataclass of parameters. Changes to other parameters are ignored.
        changes: New values.
        configured: Whether the node is configured, so that only live parameters may change.
    """
    specs = {spec.name: spec for spec in fields(group)}
    problems = []
    for change in changes:
        if (spec := specs.get(change.name)) is None:
            continue
        if configured and not spec.metadata["live"]:
            problems.append(f"{spec.name} is read when the node is configured: clean up, set it, configure again.")
        elif problem := _problem(spec, change.value):
            problems.append(problem)
    return problems


def _problem(spec: Field[Any], value: Any) -> str:
    """Return what is wrong with a value, apart from its type and limits; empty if nothing is."""
    choices, is_topic = spec.metadata["choices"], spec.metadata["is_topic"]
    topics = [value] if isinstance(value, str) else value or []  # rclpy returns None for an empty list
    if (choices and value not in choices) or (is_topic and not _are_topics(topics)):
        return f"{spec.name} is {value!r}. {_hint(spec)}"
    return ""


def _are_topics(values: Sequence[str]) -> bool:
    return len(set(values)) == len(values) > 0 and all(_TOPIC.fullmatch(value) for value in values)


def _descriptor(spec: Field[Any], read_only: bool) -> ParameterDescriptor:
    limits, choices = spec.metadata["limits"], spec.metadata["choices"]
    constraints = [f"one of {', '.join(choices)}"] if choices else []
    if not read_only:
        constraints.append("taken at once" if spec.metadata["live"] else "read when the node is configured")
    descriptor = ParameterDescriptor(
        description=spec.metadata["description"], read_only=read_only, additional_constraints="; ".join(constraints)
    )
    if limits and isinstance(spec.default, int):
        descriptor.integer_range = [IntegerRange(from_value=limits[0], to_value=limits[1])]
    elif limits:
        descriptor.floating_point_range = [FloatingPointRange(from_value=limits[0], to_value=limits[1])]
    return descriptor


def _hint(spec: Field[Any]) -> str:
    """Return a sentence that says which values are allowed."""
    if choices := spec.metadata["choices"]:
        return f"Give one of {', '.join(choices)}."
    if isinstance(spec.default, tuple):
        return "Give a list of different names, of letters, digits, _ and /, such as ['front', 'left/wide']."
    if spec.metadata["is_topic"]:
        return "Give a name of letters, digits, _ and /, such as 'left/wide'."
    types = {bool: "true or false", int: "a whole number", float: "a number with a decimal point", str: "a text"}
    interval = "from {} to {}".format(*limits) if (limits := spec.metadata["limits"]) else ""
    return f"Give {types[type(spec.default)]} {interval}".rstrip() + "."
