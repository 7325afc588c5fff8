# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium for tests, controlled by the DevTools protocol over a pair of pipes."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

DEADLINE_S = 60.0
"""How long to wait for a response of Chromium, and for a condition on the page."""


class Browser:
    """One page. The browser ends with the ``with`` statement.

    Attributes:
        complaints: Console messages, log entries and errors of the page.
    """

    def __init__(self, profile: Path, *, width: int = 1000, height: int = 1000, dark: bool = False) -> None:
        self.complaints: list[str] = []
        self._count, self._received, self._session = 0, b"", ""
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()

        def place_pipes() -> None:
            """Give the pipes the file descriptors that Chromium expects."""
            os.dup2(commands, 3)
            os.dup2(answers, 4)

        self._process = subprocess.Popen(
            [
                "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--user-data-dir={profile}", f"--window-size={width},{height}", "--remote-debugging-pipe",
                "about:blank",
            ],
            stderr=subprocess.DEVNULL,
            preexec_fn=place_pipes,
            pass_fds=(3, 4),
        )  # fmt: skip
        os.close(commands)
        os.close(answers)
        (page,) = (t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(DEADLINE_S)
        os.close(self._commands)
        os.close(self._answers)

    def open(self, address: str) -> None:
        """Open the page at an address."""
        self._call("Page.navigate", url=address)

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression. If it is a promise, wait for its value."""
        result = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, expression: str, meanwhile: Callable[[], object] = lambda: None) -> Any:
        """Wait until a JavaScript expression has a true value, and return that.

        Args:
            expression: The expression.
            meanwhile: Called after each evaluation that is not true.
        """
        deadline = monotonic() + DEADLINE_S
        while not (value := self.value(f"new Promise(done => setTimeout(() => done({expression}), 20))")):
            assert monotonic() < deadline, f"{expression} is not true within {DEADLINE_S:g} s; {self.complaints}"
            meanwhile()
        return value

    def screenshot(self, path: Path) -> None:
        """Write a screenshot of the page as a PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._count, "method": method, "params": parameters, **session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
                self.complaints.append(json.dumps(answer["params"]))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            assert select.select([self._answers], [], [], DEADLINE_S)[0], "Chromium does not respond"
            data = os.read(self._answers, 1 << 20)
            assert data, "Chromium has ended"
            self._received += data
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)
