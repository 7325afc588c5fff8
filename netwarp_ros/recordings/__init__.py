# SPDX-License-Identifier: Apache-2.0
"""Recordings read and written without ROS: images, videos, rosbag2 and its messages. `open.py` opens any of them."""
