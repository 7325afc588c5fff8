# SPDX-License-Identifier: Apache-2.0
"""An evaluation as one page of HTML that needs no other file and no network."""

from __future__ import annotations

from netwarp_ros.evaluation.report.gallery import FrameGallery
from netwarp_ros.evaluation.report.page import check_requirements, write_page

__all__ = ["FrameGallery", "check_requirements", "write_page"]
