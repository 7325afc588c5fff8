# SPDX-License-Identifier: Apache-2.0
"""The command line, ``netwarp``: segment recordings, evaluate and train models."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from netwarp_ros.environment import configure_libraries


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: With status 2 and one line on standard error if the input is invalid, and with status 130 at Ctrl-C.
    """
    configure_libraries()
    try:
        from netwarp_ros.cli.app import app  # imported here because it takes a second, in which Ctrl-C may come

        app(arguments)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (OSError, ValueError) as error:
        from netwarp_ros.resources import cut

        sys.stderr.write(f"netwarp: {cut(str(error), 2000)}\n")
        raise SystemExit(2) from None
