# SPDX-License-Identifier: Apache-2.0
"""Engines: what runs a video CNN for one frame.

`open_engine` chooses one. ``engine.py`` says what an engine is; ``graphs.py`` takes a frame apart into graphs, and
``graph_engine.py`` puts it together again from graphs that a runtime has compiled. Each runtime has a file.
"""

from __future__ import annotations

from netwarp_ros.engines.choice import ENGINES, INT8, PRECISIONS, EngineOptions, open_engine
from netwarp_ros.engines.engine import Engine, EngineError, FlowOnDevice
from netwarp_ros.engines.pytorch import COMPILE_MODES

__all__ = [
    "COMPILE_MODES",
    "ENGINES",
    "INT8",
    "PRECISIONS",
    "Engine",
    "EngineError",
    "EngineOptions",
    "FlowOnDevice",
    "open_engine",
]
