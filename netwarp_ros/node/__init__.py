# SPDX-License-Identifier: Apache-2.0
"""The ROS nodes. Only this package and ``launch/`` import ROS."""

from __future__ import annotations

from netwarp_ros.environment import configure_libraries

configure_libraries()  # before any module of this package imports PyTorch or OpenCV
