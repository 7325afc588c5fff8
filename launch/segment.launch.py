# SPDX-License-Identifier: Apache-2.0
"""Start the segment node, configure it and activate it: ros2 launch netwarp_ros segment.launch.py."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction, RegisterEventHandler, Shutdown
from launch.event_handlers import OnProcessStart
from launch.events.process import ProcessExited, ProcessStarted
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

# Parameters of the node that are launch arguments. Their defaults are in the parameter file.
PARAMETERS = {
    "cameras": "Names of the cameras, with which their topics begin, separated by commas.",
    "transport": "raw or compressed.",
    "model": "Name of a shipped model (see `netwarp models`), or path of a .safetensors file.",
    "device": "PyTorch device: cpu, cuda or cuda:N.",
    "precision": "auto, float32, bfloat16 or float16.",
}

RESPAWN_DELAY_S = 2.0
"""Seconds from the end of the node to its next start."""


def generate_launch_description() -> LaunchDescription:
    """Return the launch description."""
    params_file = Path(get_package_share_directory("netwarp_ros"), "config", "segmenter.yaml")
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value="", description=f"{text} Default: as in params_file.")
                for name, text in PARAMETERS.items()
            ),
            DeclareLaunchArgument(
                "params_file", default_value=str(params_file), description="YAML file with the node's parameters."
            ),
            DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node and its topics."),
            DeclareLaunchArgument(
                "autostart",
                default_value="true",
                choices=["true", "false"],
                description="Configure and activate the node; otherwise it stays unconfigured.",
            ),
            DeclareLaunchArgument(
                "respawn",
                default_value="false",
                choices=["true", "false"],
                description="Restart the node when it ends; otherwise the launch ends with it.",
            ),
            DeclareLaunchArgument(
                "log_level",
                default_value="info",
                choices=["debug", "info", "warn", "error", "fatal"],
                description="Lowest severity that is logged.",
            ),
            OpaqueFunction(function=_start),
        ]
    )


def _start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    given = context.launch_configurations
    if not Path(given["params_file"]).is_file():
        raise FileNotFoundError(f"params_file is {given['params_file']}: give an existing YAML file")
    overrides = {name: ParameterValue(given[name], value_type=str) for name in PARAMETERS if given[name]}
    if given["cameras"]:
        overrides["cameras"] = [name.strip() for name in given["cameras"].split(",")]
    respawn = given["respawn"] == "true"
    node = LifecycleNode(
        package="netwarp_ros",
        executable="segment_node",
        name="segmenter",
        namespace=given["namespace"],
        parameters=[given["params_file"], overrides],
        ros_arguments=["--log-level", given["log_level"]],
        output="screen",
        respawn=respawn,
        respawn_delay=RESPAWN_DELAY_S,
        on_exit=None if respawn else _end,
    )
    if given["autostart"] == "false":
        return [node]
    return [RegisterEventHandler(OnProcessStart(target_action=node, on_start=_activate)), node]


def _activate(event: ProcessStarted, context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Configure and activate the node that has started."""
    name = str(PurePosixPath("/", context.launch_configurations["namespace"], "segmenter"))
    return [
        ExecuteProcess(cmd=["python3", "-m", "netwarp_ros.node.lifecycle", name], name="lifecycle", output="screen")
    ]


def _end(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """End the launch with its node, unless the launch is already ending."""
    return [] if context.is_shutdown else [Shutdown(reason="the segment node has ended")]
