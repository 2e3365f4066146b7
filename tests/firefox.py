"""Headless Firefox for the tests, spoken to over WebDriver BiDi, without a driver between."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from simple_websocket import Client, ConnectionClosed

from tests.browser import Screen, program
from tests.conftest import wait_until

_EVENTS = ("log.entryAdded", "network.beforeRequestSent")
_KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Tab": "\ue004"}
# Requests to other machines go to a proxy that does not exist; loopback never uses a proxy.
_SETTINGS: dict[str, str | int] = {
    "network.proxy.type": 1,
    "network.proxy.http": "127.0.0.1",
    "network.proxy.http_port": 9,
    "network.proxy.ssl": "127.0.0.1",
    "network.proxy.ssl_port": 9,
}


class _Socket(Client):
    """A WebSocket that names the port in its Host header: Firefox requires it."""

    def handshake(self) -> None:
        self.host = f"{self.host}:{self.port}"
        super().handshake()


class _Connection:
    """One session of a browser. Events are given to the pages that they are about."""

    def __init__(self, address: str) -> None:
        self._socket = _Socket.connect(address)
        self._ids = itertools.count(1)
        self.pages: dict[str, FirefoxPage] = {}

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a command. Raises AssertionError with the reply if the browser refuses it."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            reply = json.loads(self._socket.receive(timeout=120))
            if reply.get("id") == number:
                assert reply["type"] == "success", (method, reply)
                return dict(reply["result"])
            if reply["type"] == "event":
                self._hear(reply["method"], reply["params"])

    def _hear(self, name: str, event: dict[str, Any]) -> None:
        page = self.pages.get(event.get("context") or event.get("source", {}).get("context"))
        if page is None:
            return
        if name == "network.beforeRequestSent":
            page.requests.append(event["request"]["url"])
        elif event["level"] == "error":
            page.errors.append(str(event["text"]))

    def close(self) -> None:
        with contextlib.suppress(ConnectionClosed, OSError):  # the browser may be there first, at any instant
            self._socket.close()


class FirefoxPage(Screen):
    """A page of Firefox."""

    def __init__(self, connection: _Connection) -> None:
        super().__init__()
        self._connection = connection
        self._context = connection.call("browsingContext.create", type="tab")["context"]
        connection.pages[self._context] = self

    def js(self, expression: str) -> Any:
        try:
            found = self._evaluated(f"(async () => JSON.stringify(await ({expression})))()")
        except AssertionError as error:
            if "no such frame" in str(error) or "AbortError" in str(error):
                return None  # the page changes
            raise
        return json.loads(found["value"]) if found["type"] == "string" else None

    def _evaluated(self, expression: str) -> dict[str, Any]:
        reply = self._connection.call(
            "script.evaluate", expression=expression, target={"context": self._context}, awaitPromise=True
        )
        assert reply["type"] == "success", reply
        return dict(reply["result"])

    def go(self, url: str) -> None:
        self._connection.call("browsingContext.navigate", context=self._context, url=url, wait="complete")
        self.settled()

    def fill(self, selector: str, text: str) -> None:
        self.js(f"document.querySelector({json.dumps(selector)}).focus()")
        self._act("key", [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")])

    def press(self, key: str) -> None:
        self._act("key", [{"type": kind, "value": _KEYS.get(key, key)} for kind in ("keyDown", "keyUp")])

    def click(self, selector: str) -> None:
        self.js(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        found = self._evaluated(f"document.querySelector({json.dumps(selector)})")
        element = {"type": "element", "element": {"sharedId": found["sharedId"]}}
        move = {"type": "pointerMove", "x": 0, "y": 0, "origin": element}
        self._act("pointer", [move, *({"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp"))])

    def _act(self, kind: str, actions: list[dict[str, Any]]) -> None:
        device = {"type": kind, "id": kind, "actions": actions}
        self._connection.call("input.performActions", context=self._context, actions=[device])

    def window(self, width: int, height: int) -> None:
        size = {"width": width, "height": height}
        self._connection.call("browsingContext.setViewport", context=self._context, viewport=size)

    def screenshot(self, path: Path) -> None:
        taken = self._connection.call("browsingContext.captureScreenshot", context=self._context)
        path.write_bytes(base64.b64decode(taken["data"]))

    def front(self) -> None:
        self._connection.call("browsingContext.activate", context=self._context)

    def close(self) -> None:
        self._connection.call("browsingContext.close", context=self._context)
        del self._connection.pages[self._context]


class Firefox:
    """A running Firefox, whose pages share their cookies."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def page(self) -> FirefoxPage:
        page = FirefoxPage(self._connection)
        page.window(1280, 900)
        return page


@contextlib.contextmanager
def firefox_in(folder: Path, settings: Mapping[str, str | int] = MappingProxyType({})) -> Iterator[Firefox]:
    """Start Firefox with an empty profile for the time of the block; no process and no profile is left."""
    profile = folder / "firefox"
    profile.mkdir()
    lines = (
        f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in (_SETTINGS | dict(settings)).items()
    )
    (profile / "user.js").write_text("".join(lines))
    with contextlib.ExitStack() as stack:
        stack.callback(_removed, profile)
        process = subprocess.Popen(
            [program("firefox-esr", "firefox"), *_flags(profile)],
            env={"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(_ended, process)
        connection = _Connection(_address(profile / "WebDriverBiDiServer.json"))
        stack.callback(connection.close)
        connection.call("session.new", capabilities={})
        connection.call("session.subscribe", events=_EVENTS)
        yield Firefox(connection)


def _flags(profile: Path) -> tuple[str, ...]:
    return ("--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0", "about:blank")


def _address(file: Path) -> str:
    """Return the address of the browser's WebSocket, which it writes into its profile when it listens."""

    def written() -> dict[str, Any] | None:
        with contextlib.suppress(FileNotFoundError, ValueError):  # not there yet, or half written
            return dict(json.loads(file.read_text()))
        return None

    found = wait_until(written, "Firefox to listen", 120)
    return f"ws://{found['ws_host']}:{found['ws_port']}/session"


def _ended(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _removed(profile: Path) -> None:
    """Remove the profile; the browser's helpers write into it until they have ended."""
    wait_until(
        lambda: shutil.rmtree(profile, ignore_errors=True) or not profile.exists(), "the profile to be removed", 60
    )
