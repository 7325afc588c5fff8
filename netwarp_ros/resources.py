# SPDX-License-Identifier: Apache-2.0
"""Where the files of `config/` are, how such files are read into checked dataclasses, and hashes of files.

colcon and pip install `config/` inside the Python package; in the source tree it lies beside the package.

The files may come from anybody. So their size, the depth of their nesting and what an error quotes of them (`quote`,
`cut`) are bounded.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import reprlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs, ErrorDetails, PydanticCustomError

T = TypeVar("T")

MAX_YAML = 64 * 1024
"""Most bytes of a YAML file. A class set with 255 classes has 15 kB; PyYAML takes half a second for this many."""

MAX_JSON = 256 * 1024
"""Most characters of JSON."""

MAX_YAML_PAIRS = 10_000
"""Most keys that a mapping may have once its merge keys (``<<``) are resolved: they can multiply without bound."""


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


def shipped_names(folder: str) -> list[str]:
    """Return the names of the YAML files in a folder of `config/`, without their ending."""
    return sorted(file.stem for file in resource(folder).glob("*.yaml"))


def find_yaml(folder: str, name_or_path: str | Path, kind: str, file_kind: str) -> Path:
    """Find a YAML file of a folder of `config/` by its name, or any other by its path, which ends in .yaml or .yml.

    Args:
        folder: The folder.
        name_or_path: The name, without ending, or the path.
        kind: What a name is of, for the error: ``class set``.
        file_kind: What a path is of, for the error: ``class file``.

    Raises:
        FileNotFoundError: There is no such name or file.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.exists():
            raise FileNotFoundError(f"no {file_kind} {path}")
        return path
    known = shipped_names(folder)
    if str(name_or_path) not in known:
        raise FileNotFoundError(
            f"no {kind} named {quote(str(name_or_path))}: give one of {', '.join(known)}, or the path of a .yaml file"
        )
    return resource(folder) / f"{name_or_path}.yaml"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
                values = {"key": cut(str(key), 80), "hint": hint}
                raise PydanticCustomError("unknown_key", "has the unknown key {key}: {hint}", values)
        return content


def cut(text: str, limit: int = 200) -> str:
    """Return a text on one line, and only its beginning and end if it is longer than the limit."""
    if len(text) > 4 * limit:
        text = text[: 3 * limit] + text[-limit:]
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return text if len(text) <= limit else f"{text[: limit - limit // 4]} ... {text[len(text) - limit // 4 :]}"


def quote(value: Any, limit: int = 200) -> str:
    """Return a value as an error quotes it: its `repr`, bounded in length, and in time for nested or huge values."""
    return cut(_QUOTER.repr(value), limit)


class _Quoter(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 1000, 1000

    def repr_dict(self, value: dict[Any, Any], level: int) -> str:
        """Keep the order of the keys; `reprlib` sorts them."""
        if level <= 0:
            return "{...}"
        pairs = [f"{self.repr1(key, level)}: {self.repr1(value[key], level - 1)}" for key in islice(value, 6)]
        return f"{{{', '.join(pairs + ['...'] * (len(value) > 6))}}}"


_QUOTER = _Quoter()


class _YamlLoader(yaml.SafeLoader):
    """Refuses a key that occurs twice in a mapping, merge keys that multiply, and numbers that nothing can print."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        if abs(value) >= 2**63:
            raise ValueError(f"the number {cut(node.value, 80)} has more than 64 bits")
        return value

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        _check_unique(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MAX_YAML_PAIRS:
            raise ValueError(f"its merge keys (<<) make more than {MAX_YAML_PAIRS} keys")


_YamlLoader.add_constructor("tag:yaml.org,2002:int", _YamlLoader.construct_yaml_int)


def _check_unique(keys: Iterable[str]) -> None:
    seen = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"the key {quote(key, 80)} occurs twice in one mapping")
        seen.add(key)


def read_yaml(kind: type[T], path: str | Path) -> T:
    """Read a YAML file into a dataclass.

    Args:
        kind: A subclass of `Checked`.
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not YAML, has a key twice, or is larger than `MAX_YAML`; or its content is not valid
            (see `parse`).
    """
    with Path(path).open("rb") as file:
        data = file.read(MAX_YAML + 1)
    if len(data) > MAX_YAML:
        raise ValueError(f"{path} has more than {MAX_YAML} bytes: give a smaller file")
    return parse(kind, load_yaml(data, str(path)), str(path))


def load_yaml(data: bytes, source: str) -> Any:
    """Read YAML into mappings, lists and scalars. The caller bounds its size.

    Args:
        data: The YAML, in UTF-8.
        source: Where it comes from, for the error.

    Raises:
        ValueError: It is not YAML, has a key twice, or is nested too deeply.
    """
    try:
        return yaml.load(data.decode(), _YamlLoader)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise ValueError(f"{source} is nested too deeply") from None
    except Exception as error:  # PyYAML raises errors of many types
        raise ValueError(f"{source} is not valid YAML: {cut(str(error))}") from error


def parse_json(kind: type[T], text: str, source: str) -> T:
    """Turn JSON into a dataclass.

    Args:
        kind: A subclass of `Checked`.
        text: The JSON.
        source: Where it comes from, for the error.

    Raises:
        ValueError: The text is not JSON, has a key twice, or is longer than `MAX_JSON`; or its content is not valid
            (see `parse`).
    """
    if len(text) > MAX_JSON:
        raise ValueError(f"{source} has {len(text)} characters: at most {MAX_JSON} are read")
    try:
        content = json.loads(text, object_pairs_hook=_mapping)
    except RecursionError:
        raise ValueError(f"{source} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{source} is not valid JSON: {cut(str(error))}") from error
    return parse(kind, content, source)


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_unique(key for key, _ in pairs)
    return dict(pairs)


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
            return f"{where}: {cut(str(error['ctx']['error']), 400)}"
        case "unknown_key":
            return f"{where} {error['msg']}"
        case "tuple_type":
            rule = "must be a list"
        case _:  # such as "Input should be a valid integer"
            rule = re.sub(r"^\w+ should ", "must ", error["msg"]).replace(" after validation", "")
    if error["type"] == "float_type" and isinstance(error["input"], str):
        rule += "; YAML reads 1e-3 as text, write 1.0e-3"
    return f"{where} is {quote(error['input'])}, {rule}"


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
            key += f".{cut(part, 80)}" if key else cut(part, 80)
        else:
            continue
        content = None if missing else content[part]
    return key
