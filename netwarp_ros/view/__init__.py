# SPDX-License-Identifier: Apache-2.0
"""A live look at cameras, as a page on this machine: `netwarp view`."""

from __future__ import annotations

from netwarp_ros.view.server import Source, serving

__all__ = ["Source", "serving"]
