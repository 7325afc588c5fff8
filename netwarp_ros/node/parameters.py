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
) -> Any:
    """Return a field for a dataclass of parameters.

    Args:
        default: Also sets the type; a tuple of texts is a list in ROS.
        description: What `ros2 param describe` tells.
        choices: The allowed texts.
        limits: The least and the greatest allowed number.
        is_topic: Whether the text must be a relative topic name, or the texts different ones.
    """
    metadata = {"description": description, "choices": choices, "limits": limits, "is_topic": is_topic}
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
        if problem := check(kind, spec.name, value):
            raise ParameterError(problem)


def read(node: Node, kind: type[ParametersT]) -> ParametersT:
    """Return the present values of the declared parameters of a kind."""
    values: dict[str, Any] = {}
    for name in names(kind):
        value = node.get_parameter(name).value
        values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def names(kind: type[DataclassInstance]) -> frozenset[str]:
    """Return the names of all parameters of a kind."""
    return frozenset(spec.name for spec in fields(kind))


def check(kind: type[DataclassInstance], name: str, value: Any) -> str:
    """Return what is wrong with a value beyond its type and limits, which ROS checks; empty if nothing."""
    spec = next(spec for spec in fields(kind) if spec.name == name)
    choices, is_topic = spec.metadata["choices"], spec.metadata["is_topic"]
    topics = [value] if isinstance(value, str) else value or []  # ROS makes None of an empty list
    if (choices and value not in choices) or (is_topic and not _are_topics(topics)):
        return f"{name} is {value!r}. {_wanted(spec)}"
    return ""


def _are_topics(values: Sequence[str]) -> bool:
    return len(set(values)) == len(values) > 0 and all(_TOPIC.fullmatch(value) for value in values)


def _descriptor(spec: Field[Any], read_only: bool) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=spec.metadata["description"], read_only=read_only)
    limits, choices = spec.metadata["limits"], spec.metadata["choices"]
    if limits and isinstance(spec.default, int):
        descriptor.integer_range = [IntegerRange(from_value=limits[0], to_value=limits[1])]
    elif limits:
        descriptor.floating_point_range = [FloatingPointRange(from_value=limits[0], to_value=limits[1])]
    elif choices:
        descriptor.additional_constraints = f"one of {', '.join(choices)}"
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
