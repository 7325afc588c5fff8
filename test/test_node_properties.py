# SPDX-License-Identifier: Apache-2.0
"""Properties that the segment node has after any sequence of events. It runs in the process of the test."""

from __future__ import annotations

import gc
import os
import random
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from graph import (
    SECOND,
    Graph,
    SegmentClient,
    image_message,
    lossless,
    moving_images,
    open_graph,
    own_domain,
    tiny_model,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rclpy._rclpy_pybind11 import RCLError
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image

from netwarp_ros.models import VideoCNN
from netwarp_ros.node.camera import Camera
from netwarp_ros.node.frame_counts import DropReason, FrameCounts
from netwarp_ros.node.process import parameter_arguments
from netwarp_ros.node.segment_node import SegmentNode
from netwarp_ros.node.tools.load_cameras import memory_mb
from netwarp_ros.segmenter import Segmenter, Stream

pytestmark = pytest.mark.ros

NAMESPACE = "properties"  # see test_node_failures.py
CAMERAS = ("front", "rear")
PERIOD = SECOND // 10
FAILING = "failing"
IMAGES = moving_images(8)


def a_message(kind: str, number: int, stamp_ns: int) -> Image | bytes:
    """Return an image message with the damage that ``kind`` names, if any."""
    message = image_message(IMAGES[number % len(IMAGES)], stamp_ns)
    match kind:
        case "other frame":
            message.header.frame_id = "elsewhere"
        case "fails":
            message.header.frame_id = FAILING
        case "unknown encoding":
            message.encoding = "bgr9"
        case "short data":
            message.data = message.data[:-1]
        case "no image":
            return bytes(serialize_message(message)[:-1])
    return message


SOUND, MALFORMED = ("sound", "other frame"), ("unknown encoding", "short data", "no image")
FRAMES = st.tuples(
    st.sampled_from(CAMERAS),
    st.sampled_from((*SOUND, "fails", *MALFORMED)),
    st.integers(-2, 8),  # periods since the previous image: also backwards, and over max_gap
)
CHANGES = st.one_of(
    st.builds(lambda value: Parameter("max_gap", value=value), st.sampled_from((0.05, 0.5, 5.0, -1.0))),
    st.builds(lambda value: Parameter("flow_preset", value=value), st.sampled_from(("ultrafast", "fast", "slow"))),
    st.builds(lambda value: Parameter("model", value=value), st.just("another")),  # an active node rejects it
)
SCHEDULES = st.lists(
    st.one_of(
        st.lists(FRAMES, min_size=1, max_size=5),  # sent at once
        st.integers(1, 5),  # spins of the executor
        st.just("wait"),
        CHANGES,
        st.sampled_from(("reset", "restart")),
    ),
    min_size=6,
    max_size=30,
)


class TwoCameraNode:
    """A segment node with two cameras. The queue of the front camera holds one image, that of the rear camera all."""

    def __init__(self, graph: Graph, node: SegmentNode) -> None:
        self.graph, self.node = graph, node
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        self.activate()
        self.clients = {name: SegmentClient(graph, name) for name in CAMERAS}
        self.deactivate()

    def activate(self) -> None:
        if self.node._pipeline.is_running:  # a failed example left it active
            self.deactivate()
        assert self.node.trigger_activate() == TransitionCallbackReturn.SUCCESS

    def deactivate(self) -> None:
        assert self.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS

    def counts(self, name: str) -> FrameCounts:
        return self.node._cameras[name].counter.snapshot()


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoCameraNode]:
    segment = Stream.segment

    def fail(self: Stream, image: Any, stamp_ns: int, frame_id: str = "", *arguments: Any, **options: Any) -> Any:
        if frame_id == FAILING:
            raise RuntimeError("out of memory")
        return segment(self, image, stamp_ns, frame_id, *arguments, **options)

    model = tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")
    parameters = {
        "cameras": list(CAMERAS),
        "model": model,
        **lossless(*(f"{NAMESPACE}/{name}" for name in CAMERAS)),
        f"qos_overrides./{NAMESPACE}/rear/image_raw.subscription.depth": 1000,
    }
    with (
        own_domain(),
        open_graph("-r", f"__ns:=/{NAMESPACE}", *parameter_arguments(**parameters)) as graph,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(Stream, "segment", fail)
        node = SegmentNode()
        graph.executor.add_node(node)
        yield TwoCameraNode(graph, node)
        node.destroy_node()


class Activation:
    """The images sent to the node from its activation to its deactivation."""

    def __init__(self, tested: TwoCameraNode) -> None:
        self.tested = tested
        self.sent: dict[str, Counter[str]] = {name: Counter() for name in CAMERAS}
        self._stamps_ns = dict.fromkeys(CAMERAS, 1000 * SECOND)
        self._before = {name: len(tested.clients[name].timings) for name in CAMERAS}
        tested.activate()
        for name in CAMERAS:
            topic = f"{name}/image_raw"
            tested.graph.until(lambda topic=topic: self._is_matched(topic), f"both ends of {topic}")
            # An image that is replaced in the middleware's queue before the first one was received cannot be counted.
            self.send([(name, "sound", 1)])
            tested.graph.until(lambda name=name: tested.counts(name).received == 1, "first image")

    def _is_matched(self, topic: str) -> bool:
        name = topic.partition("/")[0]
        subscription = self.tested.node._cameras[name]._subscription
        publisher = self.tested.clients[name]._publisher
        return publisher.get_subscription_count() == 1 and subscription.get_publisher_count() == 1

    def send(self, frames: list[tuple[str, str, int]]) -> None:
        """Publish images.

        Args:
            frames: For each image its camera, its kind, and the periods since the previous image.
        """
        for name, kind, periods in frames:
            self._stamps_ns[name] += periods * PERIOD
            self.tested.clients[name].publish(a_message(kind, self.sent[name].total(), self._stamps_ns[name]))
            self.sent[name][kind] += 1

    def wait(self) -> None:
        """Wait until every image is published, dropped or missed."""

        def settled(name: str) -> bool:
            counts = self.tested.counts(name)
            return not counts.in_flight and counts.received + counts.missed == self.sent[name].total()

        self.tested.graph.until(lambda: all(map(settled, CAMERAS)), "end of all work")

    def end(self, *, waited: bool) -> None:
        """Deactivate the node, and check its counts.

        Args:
            waited: Whether `wait` was called after the last image.
        """
        self.tested.deactivate()
        for name in CAMERAS:
            counts, sent, client = self.tested.counts(name), self.sent[name], self.tested.clients[name]
            sound, malformed = (sum(sent[kind] for kind in kinds) for kinds in (SOUND, MALFORMED))
            dropped = counts.dropped
            assert counts.received == counts.published + dropped.total()
            assert set(dropped) <= set(DropReason)
            assert counts.received + counts.missed <= sent.total()
            assert counts.published <= sound
            assert dropped[DropReason.MALFORMED] <= malformed
            assert dropped[DropReason.FAILED] <= sent["fails"]
            if waited:
                assert counts.received + counts.missed == sent.total()
                assert not dropped[DropReason.DEACTIVATED]
            if name == "rear":
                assert not counts.missed
            assert bool(counts.last_error) == bool(dropped[DropReason.MALFORMED] + dropped[DropReason.FAILED])

            first = self._before[name]
            self.tested.graph.until(
                lambda first=first, count=counts.published, client=client: (
                    len(client.timings) - first >= count and len(client.masks) == len(client.timings)
                ),
                "mask and timing of each published frame",
            )
            timings = client.timings[first:]
            assert [timing.sequence for timing in timings] == list(range(counts.published))
            assert [mask.header for mask in client.masks[first:]] == [timing.header for timing in timings]
            assert Counter(timing.reason for timing in timings if timing.reason) == counts.resets


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(SCHEDULES)
def test_received_equals_published_plus_dropped(tested: TwoCameraNode, schedule: list[Any]) -> None:
    activation, waited = Activation(tested), False
    for action in schedule:
        waited = action == "wait"
        match action:
            case list():
                activation.send(action)
            case int():
                for _ in range(action):
                    tested.graph.executor.spin_once(timeout_sec=0)
            case Parameter():
                (result,) = tested.node.set_parameters([action])
                assert result.successful == (action.value not in (-1.0, "slow", "another"))
            case "reset":
                for camera in tested.node._cameras.values():
                    camera.reset()
            case "wait":
                activation.wait()
            case "restart":
                activation.end(waited=False)
                activation = Activation(tested)
    activation.end(waited=waited)


TRANSITIONS = {
    ("unconfigured", "configure"): "inactive",
    ("inactive", "activate"): "active",
    ("active", "deactivate"): "inactive",
    ("inactive", "cleanup"): "unconfigured",
}
"""The state after each transition from each state. All others are invalid."""


def test_a_hundred_transitions_leave_nothing_behind(tested: TwoCameraNode, monkeypatch: pytest.MonkeyPatch) -> None:
    node, rng = tested.node, random.Random(0)
    created: list[weakref.ref[Any]] = []
    for kind in (Segmenter, VideoCNN, Camera, Stream):
        initialize = kind.__init__

        def note(self: Any, *arguments: Any, initialize: Any = initialize, **keywords: Any) -> None:
            created.append(weakref.ref(self))
            initialize(self, *arguments, **keywords)

        monkeypatch.setattr(kind, "__init__", note)
    state, visits = "inactive", Counter[str]()

    def change(transition: str) -> None:
        nonlocal state
        if (following := TRANSITIONS.get((state, transition))) is None:
            with suppress(RCLError):  # in Jazzy
                getattr(node, f"trigger_{transition}")()
        else:
            assert getattr(node, f"trigger_{transition}")() == TransitionCallbackReturn.SUCCESS
            state = following
            visits[state] += 1
        assert node._state_machine.current_state[1] == state
        assert state == "active" or not any(isinstance(reference(), Stream) for reference in created)
        assert state != "unconfigured" or not any(
            isinstance(reference(), Segmenter | VideoCNN) for reference in created
        )
        for index in range(2):
            tested.clients["front"].publish(image_message(IMAGES[index], SECOND + index * PERIOD))
            tested.graph.executor.spin_once(timeout_sec=0)

    def count_objects() -> tuple[int, ...]:
        """Clean the node up, and count its threads, objects and ROS entities."""
        for transition in ("deactivate", "cleanup"):
            if (state, transition) in TRANSITIONS:
                change(transition)
        gc.collect()
        entities = (node.publishers, node.subscriptions, node.services, node.clients, node.timers, node.waitables)
        alive = sum(reference() is not None for reference in created)
        return (threading.active_count(), alive, *(len(list(kind)) for kind in entities))

    def change_a_hundred_times() -> float:
        """Make a hundred random transitions; return the memory of the process afterwards, in MB."""
        for _ in range(100):
            change(rng.choice(("configure", "activate", "deactivate", "cleanup")))
        assert count_objects() == before
        return memory_mb(os.getpid())

    before = count_objects()
    warm_mb = change_a_hundred_times()  # the allocator reaches its final size
    assert change_a_hundred_times() - warm_mb < 17  # a model
    assert len(visits) == 3 and min(visits.values()) > 10
