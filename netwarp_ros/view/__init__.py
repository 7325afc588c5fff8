# SPDX-License-Identifier: Apache-2.0
"""The page of `netwarp view`, which shows cameras live, and its server."""

from __future__ import annotations

from netwarp_ros.view.server import Source, serving

__all__ = ["Source", "serving"]
