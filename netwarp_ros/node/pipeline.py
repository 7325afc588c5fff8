# SPDX-License-Identifier: Apache-2.0
"""The work of the segment node, in two threads: the worker loads the model and segments, the other draws pictures.

Neither can be interrupted, and both may hang. So `Pipeline.stop` waits for `STOP_S`, and gives up what hangs.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

from netwarp_ros.mailbox import Mailbox
from netwarp_ros.node.camera import Camera, ReceivedImage
from netwarp_ros.node.diagnostics import MAX_PROBLEM, stuck_problem
from netwarp_ros.node.frame_counts import DropReason
from netwarp_ros.node.outputs import Picture
from netwarp_ros.node.segment_parameters import SegmentParameters, engine_arguments
from netwarp_ros.node.worker import Worker
from netwarp_ros.recordings.image_messages import ImageError
from netwarp_ros.resources import cut
from netwarp_ros.segmenter import Segmenter, Stream

STOP_S = 1.0
"""How long to wait for the end of what the threads do."""

CUDA_ERRORS = 3
"""Frames on end that fail by an error of CUDA before the work is given up: such an error mostly persists."""

_NICENESS = 10
"""How much less the scheduler favors the thread that draws: no mask must wait for a picture."""

T = TypeVar("T")


@dataclass(frozen=True)
class Reports:
    """What the threads call.

    Attributes:
        dropped: With the reason why an image was dropped.
        persistent_problem: When the work cannot go on; `Pipeline.persistent_problem` says why.
    """

    dropped: Callable[[str], object]
    persistent_problem: Callable[[], object]


class Pipeline:
    """Loads a model, and from `start` to `stop` segments the images that cameras receive, and draws their pictures.

    Attributes:
        segmenter: The model; None until it is loaded, and after it was freed or given up.
        loading: What loading does at present; empty unless a model is being loaded.
    """

    def __init__(self, reports: Reports) -> None:
        self._reports = reports
        self.segmenter: Segmenter | None = None
        self.loading = ""
        self._worker, self._picture_thread = Worker("segmenter"), _picture_thread()
        self._given_up: list[Worker] = []
        self._tasks: list[Future[None]] = []  # while it is running
        self._cameras: dict[str, Camera] = {}
        self._images: Mailbox[ReceivedImage] = Mailbox()
        self._pictures: Mailbox[Picture] = Mailbox()
        self._cuda_errors, self._cuda_problem = 0, ""
        self._fault = ""  # why segmenting has ended by itself

    @property
    def is_running(self) -> bool:
        """Whether images are segmented."""
        return bool(self._tasks)

    @property
    def doing(self) -> str:
        """What takes long at present, such as loading a model; empty if nothing does."""
        compiling = (camera.compiling for camera in list(self._cameras.values()))
        return self.loading or next(filter(None, compiling), "")

    @property
    def persistent_problem(self) -> str:
        """Why the work cannot go on; empty if it can."""
        if self._fault or self._cuda_errors < CUDA_ERRORS:
            return self._fault
        return f"{self._cuda_errors} frames on end failed: {self._cuda_problem}"

    def stuck(self, limit_s: float) -> str:
        """Return which image has been in work for longer than some seconds; empty if none has."""
        cameras = list(self._cameras.values())
        problems = (stuck_problem(camera.topic, camera.working_s(), limit_s) for camera in cameras)
        return next(filter(None, problems), "")

    def load(self, settings: SegmentParameters) -> Future[None]:
        """Begin to make the segmenter, and to warm it up at each of `SegmentParameters.image_sizes`."""
        self.loading = f"loading {settings.model}"
        return self._worker.submit(lambda: self._load(settings))

    def start(self, cameras: Mapping[str, Camera], open_stream: Callable[[str], Stream]) -> None:
        """Begin to receive and segment images, with new counts.

        Args:
            cameras: The cameras, by name.
            open_stream: Returns a new stream for the camera of a name.
        """
        self._cameras, self._cuda_errors, self._fault = dict(cameras), 0, ""
        self._images, self._pictures = Mailbox(cameras), Mailbox(cameras)
        for name, camera in cameras.items():
            camera.start(open_stream(name), self._images, self._pictures)
        images, pictures = self._images, self._pictures
        self._tasks = [
            self._worker.submit(lambda: self._segment_images(images)),
            self._picture_thread.submit(lambda: self._draw_pictures(pictures)),
        ]
        self._tasks[0].add_done_callback(self._report_fault)

    def stop(self) -> str:
        """Receive no more images, and finish the present one.

        Returns:
            What had to be given up, because it did not end within `STOP_S`; empty if nothing. If it was segmenting, the
            segmenter is given up with it.
        """
        self._stop_receiving()
        tasks, self._tasks = self._tasks, []
        unfinished, problem = wait(tasks, STOP_S).not_done, ""
        if tasks and tasks[0] in unfinished:
            problem = f"{self._busy_with()} does not end within {STOP_S:g} s, and is given up with the model"
            self._give_up_segmenting()
        if tasks and tasks[1] in unfinished:
            problem = problem or f"drawing a picture does not end within {STOP_S:g} s, and is given up"
            self._given_up.append(self._picture_thread)
            self._picture_thread = _picture_thread()
        for camera in self._cameras.values():
            camera.release_stream()
        self._cameras = {}
        return problem

    def free(self) -> None:
        """Free the segmenter, once it is stopped; in the thread that made it."""
        if self.segmenter is not None or self.loading:
            self._worker.submit(self._free).result()
        self.loading = ""

    def end(self, within_s: float) -> str:
        """Stop, free and end the threads. Return what they are in the middle of if they do not end in time."""
        deadline = monotonic() + within_s
        self._stop_receiving()
        busy = ""
        if not self._worker.is_idle(within_s):
            busy = self._busy_with()
        elif not self._picture_thread.is_idle(max(0.0, deadline - monotonic())):
            busy = "drawing a picture"
        else:
            self.stop()
            self.free()
        for thread in (self._worker, self._picture_thread):
            thread.stop()
        return busy

    def is_busy(self) -> bool:
        """Tell whether a thread is still at work, after `end`."""
        return not all(thread.is_idle() for thread in (self._worker, self._picture_thread, *self._given_up))

    def _stop_receiving(self) -> None:
        for camera in self._cameras.values():
            camera.stop()
        for name in self._images.close():
            self._cameras[name].counter.count_dropped(DropReason.DEACTIVATED)
        self._pictures.close()

    def _busy_with(self) -> str:
        """Return what the worker does at present."""
        topics = [camera.topic for camera in self._cameras.values() if camera.working_s()]
        return self.doing or " ".join(["segmenting an image", *(f"on {topic}" for topic in topics)])

    def _give_up_segmenting(self) -> None:
        """Leave the worker to itself, with the model, and go on with a new one that has none."""
        for camera in self._cameras.values():
            if camera.working_s() or camera.compiling:
                camera.counter.count_dropped(DropReason.DEACTIVATED)
        self._worker.stop()
        self._given_up.append(self._worker)
        self._worker = Worker("segmenter")
        self._images, self.segmenter = Mailbox(), None  # what the old worker still segments is not reported

    def _report_fault(self, segmenting: Future[None]) -> None:
        if (error := segmenting.exception()) is not None:
            self._fault = f"segmenting has ended: {type(error).__name__}: {error}"
            self._reports.persistent_problem()

    def _load(self, settings: SegmentParameters) -> None:
        gc.collect()  # a model that was given up
        self.segmenter = Segmenter(
            settings.model,
            flow=settings.flow_preset,
            flow_device=settings.flow_device,
            **engine_arguments(settings),
            input_height=settings.input_height,
            max_input_width=settings.max_input_width,
            max_gap=settings.max_gap,
            host_only=settings.host_only,
            keyframes=settings.keyframes,
            label_map=settings.label_map or None,
            mask_size=settings.mask_size,
        )
        for size in settings.image_sizes:
            self.loading = f"compiling for images of {size}"
            width, height = map(int, size.split("x"))
            self.segmenter.warm_up(width, height)

    def _free(self) -> None:
        self.segmenter = None
        gc.collect()  # a network and its layers refer to each other, as do an engine and its graphs

    def _segment_images(self, images: Mailbox[ReceivedImage]) -> None:
        """Segment the images in a mailbox until it is closed. Once given up, report nothing any more."""
        cameras = self._cameras
        while (taken := images.take()) is not None:
            camera, received = cameras[taken[0]], taken[1]
            try:
                camera.segment(received)
                problem = ""
            except ImageError as error:
                text = cut(str(error), MAX_PROBLEM)
                camera.counter.count_dropped(DropReason.MALFORMED, text)
                self._reports.dropped(f"a malformed image on {camera.topic}: {text}")
                continue
            except Exception as error:  # a frame that fails must not stop the worker
                problem = cut(f"{type(error).__name__}: {error}", MAX_PROBLEM)
                camera.counter.count_dropped(DropReason.FAILED, problem)
            if images is self._images:
                self._note(problem, camera)
        if images is not self._images:
            gc.collect()  # the model that was given up with this thread

    def _note(self, problem: str, camera: Camera) -> None:
        """Report a frame that failed, and errors of CUDA that persist; an empty problem is a frame that did not."""
        if problem:
            self._reports.dropped(f"an image on {camera.topic} failed: {problem}")
        is_of_cuda = any(name in problem for name in ("CUDA", "cuDNN", "CUDNN"))
        self._cuda_errors, self._cuda_problem = self._cuda_errors + 1 if is_of_cuda else 0, problem
        if self._cuda_errors == CUDA_ERRORS:
            self._reports.persistent_problem()

    def _draw_pictures(self, pictures: Mailbox[Picture]) -> None:
        """Draw the pictures in a mailbox until it is closed."""
        cameras = self._cameras
        while (taken := pictures.take()) is not None:
            camera = cameras[taken[0]]
            try:
                camera.draw(taken[1])
            except Exception as error:
                camera.note_problem("color or overlay", error)


def _picture_thread() -> Worker:
    return Worker("pictures", _NICENESS)
