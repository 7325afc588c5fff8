# SPDX-License-Identifier: Apache-2.0
"""Declares parameters of a node, and checks their values.

Most are the fields of dataclasses: `SegmentParameters` and `CameraParameters` (``segment_parameters.py``), `Thresholds`
(``diagnostics.py``) and `ReplayParameters` (``replay_node.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
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

MASK_SIZE = Form(
    re.compile(rf"image|network|{SIZE.pattern.pattern}"),
    "image, network, or width and height in pixels, such as '320x240'",
    "",
)
"""The size of a mask."""

KEYFRAMES = Form(
    re.compile(r"none|adaptive|[2-9]|[1-9][0-9]|100"),
    "none, adaptive, or a number from 2 to 100, such as '4'",
    "",
)
"""Which frames are key frames."""

NAMES = Form(re.compile(r".+"), "a name", "a list of different names, such as ['pedestrian', 'bicyclist']")
"""Names of classes."""


@dataclass(frozen=True)
class Spec:
    """A parameter.

    Attributes:
        name: Its name in ROS.
        default: Default value. It also sets the type; a tuple of strings is a list of strings in ROS.
        description: Text for `ros2 param describe`.
        choices: The allowed strings.
        limits: The least and the greatest allowed number.
        form: The form of the string, or of each string in the list. Those in a list must also differ.
        live: Whether the parameter may be changed while the node is configured.
    """

    name: str
    default: Any
    description: str
    choices: Sequence[str] = ()
    limits: tuple[int, int] | tuple[float, float] | None = None
    form: Form | None = None
    live: bool = False


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
    """Return a dataclass field that is a parameter; see `Spec` for the arguments."""
    metadata = {"description": description, "choices": choices, "limits": limits, "form": form, "live": live}
    return field(default=default, metadata=metadata)


def specs_of(group: type[DataclassInstance], prefix: str = "") -> list[Spec]:
    """Return the parameters that a dataclass has, with a prefix before their names."""
    return [Spec(f"{prefix}{spec.name}", spec.default, **spec.metadata) for spec in fields(group)]


def declare(node: Node, parameters: type[DataclassInstance] | Iterable[Spec], *, read_only: bool = False) -> None:
    """Declare parameters, or all of a dataclass. Values given to the process override the defaults.

    Raises:
        ParameterError: If a given value is of the wrong type or out of its range.
    """
    for spec in specs_of(parameters) if isinstance(parameters, type) else parameters:
        default = list(spec.default) if isinstance(spec.default, tuple) else spec.default
        if default == []:  # an empty list has no type
            default = Parameter.Type.STRING_ARRAY
        try:
            value = node.declare_parameter(spec.name, default, _descriptor(spec, read_only)).value
        except ParameterException as error:
            raise ParameterError(f"{cut(str(error), 500)}. {_hint(spec)}") from error
        if problem := _problem(spec, value):
            raise ParameterError(problem)


def read(node: Node, group: type[ParametersT], prefix: str = "") -> ParametersT:
    """Return the current values of a dataclass's parameters, which must be declared with this prefix."""
    values: dict[str, Any] = {}
    for spec in fields(group):
        value = node.get_parameter(f"{prefix}{spec.name}").value
        values[spec.name] = tuple(value) if isinstance(value, list) else value
    return group(**values)


def given(node: Node, prefix: str) -> dict[str, Any]:
    """Return the values given to the process for parameters with a prefix, by the rest of their names."""
    overrides: Mapping[str, Parameter] = node._parameter_overrides  # rclpy tells them only for declared parameters
    return {name.removeprefix(prefix): one.value for name, one in overrides.items() if name.startswith(prefix)}


def undeclared(node: Node) -> list[str]:
    """Return the names of parameters given to the process that nobody has declared: ROS passes over them."""
    known = ("qos_overrides.", "use_sim_time", "start_type_description_service")
    return [name for name in sorted(given(node, "")) if not node.has_parameter(name) and not name.startswith(known)]


def check(node: Node, specs: Iterable[Spec]) -> None:
    """Check the present values of declared parameters.

    Raises:
        ParameterError: If one is not allowed.
    """
    for spec in specs:
        if problem := _problem(spec, node.get_parameter(spec.name).value):
            raise ParameterError(problem)


def check_changes(specs: Mapping[str, Spec], changes: Sequence[Parameter], *, configured: bool) -> list[str]:
    """Return why changes must be rejected; empty if they may be made.

    ROS itself checks types, limits and read-only parameters.

    Args:
        specs: The parameters, by name. Changes to others are ignored.
        changes: New values.
        configured: Whether the node is configured, so that only live parameters may change.
    """
    problems = []
    for change in changes:
        if (spec := specs.get(change.name)) is None:
            continue
        if configured and not spec.live:
            problems.append(f"{spec.name} is read when the node is configured: clean up, set it, configure again.")
        elif problem := _problem(spec, change.value):
            problems.append(problem)
    return problems


def _problem(spec: Spec, value: Any) -> str:
    """Return what is wrong with a value, apart from its type and limits; empty if nothing is."""
    texts = [value] if isinstance(value, str) else value or []  # rclpy returns None for an empty list
    if (spec.choices and value not in spec.choices) or (spec.form and not _have_form(texts, spec.form)):
        return f"{spec.name} is {quote(value)}. {_hint(spec)}"
    return ""


def _have_form(texts: Sequence[str], form: Form) -> bool:
    return len(set(texts)) == len(texts) > 0 and all(form.pattern.fullmatch(text) for text in texts)


def _descriptor(spec: Spec, read_only: bool) -> ParameterDescriptor:
    constraints = [f"one of {_listed(spec.choices)}"] if spec.choices else []
    if not read_only:
        constraints.append("taken at once" if spec.live else "read when the node is configured")
    descriptor = ParameterDescriptor(
        description=spec.description, read_only=read_only, additional_constraints="; ".join(constraints)
    )
    if spec.limits and isinstance(spec.default, int):
        descriptor.integer_range = [IntegerRange(from_value=spec.limits[0], to_value=spec.limits[1])]
    elif spec.limits:
        descriptor.floating_point_range = [FloatingPointRange(from_value=spec.limits[0], to_value=spec.limits[1])]
    return descriptor


def _listed(choices: Sequence[str]) -> str:
    return ", ".join(choice or "''" for choice in choices)


def _hint(spec: Spec) -> str:
    """Return a sentence that says which values are allowed."""
    if spec.choices:
        return f"Give one of {_listed(spec.choices)}."
    if spec.form:
        return f"Give {spec.form.several if isinstance(spec.default, tuple) else spec.form.one}."
    types = {bool: "true or false", int: "a whole number", float: "a number with a decimal point", str: "a text"}
    interval = "from {} to {}".format(*spec.limits) if spec.limits else ""
    return f"Give {types[type(spec.default)]} {interval}".rstrip() + "."
