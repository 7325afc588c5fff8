# SPDX-License-Identifier: Apache-2.0
"""The ROS nodes: what is here and in ``launch/`` alone imports ROS."""

from __future__ import annotations

import os

# A robot has other work for its processor. OpenMP's threads spin while they wait for one another, and where one of them
# has lost its core to another process, all spin for it: a frame then takes many times as long (docs/benchmarks.md).
# OpenMP reads the variable when PyTorch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
