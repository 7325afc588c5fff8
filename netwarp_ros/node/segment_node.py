# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node: images of any number of cameras in, masks and timings out.

The executor's thread receives images, publishes diagnostics, and answers services. `Pipeline` has the threads that load
the model, segment and draw; they get their images through mailboxes with one slot for each camera. Transitions run in a
thread of their own (`Beside`), so that the node answers while it is being configured.
"""

from __future__ import annotations

if __name__ == "__main__":
    from netwarp_ros.environment import start_node

    start_node()

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import wraps
from threading import Lock
from time import monotonic

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from netwarp_ros.node import parameters
from netwarp_ros.node.camera import Camera
from netwarp_ros.node.diagnostics import (
    MAX_PROBLEM,
    PERIOD_S,
    Thresholds,
    camera_status,
    node_status,
    stuck_problem,
)
from netwarp_ros.node.outputs import Outputs
from netwarp_ros.node.pipeline import STOP_S, Pipeline, Reports
from netwarp_ros.node.process import Beside, end_process, executing, ros_process
from netwarp_ros.node.segment_parameters import (
    MASKS,
    THRESHOLDS,
    CameraParameters,
    SegmentParameters,
    mask_specs,
    threshold_specs,
)
from netwarp_ros.recordings.ego_masks import read_ego_mask
from netwarp_ros.resources import cut, quote
from netwarp_ros.segmenter import Confidence, Segmenter

Transition = Callable[["SegmentNode", LifecycleState], TransitionCallbackReturn]


class TransitionExit(SystemExit):
    """The node is destroyed in the middle of a transition: it ends the transition's thread, without a word of rclpy."""


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
"""The parameters that every segment node has."""


class SegmentNode(LifecycleNode):
    """The lifecycle node. When inactive, it has a model and its topics; when active, it segments.

    Raises:
        ParameterError: If a parameter given to the process is of the wrong type or out of its range.
    """

    def __init__(self) -> None:
        super().__init__("segmenter")
        # Set these before declaring parameters: rclpy calls `destroy_node()` when it rejects one.
        self._pipeline = Pipeline(Reports(self._log_dropped, lambda: self._persistent.trigger()))
        self._ending: Future[None] = Future()  # done as soon as the node is destroyed
        self._transition = Lock()  # held during a transition
        self._cameras: dict[str, Camera] = {}
        self._ego_masks: dict[str, np.ndarray] = {}
        self._last_error = ""
        self._failure = ""  # why the node is unconfigured, if that is due to an error
        self._specs: dict[str, parameters.Spec] = {}
        for group in PARAMETERS:
            self._declare(parameters.specs_of(group))
        self._declare(mask_specs(parameters.given(self, MASKS)))
        self._declare_cameras()
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self.add_post_set_parameters_callback(self._on_parameters_set)
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # On the steady clock: diagnostics are published even while simulated time is paused.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics_timer = self.create_timer(PERIOD_S, self._publish_diagnostics, clock=steady)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self._make_transition = self._service_change_state.callback
        self._service_change_state.callback = self._on_change_state
        transitions = Beside()
        transitions.add_entity(self._service_change_state)
        self._service_change_state.callback_group = transitions
        self._persistent = self.create_guard_condition(self._on_persistent_problem, callback_group=transitions)

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and create the topics. If that fails, log the reason."""
        self._failure = ""
        try:
            settings = parameters.read(self, SegmentParameters)
            self._declare_cameras()
            parameters.check(self, self._specs.values())
            self._refuse_unknown_cameras()
            self._wait_for(self._pipeline.load(settings))
            segmenter = self._pipeline.segmenter
            assert segmenter is not None
            self._make_cameras(settings, segmenter)
            self._pipeline.loading = ""
            self._apply_live_parameters(segmenter)  # those that were set meanwhile
        except Exception as error:  # rclpy would discard the message
            self._log_failure(f"cannot be configured: {error}")
            self._failure = self._last_error
        else:
            self._tell_configured(segmenter)
            return TransitionCallbackReturn.SUCCESS
        self._release()  # not in the except clause, where the error still refers to the model
        return TransitionCallbackReturn.FAILURE

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start receiving and segmenting, with new memories and new counts."""
        segmenter = self._pipeline.segmenter
        assert segmenter is not None
        try:
            self._pipeline.start(self._cameras, lambda name: segmenter.stream(ego_mask=self._ego_masks.get(name)))
        except Exception as error:
            self._log_failure(f"cannot be activated: {error}")
            self._pipeline.stop()
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    @_logging_errors
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Finish the current frame, stop, and publish the final counts."""
        given_up, persistent = self._pipeline.stop(), self._pipeline.persistent_problem
        self._publish_diagnostics(final=True)
        if persistent or self._pipeline.segmenter is None:
            raise RuntimeError(persistent or given_up)
        if given_up:
            self._log_failure(given_up)
        return TransitionCallbackReturn.SUCCESS

    @_logging_errors
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and destroy the topics."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    @_logging_errors
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free, from any state, and publish the final counts."""
        self._stop()
        self._publish_diagnostics(final=True)
        self._release()
        self._diagnostics_timer.cancel()
        return TransitionCallbackReturn.SUCCESS

    @_logging_errors
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Return to the state before `on_configure`."""
        self._release()
        self._failure = self._last_error
        return TransitionCallbackReturn.SUCCESS

    def destroy_node(self) -> None:
        """Stop and free, from any state. If the work does not end in time, what it has is not freed."""
        if not self._ending.done():
            self._ending.set_result(None)
        deadline = monotonic() + STOP_S
        self._transition.acquire(timeout=STOP_S)  # a transition that is going on ends now, or hangs as well
        if doing := self._pipeline.end(max(0.0, deadline - monotonic())):
            # Not the node's logger: it also publishes, which is an error after a signal.
            get_logger("segment_node").info(f"the node ends in the middle of {doing}")
        for camera in self._cameras.values():
            camera.close()
        super().destroy_node()

    def is_busy(self) -> bool:
        """Tell whether a thread is still at work after `destroy_node`. No signal interrupts it."""
        return self._pipeline.is_busy()

    def _wait_for(self, task: Future[None]) -> None:
        """Wait for a task, and raise its error.

        Raises:
            TransitionExit: If the node is destroyed before that.
        """
        try:
            wait((task, self._ending), return_when=FIRST_COMPLETED)
            if self._ending.done():
                raise TransitionExit
            task.result()
        finally:
            del task  # an error refers to this frame: with the task, which has the error, that would be a circle

    def _make_cameras(self, settings: SegmentParameters, segmenter: Segmenter) -> None:
        """Make the cameras and their topics, for the segmenter that is loaded."""
        classes = segmenter.classes
        for name in parameters.given(self, THRESHOLDS):
            if name not in classes.names:
                raise ValueError(
                    f"{THRESHOLDS}{name} is given, and {quote(name)} is no class of {classes.name}: give some of "
                    f"{cut(', '.join(classes.names))}"
                )
        self._declare(threshold_specs(classes))
        self._apply_live_parameters(segmenter)
        groups: dict[str, Sequence[str]] = {
            name: self.get_parameter(f"{MASKS}{name}").value for name in parameters.given(self, MASKS)
        }
        for name in settings.cameras:
            own = parameters.read(self, CameraParameters, f"{name}.")
            if own.ego_mask:
                self._ego_masks[name] = read_ego_mask(own.ego_mask)
            outputs = Outputs(self, name, classes, settings.mask_encoding, groups)
            transport = own.transport or settings.transport
            camera = Camera(self, name, outputs, transport=transport, alpha=settings.overlay_alpha)
            self._cameras = {**self._cameras, name: camera}  # other threads may be reading the present one
            outputs.advertise(segmenter.confidence.least(classes))

    def _tell_configured(self, segmenter: Segmenter) -> None:
        if problem := segmenter.engine_problem:
            self.get_logger().warning(f"engine {segmenter.engine.name} is in use: {problem}")
        if names := parameters.undeclared(self):
            self.get_logger().warning(f"there are no parameters {cut(', '.join(names))}: they have no effect")
        self.get_logger().info(
            f"{segmenter.model.name} in {segmenter.engine.name} on {segmenter.device} ({segmenter.precision}) "
            f"for {', '.join(camera.topic for camera in self._cameras.values())}"
        )

    def _stop(self) -> None:
        """Stop segmenting, and log what had to be given up."""
        if given_up := self._pipeline.stop():
            self._log_failure(given_up)

    def _release(self) -> None:
        """Stop, free the model and destroy the topics."""
        self._stop()
        for camera in self._cameras.values():
            camera.close()
        self._cameras, self._ego_masks = {}, {}
        self._pipeline.free()
        for name in [name for name in self._specs if name.startswith(THRESHOLDS)]:  # another model has other classes
            self.undeclare_parameter(name)
            del self._specs[name]

    def _log_failure(self, problem: str) -> None:
        self._last_error = cut(problem, MAX_PROBLEM)
        self.get_logger().error(self._last_error)

    def _log_dropped(self, problem: str) -> None:
        if self.context.ok():  # after a signal, publishing fails as expected, and so does the log's
            self.get_logger().error(problem, throttle_duration_sec=PERIOD_S)

    def _state(self) -> str:
        """Return the label of the state in the life cycle, such as ``active``."""
        return self._state_machine.current_state[1]

    def _declare(self, specs: Sequence[parameters.Spec]) -> None:
        """Declare the parameters that are not declared yet."""
        for spec in specs:
            if spec.name not in self._specs:
                try:
                    parameters.declare(self, [spec])
                finally:
                    if self.has_parameter(spec.name):  # even with a value that is refused
                        self._specs[spec.name] = spec

    def _declare_cameras(self) -> None:
        for name in self.get_parameter("cameras").value:
            self._declare(parameters.specs_of(CameraParameters, f"{name}."))

    def _refuse_unknown_cameras(self) -> None:
        """Refuse parameters of cameras that there are not: a mistyped name must not lose an ego mask."""
        own = {spec.name for spec in parameters.specs_of(CameraParameters)}
        for name in parameters.undeclared(self):
            camera, dot, last = name.rpartition(".")
            if dot and last in own:
                raise ValueError(f"{name} is given, and {quote(camera)} is not among cameras: correct one of the two")

    def _on_set_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        problems = parameters.check_changes(self._specs, changes, configured=self._state() != "unconfigured")
        return SetParametersResult(successful=not problems, reason=" ".join(problems))

    def _on_parameters_set(self, changes: list[Parameter]) -> None:
        """Apply the live parameters from the next frame on."""
        if (segmenter := self._pipeline.segmenter) is not None and not self._pipeline.loading:
            self._apply_live_parameters(segmenter)

    def _apply_live_parameters(self, segmenter: Segmenter) -> None:
        settings = parameters.read(self, SegmentParameters)
        segmenter.flow = settings.flow_preset
        segmenter.max_gap = settings.max_gap
        names = [name for name in self._specs if name.startswith(THRESHOLDS)]
        thresholds = {name.removeprefix(THRESHOLDS): self.get_parameter(name).value for name in names}
        before, segmenter.confidence = segmenter.confidence, Confidence(settings.temperature, thresholds)
        for camera in self._cameras.values():
            camera.alpha = settings.overlay_alpha
            if before.thresholds != thresholds:
                camera.outputs.tell_labels(segmenter.confidence.least(segmenter.classes))

    def _on_change_state(self, request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
        """Make a transition that is possible now; refuse any other, for which rclpy raises an error in Jazzy."""
        machine, wanted = self._state_machine, request.transition.label or request.transition.id
        possible = {number: name for number, name, *_ in machine.available_transitions}
        if wanted in possible or wanted in possible.values():
            with self._transition:
                return self._make_transition(request, response)
        names = {number: name for number, name, *_ in machine.transition_graph}
        ways = " or ".join(f"{name} ({number})" for number, name in possible.items())
        wanted = f"{names[wanted]} ({wanted})" if wanted in names else f"make transition {wanted}"
        self._log_failure(f"cannot {wanted}: the node is {machine.current_state[1]}, and can {ways or 'only end'}")
        response.success = False
        return response

    def _on_persistent_problem(self) -> None:
        """Deactivate the node by an error, after which it is unconfigured."""
        with self._transition:
            if self._pipeline.persistent_problem and self._state() == "active":
                self.trigger_deactivate()

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        cameras = self._cameras
        for camera in cameras.values():
            camera.reset()
        response.success = self._pipeline.is_running
        response.message = (
            f"the memories of {', '.join(cameras)} are reset with their next frames"
            if response.success
            else "the node is not active, and has no memory"
        )
        return response

    def _publish_diagnostics(self, *, final: bool = False) -> None:
        """Publish the statuses of the node and of its active cameras; with ``final``, of those just deactivated."""
        if not self.context.ok():  # after a signal
            return
        node, pipeline = self.get_fully_qualified_name().removeprefix("/"), self._pipeline
        thresholds = parameters.read(self, Thresholds)
        status = node_status(
            node,
            self._state(),
            None if pipeline.loading else pipeline.segmenter,  # it is still being made
            thresholds,
            self._last_error,
            pipeline.doing,
            stuck=pipeline.stuck(thresholds.stuck_error),
            failure=self._failure,
        )
        diagnostics = DiagnosticArray(status=[status])
        diagnostics.header.stamp = self.get_clock().now().to_msg()
        for name, camera in self._cameras.items() if final or pipeline.is_running else ():
            if not camera.history:  # it has never been active
                continue
            camera.history.append(camera.counter.snapshot())
            diagnostics.status.append(
                camera_status(
                    f"{node}: {name}",
                    name,
                    camera.topic,
                    camera.history,
                    thresholds,
                    camera.qos_problem,
                    stuck=stuck_problem(camera.topic, camera.working_s(), thresholds.stuck_error),
                    drawing_s=camera.drawing_s(),
                )
            )
        self._diagnostics_publisher.publish(diagnostics)


def main() -> None:
    """Run the node until SIGINT or SIGTERM."""
    nodes: list[SegmentNode] = []
    with ros_process("segment_node"):
        nodes.append(SegmentNode())
        with executing(nodes[0]) as executor:
            executor.spin()
    if any(node.is_busy() for node in nodes):
        end_process()


if __name__ == "__main__":
    main()
