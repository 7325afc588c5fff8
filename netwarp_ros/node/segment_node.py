# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node: images of any number of cameras in, masks and timings out.

The executor's thread only takes images in; one worker thread decodes, segments and publishes. Between the two lies a
mailbox with one slot for each camera.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from threading import Thread

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from netwarp_ros.flow.dis import PRESETS, DisFlow
from netwarp_ros.mailbox import Mailbox
from netwarp_ros.models import DEFAULT_MODEL
from netwarp_ros.node import parameters
from netwarp_ros.node.camera import Arrival, Camera
from netwarp_ros.node.diagnostics import PERIOD_S, RATE_REPORTS, Thresholds, camera_status, node_status
from netwarp_ros.node.frame_counts import DropReason, FrameCounts
from netwarp_ros.node.parameters import parameter
from netwarp_ros.node.process import executing, ros_process
from netwarp_ros.recordings.image_messages import ImageError
from netwarp_ros.segmenter import COMPILE_MODES, MAX_GAP, PRECISIONS, Segmenter


@dataclass(frozen=True)
class SegmentParameters:
    """What the node is configured with."""

    cameras: tuple[str, ...] = parameter(
        ("camera",), "Cameras, by the names that their topics begin with.", is_topic=True
    )
    transport: str = parameter(
        "raw", "Images come as <camera>/image_raw, or as <camera>/image_raw/compressed.", choices=("raw", "compressed")
    )
    model: str = parameter(DEFAULT_MODEL, "Name of a shipped model (`netwarp models`), or path of a .safetensors file.")
    device: str = parameter("cpu", "PyTorch device: cpu, cuda or cuda:N.")
    precision: str = parameter(
        "auto",
        "Precision of the network; auto is the fastest that the device is made for.",
        choices=("auto", *PRECISIONS),
    )
    compile: str = parameter(
        "none",
        "Mode of torch.compile for the image CNN, which takes half a minute when the node is configured; "
        "reduce-overhead replays CUDA graphs.",
        choices=COMPILE_MODES,
    )
    flow_preset: str = parameter("ultrafast", "Preset of the DIS optical flow.", choices=tuple(PRESETS), live=True)
    input_height: int = parameter(
        0, "Height in pixels that images are scaled to for the network; 0 is that of the training.", limits=(0, 4320)
    )
    max_gap: float = parameter(
        MAX_GAP, "Seconds between two images over which the memory starts anew.", limits=(0.001, 3600.0), live=True
    )
    host_only: bool = parameter(False, "Run the image CNN frame by frame, without memory and flow.")
    overlay_alpha: float = parameter(0.5, "Weight of the colors in the overlay.", limits=(0.0, 1.0), live=True)


KINDS = (SegmentParameters, Thresholds)
"""The node's parameters."""


class SegmentNode(LifecycleNode):
    """Configured, it has a model and its topics; active, it segments.

    Raises:
        ParameterError: If a parameter given to the process is of the wrong type or out of its range.
    """

    def __init__(self) -> None:
        super().__init__("segmenter")
        # First what `destroy_node` looks at: ROS calls that also when a parameter is refused here.
        self._segmenter: Segmenter | None = None
        self._cameras: dict[str, Camera] = {}
        self._mailbox: Mailbox[Arrival] = Mailbox([])
        self._worker: Thread | None = None
        self._history: dict[str, deque[FrameCounts]] = {}
        self._last_error = ""
        for kind in KINDS:
            parameters.declare(self, kind)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self.add_post_set_parameters_callback(self._on_parameters_set)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # On the steady clock: it must also tick where simulated time stands still.
        self._report_timer = self.create_timer(PERIOD_S, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.create_service(Trigger, "~/reset", self._on_reset)

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and make the topics; fail with the reason logged."""
        wanted = parameters.read(self, SegmentParameters)
        try:
            self._segmenter = Segmenter(
                wanted.model,
                flow=wanted.flow_preset,
                device=wanted.device,
                precision=wanted.precision,
                input_height=wanted.input_height,
                max_gap=wanted.max_gap,
                host_only=wanted.host_only,
                compile=wanted.compile,
            )
            if self._segmenter.compile_problem:
                self.get_logger().warning(
                    f"compile is {self._segmenter.compiled}, not {wanted.compile}: {self._segmenter.compile_problem}"
                )
            self._segmenter.warm_up()
            classes = self._segmenter.model.spec.classes
            for name in wanted.cameras:
                camera = Camera(self, name, classes, transport=wanted.transport, alpha=wanted.overlay_alpha)
                self._cameras[name] = camera
                camera.advertise()
        except Exception as error:  # rclpy would lose its message
            self._fail(f"cannot be configured: {error}")
            self._free()
            return TransitionCallbackReturn.FAILURE
        self.get_logger().info(
            f"{self._segmenter.model.name} on {self._segmenter.device} in {self._segmenter.precision} "
            f"for {', '.join(camera.topic for camera in self._cameras.values())}"
        )
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Take images in, with new memories and new counts."""
        assert self._segmenter is not None
        self._mailbox = Mailbox(self._cameras)
        try:
            for camera in self._cameras.values():
                camera.start(self._segmenter.stream(), self._mailbox)
                self._history[camera.name] = deque([camera.account.balance()], RATE_REPORTS + 1)
        except Exception as error:
            self._fail(f"cannot be activated: {error}")
            self._stop()
            return TransitionCallbackReturn.FAILURE
        self._worker = Thread(target=self._work, name="segmenter")
        self._worker.start()
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Finish the frame in work, take no more, and report what became of all."""
        self._stop()
        self._report(final=True)
        return TransitionCallbackReturn.SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and withdraw the topics."""
        self._free()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free, from any state."""
        self._free()
        self._report_timer.cancel()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Be as before `on_configure`."""
        self._free()
        return TransitionCallbackReturn.SUCCESS

    def destroy_node(self) -> None:
        """Stop and free, from any state."""
        self._free()
        super().destroy_node()

    def _stop(self) -> None:
        for camera in self._cameras.values():
            camera.stop()
        for name in self._mailbox.close():
            self._cameras[name].account.drop(DropReason.DEACTIVATED)
        if self._worker is not None:
            self._worker.join()
            self._worker = None
        for camera in self._cameras.values():
            camera.forget()

    def _free(self) -> None:
        self._stop()
        for camera in self._cameras.values():
            camera.close()
        self._cameras.clear()
        self._segmenter = None

    def _work(self) -> None:
        """Segment what the cameras leave in the mailbox, until it is closed."""
        while (taken := self._mailbox.take()) is not None:
            camera, arrival = self._cameras[taken[0]], taken[1]
            try:
                camera.segment(arrival)
            except ImageError as error:
                camera.account.drop(DropReason.MALFORMED, str(error))
                self._complain(f"a malformed image on {camera.topic}: {error}")
            except Exception as error:  # one frame's failure must not end the others'
                camera.account.drop(DropReason.FAILED, f"{type(error).__name__}: {error}")
                if self.context.ok():  # after a signal nothing can be published: that is no error
                    self._complain(f"an image on {camera.topic} failed: {type(error).__name__}: {error}")

    def _fail(self, problem: str) -> None:
        self._last_error = problem
        self.get_logger().error(problem)

    def _complain(self, problem: str) -> None:
        self.get_logger().error(problem, throttle_duration_sec=PERIOD_S)

    def _on_set_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        configured = self._segmenter is not None
        problems = [text for kind in KINDS for text in parameters.refusals(kind, changes, configured=configured)]
        return SetParametersResult(successful=not problems, reason=" ".join(problems))

    def _on_parameters_set(self, changes: list[Parameter]) -> None:
        """Let the live parameters take effect, from the next frame on."""
        if self._segmenter is None:
            return
        wanted = parameters.read(self, SegmentParameters)
        self._segmenter.flow = DisFlow(wanted.flow_preset)
        self._segmenter.max_gap = wanted.max_gap
        for camera in self._cameras.values():
            camera.alpha = wanted.overlay_alpha

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        for camera in self._cameras.values():
            camera.reset()
        response.success = self._worker is not None
        response.message = (
            f"the memories of {', '.join(self._cameras)} start anew with their next frames"
            if response.success
            else "the node is not active, and has no memory"
        )
        return response

    def _report(self, *, final: bool = False) -> None:
        node = self.get_fully_qualified_name().removeprefix("/")
        thresholds = parameters.read(self, Thresholds)
        state = "active" if self._worker else "inactive" if self._segmenter else "unconfigured"
        report = DiagnosticArray(status=[node_status(node, state, self._segmenter, thresholds, self._last_error)])
        report.header.stamp = self.get_clock().now().to_msg()
        for camera in self._cameras.values() if final or state == "active" else ():
            name, history = f"{node}: {camera.name}", self._history[camera.name]
            history.append(camera.account.balance())
            report.status.append(
                camera_status(name, camera.name, camera.topic, history, thresholds, camera.qos_problem)
            )
        self._diagnostics.publish(report)


def main() -> None:
    """Run the node until SIGINT or SIGTERM."""
    with ros_process("segment_node"), executing(SegmentNode()) as executor:
        executor.spin()


if __name__ == "__main__":
    main()
