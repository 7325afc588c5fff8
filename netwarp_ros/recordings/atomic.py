# SPDX-License-Identifier: Apache-2.0
"""Files written completely or not at all, and never over a file that this program did not write.

A file whose name the user chooses holds a mark that tells which command wrote it (`written_by`). A command replaces a
file with its own mark, and refuses any other (`refuse_foreign`), before it begins its work.
"""

from __future__ import annotations

import json
import mmap
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def written_by(command: str) -> str:
    """Return the mark of the files that a command writes, such as ``written by netwarp evaluate``."""
    return f"written by netwarp {command}"


def refuse_foreign(path: Path, mark: str) -> None:
    """Check that writing to a path loses nothing.

    Args:
        path: There may be nothing, an empty file, or a file that holds the mark.
        mark: Text that every file of this kind holds, such as `written_by` returns.

    Raises:
        FileExistsError: There is something else.
    """
    if not path.exists() or (path.is_file() and (not path.stat().st_size or holds(path, mark))):
        return
    raise FileExistsError(f"{path} exists already, and this command did not write it: remove it, or give another path")


def refuse_existing(*paths: Path, because: str = "") -> None:
    """Check that there is nothing at the paths.

    Args:
        paths: Files or folders.
        because: Why what is there cannot be this program's, for the error.

    Raises:
        FileExistsError: There is something.
    """
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} exists already{because}: remove it, or give another output")


def written_files(manifest: Path, mark: str = "") -> dict[str, str]:
    """Return the files that a JSON file lists under ``files``, with their SHA-256; itself with "", for it cannot say.

    Args:
        manifest: The JSON file.
        mark: What its ``generator`` must be; without one, it need not have any.

    Returns:
        The hashes by name; empty if there is no such JSON file.
    """
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if mark and content["generator"] != mark:
            return {}
        return {**{str(name): str(digest) for name, digest in content["files"].items()}, manifest.name: ""}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def is_as_written(path: Path, written: Mapping[str, str]) -> bool:
    """Tell whether a path is one of the files that `written_files` returned, and unchanged."""
    from netwarp_ros.resources import sha256  # with pydantic, which commands need not load for their help

    return path.is_file() and written.get(path.name) in ("", sha256(path))


def holds(path: Path, mark: str) -> bool:
    """Tell whether a file holds a mark."""
    if not path.stat().st_size:  # cannot be mapped
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(mark.encode()) >= 0


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder ``NAME.part-XXXXXXXX`` beside a path, and remove it at the end. A killed process leaves it."""
    with tempfile.TemporaryDirectory(prefix=f"{path.name[:100]}.part-", dir=path.parent) as folder:
        yield Path(folder)


@contextmanager
def replacing(path: Path, mark: str | None = None) -> Iterator[Path]:
    """Yield a temporary path with the same file name to write to; afterwards rename it to the path.

    The path's folder is made if necessary. If the body raises an error, the temporary file is removed, and the file at
    the path stays as it was.

    Args:
        path: The file.
        mark: As for `refuse_foreign`; without one, the caller knows that what is at the path is its own.

    Raises:
        FileExistsError: As `refuse_foreign`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path) as folder:
        temporary = folder / path.name
        yield temporary
        if mark is not None:
            refuse_foreign(path, mark)
        temporary.replace(path)


def write_marked_json(path: Path, content: Mapping[str, Any], command: str) -> None:
    """Write plain values as JSON, and the mark of a command as ``generator``.

    Raises:
        FileExistsError: As `refuse_foreign`.
    """
    mark = written_by(command)
    with replacing(path, mark) as temporary:
        text = json.dumps({"generator": mark, **content}, indent=1, allow_nan=False)
        temporary.write_text(f"{text}\n", encoding="utf-8")
