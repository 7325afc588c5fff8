# SPDX-License-Identifier: Apache-2.0
"""Runs the command line for ``python -m netwarp_ros.cli`` and ``torchrun -m netwarp_ros.cli``."""

from netwarp_ros.cli import main

main()
