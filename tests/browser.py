"""A real browser for the tests: headless Chromium, spoken to over its DevTools protocol, without a driver between.

`tests/firefox.py` drives Firefox; a page of either is a `Screen`.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from simple_websocket import Client, ConnectionClosed

from tests.conftest import wait_until

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--force-device-scale-factor=1", "--remote-debugging-port=0", "--remote-allow-origins=*"),
)

in_browser = pytest.mark.skipif(
    not os.environ.get("TEST_ALL"), reason="the pages are tried in a browser by `make test-all`"
)


def program(*names: str) -> str:
    """Return the path of the first of these programs. Without one the test is skipped, loudly, and on CI it fails."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        reason = f"THE PAGES ARE NOT TESTED IN A BROWSER: install {names[0]}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class Screen(ABC):
    """One page of a browser, as a person uses it: `errors` of its scripts and requests, and addresses it asked for."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []

    @abstractmethod
    def js(self, expression: str) -> Any:
        """Return the value of a JavaScript expression on the page; None while the page changes."""

    @abstractmethod
    def go(self, url: str) -> None:
        """Open an address and wait until its page is complete."""

    @abstractmethod
    def fill(self, selector: str, text: str) -> None:
        """Type a text into an empty field."""

    @abstractmethod
    def click(self, selector: str) -> None:
        """Click in the middle of an element that the page has."""

    @abstractmethod
    def press(self, key: str) -> None:
        """Press and release `Enter` or another named key."""

    @abstractmethod
    def window(self, width: int, height: int) -> None:
        """Set the size of the page in CSS pixels."""

    @abstractmethod
    def screenshot(self, path: Path) -> None:
        """Store a picture of the visible part, as a PNG."""

    @abstractmethod
    def front(self) -> None:
        """Make it the visible tab."""

    @abstractmethod
    def close(self) -> None:
        """Close the page."""

    def wait(self, expression: str, seconds: float = 60) -> None:
        """Wait until a JavaScript expression is true."""
        try:
            wait_until(lambda: self.js(f"Boolean({expression})"), expression, seconds)
        except pytest.fail.Exception as failure:
            pytest.fail(f"{failure}\n{self.js('location.href')}\n{self.text()[:3000]}", pytrace=False)

    def reload(self) -> None:
        self.js("window.old = true")
        self.js("location.reload()")
        self.wait("window.old !== true")
        self.settled()

    def back(self) -> None:
        """Go back, as with the browser's button, to a page that has another address."""
        before = json.dumps(self.js("location.href"))
        self.js("history.back()")
        self.wait(f"location.href !== {before}")
        self.settled()

    def settled(self) -> None:
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def text(self, selector: str = "body") -> str:
        """Return the visible text of an element."""
        return str(self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def shows(self, text: str, selector: str = "body", seconds: float = 60) -> None:
        """Wait until an element shows a text."""
        self.wait(f"document.querySelector({json.dumps(selector)})?.innerText.includes({json.dumps(text)})", seconds)

    def tap(self, selector: str) -> None:
        """Click an element once it has stopped moving and nothing covers it, until it has got the click."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.wait(found)
        look = (
            f"(() => {{ const one = {found}; if (!one || one.disabled) return null;"
            " one.scrollIntoView({block: 'center', behavior: 'instant'}); const r = one.getBoundingClientRect();"
            " const [x, y] = [r.x + r.width / 2, r.y + r.height / 2];"
            " return one.contains(document.elementFromPoint(x, y)) ? [x, y] : null })()"
        )
        listen = (
            "(() => { window.tapped = false; addEventListener('click', event => { window.tapped ||="
            f" Boolean({found}?.contains(event.target)) && !event.defaultPrevented }}) }})()"
        )
        places = [None]

        def steady() -> bool:
            places.append(self.js(look))
            return places[-1] is not None and places[-1] == places[-2]

        def got() -> bool:
            wait_until(steady, f"{selector} to be steady", 60)
            self.js(listen)
            self.click(selector)
            return self.js("window.tapped") is not False  # it is undefined on the page that the click led to

        wait_until(got, f"{selector} to get a click", 60)


class Page(Screen):
    """A page of Chromium."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._socket = Client.connect(address)
        self._ids = itertools.count(1)
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            self.call(f"{domain}.enable")
        self.front()

    def front(self) -> None:
        self.call("Page.bringToFront")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One call of the DevTools protocol."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            said = json.loads(self._socket.receive(timeout=120))
            if said.get("id") == number:
                assert "error" not in said, (method, said)
                return dict(said["result"])
            self._hear(said)

    def _hear(self, said: dict[str, Any]) -> None:
        if said["method"] == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(said["params"]["exceptionDetails"]))
        elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
            self.errors.append(f"{said['params']['entry']['text']} {said['params']['entry'].get('url')}")
        elif said["method"] == "Network.requestWillBeSent":
            self.requests.append(said["params"]["request"]["url"])

    def js(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page; None while the page changes."""
        try:
            found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        except AssertionError as error:
            if "context" in str(error) or "navigated" in str(error):
                return None
            raise
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def without_scripts(self) -> None:
        """From the next page on none of its scripts runs."""
        self.call("Emulation.setScriptExecutionDisabled", value=True)

    def go(self, url: str) -> None:
        self.js("window.old = true")
        if "loaderId" in self.call("Page.navigate", url=url):  # a new document, which may come after the answer
            self.wait("window.old !== true")
        self.settled()

    def reload(self) -> None:
        self.js("window.old = true")
        self.call("Page.reload")
        self.wait("window.old !== true")
        self.settled()

    def fill(self, selector: str, text: str) -> None:
        """Type a text into a field that is empty, key by key as far as the page can tell."""
        field = f"document.querySelector({json.dumps(selector)})"

        def filled() -> bool:
            """Whether it has the text: news from the hub may take the focus from it, or put another field there."""
            self.js(f"({field}.focus(), {field}.value = '')")
            self.call("Input.insertText", text=text)
            return self.js(f"{field}.value.replace(/\\r/g, '') === {json.dumps(text)}") is True

        wait_until(filled, f"{selector} to have its text")

    def click(self, selector: str) -> None:
        """Click with the mouse in the middle of an element, which must be there to be clicked."""
        found = json.dumps(selector)
        self.js(f"document.querySelector({found}).scrollIntoView({{block: 'center'}})")
        place = self.js(
            f"(() => {{ const r = document.querySelector({found}).getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def press(self, key: str) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, **(text if kind == "keyDown" else {}))

    def choose(self, selector: str, path: Path) -> None:
        """Choose a file in a file field."""
        node = self.call("DOM.querySelector", nodeId=self.call("DOM.getDocument")["root"]["nodeId"], selector=selector)
        self.call("DOM.setFileInputFiles", nodeId=node["nodeId"], files=[str(path)])

    def window(self, width: int, height: int, *, phone: bool = False, dark: bool = False, still: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        features += [{"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(taken["data"]))

    def close(self) -> None:
        self.call("Page.close")
        with contextlib.suppress(ConnectionClosed, OSError):  # the browser may be there first, at any instant
            self._socket.close()


class Browser:
    """A running browser, whose pages share their cookies."""

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"
        self._pages: list[Page] = []

    def page(self) -> Page:
        with urllib3.PoolManager(retries=False) as pool:
            opened = pool.request("PUT", f"{self._address}/json/new?about:blank", timeout=120).json()
        page = Page(opened["webSocketDebuggerUrl"])
        page.window(1280, 900)
        self._pages.append(page)
        return page

    def close(self) -> None:
        for page in self._pages:
            with contextlib.suppress(Exception):
                page.close()


@contextlib.contextmanager
def browser_in(folder: Path) -> Iterator[Browser]:
    """A browser with an empty profile of its own for the time of the block."""
    profile = folder / "profile"
    process = subprocess.Popen(
        [
            program("chromium", "chromium-browser", "google-chrome"),
            *_FLAGS,
            f"--user-data-dir={profile}",
            "about:blank",
        ],
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    told = profile / "DevToolsActivePort"
    try:
        wait_until(lambda: told.exists() and told.read_text().count("\n"), "Chromium to listen", 120)
        browser = Browser(int(told.read_text().split("\n")[0]))
        yield browser
        browser.close()
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # Its helpers write into the profile until they have gone.
        wait_until(lambda: shutil.rmtree(profile, ignore_errors=True) or not profile.exists(), "the profile to go", 60)
