# SPDX-License-Identifier: Apache-2.0
"""The page's server by itself: its responses, the hosts it answers for, and that nothing queues up."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.resources import files
from threading import Event, Thread
from typing import Any

import pytest

from netwarp_ros.cli import main as netwarp
from netwarp_ros.view import protocol, serving
from netwarp_ros.view.server import FILES, _stream


class FakeSource:
    """A source whose states the test sets."""

    def __init__(self) -> None:
        self.open, self.pages, self.states = True, 0, [{"name": "/front"}]
        self.asked = Event()

    def is_open(self) -> bool:
        return self.open

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.pages += 1
        yield
        self.pages -= 1

    def state(self) -> list[dict[str, Any]]:
        self.asked.set()
        return self.states

    def picture(self, camera: str) -> bytes | None:
        return b"a picture" if camera == "/front" else None


@pytest.fixture
def source() -> FakeSource:
    return FakeSource()


@pytest.fixture
def port(source: FakeSource) -> Iterator[int]:
    with serving(source, "127.0.0.1", 0) as address:
        yield int(address.rpartition(":")[2])
        source.open = False


def ask(port: int, path: str, method: str = "GET", host: str = "localhost") -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers={"Host": host})
    return connection.getresponse()


@pytest.mark.parametrize("path", FILES)
def test_the_page_may_load_nothing_from_elsewhere(port: int, path: str) -> None:
    answer = ask(port, path)
    assert answer.status == 200
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    text = answer.read().decode()
    assert text == files("netwarp_ros.view").joinpath(FILES[path][0]).read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|\bstyle=|\bon\w+=", text)


def test_only_existing_cameras_have_pictures(port: int) -> None:
    answer = ask(port, "/picture?camera=%2Ffront&number=3")
    assert (answer.status, answer.read(), answer.headers["Content-Type"]) == (200, b"a picture", "image/jpeg")
    assert answer.headers["Cache-Control"] == "no-store"
    for path in ("/picture?camera=/rear", "/picture", "/elsewhere", "/../server.py"):
        assert ask(port, path).status == 404, path


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_written(port: int, method: str) -> None:
    assert {ask(port, path, method).status for path in (*FILES, "/states", "/picture")} == {405}


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("localhost", 200),
        ("localhost:8080", 200),
        ("127.0.0.1", 200),
        ("[::1]:8080", 200),
        ("robot.example", 400),
        ("localhost.example", 400),
        ("10.0.0.1", 400),
        ("", 400),
    ],
)
def test_only_this_machines_names_are_answered_to(port: int, name: str, status: int) -> None:
    assert {ask(port, path, host=name).status for path in ("/", "/picture?camera=/front")} == {status}


def test_on_an_open_address_every_name_is_answered_to(source: FakeSource) -> None:
    with serving(source, "0.0.0.0", 0) as address:
        assert ask(int(address.rpartition(":")[2]), "/", host="robot.example").status == 200


def test_states_go_on_until_the_source_is_closed(source: FakeSource, port: int) -> None:
    answer = ask(port, "/states")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    assert json.loads(answer.readline().removeprefix(b"data: ")) == [{"name": "/front"}]
    assert source.pages == 1
    source.open = False
    answer.read()
    assert source.pages == 0


def test_a_slow_browser_gets_the_current_states(source: FakeSource) -> None:
    async def messages() -> list[str]:
        stream = _stream(source)
        first = await anext(stream)
        for count in range(1000):  # before the browser has received the first
            source.states = [{"name": "/front", "picture": count}]
        second = await anext(stream)
        source.open = False
        return [first, second, *[rest async for rest in stream]]

    assert [json.loads(message.removeprefix("data: ")) for message in asyncio.run(messages())] == [
        [{"name": "/front"}],
        [{"name": "/front", "picture": 999}],
    ]


def closed(connection: socket.socket) -> bool:
    """Tell whether the server closes a connection, after perhaps a response; it has a minute to do so."""
    connection.settimeout(60)
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GE",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nHo",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nhalf a body",
    ],
    ids=["nothing", "a method", "a header", "a second request", "a body"],
)
def test_a_request_that_is_never_complete_is_closed(port: int, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """A byte now and then does not keep it open."""
    monkeypatch.setattr(protocol, "REQUEST_TIMEOUT_S", 1.0)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(sent)
        stop = Event()

        def trickle() -> None:
            with suppress(OSError):
                while not stop.wait(0.2):
                    connection.sendall(b"x")

        sender = Thread(target=trickle)
        if sent:
            sender.start()
        try:
            assert closed(connection)
        finally:
            stop.set()
            if sent:
                sender.join()


def test_a_stream_and_a_slow_answer_are_not_closed(
    source: FakeSource, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "REQUEST_TIMEOUT_S", 0.2)
    answer = ask(port, "/states")
    for _ in range(30):  # every 0.1 s
        assert answer.readline().startswith(b"data: ") and answer.readline() == b"\n"
    source.open = False
    answer.read()


def test_only_so_many_connections_are_open_at_a_time(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 5)
    monkeypatch.setattr(protocol, "REQUEST_TIMEOUT_S", 2.0)
    with ExitStack() as ends:
        half_sent = [ends.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(50)]
        for connection in half_sent[5:]:
            assert closed(connection)
        for connection in half_sent[:5]:
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)
        for connection in half_sent[:5]:
            assert closed(connection)
    assert ask(port, "/").status == 200


def test_the_connection_of_a_browser_that_does_not_read_is_cut_at_the_end(
    source: FakeSource, capfd: pytest.CaptureFixture[str]
) -> None:
    source.states = [{"name": "/front" * 4_000_000}]  # more than the socket buffers hold
    with serving(source, "127.0.0.1", 0) as address:
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
        connection.request("GET", "/states")
        assert source.asked.wait(60)
        source.open = False
    assert source.pages == 0
    assert capfd.readouterr().err == ""
    connection.close()


def test_a_port_in_use_is_named(source: FakeSource) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(OSError, match=f"cannot listen on 127.0.0.1, port {port}: Address already in use"),
            serving(source, "127.0.0.1", port),
        ):
            pass


def test_without_ros_the_command_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "netwarp_ros.node.tools.view_node", None)
    with pytest.raises(SystemExit) as ended:
        netwarp(["view"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("netwarp: view needs ROS 2 with netwarp_ros built for it")
