# SPDX-License-Identifier: Apache-2.0
"""Option groups: command-line options that several commands share, declared once as a dataclass."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command have parameters that are groups of options.

    A group is a dataclass whose fields are options (``Annotated[..., typer.Option(...)]`` with a default)::

        @expand_groups
        def segment(*, recording: Path, model: ModelOptions) -> None: ...

    Typer itself has no groups: it reads a function's signature and makes one option of each parameter
    (https://github.com/fastapi/typer/issues/153). The function returned here has a signature in which the fields of
    each group stand in the place of the group. When Typer calls it, it builds the groups and calls the command.

    Raises:
        ValueError: If two groups have a field of the same name.
    """
    groups: dict[str, type] = {}
    options: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if isinstance(parameter.annotation, type) and dataclasses.is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            options += _fields(parameter.annotation)
        else:
            options.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        command(**values)

    expanded.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    return expanded


def _fields(group: type[DataclassInstance]) -> list[inspect.Parameter]:
    """Return the fields of a dataclass as parameters of a function."""
    annotations = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotations[field.name]
        )
        for field in dataclasses.fields(group)
    ]
