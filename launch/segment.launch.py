# SPDX-License-Identifier: Apache-2.0
"""Start the segment node, configure it and activate it: ros2 launch netwarp_ros segment.launch.py."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

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
from launch_ros.event_handlers import OnStateTransition
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

PARAMETERS: dict[str, tuple[type, str]] = {
    "cameras": (list[str], "Names of the cameras, with which their topics begin."),
    "transport": (
        str,
        "Topic of the images: <camera>/image_raw, or <camera>/image_raw/compressed. One of raw, compressed.",
    ),
    "model": (str, "Name of a shipped model (see `netwarp models`), or path of a .safetensors file."),
    "engine": (
        str,
        "What runs the network; auto is the fastest that is installed and made for the device. One of auto, torch, "
        "cudagraphs, openvino, onnxruntime, tensorrt.",
    ),
    "device": (str, "PyTorch device: cpu, cuda or cuda:N."),
    "precision": (
        str,
        "Precision of the network; auto is the fastest in floating point that the device has instructions for. int8 "
        "needs a model that was made by `netwarp quantize`. One of auto, float32, bfloat16, float16, int8.",
    ),
    "compile": (
        str,
        "Mode of torch.compile, for engine torch. Compiling takes a minute when the node is configured; "
        "reduce-overhead replays CUDA graphs. One of none, default, reduce-overhead.",
    ),
    "threads": (int, "Threads of the engine, PyTorch and OpenCV on the CPU; 0: one on each core. From 0 to 1024."),
    "engine_cache": (
        str,
        "Folder in which the engine keeps what it made of the model, to be configured faster; empty: none.",
    ),
    "flow_preset": (str, "Preset of the DIS optical flow. One of ultrafast, fast, medium."),
    "flow_device": (
        str,
        "Where the flow is estimated. cpu: by OpenCV. cuda: by our operator. auto: where the network is. One of auto, "
        "cpu, cuda.",
    ),
    "input_height": (
        int,
        "Height in pixels to which images are scaled for the network; 0: as trained. From 0 to 4320.",
    ),
    "max_input_width": (
        int,
        "An image that would then be wider than this, in pixels, keeps its own size, or is scaled to this width. From "
        "32 to 16384.",
    ),
    "max_gap": (float, "The memory is reset if two images are more than this many seconds apart. From 0.001 to 3600."),
    "image_sizes": (
        list[str],
        "Widths and heights of the cameras' images. While configuring, the node runs the network on each, so that the "
        "first image does not have to wait for it.",
    ),
    "host_only": (bool, "Run the image CNN on each frame by itself, without memory and flow."),
    "keyframes": (
        str,
        "Frames that the network runs on; on the others, its scores are moved along the flow. none: every frame. "
        "adaptive: when too much has not been seen before. A number N from 2 to 100: every N-th frame.",
    ),
    "label_map": (
        str,
        "Label map that turns the model's classes into those of the masks: the name of a shipped one, or path of a "
        ".yaml file; empty: none.",
    ),
    "mask_size": (str, "Size of the masks: image, network (as the network sees the image), or WIDTHxHEIGHT."),
    "mask_encoding": (
        str,
        "Encoding of the masks. mono8: class ids, void is 255. 16SC1: class ids, void is -1. mono8_rle: mono8 with the "
        "run lengths that Autoware reads as data. One of mono8, 16SC1, mono8_rle.",
    ),
    "temperature": (
        float,
        "Scores are divided by this before the softmax that gives the confidence. From 0.01 to 100.",
    ),
    "overlay_alpha": (float, "Weight of the colors in the overlay. From 0 to 1."),
    "stuck_error": (
        float,
        "Seconds of work on an image after which camera and node are ERROR; 0: never. From 0 to 3600.",
    ),
    "stale_warn": (float, "Seconds without an image after which a camera is WARN; 0: never. From 0 to 3600."),
    "stale_error": (float, "Seconds without an image after which a camera is ERROR; 0: never. From 0 to 3600."),
    "rate_warn": (float, "Masks per second below which a camera is WARN; 0: never. From 0 to 1000."),
    "rate_error": (float, "Masks per second below which a camera is ERROR; 0: never. From 0 to 1000."),
    "latency_warn": (
        float,
        "Seconds from callback to mask (p95) above which a camera is WARN; 0: never. From 0 to 3600.",
    ),
    "latency_error": (
        float,
        "Seconds from callback to mask (p95) above which a camera is ERROR; 0: never. From 0 to 3600.",
    ),
    "age_warn": (float, "Seconds from stamp to mask (p95) above which a camera is WARN; 0: never. From 0 to 3600."),
    "age_error": (float, "Seconds from stamp to mask (p95) above which a camera is ERROR; 0: never. From 0 to 3600."),
    "gpu_memory_warn": (
        float,
        "Fraction of the GPU's memory in use above which the node is WARN; 0: never. From 0 to 1.",
    ),
    "gpu_memory_error": (
        float,
        "Fraction of the GPU's memory in use above which the node is ERROR; 0: never. From 0 to 1.",
    ),
    "use_sim_time": (bool, "Take the time from /clock, as in a simulation."),
}
"""The parameters of the node that are launch arguments, with their types and what they mean.

A test compares them with `SegmentParameters` and `Thresholds`. Those are not imported here, because they bring PyTorch
along, which takes seconds. The defaults are in the parameter file.
"""

RESPAWN_DELAY_S = 2.0
"""Seconds from the end of the node to its next start."""

IMPLICIT_ARGUMENTS = {"emulate_tty", "launch-prefix", "launch-prefix-filter", "sigkill_timeout", "sigterm_timeout"}
"""Launch arguments that `launch` reads itself. No launch file declares them."""


def generate_launch_description() -> LaunchDescription:
    """Return the launch description."""
    params_file = Path(get_package_share_directory("netwarp_ros"), "config", "segmenter.yaml")
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(name, default_value="", description=_description(name)) for name in PARAMETERS),
            DeclareLaunchArgument(
                "params_file",
                default_value=str(params_file),
                description="YAML file with the node's parameters. Those named after a camera, a mask or a class "
                "(front.ego_mask, masks.people, thresholds.car) are no launch arguments: give them here.",
            ),
            DeclareLaunchArgument("name", default_value="segmenter", description="Name of the node."),
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
                description="Restart the node when it ends, cannot be activated, or an error leaves it unconfigured; "
                "otherwise the launch ends.",
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


def _description(name: str) -> str:
    kind, text = PARAMETERS[name]
    separated = " Separated by commas." if kind == list[str] else ""
    return f"{text}{separated} Default: as in params_file."


def _warn_of_undeclared_arguments(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Warn of arguments on the command line that no launch file declares; `launch` passes over them."""
    event = context.get_locals_as_dict().get("event")
    if isinstance(event, IncludeLaunchDescription):  # this holds for all that the command line starts
        declared = {argument.name for argument in event.launch_description.get_launch_arguments()}
        for argument in context.argv:
            name = argument.partition(":=")[0]
            if name not in declared | IMPLICIT_ARGUMENTS:
                close = get_close_matches(name, declared)
                way_out = f"Did you mean {' or '.join(close)}?" if close else "The option --show-args lists all."
                get_logger("launch").warning(f"{argument}: no launch file declares {name}. {way_out}")
    return []


def _start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    given = context.launch_configurations
    if not Path(given["params_file"]).is_file():
        raise FileNotFoundError(f"params_file is {given['params_file']}: give an existing YAML file")
    if not re.fullmatch(r"[A-Za-z_]\w*", given["name"], re.ASCII):
        raise ValueError(f"name is {given['name']!r}: give letters, digits and _, and no digit first")
    overrides = {name: _value(name, given[name]) for name in PARAMETERS if given[name]}
    respawn = given["respawn"] == "true"
    node = LifecycleNode(
        package="netwarp_ros",
        executable="segment_node",
        name=given["name"],
        namespace=given["namespace"],
        parameters=[given["params_file"], overrides],
        ros_arguments=["--log-level", given["log_level"]],
        output="screen",
        respawn=respawn,
        respawn_delay=RESPAWN_DELAY_S,
        on_exit=None if respawn else _end,
    )
    started = OnProcessStart(target_action=node, on_start=lambda event, context: _activate(node, respawn=respawn))
    failed = OnStateTransition(
        target_lifecycle_node=node,
        start_state="errorprocessing",
        entities=[OpaqueFunction(function=lambda context: _give_up(node, context, respawn=respawn))],
    )
    autostart = given["autostart"] == "true"
    return [
        *([RegisterEventHandler(started)] if autostart else []),
        # Without both, what happens after an error is up to whoever activates the node.
        *([RegisterEventHandler(failed)] if autostart or respawn else []),
        node,
    ]


def _value(name: str, text: str) -> Any:
    """Return the value of a parameter, as `launch_ros` takes it.

    Raises:
        ValueError: If the text is not of the parameter's type. The node itself checks what else a value must be.
    """
    kind, _ = PARAMETERS[name]
    if kind is str:
        return ParameterValue(text, value_type=str)
    if kind == list[str]:  # as on the command line (front,rear), or as in a file (['front', 'rear'])
        return [part.strip(" '\"") for part in text.strip(" []").split(",")]
    read, what_to_give = READERS[kind]
    try:
        return read(text)
    except (KeyError, ValueError):
        raise ValueError(f"{name} is {text!r}: give {what_to_give}") from None


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


READERS: dict[type, tuple[Callable[[str], Any], str]] = {
    bool: (lambda text: {"true": True, "false": False}[text.lower()], "true or false"),
    int: (int, "a whole number"),
    float: (_number, "a number"),
}
"""What reads a value of a type, and what to give."""


def _give_up(node: LifecycleNode, context: LaunchContext, *, respawn: bool) -> list[LaunchDescriptionEntity]:
    """End the node, which is then restarted, or else the launch, after an error that has left the node unconfigured.

    An error of CUDA mostly lasts as long as the process, and work that hangs keeps its model: take a new process.
    """
    if context.is_shutdown:
        return []
    problem = f"an error has left the segment node {context.locals.event.goal_state}: see its log"
    if not respawn:
        raise RuntimeError(problem)
    get_logger("launch").error(f"{problem}. It is restarted")
    return [_interrupt(node)]


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
