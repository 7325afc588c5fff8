# SPDX-License-Identifier: Apache-2.0
"""Play a recording through a segment node: ros2 launch netwarp_ros replay.launch.py path:=drive.mcap."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ament_index_python.packages import get_package_share_directory
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
    TimerAction,
)
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

# Parameters of the replay node that are launch arguments. Their defaults are the node's.
PARAMETERS = {
    "topic": "Image topic of a bag that has several.",
    "rate": "Images per second. Default: as recorded.",
    "stamp": "Stamps in the headers: now, or recorded. Default: now.",
}

NEEDED = {"transport": "raw", "autostart": "true"}
"""Arguments of the segment node's launch file. With other values, no image would reach the node."""

RECORDED = ("mask", "timing", "label_info")
"""The recorded topics under <camera>/segmentation."""

REST_S = 2.0
"""Seconds from the last image to the end, in which the last masks are published and recorded."""


def generate_launch_description() -> LaunchDescription:
    """Return the launch description."""
    segment = Path(get_package_share_directory("netwarp_ros"), "launch", "segment.launch.py")
    return LaunchDescription(
        [
            DeclareLaunchArgument("path", description="A folder of images, an image, a video, or a rosbag2."),
            *(DeclareLaunchArgument(name, default_value="", description=text) for name, text in PARAMETERS.items()),
            DeclareLaunchArgument(
                "camera",
                default_value="camera",
                description="Name of the camera, with which its topics begin.",
            ),
            DeclareLaunchArgument(
                "record",
                default_value="",
                description=f"Bag in which `ros2 bag record` records {', '.join(RECORDED)}. Default: none.",
            ),
            # The handlers must be registered before the node makes its transitions.
            OpaqueFunction(function=_start_when_active),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(segment)),
                launch_arguments=[("cameras", LaunchConfiguration("camera")), *NEEDED.items()],
            ),
        ]
    )


def _start_when_active(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Record from the beginning, and play when the segment node becomes active."""
    given = context.launch_configurations
    for name, value in NEEDED.items():
        if given.get(name, value) != value:
            raise ValueError(f"{name} is {given[name]}: a replay needs {value}, leave it out")
    namespace = given.get("namespace", "")
    texts = {name: given[name] for name in ("path", "camera", *PARAMETERS) if given[name] and name != "rate"}
    replay = Node(
        package="netwarp_ros",
        executable="replay_node",
        name="replay",
        namespace=namespace,
        parameters=[
            {name: ParameterValue(text, value_type=str) for name, text in texts.items()},
            {"rate": _rate(given["rate"])} if given["rate"] else {},
        ],
        output="screen",
        on_exit=_end,
    )
    failed = Shutdown(reason="the segment node cannot be configured")
    entities = [
        RegisterEventHandler(OnStateTransition(goal_state="active", entities=[replay])),
        RegisterEventHandler(
            OnStateTransition(start_state="configuring", goal_state="unconfigured", entities=[failed])
        ),
    ]
    if given["record"]:
        outputs = PurePosixPath("/", namespace, given["camera"], "segmentation")
        topics = [str(outputs / topic) for topic in RECORDED]
        command = ["ros2", "bag", "record", "--storage", "mcap", "--output", given["record"], "--topics", *topics]
        entities.append(ExecuteProcess(cmd=command, output="screen"))
    return entities


def _rate(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"rate is {text!r}: give a number") from None


def _end(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """End the launch with the replay node, unless the launch is already ending."""
    if context.is_shutdown:
        return []
    if event.returncode:
        return [Shutdown(reason="the recording cannot be played")]
    return [TimerAction(period=REST_S, actions=[Shutdown(reason="the recording has been played")])]
