# SPDX-License-Identifier: Apache-2.0
"""Does a segment node leave memory behind when it is configured and cleaned up, again and again?

``python studies/lifecycle.py [CYCLES] [NAME=VALUE ...]`` prints the node's resident memory after each cycle of
configure, activate, deactivate and cleanup; NAME=VALUE are parameters of the node. Configuring compiles all graphs and
segments frames.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)

import rclpy
from rclpy.executors import SingleThreadedExecutor

from netwarp_ros.node.lifecycle import LifecycleClient
from netwarp_ros.node.process import NodeProcess, ros_process
from netwarp_ros.node.tools.load_cameras import memory_mb
from netwarp_ros.node.tools.load_test import SEGMENT_NODE


def main() -> None:
    """Take a node through its states."""
    cycles = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    parameters = dict(pair.split("=", 1) for pair in sys.argv[2:])
    with ros_process("lifecycle"), TemporaryDirectory() as folder:
        node, executor = rclpy.create_node("lifecycle"), SingleThreadedExecutor()
        executor.add_node(node)
        with NodeProcess(SEGMENT_NODE, "/cycled", Path(folder), **parameters) as process:
            lifecycle = LifecycleClient(node, executor, "/cycled/segmenter")
            for cycle in range(1, cycles + 1):
                for change in (lifecycle.configure, lifecycle.activate, lifecycle.deactivate, lifecycle.cleanup):
                    change()
                print(f"cycle {cycle}: {memory_mb(process.pid):.0f} MB", flush=True)


if __name__ == "__main__":
    main()
