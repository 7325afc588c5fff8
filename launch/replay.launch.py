# SPDX-License-Identifier: Apache-2.0
"""Play a recording through a segment node: ros2 launch netwarp_ros replay.launch.py path:=drive.mcap."""

from __future__ import annotations

import signal
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
from launch_ros.events.lifecycle import StateTransition
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.utilities import make_namespace_absolute, prefix_namespace

from launch import Event, EventHandler, LaunchContext, LaunchDescription, LaunchDescriptionEntity

# Parameters of the replay node that are launch arguments. Their defaults are the node's.
PARAMETERS = {
    "topic": "Image topic of a bag that has several.",
    "rate": "Images per second. Default: as recorded.",
    "stamp": "Stamps in the headers: now, or recorded. Default: now.",
}

NEEDED = {"transport": "raw", "autostart": "true", "respawn": "false"}
"""Arguments of the segment node's launch file. With other values, images would not reach the node."""

RECORDED = ("mask", "timing", "label_info")
"""The recorded topics under <camera>/segmentation."""

CLOSING_S = "60"
"""Seconds that the recorder has to close its bag, before `launch` sends it SIGTERM and then SIGKILL."""

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
            OpaqueFunction(function=_start),
            # The node is activated here, so that this file knows when it is active.
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(segment)),
                launch_arguments=[
                    ("cameras", LaunchConfiguration("camera")),
                    *{**NEEDED, "autostart": "false"}.items(),
                ],
            ),
        ]
    )


def _start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Record from the beginning; activate the segment node, and then play."""
    given = context.launch_configurations
    for name, value in NEEDED.items():
        if given.get(name, value) != value:
            raise ValueError(f"{name} is {given[name]}: a replay needs {value}, leave it out")
    if given.get("cameras", given["camera"]) != given["camera"]:
        raise ValueError(f"cameras is {given['cameras']}: a replay has one camera, give camera:=NAME")
    # Absolute, with the namespace that an including launch file may have set.
    namespace = make_namespace_absolute(prefix_namespace(given.get("ros_namespace"), given.get("namespace", "")))
    texts = {name: given[name] for name in ("path", "camera", *PARAMETERS) if given[name] and name != "rate"}
    replay = Node(
        package="netwarp_ros",
        executable="replay_node",
        name="replay",
        namespace=namespace,
        parameters=[
            {name: ParameterValue(text, value_type=str) for name, text in texts.items()},
            {"rate": _rate(given["rate"])} if given["rate"] else {},
            {"use_sim_time": given["use_sim_time"].lower() == "true"} if given.get("use_sim_time") else {},
        ],
        output="screen",
        on_exit=_end,
    )

    def play(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
        if context.is_shutdown:
            return []
        if event.returncode:
            raise RuntimeError("the segment node cannot be activated: see its log")
        return [replay]

    segmenter = str(PurePosixPath(namespace, given.get("name", "segmenter")))

    def has_failed(event: Event) -> bool:
        is_transition = isinstance(event, StateTransition) and event.start_state == "errorprocessing"
        return is_transition and event.action.node_name == segmenter

    command = ["python3", "-m", "netwarp_ros.node.lifecycle", segmenter]
    entities: list[LaunchDescriptionEntity] = [
        RegisterEventHandler(EventHandler(matcher=has_failed, entities=[OpaqueFunction(function=_fail)])),
        ExecuteProcess(cmd=command, name="lifecycle", output="screen", on_exit=play),
    ]
    if given["record"]:
        outputs = PurePosixPath(namespace, given["camera"], "segmentation")
        topics = [str(outputs / topic) for topic in RECORDED]
        command = ["ros2", "bag", "record", "--storage", "mcap", "--output", given["record"], "--topics", *topics]
        timeout = LaunchConfiguration("sigterm_timeout", default=CLOSING_S)
        entities.append(
            ExecuteProcess(
                cmd=command, name="recorder", output="screen", sigterm_timeout=timeout, on_exit=_check_recorder
            )
        )
    return entities


def _rate(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"rate is {text!r}: give a number") from None


def _fail(context: LaunchContext) -> None:
    """End the launch with an error when one has left the segment node unconfigured."""
    if not context.is_shutdown:
        raise RuntimeError(f"an error has left the segment node {context.locals.event.goal_state}: see its log")


def _check_recorder(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """End the launch with an error if the recorder ends first, or does not end as a signal asks it to."""
    if context.is_shutdown and event.returncode in (0, signal.SIGINT, -signal.SIGINT):
        return []
    raise RuntimeError(f"the recorder has ended with status {event.returncode}: the bag is missing or incomplete")


def _end(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """End the launch with the replay node, unless the launch is already ending.

    Raises:
        RuntimeError: If the node has failed. It makes the exit status of the launch 1.
    """
    if context.is_shutdown:
        return []
    if event.returncode:
        raise RuntimeError(f"the recording cannot be played: the replay node has ended with status {event.returncode}")
    return [TimerAction(period=REST_S, actions=[Shutdown(reason="the recording has been played")])]
