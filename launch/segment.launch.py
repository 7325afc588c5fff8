# SPDX-License-Identifier: Apache-2.0
"""Start the segment node, configure it and activate it: ros2 launch netwarp_ros segment.launch.py."""

from __future__ import annotations

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction, RegisterEventHandler, Shutdown
from launch.events import matches_action
from launch.events.process import ProcessExited
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from lifecycle_msgs.msg import Transition

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

# Parameters of the node that can be given on the command line. They have no defaults here: what is not given is as the
# file of parameters says.
PARAMETERS = {
    "cameras": "Cameras, by the names that their topics begin with, separated by commas.",
    "transport": "raw or compressed.",
    "model": "Name of a shipped model (see `netwarp models`), or path of a .safetensors file.",
    "device": "PyTorch device: cpu, cuda or cuda:N.",
    "precision": "auto, float32, bfloat16 or float16.",
}


def generate_launch_description() -> LaunchDescription:
    """Return what `ros2 launch` carries out."""
    params_file = Path(get_package_share_directory("netwarp_ros"), "config", "segmenter.yaml")
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value="", description=f"{text} Default: as in params_file.")
                for name, text in PARAMETERS.items()
            ),
            DeclareLaunchArgument(
                "params_file", default_value=str(params_file), description="YAML file of the node's parameters."
            ),
            DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node and its topics."),
            DeclareLaunchArgument(
                "autostart",
                default_value="true",
                choices=["true", "false"],
                description="Configure and activate the node; otherwise it waits for somebody to do so.",
            ),
            DeclareLaunchArgument(
                "log_level",
                default_value="info",
                choices=["debug", "info", "warn", "error", "fatal"],
                description="Least severity that is logged.",
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
    node = LifecycleNode(
        package="netwarp_ros",
        executable="segment_node",
        name="segmenter",
        namespace=given["namespace"],
        parameters=[given["params_file"], overrides],
        ros_arguments=["--log-level", given["log_level"]],
        output="screen",
        on_exit=_end,
    )
    if given["autostart"] == "false":
        return [node]
    configure, activate = (
        EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition))
        for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
    )
    on_configured = OnStateTransition(
        target_lifecycle_node=node, start_state="configuring", goal_state="inactive", entities=[activate]
    )
    return [node, RegisterEventHandler(on_configured), configure]


def _end(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Without its node the launch has nothing to do; unless the node ended because the launch does."""
    return [] if context.is_shutdown else [Shutdown(reason="the segment node has ended")]
