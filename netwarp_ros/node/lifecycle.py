# SPDX-License-Identifier: Apache-2.0
"""A client that changes the state of a lifecycle node.

``python -m netwarp_ros.node.lifecycle NODE`` configures and activates a node. The launch file runs it as a new process
for every start of the node: a process that knew the node before a crash keeps sending to the dead one until the
middleware drops it (20 s with Fast DDS), and those requests are lost.
"""

from __future__ import annotations

if __name__ == "__main__":
    from netwarp_ros.environment import start_node

    start_node()

import sys
from time import monotonic

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.client import Client
from rclpy.executors import Executor
from rclpy.node import Node

from netwarp_ros.node.process import executing, ros_process

TIMEOUT_S = 600.0
"""How long the program waits for a response. Loading a large model on a slow machine takes minutes."""

RETRY_S = 2.0
"""How long to wait for a response before the request is sent again."""


class LifecycleError(RuntimeError):
    """A lifecycle node does not respond, or does not make a transition."""


class LifecycleClient:
    """Changes the state of a lifecycle node.

    Each call spins the executor until the node has responded.

    Args:
        node: The node that sends the requests.
        executor: The executor that spins that node.
        target: Name of the lifecycle node, with its namespace.
        timeout_s: Seconds to wait for each response. This includes the time in which the lifecycle node starts.
    """

    def __init__(self, node: Node, executor: Executor, target: str, *, timeout_s: float = 60.0) -> None:
        self.target, self._executor, self._timeout_s = target, executor, timeout_s
        self._change_state = node.create_client(ChangeState, f"{target}/change_state")
        self._get_state = node.create_client(GetState, f"{target}/get_state")

    def configure(self) -> None:
        """Configure the unconfigured node.

        Raises:
            LifecycleError: If the node is in another state, does not respond in time, ends, or does not make the
                transition; its log has the reason. This holds for all transitions.
        """
        self._change("configure", Transition.TRANSITION_CONFIGURE, "unconfigured", "inactive")

    def activate(self) -> None:
        """Activate the inactive node."""
        self._change("activate", Transition.TRANSITION_ACTIVATE, "inactive", "active")

    def deactivate(self) -> None:
        """Deactivate the active node."""
        self._change("deactivate", Transition.TRANSITION_DEACTIVATE, "active", "inactive")

    def cleanup(self) -> None:
        """Clean up the inactive node."""
        self._change("cleanup", Transition.TRANSITION_CLEANUP, "inactive", "unconfigured")

    def state(self) -> str:
        """Return the label of the node's state, such as ``active``.

        Raises:
            LifecycleError: If the node does not respond in time, or ends.
        """
        self._wait_for(self._get_state)
        return self._ask_state()

    def _change(self, name: str, transition: int, start: str, goal: str) -> None:
        # The request is sent once, so it must not be lost. Clients are discovered in the order of their creation: a
        # node whose state has been received knows the client of the transitions too.
        if (state := self.state()) != start:
            raise LifecycleError(f"{self.target} is {state}: it can {name} only when it is {start}")
        self._wait_for(self._change_state)
        request = ChangeState.Request(transition=Transition(id=transition))
        response = self._change_state.call_async(request)
        deadline = monotonic() + self._timeout_s
        while monotonic() < deadline:
            self._executor.spin_until_future_complete(response, RETRY_S)
            # What counts is the state: a response can be lost, and somebody else can change the state too.
            has_responded, state = response.done(), self._ask_state()
            if state == goal:
                return
            if has_responded:
                raise LifecycleError(f"{self.target} refused or failed to {name}, and is {state}: see its log")
        raise self._no_response(self._change_state)

    def _wait_for(self, client: Client) -> None:
        if not client.wait_for_service(self._timeout_s):
            raise LifecycleError(f"no {client.srv_name} within {self._timeout_s:g} s: is the node running?")

    def _ask_state(self) -> str:
        """Return the state of the node, whose services must be known."""
        deadline = monotonic() + self._timeout_s
        while monotonic() < deadline:
            # The response is lost if the node has not discovered this client yet. Repeating the request is safe.
            future = self._get_state.call_async(GetState.Request())
            self._executor.spin_until_future_complete(future, RETRY_S)
            if future.done():
                return future.result().current_state.label
            self._get_state.remove_pending_request(future)
            if not self._get_state.wait_for_service(RETRY_S):
                raise LifecycleError(f"{self.target} has ended: see its log")
        raise self._no_response(self._get_state)

    def _no_response(self, client: Client) -> LifecycleError:
        return LifecycleError(f"no response from {client.srv_name} within {self._timeout_s:g} s")


def main() -> None:
    """Configure and activate the lifecycle node named by the first argument. The exit status of a failure is 1."""
    if len(sys.argv) != 2:
        sys.exit("lifecycle: give the name of the node, such as /segmenter")
    with ros_process("lifecycle"):
        node = rclpy.create_node("lifecycle_client")
        with executing(node) as executor:
            client = LifecycleClient(node, executor, sys.argv[1], timeout_s=TIMEOUT_S)
            try:
                client.configure()
                client.activate()
            except LifecycleError as error:
                sys.stderr.write(f"lifecycle: {error}\n")
                raise SystemExit(1) from None


if __name__ == "__main__":
    main()
