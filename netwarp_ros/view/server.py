# SPDX-License-Identifier: Apache-2.0
"""The page's server: the page, a stream of what there is to tell, and pictures one by one.

Nothing queues up. The stream tells how things stand whenever the browser has taken what came before, and the browser
asks for a picture when it has drawn the one before.
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

PERIOD_S = 0.1
"""Time between two messages of the stream."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that only this machine reaches."""

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
    """What the page shows; asked from the server's threads."""

    def is_open(self) -> bool:
        """Tell whether more is to come."""

    def watching(self) -> AbstractContextManager[None]:
        """Hold this while a page is open."""

    def state(self) -> Sequence[dict[str, Any]]:
        """Return how the cameras stand, as JSON can hold it: see ``page.js`` for the keys."""

    def picture(self, camera: str) -> bytes | None:
        """Return a camera's newest picture, a JPEG, if there is one."""


@contextmanager
def serving(source: Source, host: str, port: int) -> Iterator[str]:
    """Serve the page for the body of a ``with`` statement.

    A page of another site must not read this one by having its own name lead here (DNS rebinding). On one of the
    `LOOPBACK` hosts, requests are therefore answered under these names only; on any other, under every name.

    Args:
        source: What is shown.
        host: Name or address to listen on.
        port: Port to listen on; 0: any that is free.

    Yields:
        The page's address.

    Raises:
        OSError: If that cannot be listened on.
    """
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror}. Give another port or host.") from error
    config = uvicorn.Config(
        make_app(source, [*LOOPBACK, "[::1]"] if host in LOOPBACK else ["*"]),
        lifespan="off",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    # In a thread of its own, where it leaves the signals alone.
    thread = Thread(target=server.run, args=([listener],), name="page")
    thread.start()
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    finally:
        # What a browser that takes nothing keeps open is cut after a second, which is no error.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        server.should_exit = True
        thread.join()


def make_app(source: Source, hosts: Sequence[str]) -> Starlette:
    """Return the application, which can only be read from.

    Args:
        source: What is shown.
        hosts: Names that it answers under; ``*`` is any.
    """

    async def page(request: Request) -> Response:
        name, media_type = FILES[request.url.path]
        return Response(files(__package__).joinpath(name).read_bytes(), headers=HEADERS, media_type=media_type)

    async def states(request: Request) -> Response:
        return StreamingResponse(_stream(source), headers=HEADERS, media_type="text/event-stream")

    def picture(request: Request) -> Response:  # not async: in a thread, as it takes a while
        jpeg = source.picture(request.query_params.get("camera", ""))
        if jpeg is None:
            return Response(status_code=404, headers=HEADERS)
        return Response(jpeg, headers=HEADERS, media_type="image/jpeg")

    return Starlette(
        routes=[*(Route(path, page) for path in FILES), Route("/states", states), Route("/picture", picture)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
    )


async def _stream(source: Source) -> AsyncIterator[str]:
    """Tell how things stand, as server-sent events."""
    with source.watching():
        while source.is_open():
            yield f"data: {json.dumps(source.state(), allow_nan=False)}\n\n"
            await asyncio.sleep(PERIOD_S)
