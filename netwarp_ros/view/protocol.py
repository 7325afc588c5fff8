# SPDX-License-Identifier: Apache-2.0
"""HTTP connections of the page's server, bounded in number and in the time until a request is complete.

uvicorn has a time-out for idle connections only: one byte of a header ends it, and a connection that never sends one is
not idle.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 100
"""Connections that are open at a time. A further one is closed at once. A browser opens six."""

REQUEST_TIMEOUT_S = 10.0
"""Time for the headers of a request, from the beginning of the connection or the end of the response before."""


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol for one connection, with these bounds."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request; or close the connection, if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._wait_for_request()

    def data_received(self, data: bytes) -> None:
        """Stop waiting once the headers of a request are complete, which begins a cycle of request and response."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of a request that was answered early."""
        super().on_response_complete()
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_request()

    def connection_lost(self, error: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(error)

    def _wait_for_request(self) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(REQUEST_TIMEOUT_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
