# SPDX-License-Identifier: Apache-2.0
"""OpenVINO for this process: imported when it is first needed, without its telemetry, and with one core."""

from __future__ import annotations

import functools
import sys
from typing import Any


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry.

    With it, importing OpenVINO would send an event to Google Analytics, and write an identifier to ~/intel. OpenVINO
    and NNCF do without the package ``openvino_telemetry`` if it cannot be imported.

    Raises:
        ImportError: If OpenVINO cannot be imported.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # importing it is now an ImportError
    try:
        import openvino
    except ImportError as error:
        raise ImportError(f"it cannot be imported ({error}): pip install openvino") from error
    return openvino


@functools.cache
def core() -> Any:
    """Return the process's only `openvino.Core`, which lives as long as the process.

    A core gives the thread that first uses it a stack for signal handlers, and puts back the one from before when it
    ends. If two cores end in the order in which they were made, the second one puts back the first one's, whose memory
    is gone: the next signal, such as that of a child that ended, overwrites other memory or ends the process.
    """
    return import_openvino().Core()
