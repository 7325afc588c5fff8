# SPDX-License-Identifier: Apache-2.0
"""``python -m netwarp_ros.cli``, and with it ``torchrun -m netwarp_ros.cli``."""

from netwarp_ros.cli import main

main()
