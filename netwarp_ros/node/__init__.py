# SPDX-License-Identifier: Apache-2.0
"""The ROS nodes. Only this package and ``launch/`` import ROS."""
