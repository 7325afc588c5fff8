# SPDX-License-Identifier: Apache-2.0
"""Groups of options, and those that several commands share."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from netwarp_ros.cli.option_groups import expand_groups
from netwarp_ros.cli.options import InferenceOptions, ModelOptions
from netwarp_ros.segmenter import Segmenter


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option("--width", help="Pixels to the right.")] = 640
    height: Annotated[int, typer.Option("--height")] = 480


@dataclass(frozen=True)
class SmallSize(Size):
    height: Annotated[int, typer.Option("--height", min=1)] = 48


@expand_groups
def draw(
    *,
    name: Annotated[str, typer.Argument()],
    size: SmallSize,
    color: Annotated[str, typer.Option("--color")] = "red",
) -> None:
    """Draw."""
    print(name, size, color)


def test_the_fields_of_a_group_stand_in_its_place() -> None:
    parameters = inspect.signature(draw).parameters
    assert list(parameters) == ["name", "width", "height", "color"]
    assert [parameters[name].default for name in ("width", "height", "color")] == [640, 48, "red"]
    assert parameters["width"].annotation.__metadata__[0].help == "Pixels to the right."
    assert parameters["height"].annotation.__metadata__[0].min == 1
    assert (draw.__name__, draw.__doc__) == ("draw", "Draw.")


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["line"], "line SmallSize(width=640, height=48) red"),
        (["--height", "7", "line", "--color", "blue", "--width", "9"], "line SmallSize(width=9, height=7) blue"),
    ],
)
def test_a_command_gets_its_groups(arguments: list[str], output: str) -> None:
    app = typer.Typer()
    app.command()(draw)
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.output) == (0, f"{output}\n")


def test_two_groups_cannot_share_a_name() -> None:
    def command(*, first: Size, second: SmallSize) -> None: ...

    with pytest.raises(ValueError, match="duplicate parameter name: 'width'"):
        expand_groups(command)


def test_defaults_are_those_of_the_segmenter() -> None:
    segmenter, ours = inspect.signature(Segmenter).parameters, ModelOptions()
    for name in ("flow", "device", "precision", "input_height", "max_input_width", "host_only"):
        assert getattr(ours, name) == segmenter[name].default
    assert InferenceOptions().inference() == segmenter["inference"].default
