# SPDX-License-Identifier: Apache-2.0
"""Start the segment node, configure it and activate it: ros2 launch netwarp_ros segment.launch.py."""

from __future__ import annotations

import signal
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
)
from launch.event_handlers import OnProcessExit, OnProcessStart
from launch.events import IncludeLaunchDescription, matches_action
from launch.events.process import ProcessExited, SignalProcess
from launch.logging import get_logger
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

# Parameters of the node that are launch arguments. Their defaults are in the parameter file.
PARAMETERS = {
    "cameras": "Names of the cameras, with which their topics begin, separated by commas.",
    "transport": "raw or compressed.",
    "model": "Name of a shipped model (see `netwarp models`), or path of a .safetensors file.",
    "engine": "auto, openvino, torch, onnxruntime or tensorrt.",
    "device": "PyTorch device: cpu, cuda or cuda:N.",
    "precision": "auto, float32, bfloat16, float16 or int8.",
}

RESPAWN_DELAY_S = 2.0
"""Seconds from the end of the node to its next start."""

IMPLICIT_ARGUMENTS = {"emulate_tty", "launch-prefix", "launch-prefix-filter", "sigkill_timeout", "sigterm_timeout"}
"""Launch arguments that `launch` reads itself. No launch file declares them."""


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
                description="Restart the node when it ends or cannot be activated; otherwise the launch ends.",
            ),
            DeclareLaunchArgument(
                "log_level",
                default_value="info",
                choices=["debug", "info", "warn", "error", "fatal"],
                description="Lowest severity that is logged.",
            ),
            OpaqueFunction(function=_warn_of_undeclared_arguments),
            OpaqueFunction(function=_start),
        ]
    )


def _warn_of_undeclared_arguments(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Warn of arguments on the command line that no launch file declares; `launch` passes over them."""
    event = context.get_locals_as_dict().get("event")
    if isinstance(event, IncludeLaunchDescription):  # this holds for all that the command line starts
        declared = {argument.name for argument in event.launch_description.get_launch_arguments()}
        for argument in context.argv:
            name = argument.partition(":=")[0]
            if name not in declared | IMPLICIT_ARGUMENTS:
                get_logger("launch").warning(
                    f"{argument}: no launch file declares {name}. Declared are {', '.join(sorted(declared))}."
                )
    return []


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
    started = OnProcessStart(target_action=node, on_start=lambda event, context: _activate(node, respawn=respawn))
    return [RegisterEventHandler(started), node]


def _activate(node: LifecycleNode, *, respawn: bool) -> list[LaunchDescriptionEntity]:
    """Configure and activate the node, which has started, in a process that ends at the latest with the node."""

    def check(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
        if event.returncode == 0 or context.is_shutdown:
            return []
        if respawn:
            return [_interrupt(node)]
        raise RuntimeError("the segment node cannot be activated: see its log")

    lifecycle = ExecuteProcess(
        cmd=["python3", "-m", "netwarp_ros.node.lifecycle", node.node_name],
        name="lifecycle",
        output="screen",
        on_exit=check,
    )
    ended = OnProcessExit(target_action=node, on_exit=_interrupt(lifecycle), handle_once=True)
    return [RegisterEventHandler(ended), lifecycle]


def _interrupt(process: ExecuteProcess) -> EmitEvent:
    return EmitEvent(event=SignalProcess(signal_number=signal.SIGINT, process_matcher=matches_action(process)))


def _end(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """End the launch with its node, unless the launch is already ending.

    Raises:
        RuntimeError: If the node has failed. It makes the exit status of the launch 1.
    """
    if context.is_shutdown:
        return []
    if event.returncode:
        raise RuntimeError(f"the segment node has ended with status {event.returncode}")
    return [Shutdown(reason="the segment node has ended")]
