# SPDX-License-Identifier: Apache-2.0
"""The client of a lifecycle node: it relies on the node's state, not on a response alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from graph import Graph, Program, open_graph
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState

from netwarp_ros.node import lifecycle
from netwarp_ros.node.lifecycle import LifecycleError

pytestmark = pytest.mark.ros

GOALS = {Transition.TRANSITION_CONFIGURE: "inactive", Transition.TRANSITION_ACTIVATE: "active"}


@pytest.fixture
def graph(ros_domain: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Graph]:
    monkeypatch.setattr(lifecycle, "RETRY_S", 0.2)
    with open_graph() as graph:
        yield graph


class Target:
    """The services of a lifecycle node, run by the executor that the client spins."""

    def __init__(self, graph: Graph, state: str) -> None:
        self.state, self.goals, self.requests, self._node = state, GOALS, [], graph.node
        self.change_state = graph.node.create_service(ChangeState, "/target/change_state", self._on_change)
        self.get_state = graph.node.create_service(GetState, "/target/get_state", self._on_get)

    def _on_change(self, request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
        self.requests.append(request.transition.id)
        self.state = self.goals.get(request.transition.id, self.state)
        response.success = True
        return response

    def _on_get(self, request: GetState.Request, response: GetState.Response) -> GetState.Response:
        response.current_state = State(label=self.state)
        return response

    def end(self) -> None:
        for service in (self.change_state, self.get_state):
            self._node.destroy_service(service)


def test_a_lost_response_does_not_hide_the_new_state(graph: Graph) -> None:
    target = Target(graph, "unconfigured")
    target.change_state.send_response = lambda response, header: None
    graph.lifecycle("/target").configure()
    assert target.state == "inactive"
    assert target.requests == [Transition.TRANSITION_CONFIGURE]


def test_a_response_does_not_stand_for_the_new_state(graph: Graph) -> None:
    target = Target(graph, "unconfigured")
    target.goals = {}
    with pytest.raises(LifecycleError, match="/target refused or failed to configure, and is unconfigured"):
        graph.lifecycle("/target").configure()
    assert target.requests == [Transition.TRANSITION_CONFIGURE]


@pytest.mark.parametrize("state", ["active", "inactive", "configuring"])
def test_an_impossible_transition_is_not_requested(graph: Graph, state: str) -> None:
    target = Target(graph, state)
    with pytest.raises(LifecycleError, match=f"/target is {state}: it can configure only when it is unconfigured"):
        graph.lifecycle("/target").configure()
    assert target.requests == []


def test_a_node_that_ends_is_not_waited_for(graph: Graph) -> None:
    target = Target(graph, "unconfigured")
    target.change_state.send_response = lambda response, header: target.end()
    with pytest.raises(LifecycleError, match="/target has ended: see its log"):
        graph.lifecycle("/target").configure()


def test_the_program_activates_a_node_once(graph: Graph, tmp_path: Path) -> None:
    target = Target(graph, "unconfigured")

    def run() -> tuple[int, str]:
        program = Program([sys.executable, "-m", "netwarp_ros.node.lifecycle", "/target"], tmp_path / "log")
        graph.until(lambda: program.has_ended(0.0), "end")
        return program.wait(), program.output

    assert run() == (0, "")
    assert run() == (1, "lifecycle: /target is active: it can configure only when it is unconfigured\n")
    assert target.requests == [Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE]
