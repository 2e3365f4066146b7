"""Socket Mode: one WebSocket to Slack.

It is replaced when Slack requests that, when it is silent, and when it breaks. Each payload is stored before it is
acknowledged; Slack sends a payload again that is not.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from slack_sdk.socket_mode.builtin.connection import Connection, ConnectionState

log = logging.getLogger("occ.slack")

SILENT_SECONDS = 30.0
_PING_SECONDS = 5.0
_PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


@dataclass
class Line:
    """One connection; `replaced` is set once Slack has requested another one."""

    connection: Connection
    state: ConnectionState
    heard: float
    hello: bool = False
    replaced: bool = False

    def close(self) -> None:
        """Close it without waiting for the peer's closing handshake."""
        self.state.terminated = True
        if self.connection.sock is not None:
            with contextlib.suppress(OSError):
                self.connection.sock.shutdown(socket.SHUT_RDWR)
        self.connection.close()


@dataclass
class Receiver:
    """A receiver of payloads, which runs until `stop` is set.

    `open_url` asks Slack for an address, and raises the errors of slack_sdk. `store` stores a payload by its kind,
    content and envelope id; `report` receives the latest problem, or None.
    """

    open_url: Callable[[], str]
    store: Callable[[str, dict[str, Any], str], object]
    report: Callable[[str | None], None]
    stop: threading.Event
    silent_seconds: float = SILENT_SECONDS
    ping_seconds: float = _PING_SECONDS
    pauses: tuple[float, ...] = _PAUSES
    opened: int = field(default=0, init=False)

    def run(self) -> None:
        """Keep a connection open."""
        line: Line | None = None
        failures = 0
        while not self.stop.is_set():
            try:
                fresh = self._open()
            except Exception as error:  # any network error of slack_sdk or the standard library
                fresh = None
                log.info("Slack did not open a connection: %s", error)
                self.report(f"Slack did not open a connection ({_code(error)})")
            if line is not None:
                line.close()  # after the new one is open, so that payloads always find a connection
            line = fresh
            if line is None:
                self.stop.wait(self.pauses[min(failures, len(self.pauses) - 1)])
                failures += 1
                continue
            if self._watch(line):
                failures = 0
        if line is not None:
            line.close()

    def _open(self) -> Line | None:
        """Open a connection; return None when that fails."""
        state = ConnectionState()  # type: ignore[no-untyped-call]  # slack_sdk has no types here
        lines: list[Line] = []
        connection = Connection(
            url=self.open_url(),
            logger=log,
            ping_interval=3600,  # `_watch` sends the pings
            receive_timeout=1,
            on_message_listener=lambda text: self._take(lines[0], text),
            on_error_listener=lambda error: log.info("the connection to Slack broke: %s", error),
        )
        line = Line(connection, state, time.monotonic())
        lines.append(line)
        connection.connect()
        if not connection.is_active():
            self.report("Slack's WebSocket cannot be opened")
            return None
        self.opened += 1
        threading.Thread(target=connection.run_until_completion, args=(state,), daemon=True).start()
        return line

    def _watch(self, line: Line) -> bool:
        """Return once a connection must be replaced, and whether Slack accepted it."""
        next_ping = time.monotonic() + self.ping_seconds
        ponged = line.connection.last_ping_pong_time
        while not self.stop.wait(min(0.5, self.ping_seconds)):
            now = time.monotonic()
            if line.connection.last_ping_pong_time != ponged:
                ponged, line.heard = line.connection.last_ping_pong_time, now
            if line.replaced or line.state.terminated or not line.connection.is_active():
                break
            if now - line.heard > self.silent_seconds:
                log.info("the connection to Slack has been silent for %g s and is replaced", self.silent_seconds)
                break
            if now >= next_ping:
                next_ping = now + self.ping_seconds
                try:
                    line.connection.ping(f"{line.connection.session_id}:{time.time()}")
                except OSError:
                    break
        return line.hello

    def _take(self, line: Line, text: str) -> None:
        """Store a payload, then acknowledge it; ignore one that cannot be read."""
        line.heard = time.monotonic()
        try:
            envelope = json.loads(text)
            kind = envelope["type"]
        except (ValueError, KeyError, TypeError):
            log.warning("Slack sent a message that cannot be read")
            return
        if kind == "hello":
            line.hello = True
            self.report(None)
        elif kind == "disconnect":
            line.replaced = True
        elif isinstance(envelope.get("envelope_id"), str):
            payload = envelope.get("payload")
            try:
                self.store(str(kind), payload if isinstance(payload, dict) else {}, envelope["envelope_id"])
            except Exception:  # such as a full disk: Slack sends a payload again that is not acknowledged
                log.exception("a payload of Slack could not be stored")
                return
            line.connection.send(json.dumps({"envelope_id": envelope["envelope_id"]}))


def _code(error: Exception) -> str:
    response = getattr(error, "response", None)
    with contextlib.suppress(Exception):
        return str(response["error"])  # type: ignore[index]  # the response may have any type
    return type(error).__name__
