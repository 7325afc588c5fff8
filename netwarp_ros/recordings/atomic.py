# SPDX-License-Identifier: Apache-2.0
"""Files written completely or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path ``STEM.part.SUFFIX`` to write to; afterwards rename it to the path.

    The path's folder is made if necessary. If the body raises an error, the temporary file is removed, and the file at
    the path stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
