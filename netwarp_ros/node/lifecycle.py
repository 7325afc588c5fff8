# SPDX-License-Identifier: Apache-2.0
"""Drives a lifecycle node from another one.

``python -m netwarp_ros.node.lifecycle NODE`` configures and activates one. The launch file has that do it: after a
crash, a process that knew the node before goes on talking to the dead one, until the middleware misses it (20 s with
Fast DDS), and what it says is lost.
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

PATIENCE_S = 600.0
"""Longest wait of the program for an answer; a large model on a slow machine takes its time."""

ASK_AGAIN_S = 2.0
"""Wait for an answer before the same question is asked again."""


class LifecycleError(RuntimeError):
    """A lifecycle node does not answer, or refuses a transition."""


class LifecycleClient:
    """Changes the state of a lifecycle node.

    Each call spins the executor until the node has answered.

    Args:
        node: The node to ask from.
        executor: What spins it.
        target: Name of the lifecycle node, with its namespace.
        timeout_s: Seconds to wait for each answer, the node's start included.
    """

    def __init__(self, node: Node, executor: Executor, target: str, *, timeout_s: float = 60.0) -> None:
        self.target, self._executor, self._timeout_s = target, executor, timeout_s
        self._change_state = node.create_client(ChangeState, f"{target}/change_state")
        self._get_state = node.create_client(GetState, f"{target}/get_state")

    def configure(self) -> None:
        """Have the unconfigured node configured.

        Raises:
            LifecycleError: As all transitions do, if the node does not answer in time, or refuses or fails; its log
                has the reason.
        """
        self._change("configure", Transition.TRANSITION_CONFIGURE)

    def activate(self) -> None:
        """Have the inactive node activated."""
        self._change("activate", Transition.TRANSITION_ACTIVATE)

    def deactivate(self) -> None:
        """Have the active node deactivated."""
        self._change("deactivate", Transition.TRANSITION_DEACTIVATE)

    def cleanup(self) -> None:
        """Have the inactive node become unconfigured."""
        self._change("cleanup", Transition.TRANSITION_CLEANUP)

    def state(self) -> str:
        """Return the label of the node's state, such as ``active``."""
        self._wait_for(self._get_state)
        deadline = monotonic() + self._timeout_s
        while (wait_s := deadline - monotonic()) > 0:
            # A node that has not discovered this end yet drops its answer. Asked again, it does no harm.
            if answer := self._call(self._get_state, GetState.Request(), min(wait_s, ASK_AGAIN_S)):
                return answer.current_state.label
        raise self._silence(self._get_state)

    def _change(self, name: str, transition: int) -> None:
        # Endpoints are discovered in the order in which they were created: a node that tells its state knows the
        # client of the transitions, too, and that answer is not lost.
        self.state()
        self._wait_for(self._change_state)
        request = ChangeState.Request(transition=Transition(id=transition))
        answer = self._call(self._change_state, request, self._timeout_s)
        if answer is None:
            raise self._silence(self._change_state)
        if not answer.success:
            raise LifecycleError(f"{self.target} refused or failed to {name}, and is {self.state()}: see its log")

    def _wait_for(self, client: Client) -> None:
        if not client.wait_for_service(self._timeout_s):
            raise LifecycleError(f"no {client.srv_name} within {self._timeout_s:g} s: is the node running?")

    def _call(self, client: Client, request: Any, timeout_s: float) -> Any:
        """Return the answer, or None if there is none in time."""
        future = client.call_async(request)
        self._executor.spin_until_future_complete(future, timeout_s)
        if not future.done():
            client.remove_pending_request(future)
        return future.result()

    def _silence(self, client: Client) -> LifecycleError:
        return LifecycleError(f"no answer from {client.srv_name} within {self._timeout_s:g} s")


def main() -> None:
    """Configure and activate the lifecycle node that the first argument names; a failure is status 1."""
    if len(sys.argv) != 2:
        sys.exit("lifecycle: give the node, such as /segmenter")
    with ros_process("lifecycle"):
        node, executor = rclpy.create_node("lifecycle_client"), SingleThreadedExecutor()
        executor.add_node(node)
        client = LifecycleClient(node, executor, sys.argv[1], timeout_s=PATIENCE_S)
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
