# SPDX-License-Identifier: Apache-2.0
"""The server of the page: it serves the page, a stream of the cameras' states, and single pictures.

Nothing queues up. The stream sends the current states once the browser has received the previous ones, and the browser
requests a picture once it has drawn the previous one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.resources import files
from threading import Thread
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from netwarp_ros.view.protocol import BoundedProtocol

PERIOD_S = 0.1
"""Seconds between two messages of the stream."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that only this machine can reach."""

FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Source(Protocol):
    """Provides what the page shows. The server calls it from its own threads."""

    def is_open(self) -> bool:
        """Tell whether the stream of states goes on."""

    def watching(self) -> AbstractContextManager[None]:
        """Return a context that is held while a page is open."""

    def state(self) -> Sequence[dict[str, Any]]:
        """Return the state of each camera, in types that JSON has; ``page.js`` lists the keys."""

    def picture(self, camera: str) -> bytes | None:
        """Return a camera's newest picture as a JPEG; None if there is none."""


@contextmanager
def serving(source: Source, host: str, port: int) -> Iterator[str]:
    """Serve the page during the body of a ``with`` statement.

    Another site must not read this page by pointing its own name at this machine (DNS rebinding). On a `LOOPBACK` host,
    the server therefore answers only requests for `LOOPBACK` names; on any other host, it answers for every name.
    Connections are bounded, see `BoundedProtocol`.

    Args:
        source: Provides what is shown.
        host: Name or address to listen on.
        port: Port to listen on; 0: any free port.

    Yields:
        The page's address.

    Raises:
        OSError: If the server cannot listen on the host and port.
    """
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror}. Give another port or host.") from error
    config = uvicorn.Config(
        make_app(source, [*LOOPBACK, "[::1]"] if host in LOOPBACK else ["*"]),
        http=BoundedProtocol,
        lifespan="off",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    # In a thread of its own, uvicorn sets no signal handlers.
    thread = Thread(target=server.run, args=([listener],), name="page")
    thread.start()
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    finally:
        # The connection of a browser that does not read is cut after a second. uvicorn would log that as an error.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        server.should_exit = True
        thread.join()


def make_app(source: Source, hosts: Sequence[str]) -> Starlette:
    """Return the application, which answers only GET and HEAD.

    Args:
        source: Provides what is shown.
        hosts: Host names for which it answers; ``*`` is any.
    """

    async def page(request: Request) -> Response:
        name, media_type = FILES[request.url.path]
        return Response(files(__package__).joinpath(name).read_bytes(), headers=HEADERS, media_type=media_type)

    async def states(request: Request) -> Response:
        return StreamingResponse(_stream(source), headers=HEADERS, media_type="text/event-stream")

    def picture(request: Request) -> Response:  # not async: Starlette runs it in a thread, since encoding takes a while
        jpeg = source.picture(request.query_params.get("camera", ""))
        if jpeg is None:
            return Response(status_code=404, headers=HEADERS)
        return Response(jpeg, headers=HEADERS, media_type="image/jpeg")

    return Starlette(
        routes=[*(Route(path, page) for path in FILES), Route("/states", states), Route("/picture", picture)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
    )


async def _stream(source: Source) -> AsyncIterator[str]:
    """Send the current states, as server-sent events."""
    with source.watching():
        while source.is_open():
            yield f"data: {json.dumps(source.state(), allow_nan=False)}\n\n"
            await asyncio.sleep(PERIOD_S)
