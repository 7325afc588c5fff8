# SPDX-License-Identifier: Apache-2.0
"""A client that changes the state of a lifecycle node.

``python -m netwarp_ros.node.lifecycle NODE`` configures and activates a node. The launch file runs it as a new process
for every start of the node: a process that knew the node before a crash keeps sending to the dead one until the
middleware drops it (20 s with Fast DDS), and those requests are lost.
"""

from __future__ import annotations

import sys
from time import monotonic
from typing import Any

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.client import Client
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.node import Node

from netwarp_ros.node.process import ros_process

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
            LifecycleError: If the node does not respond in time, or does not make the transition; its log has the
                reason. This holds for all transitions.
        """
        self._change("configure", Transition.TRANSITION_CONFIGURE)

    def activate(self) -> None:
        """Activate the inactive node."""
        self._change("activate", Transition.TRANSITION_ACTIVATE)

    def deactivate(self) -> None:
        """Deactivate the active node."""
        self._change("deactivate", Transition.TRANSITION_DEACTIVATE)

    def cleanup(self) -> None:
        """Clean up the inactive node."""
        self._change("cleanup", Transition.TRANSITION_CLEANUP)

    def state(self) -> str:
        """Return the label of the node's state, such as ``active``.

        Raises:
            LifecycleError: If the node does not respond in time.
        """
        self._wait_for(self._get_state)
        deadline = monotonic() + self._timeout_s
        while (wait_s := deadline - monotonic()) > 0:
            # The response is lost if the node has not discovered this client yet. Repeating the request is safe.
            if response := self._call(self._get_state, GetState.Request(), min(wait_s, RETRY_S)):
                return response.current_state.label
        raise self._no_response(self._get_state)

    def _change(self, name: str, transition: int) -> None:
        # Repeating this request is not safe, so its response must not be lost. Clients are discovered in the order of
        # their creation: a node whose state has been received knows the client of the transitions too.
        self.state()
        self._wait_for(self._change_state)
        request = ChangeState.Request(transition=Transition(id=transition))
        response = self._call(self._change_state, request, self._timeout_s)
        if response is None:
            raise self._no_response(self._change_state)
        if not response.success:
            raise LifecycleError(f"{self.target} refused or failed to {name}, and is {self.state()}: see its log")

    def _wait_for(self, client: Client) -> None:
        if not client.wait_for_service(self._timeout_s):
            raise LifecycleError(f"no {client.srv_name} within {self._timeout_s:g} s: is the node running?")

    def _call(self, client: Client, request: Any, timeout_s: float) -> Any:
        """Return the response, or None after the timeout."""
        future = client.call_async(request)
        self._executor.spin_until_future_complete(future, timeout_s)
        if not future.done():
            client.remove_pending_request(future)
        return future.result()

    def _no_response(self, client: Client) -> LifecycleError:
        return LifecycleError(f"no response from {client.srv_name} within {self._timeout_s:g} s")


def main() -> None:
    """Configure and activate the lifecycle node named by the first argument. The exit status of a failure is 1."""
    if len(sys.argv) != 2:
        sys.exit("lifecycle: give the name of the node, such as /segmenter")
    with ros_process("lifecycle"):
        node, executor = rclpy.create_node("lifecycle_client"), SingleThreadedExecutor()
        executor.add_node(node)
        client = LifecycleClient(node, executor, sys.argv[1], timeout_s=TIMEOUT_S)
        try:
            client.configure()
            client.activate()
        except LifecycleError as error:
            sys.stderr.write(f"lifecycle: {error}\n")
            raise SystemExit(1) from None
        finally:
            executor.shutdown()
            node.destroy_node()


if __name__ == "__main__":
    main()
