# SPDX-License-Identifier: Apache-2.0
"""Play a recording through a segment node, to its end: ros2 launch netwarp_ros replay.launch.py path:=drive.mcap."""

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

# Parameters of the replay node that can be given on the command line. They have no defaults here: what is not given is
# as the node has it.
PARAMETERS = {
    "topic": "Image topic of a bag that has several.",
    "rate": "Images per second. Default: as recorded.",
    "stamp": "Stamps in the headers: now, or recorded. Default: now.",
}

NEEDED = {"transport": "raw", "autostart": "true"}
"""Arguments of the segment node's launch file without which no image would get to it."""

RECORDED = ("mask", "timing", "label_info")
"""Topics that are recorded, of those under <camera>/segmentation."""

REST_S = 2.0
"""Time from the last image to the end, in which the last masks are made and recorded."""


def generate_launch_description() -> LaunchDescription:
    """Return what `ros2 launch` carries out."""
    segment = Path(get_package_share_directory("netwarp_ros"), "launch", "segment.launch.py")
    return LaunchDescription(
        [
            DeclareLaunchArgument("path", description="A folder of images, an image, a video, or a rosbag2."),
            *(DeclareLaunchArgument(name, default_value="", description=text) for name, text in PARAMETERS.items()),
            DeclareLaunchArgument(
                "camera",
                default_value="camera",
                description="The camera to be, by the name that its topics begin with.",
            ),
            DeclareLaunchArgument(
                "record",
                default_value="",
                description=f"Bag to make of {', '.join(RECORDED)}, by `ros2 bag record`. Default: none.",
            ),
            # The handlers come before the node whose transitions they are for.
            OpaqueFunction(function=_await_node),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(segment)),
                launch_arguments=[("cameras", LaunchConfiguration("camera")), *NEEDED.items()],
            ),
        ]
    )


def _await_node(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Record from the beginning, and play as soon as the segment node is active."""
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
    """End with the recording, or with what is wrong with it; unless the replay ended because the launch does."""
    if context.is_shutdown:
        return []
    if event.returncode:
        return [Shutdown(reason="the recording cannot be played")]
    return [TimerAction(period=REST_S, actions=[Shutdown(reason="the recording has been played")])]
