# SPDX-License-Identifier: Apache-2.0
"""``netwarp view``: running segment nodes as a web page."""

from __future__ import annotations

from typing import Annotated

import typer


def view(
    cameras: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CAMERA...", help="Cameras to show, by the first part of their topics' names. By default, all.",
            show_default=False,
        ),
    ] = None,
    namespace: Annotated[str, typer.Option("--namespace", help="Namespace of the cameras.")] = "",
    host: Annotated[
        str,
        typer.Option(
            "--host", help="Address to listen on. Any but 127.0.0.1 or ::1 makes the page visible to the network."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on. 0: any free one.")] = 8080,
) -> None:  # fmt: skip
    """Show running segment nodes as a web page: overlays, timings, dropped frames. Needs ROS 2."""
    try:
        from netwarp_ros.node.tools.view_node import view as serve_view
    except ImportError as error:
        raise ValueError(
            "view needs ROS 2 with netwarp_ros built for it (source both), and starlette and uvicorn (install them by "
            f"pip): {error}"
        ) from error
    serve_view(cameras or [], namespace, host, port)
