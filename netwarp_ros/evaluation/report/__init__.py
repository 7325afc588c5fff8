# SPDX-License-Identifier: Apache-2.0
"""Reports: the results of an evaluation as one HTML page, which needs no other file and no network."""

from __future__ import annotations

from netwarp_ros.evaluation.report.gallery import FrameGallery
from netwarp_ros.evaluation.report.page import check_requirements, write_page

__all__ = ["FrameGallery", "check_requirements", "write_page"]
