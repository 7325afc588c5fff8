# SPDX-License-Identifier: Apache-2.0
"""Where the files of `config/` are, and how such files are read into checked dataclasses.

colcon and pip install `config/` inside the Python package; in the source tree it lies beside the package.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import textwrap
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs, ErrorDetails, PydanticCustomError

T = TypeVar("T")


def resource(*parts: str) -> Path:
    """Find a file or a folder of `config/`.

    Args:
        *parts: Its path inside `config/`, such as `"classes", "camvid.yaml"`.

    Returns:
        Its path in the installed package or, run from the source tree, in the tree's `config/`.

    Raises:
        FileNotFoundError: Neither has it; the message lists what the folder holds instead.
    """
    package = Path(__file__).parent
    config = next((path for path in (package / "config", package.parent / "config") if path.is_dir()), None)
    if config is None:
        raise FileNotFoundError(f"no config/ in {package} or beside it: is netwarp_ros installed in full?")
    path = config.joinpath(*parts)
    if not path.exists():
        held = ", ".join(sorted(other.name for other in path.parent.glob("*"))) or "nothing"
        raise FileNotFoundError(f"no {path.name!r} in {path.parent}, which holds {held}")
    return path


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Checked:
    """Base of pydantic dataclasses that are read from files: a mapping with an unknown key is an error."""

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, content: Any) -> Any:
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(content, (dict, ArgsKwargs, cls)):
            raise PydanticCustomError("mapping_type", "must be a mapping with {names}", {"names": ", ".join(names)})
        for key in content if isinstance(content, dict) else ():
            if key not in names:
                close = difflib.get_close_matches(str(key), names, n=1)
                hint = f"did you mean {close[0]}?" if close else f"give {', '.join(names)}"
                values = {"key": textwrap.shorten(str(key), 80), "hint": hint}
                raise PydanticCustomError("unknown_key", "has the unknown key {key}: {hint}", values)
        return content


def read_yaml(kind: type[T], path: str | Path) -> T:
    """Read a YAML file into a dataclass.

    Args:
        kind: A subclass of `Checked`.
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not YAML, or its content is not valid; see `parse`.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    return parse(kind, content, str(path))


def parse(kind: type[T], content: Any, source: str) -> T:
    """Check plain values and turn them into a dataclass.

    Args:
        kind: A subclass of `Checked`.
        content: Mappings, lists and scalars, as a YAML or JSON file holds them.
        source: The file that they come from, for the error.

    Raises:
        ValueError: A key is missing or unknown, or a value has a wrong type, is out of its range, or contradicts
            another. The message is one line: the source, the full key, its value, and what is allowed.
    """
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        raise ValueError(_sentence(error.errors(include_url=False)[0], content, source)) from None


def _sentence(error: ErrorDetails, content: Any, source: str) -> str:
    """Return one line for a user; pydantic's own text has several lines and describes Python objects."""
    key = _key(error, content)
    where = f"{source}: {key}" if key else source
    match error["type"]:
        case "missing":
            return f"{where} is missing"
        case "value_error":
            return f"{where}: {error['ctx']['error']}"
        case "unknown_key":
            return f"{where} {error['msg']}"
        case "tuple_type":
            rule = "must be a list"
        case _:  # such as "Input should be a valid integer"
            rule = re.sub(r"^\w+ should ", "must ", error["msg"]).replace(" after validation", "")
    if error["type"] == "float_type" and isinstance(error["input"], str):
        rule += "; YAML reads 1e-3 as text, write 1.0e-3"
    return f"{where} is {textwrap.shorten(repr(error['input']), 200)}, {rule}"


def _key(error: ErrorDetails, content: Any) -> str:
    """Return the full key of an error, such as ``data[1].root``.

    Skip the parts of pydantic's path that are not keys of the content: the members of a union that it tried.
    """
    key = ""
    for place, part in enumerate(error["loc"], 1):
        missing = error["type"] == "missing" and place == len(error["loc"])
        if isinstance(part, int):
            key += f"[{part}]"
        elif missing or (isinstance(content, dict) and part in content):
            key += f".{part}" if key else part
        else:
            continue
        content = None if missing else content[part]
    return key
