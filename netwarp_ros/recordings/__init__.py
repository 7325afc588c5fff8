# SPDX-License-Identifier: Apache-2.0
"""What is read and written: images, videos, rosbag2 recordings and their messages. `open` opens any of them."""
