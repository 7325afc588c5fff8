# SPDX-License-Identifier: Apache-2.0
"""The ROS nodes: what is here and in ``launch/`` alone imports ROS."""

from __future__ import annotations

from netwarp_ros.environment import configure_libraries

configure_libraries()
