# SPDX-License-Identifier: Apache-2.0
"""Parameters of a node: a dataclass that holds their defaults, descriptions and ranges, and its face in ROS."""

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
    """A parameter has a value of the wrong type or out of its range."""


def parameter(
    default: Any,
    description: str,
    *,
    choices: Sequence[str] = (),
    limits: tuple[int, int] | tuple[float, float] | None = None,
    is_topic: bool = False,
    live: bool = False,
) -> Any:
    """Return a field for a dataclass of parameters.

    Args:
        default: Also sets the type; a tuple of texts is a list in ROS.
        description: What `ros2 param describe` tells.
        choices: The allowed texts.
        limits: The least and the greatest allowed number.
        is_topic: Whether the text must be a relative topic name, or the texts different ones.
        live: Whether a configured node takes a change.
    """
    metadata = {"description": description, "choices": choices, "limits": limits, "is_topic": is_topic, "live": live}
    return field(default=default, metadata=metadata)


def declare(node: Node, kind: type[DataclassInstance], *, read_only: bool = False) -> None:
    """Declare all parameters of a kind; values given to the process override the defaults.

    Raises:
        ParameterError: If a given value is of the wrong type or out of its range.
    """
    for spec in fields(kind):
        default = list(spec.default) if isinstance(spec.default, tuple) else spec.default
        try:
            value = node.declare_parameter(spec.name, default, _descriptor(spec, read_only)).value
        except ParameterException as error:
            raise ParameterError(f"{error}. {_wanted(spec)}") from error
        if problem := _problem(spec, value):
            raise ParameterError(problem)


def read(node: Node, kind: type[ParametersT]) -> ParametersT:
    """Return the present values of the declared parameters of a kind."""
    values: dict[str, Any] = {}
    for spec in fields(kind):
        value = node.get_parameter(spec.name).value
        values[spec.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def refusals(kind: type[DataclassInstance], changes: Sequence[Parameter], *, configured: bool) -> list[str]:
    """Return what speaks against changes, beyond the types, limits and read-only marks that ROS checks itself.

    Args:
        kind: Those changes that are of other parameters than its own are passed over.
        changes: New values.
        configured: Whether the node has read its parameters, and only takes changes to live ones.
    """
    specs = {spec.name: spec for spec in fields(kind)}
    ours = [(specs[change.name], change.value) for change in changes if change.name in specs]
    return [
        problem
        for spec, value in ours
        if (problem := _too_late(spec) if configured and not spec.metadata["live"] else _problem(spec, value))
    ]


def _too_late(spec: Field[Any]) -> str:
    return f"{spec.name} is read when the node is configured: clean up, set it, configure again."


def _problem(spec: Field[Any], value: Any) -> str:
    """Return what is wrong with a value beyond its type and limits, which ROS checks; empty if nothing."""
    choices, is_topic = spec.metadata["choices"], spec.metadata["is_topic"]
    topics = [value] if isinstance(value, str) else value or []  # ROS makes None of an empty list
    if (choices and value not in choices) or (is_topic and not _are_topics(topics)):
        return f"{spec.name} is {value!r}. {_wanted(spec)}"
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


def _wanted(spec: Field[Any]) -> str:
    """Return a sentence that says what to give."""
    if choices := spec.metadata["choices"]:
        return f"Give one of {', '.join(choices)}."
    if isinstance(spec.default, tuple):
        return "Give a list of different names, of letters, digits, _ and /, such as ['front', 'left/wide']."
    if spec.metadata["is_topic"]:
        return "Give a name of letters, digits, _ and /, such as 'left/wide'."
    kinds = {bool: "true or false", int: "a whole number", float: "a number with a decimal point", str: "a text"}
    between = "from {} to {}".format(*limits) if (limits := spec.metadata["limits"]) else ""
    return f"Give {kinds[type(spec.default)]} {between}".rstrip() + "."
