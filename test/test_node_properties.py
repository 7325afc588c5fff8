# SPDX-License-Identifier: Apache-2.0
"""What holds of the segment node whatever happens to it, for which it runs in the test's own process."""

from __future__ import annotations

import gc
import os
import random
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from graph import (
    SECOND,
    Graph,
    Viewer,
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

from netwarp_ros.node.camera import Camera
from netwarp_ros.node.frame_counts import DropReason, FrameCounts
from netwarp_ros.node.segment_node import SegmentNode
from netwarp_ros.segmenter import Segmenter, Stream

pytestmark = pytest.mark.ros

NAMESPACE = "properties"  # of its own: see test_node_failures.py
CAMERAS = ("front", "rear")
PERIOD = SECOND // 10
FAILING = "failing"
IMAGES = moving_images(8)


def a_message(kind: str, number: int, stamp_ns: int) -> Image | bytes:
    """Return an image that is sound, or not in one of several ways."""
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
    st.integers(-2, 8),  # periods since the one before: back in time, and over max_gap
)
CHANGES = st.one_of(
    st.builds(lambda value: Parameter("max_gap", value=value), st.sampled_from((0.05, 0.5, 5.0, -1.0))),
    st.builds(lambda value: Parameter("flow_preset", value=value), st.sampled_from(("ultrafast", "fast", "slow"))),
    st.builds(lambda value: Parameter("model", value=value), st.just("another")),  # which an active node refuses
)
SCHEDULES = st.lists(
    st.one_of(
        st.lists(FRAMES, min_size=1, max_size=5),  # at once
        st.integers(1, 5),  # times that the node looks for what has come
        st.just("wait"),
        CHANGES,
        st.sampled_from(("reset", "restart")),
    ),
    min_size=6,
    max_size=30,
)


class Car:
    """A node with two cameras; of the front one's images only the newest waits, of the rear one's all do."""

    def __init__(self, graph: Graph, node: SegmentNode) -> None:
        self.graph, self.node = graph, node
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        self.activate()
        self.viewers = {name: Viewer(graph, name) for name in CAMERAS}
        self.deactivate()

    def activate(self) -> None:
        if self.node._worker is not None:  # an example that failed left it so
            self.deactivate()
        assert self.node.trigger_activate() == TransitionCallbackReturn.SUCCESS

    def deactivate(self) -> None:
        assert self.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS

    def balance(self, name: str) -> FrameCounts:
        return self.node._cameras[name].counter.snapshot()


@pytest.fixture(scope="module")
def car(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Car]:
    segment = Stream.segment

    def fail(self: Stream, image: Any, stamp_ns: int, frame_id: str = "", *arguments: Any) -> Any:
        if frame_id == FAILING:
            raise RuntimeError("out of memory")
        return segment(self, image, stamp_ns, frame_id, *arguments)

    model = tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")
    parameters = {
        "cameras": list(CAMERAS),
        "model": model,
        **lossless(*(f"{NAMESPACE}/{name}" for name in CAMERAS)),
        f"qos_overrides./{NAMESPACE}/rear/image_raw.subscription.depth": 1000,
    }
    given = (part for name, value in parameters.items() for part in ("-p", f"{name}:={value}"))
    with own_domain(), open_graph("-r", f"__ns:=/{NAMESPACE}", *given) as graph, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stream, "segment", fail)
        node = SegmentNode()
        graph.executor.add_node(node)
        yield Car(graph, node)
        node.destroy_node()


class Ride:
    """What is sent to a car's node from its activation to its deactivation."""

    def __init__(self, car: Car) -> None:
        self.car = car
        self.sent: dict[str, Counter[str]] = {name: Counter() for name in CAMERAS}
        self._stamps_ns = dict.fromkeys(CAMERAS, 1000 * SECOND)
        self._before = {name: len(car.viewers[name].timings) for name in CAMERAS}
        car.activate()
        for name in CAMERAS:
            topic = f"{name}/image_raw"
            car.graph.until(lambda topic=topic: self._is_matched(topic), f"both ends of {topic}")
            # What is replaced in the middleware's queue before any was taken from it, nobody can count.
            self.send([(name, "sound", 1)])
            car.graph.until(lambda name=name: car.balance(name).received == 1, "first image")

    def _is_matched(self, topic: str) -> bool:
        name = topic.partition("/")[0]
        subscription = self.car.node._cameras[name]._subscription
        publisher = self.car.viewers[name]._camera
        return publisher.get_subscription_count() == 1 and subscription.get_publisher_count() == 1

    def send(self, frames: list[tuple[str, str, int]]) -> None:
        """Publish images of some cameras, kinds and periods since the one before."""
        for name, kind, periods in frames:
            self._stamps_ns[name] += periods * PERIOD
            self.car.viewers[name].publish(a_message(kind, self.sent[name].total(), self._stamps_ns[name]))
            self.sent[name][kind] += 1

    def wait(self) -> None:
        """Wait until every image that was sent has got to where it goes."""

        def settled(name: str) -> bool:
            balance = self.car.balance(name)
            return not balance.in_flight and balance.received + balance.missed == self.sent[name].total()

        self.car.graph.until(lambda: all(map(settled, CAMERAS)), "end of all work")

    def end(self, *, waited: bool) -> None:
        """Deactivate the node and check its accounts."""
        self.car.deactivate()
        for name in CAMERAS:
            balance, sent, viewer = self.car.balance(name), self.sent[name], self.car.viewers[name]
            sound, malformed = (sum(sent[kind] for kind in kinds) for kinds in (SOUND, MALFORMED))
            dropped = balance.dropped
            assert balance.received == balance.published + dropped.total()
            assert set(dropped) <= set(DropReason)
            assert balance.received + balance.missed <= sent.total()
            assert balance.published <= sound
            assert dropped[DropReason.MALFORMED] <= malformed
            assert dropped[DropReason.FAILED] <= sent["fails"]
            if waited:
                assert balance.received + balance.missed == sent.total()
                assert not dropped[DropReason.DEACTIVATED]
            if name == "rear":
                assert not balance.missed
            assert bool(balance.last_error) == bool(dropped[DropReason.MALFORMED] + dropped[DropReason.FAILED])

            first = self._before[name]
            self.car.graph.until(
                lambda first=first, count=balance.published, viewer=viewer: (
                    len(viewer.timings) - first >= count and len(viewer.masks) == len(viewer.timings)
                ),
                "mask and timing of each published frame",
            )
            timings = viewer.timings[first:]
            assert [timing.sequence for timing in timings] == list(range(balance.published))
            assert [mask.header for mask in viewer.masks[first:]] == [timing.header for timing in timings]
            assert Counter(timing.reason for timing in timings if timing.reason) == balance.resets


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(SCHEDULES)
def test_received_is_published_and_dropped(car: Car, schedule: list[Any]) -> None:
    ride, waited = Ride(car), False
    for action in schedule:
        waited = action == "wait"
        match action:
            case list():
                ride.send(action)
            case int():
                for _ in range(action):
                    car.graph.executor.spin_once(timeout_sec=0)
            case Parameter():
                (result,) = car.node.set_parameters([action])
                assert result.successful == (action.value not in (-1.0, "slow", "another"))
            case "reset":
                for camera in car.node._cameras.values():
                    camera.reset()
            case "wait":
                ride.wait()
            case "restart":
                ride.end(waited=False)
                ride = Ride(car)
    ride.end(waited=waited)


TRANSITIONS = {
    ("unconfigured", "configure"): "inactive",
    ("inactive", "activate"): "active",
    ("active", "deactivate"): "inactive",
    ("inactive", "cleanup"): "unconfigured",
}
"""From which state which transition leads to which; there is no other."""


def memory_mb() -> float:
    """Return the resident memory of this process in 10^6 bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_a_hundred_transitions_leave_nothing_behind(car: Car, monkeypatch: pytest.MonkeyPatch) -> None:
    node, rng = car.node, random.Random(0)
    made: list[weakref.ref[Any]] = []
    for kind in (Segmenter, Camera, Stream):
        initialize = kind.__init__

        def note(self: Any, *arguments: Any, initialize: Any = initialize, **keywords: Any) -> None:
            made.append(weakref.ref(self))
            initialize(self, *arguments, **keywords)

        monkeypatch.setattr(kind, "__init__", note)
    state, visits = "inactive", Counter[str]()

    def change(transition: str) -> None:
        nonlocal state
        if (following := TRANSITIONS.get((state, transition))) is None:
            with suppress(RCLError):  # which Jazzy raises
                getattr(node, f"trigger_{transition}")()
        else:
            assert getattr(node, f"trigger_{transition}")() == TransitionCallbackReturn.SUCCESS
            state = following
            visits[state] += 1
        assert node._state_machine.current_state[1] == state
        assert state == "active" or not any(isinstance(reference(), Stream) for reference in made)
        for index in range(2):
            car.viewers["front"].publish(image_message(IMAGES[index], SECOND + index * PERIOD))
            car.graph.executor.spin_once(timeout_sec=0)

    def holdings() -> tuple[int, ...]:
        """Come to rest, and count what the node has."""
        for transition in ("deactivate", "cleanup"):
            if (state, transition) in TRANSITIONS:
                change(transition)
        gc.collect()
        entities = (node.publishers, node.subscriptions, node.services, node.clients, node.timers, node.waitables)
        alive = sum(reference() is not None for reference in made)
        return (threading.active_count(), alive, *(len(list(kind)) for kind in entities))

    def change_a_hundred_times() -> float:
        """Return the memory of the process afterwards."""
        for _ in range(100):
            change(rng.choice(("configure", "activate", "deactivate", "cleanup")))
        assert holdings() == before
        return memory_mb()

    before = holdings()
    warm_mb = change_a_hundred_times()  # the allocator takes what it will keep
    assert change_a_hundred_times() - warm_mb < 17  # a model
    assert len(visits) == 3 and min(visits.values()) > 10
