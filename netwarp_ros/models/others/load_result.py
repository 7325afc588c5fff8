# SPDX-License-Identifier: Apache-2.0
"""The report of a conversion: which tensors of a file were loaded into a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from netwarp_ros.resources import cut

_NAMES_SHOWN = 6  # names that a line lists


@dataclass(frozen=True)
class LoadResult:
    """Which tensors of a file were loaded into a network.

    Attributes:
        loaded: Names of the network's tensors that were loaded.
        mismatched: The network's tensors that have another shape in the file, with both names and shapes. Not loaded.
        missing: Names of the network's tensors that are not in the file.
        unused: Names of the file's tensors that were not loaded, other than the mismatched.
    """

    loaded: tuple[str, ...]
    mismatched: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.mismatched) + len(self.missing)
        lines = [f"{len(self.loaded)} of the network's {total} tensors loaded"]
        for what, names in (
            ("of another shape in the file", self.mismatched),
            ("missing in the file", self.missing),
            ("unused in the file", self.unused),
        ):
            if names:
                lines.append(listed(names, what))
        return "\n".join(lines)


def listed(names: Sequence[str], what: str) -> str:
    """Return one line with the number of names and the first of them; empty if there are none."""
    if not names:
        return ""
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{len(names)} {what}: {', '.join(cut(name, 100) for name in names[:_NAMES_SHOWN])}{more}"
