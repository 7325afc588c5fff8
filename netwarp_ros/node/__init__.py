# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 nodes, and what they alone need: parameters, QoS, image messages, diagnostics."""
