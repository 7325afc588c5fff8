# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node: images of any number of cameras in, masks and timings out.

The executor's thread receives images, and answers services. One worker thread loads the model, warms it up, decodes,
segments and publishes. They share a mailbox with one slot for each camera.
"""

from __future__ import annotations

if __name__ == "__main__":
    from netwarp_ros.environment import start_node

    start_node()

import gc
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from netwarp_ros.engines import COMPILE_MODES, ENGINES, INT8, PRECISIONS, EngineOptions
from netwarp_ros.flow.dis import PRESETS, DisFlow
from netwarp_ros.mailbox import Mailbox
from netwarp_ros.models import DEFAULT_MODEL
from netwarp_ros.models.spec import MAX_INPUT_HEIGHT
from netwarp_ros.node import parameters
from netwarp_ros.node.camera import Camera, ReceivedImage
from netwarp_ros.node.diagnostics import PERIOD_S, RATE_PERIODS, Thresholds, camera_status, node_status
from netwarp_ros.node.frame_counts import DropReason, FrameCounts
from netwarp_ros.node.parameters import SIZE, TOPIC, parameter
from netwarp_ros.node.process import end_process, executing, ros_process
from netwarp_ros.node.worker import Worker
from netwarp_ros.recordings.image_messages import ImageError
from netwarp_ros.resources import cut
from netwarp_ros.segmenter import MAX_GAP, MAX_INPUT_WIDTH, Segmenter


@dataclass(frozen=True)
class SegmentParameters:
    """Parameters of the node; see `Thresholds` for those of its diagnostics."""

    cameras: tuple[str, ...] = parameter(
        ("camera",), "Names of the cameras, with which their topics begin.", form=TOPIC
    )
    transport: str = parameter(
        "raw",
        "Topic of the images: <camera>/image_raw, or <camera>/image_raw/compressed.",
        choices=("raw", "compressed"),
    )
    model: str = parameter(
        DEFAULT_MODEL, "Name of a shipped model (see `netwarp models`), or path of a .safetensors file."
    )
    engine: str = parameter(
        "auto", "What runs the network; auto is the fastest that is installed and made for the device.", choices=ENGINES
    )
    device: str = parameter("cpu", "PyTorch device: cpu, cuda or cuda:N.")
    precision: str = parameter(
        "auto",
        "Precision of the network; auto is the fastest in floating point that the device has instructions for. int8 "
        "needs a model that was made by `netwarp quantize`.",
        choices=("auto", *PRECISIONS, INT8),
    )
    compile: str = parameter(
        "none",
        "Mode of torch.compile, for engine torch. Compiling takes a minute when the node is configured; "
        "reduce-overhead replays CUDA graphs.",
        choices=COMPILE_MODES,
    )
    threads: int = parameter(
        0, "Threads of the engine, PyTorch and OpenCV on the CPU; 0: one on each core.", limits=(0, 1024)
    )
    engine_cache: str = parameter(
        "", "Folder in which the engine keeps what it made of the model, to be configured faster; empty: none."
    )
    flow_preset: str = parameter("ultrafast", "Preset of the DIS optical flow.", choices=tuple(PRESETS), live=True)
    input_height: int = parameter(
        0, "Height in pixels to which images are scaled for the network; 0: as trained.", limits=(0, MAX_INPUT_HEIGHT)
    )
    max_input_width: int = parameter(
        MAX_INPUT_WIDTH,
        "An image that would then be wider than this, in pixels, keeps its own size, or is scaled to this width.",
        limits=(32, 16384),
    )
    max_gap: float = parameter(
        MAX_GAP,
        "The memory is reset if two images are more than this many seconds apart.",
        limits=(0.001, 3600.0),
        live=True,
    )
    image_sizes: tuple[str, ...] = parameter(
        ("640x480",),
        "Widths and heights of the cameras' images. While configuring, the node runs the network on each, so that the "
        "first image does not have to wait for it.",
        form=SIZE,
    )
    host_only: bool = parameter(False, "Run the image CNN on each frame by itself, without memory and flow.")
    overlay_alpha: float = parameter(0.5, "Weight of the colors in the overlay.", limits=(0.0, 1.0), live=True)


def engine_arguments(settings: SegmentParameters) -> dict[str, Any]:
    """Return the parameters of the engine as `Segmenter` takes them."""
    arguments = {field.name: getattr(settings, field.name) for field in fields(EngineOptions)}
    return {**arguments, "engine_cache": settings.engine_cache or None}


STOP_S = 1.0
"""How long `SegmentNode.destroy_node` waits for what the worker does."""

MAX_PROBLEM = 1000
"""Most characters of an error in the log and on ``/diagnostics``: a message or a file may hold a text of any length."""

Transition = Callable[["SegmentNode", LifecycleState], TransitionCallbackReturn]


def _logging_errors(transition: Transition) -> Transition:
    """Make a transition log its error. rclpy discards the error and calls `on_error`."""

    @wraps(transition)
    def logged(node: SegmentNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except Exception as error:
            node._log_failure(f"{transition.__name__} failed: {type(error).__name__}: {error}")
            raise

    return logged


PARAMETERS = (SegmentParameters, Thresholds)
"""All parameters of the node."""


class SegmentNode(LifecycleNode):
    """The lifecycle node. When inactive, it has a model and its topics; when active, it segments.

    Args:
        worker: Makes, runs and frees the segmenter, all in one thread; by default a worker of its own.

    Raises:
        ParameterError: If a parameter given to the process is of the wrong type or out of its range.
    """

    def __init__(self, worker: Worker | None = None) -> None:
        super().__init__("segmenter")
        # Set these before declaring parameters: rclpy calls `destroy_node()` when it rejects one.
        self._worker = worker or Worker("segmenter")
        self._segmenter: Segmenter | None = None
        self._cameras: dict[str, Camera] = {}
        self._mailbox: Mailbox[ReceivedImage] = Mailbox([])
        self._configuring = ""  # what the worker does while the node is configured
        self._segmenting: Future[None] | None = None  # while the node is active
        self._history: dict[str, deque[FrameCounts]] = {}
        self._last_error = ""
        for group in PARAMETERS:
            parameters.declare(self, group)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self.add_post_set_parameters_callback(self._on_parameters_set)
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # On the steady clock: diagnostics are published even while simulated time is paused.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics_timer = self.create_timer(PERIOD_S, self._publish_diagnostics, clock=steady)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self._make_transition = self._service_change_state.callback
        self._service_change_state.callback = self._on_change_state

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and create the topics. If that fails, log the reason."""
        settings = parameters.read(self, SegmentParameters)
        sizes = [(int(width), int(height)) for width, height in (size.split("x") for size in settings.image_sizes)]
        self._configuring = f"loading {settings.model}"
        try:
            self._worker.run(lambda: self._load(settings, sizes), self._publish_diagnostics, PERIOD_S)
            assert self._segmenter is not None
            classes = self._segmenter.model.spec.classes
            for name in settings.cameras:
                camera = Camera(self, name, classes, transport=settings.transport, alpha=settings.overlay_alpha)
                self._cameras[name] = camera
                camera.advertise()
        except Exception as error:  # rclpy would discard the message
            self._log_failure(f"cannot be configured: {error}")
        else:
            self._configuring = ""
            self.get_logger().info(
                f"{self._segmenter.model.name} in {self._segmenter.engine.name} on {self._segmenter.device} "
                f"({self._segmenter.precision}) "
                f"for {', '.join(camera.topic for camera in self._cameras.values())}"
            )
            return TransitionCallbackReturn.SUCCESS
        self._release()  # not in the except clause, where the error still refers to the model
        return TransitionCallbackReturn.FAILURE

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start receiving and segmenting, with new memories and new counts."""
        assert self._segmenter is not None
        self._mailbox = Mailbox(self._cameras)
        try:
            for camera in self._cameras.values():
                camera.start(self._segmenter.stream(), self._mailbox)
                self._history[camera.name] = deque([camera.counter.snapshot()], RATE_PERIODS + 1)
        except Exception as error:
            self._log_failure(f"cannot be activated: {error}")
            self._stop()
            return TransitionCallbackReturn.FAILURE
        self._segmenting = self._worker.submit(self._segment_images)
        return TransitionCallbackReturn.SUCCESS

    @_logging_errors
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Finish the current frame, stop, and publish the final counts."""
        self._stop()
        self._publish_diagnostics(final=True)
        return TransitionCallbackReturn.SUCCESS

    @_logging_errors
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and destroy the topics."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    @_logging_errors
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free, from any state."""
        self._release()
        self._diagnostics_timer.cancel()
        return TransitionCallbackReturn.SUCCESS

    @_logging_errors
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Return to the state before `on_configure`."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def destroy_node(self) -> None:
        """Stop and free, from any state. If the worker takes longer than `STOP_S`, what it has is not freed."""
        self._stop_receiving()
        if self._worker.is_idle(STOP_S):
            self._release()
        else:
            # Not the node's logger: it also publishes, which is an error after a signal.
            get_logger("segment_node").info(f"the node ends in the middle of {self._doing() or 'segmenting an image'}")
        self._worker.stop()
        super().destroy_node()

    def _stop_receiving(self) -> None:
        for camera in self._cameras.values():
            camera.stop()
        for name in self._mailbox.close():
            self._cameras[name].counter.count_dropped(DropReason.DEACTIVATED)

    def _stop(self) -> None:
        self._stop_receiving()
        segmenting, self._segmenting = self._segmenting, None
        if segmenting is not None and (error := segmenting.exception()):  # waits
            self._log_failure(f"segmenting ended: {type(error).__name__}: {error}")
        for camera in self._cameras.values():
            camera.release_stream()

    def _release(self) -> None:
        self._stop()
        for camera in self._cameras.values():
            camera.close()
        self._cameras.clear()
        if self._segmenter is not None or self._configuring:
            self._worker.submit(self._free).result()
        self._configuring = ""

    def _load(self, settings: SegmentParameters, sizes: list[tuple[int, int]]) -> None:
        """Make the segmenter and warm it up. The worker runs this, as well as `_segment_images` and `_free`."""
        self._segmenter = Segmenter(
            settings.model,
            flow=settings.flow_preset,
            **engine_arguments(settings),
            input_height=settings.input_height,
            max_input_width=settings.max_input_width,
            max_gap=settings.max_gap,
            host_only=settings.host_only,
        )
        if problem := self._segmenter.engine_problem:
            self.get_logger().warning(f"engine {self._segmenter.engine.name} is in use: {problem}")
        for width, height in sizes:
            self._configuring = f"compiling for images of {width}x{height}"
            self._segmenter.warm_up(width, height)

    def _free(self) -> None:
        """Free the segmenter, in the thread that made it."""
        self._segmenter = None
        gc.collect()  # a network and its layers refer to each other, as do an engine and its graphs

    def _segment_images(self) -> None:
        """Segment the images in the mailbox until it is closed."""
        while (taken := self._mailbox.take()) is not None:
            camera, received = self._cameras[taken[0]], taken[1]
            try:
                camera.segment(received)
            except ImageError as error:
                problem = cut(str(error), MAX_PROBLEM)
                camera.counter.count_dropped(DropReason.MALFORMED, problem)
                self._log_dropped(f"a malformed image on {camera.topic}: {problem}")
            except Exception as error:  # a frame that fails must not stop the worker
                problem = cut(f"{type(error).__name__}: {error}", MAX_PROBLEM)
                camera.counter.count_dropped(DropReason.FAILED, problem)
                self._log_dropped(f"an image on {camera.topic} failed: {problem}")

    def _log_failure(self, problem: str) -> None:
        self._last_error = cut(problem, MAX_PROBLEM)
        self.get_logger().error(self._last_error)

    def _log_dropped(self, problem: str) -> None:
        if self.context.ok():  # after a signal, publishing fails as expected, and so does the log's
            self.get_logger().error(problem, throttle_duration_sec=PERIOD_S)

    def _on_set_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        configured = self._segmenter is not None
        problems = [
            problem
            for group in PARAMETERS
            for problem in parameters.check_changes(group, changes, configured=configured)
        ]
        return SetParametersResult(successful=not problems, reason=" ".join(problems))

    def _on_parameters_set(self, changes: list[Parameter]) -> None:
        """Apply the live parameters from the next frame on."""
        if self._segmenter is None:
            return
        settings = parameters.read(self, SegmentParameters)
        self._segmenter.flow = DisFlow(settings.flow_preset)
        self._segmenter.max_gap = settings.max_gap
        for camera in self._cameras.values():
            camera.alpha = settings.overlay_alpha

    def _on_change_state(self, request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
        """Make a transition that is possible now; refuse any other, for which rclpy raises an error in Jazzy."""
        machine, wanted = self._state_machine, request.transition.label or request.transition.id
        possible = {number: name for number, name, *_ in machine.available_transitions}
        if wanted in possible or wanted in possible.values():
            return self._make_transition(request, response)
        names = {number: name for number, name, *_ in machine.transition_graph}
        ways = " or ".join(f"{name} ({number})" for number, name in possible.items())
        wanted = f"{names[wanted]} ({wanted})" if wanted in names else f"make transition {wanted}"
        self._log_failure(f"cannot {wanted}: the node is {machine.current_state[1]}, and can {ways or 'only end'}")
        response.success = False
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        for camera in self._cameras.values():
            camera.reset()
        response.success = self._segmenting is not None
        response.message = (
            f"the memories of {', '.join(self._cameras)} are reset with their next frames"
            if response.success
            else "the node is not active, and has no memory"
        )
        return response

    def _doing(self) -> str:
        """Return what takes the worker long at present; empty if nothing does."""
        return self._configuring or next(
            (camera.compiling for camera in self._cameras.values() if camera.compiling), ""
        )

    def _publish_diagnostics(self, *, final: bool = False) -> None:
        """Publish the statuses of the node and of its active cameras; with ``final``, of those just deactivated."""
        node = self.get_fully_qualified_name().removeprefix("/")
        thresholds = parameters.read(self, Thresholds)
        segmenter = None if self._configuring else self._segmenter  # the worker still makes it
        state = "active" if self._segmenting else "inactive" if segmenter else "unconfigured"
        state = "configuring" if self._configuring else state
        status = node_status(node, state, segmenter, thresholds, self._last_error, self._doing())
        diagnostics = DiagnosticArray(status=[status])
        diagnostics.header.stamp = self.get_clock().now().to_msg()
        for camera in self._cameras.values() if final or state == "active" else ():
            name, history = f"{node}: {camera.name}", self._history[camera.name]
            history.append(camera.counter.snapshot())
            diagnostics.status.append(
                camera_status(name, camera.name, camera.topic, history, thresholds, camera.qos_problem)
            )
        self._diagnostics_publisher.publish(diagnostics)


def main() -> None:
    """Run the node until SIGINT or SIGTERM."""
    worker = Worker("segmenter")
    with ros_process("segment_node"), executing(SegmentNode(worker)) as executor:
        executor.spin()
    if not worker.is_idle():
        end_process()


if __name__ == "__main__":
    main()
