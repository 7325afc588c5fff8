# SPDX-License-Identifier: Apache-2.0
"""Semantic segmentation of camera streams by a NetWarp video CNN, in ROS 2 and without."""
