# SPDX-License-Identifier: Apache-2.0
"""Declares the fields of a dataclass as a node's parameters, and checks their values.

The parameters themselves are the fields of `SegmentParameters` (``segment_node.py``), `Thresholds` (``diagnostics.py``)
and `ReplayParameters` (``replay_node.py``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

from netwarp_ros.resources import cut, quote

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ParametersT = TypeVar("ParametersT", bound="DataclassInstance")


@dataclass(frozen=True)
class Form:
    """The form of a text.

    Attributes:
        pattern: Regular expression that it must match.
        one: What to give, for an error.
        several: What to give as a list, whose texts must differ.
    """

    pattern: re.Pattern[str]
    one: str
    several: str


TOPIC = Form(
    re.compile(r"[A-Za-z_]\w*(/[A-Za-z_]\w*)*", re.ASCII),
    "a name of letters, digits, _ and /, such as 'left/wide'",
    "a list of different names, of letters, digits, _ and /, such as ['front', 'left/wide']",
)
"""A relative topic name."""

SIZE = Form(
    re.compile(r"[1-9][0-9]{0,3}x[1-9][0-9]{0,3}"),
    "width and height in pixels, at most 9999, such as '640x480'",
    "a list of different widths and heights in pixels, at most 9999, such as ['640x480', '1920x1080']",
)
"""The size of an image."""


class ParameterError(ValueError):
    """A parameter's value is of the wrong type or out of its range."""


def parameter(
    default: Any,
    description: str,
    *,
    choices: Sequence[str] = (),
    limits: tuple[int, int] | tuple[float, float] | None = None,
    form: Form | None = None,
    live: bool = False,
) -> Any:
    """Return a dataclass field that is a parameter.

    Args:
        default: Default value. It also sets the type; a tuple of strings is a list of strings in ROS.
        description: Text for `ros2 param describe`.
        choices: The allowed strings.
        limits: The least and the greatest allowed number.
        form: The form of the string, or of each string in the list. Those in a list must also differ.
        live: Whether the parameter may be changed while the node is configured.
    """
    metadata = {"description": description, "choices": choices, "limits": limits, "form": form, "live": live}
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
            raise ParameterError(f"{cut(str(error), 500)}. {_hint(spec)}") from error
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
    choices, form = spec.metadata["choices"], spec.metadata["form"]
    texts = [value] if isinstance(value, str) else value or []  # rclpy returns None for an empty list
    if (choices and value not in choices) or (form and not _have_form(texts, form)):
        return f"{spec.name} is {quote(value)}. {_hint(spec)}"
    return ""


def _have_form(texts: Sequence[str], form: Form) -> bool:
    return len(set(texts)) == len(texts) > 0 and all(form.pattern.fullmatch(text) for text in texts)


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
    if form := spec.metadata["form"]:
        return f"Give {form.several if isinstance(spec.default, tuple) else form.one}."
    types = {bool: "true or false", int: "a whole number", float: "a number with a decimal point", str: "a text"}
    interval = "from {} to {}".format(*limits) if (limits := spec.metadata["limits"]) else ""
    return f"Give {types[type(spec.default)]} {interval}".rstrip() + "."
