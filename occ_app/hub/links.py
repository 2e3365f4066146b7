"""The hub's ends of the links: a Unix socket for each linked agent.

A process that connects to `FOLDER/AGENT_ID` uses that agent's API as if it had connected to the agent itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flask import Flask, request
from simple_websocket import ConnectionError as NoWebSocket
from simple_websocket import Server
from wsproto.utilities import ProtocolError

from occ_app.errors import RequestError
from occ_app.link.frames import SUBPROTOCOL
from occ_app.link.link import GOING_AWAY, PING_SECONDS, Link
from occ_app.link.websocket import LinkSocket
from occ_app.system.event_loop import Loop
from occ_app.system.files import short_path
from occ_app.system.kernel import OUT_OF_FILES, allow_many_files
from occ_app.web.handover import HandedOver

LINK_ENDPOINT = "link"
INSTANCE_HEADER = "OCC-Instance"
log = logging.getLogger("occ.links")

_BACKLOG = 1024
_STOP_SECONDS = 2.0
_REFUSED_SECONDS = 3.0  # between two checks for links that must end


class Links:
    """All links of this process, served by one thread.

    The thread starts with the first link.
    """

    def __init__(
        self,
        folder: Path,
        ping_seconds: float = PING_SECONDS,
        refused: Callable[[set[str]], set[str]] = lambda _: set(),
    ) -> None:
        """Create `folder`, and remove files that a killed predecessor left in it.

        Raises the limit of open files, which links and calls use. `refused` returns those of the given agents that may
        not have a link any more; it is called every few seconds.
        """
        allow_many_files()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in folder.iterdir():
            left.unlink()
        self._folder = folder
        self._ping_seconds = ping_seconds
        self._refused = refused
        self._loop = Loop()
        self._thread = threading.Thread(target=self._loop.run, name="links", daemon=True)
        self._lock = threading.Lock()
        self._started = self._closed = False
        self._linked: dict[str, Link] = {}

    def serve(self, agent_id: str, websocket: Any) -> None:
        """Take over a WebSocket of simple_websocket after its handshake.

        Returns at once. An older link of this agent is closed.
        """
        with self._lock:
            if self._closed:
                websocket.sock.close()
                return
            if not self._started:
                self._started = True
                self._thread.start()
                self._loop.soon(self._drop_refused)
            self._loop.soon(partial(self._begin, agent_id, websocket))

    def connected(self) -> set[str]:
        """Return the agents that are linked now."""
        return set(self._linked)

    def drop(self, agent_id: str, seconds: float = 0.0) -> None:
        """End this agent's link, if it has one, after `seconds`."""
        with self._lock:
            if self._started and not self._closed:
                self._loop.soon(partial(self._drop_at, time.monotonic() + seconds, agent_id))

    def close(self) -> None:
        """End every link and the thread. May be called again."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._started:
                self._loop.soon(self._end_all)
                self._loop.stop()
        if self._started:
            self._thread.join(_STOP_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    # -- runs in the thread of the links

    def _begin(self, agent_id: str, websocket: Any) -> None:
        older = self._linked.pop(agent_id, None)
        try:
            listener = _listen(self._folder, agent_id)
        except OSError as error:
            log.error("agent %s cannot be linked: no socket for it (%s)", agent_id, error.strerror or error)
            websocket.sock.close()
        else:
            ended = partial(self._ended, agent_id, listener)
            link = Link(
                self._loop, LinkSocket(websocket.sock, websocket.ws), lambda reason: ended(link, reason), None,
                self._ping_seconds,
            )  # fmt: skip
            self._linked[agent_id] = link
            self._watch(listener, link)
            link.begin()
            log.info("agent %s is linked", agent_id)
        if older is not None:
            older.close("a newer link took its place", GOING_AWAY)

    def _watch(self, listener: socket.socket, link: Link) -> None:
        if listener.fileno() >= 0:  # otherwise its link ended during the pause
            self._loop.watch(listener.fileno(), select.EPOLLIN, lambda _: self._called(listener, link))

    def _called(self, listener: socket.socket, link: Link) -> None:
        """Accept a connection to an agent's socket."""
        try:
            caller, _ = listener.accept()
        except OSError as error:
            if error.errno in OUT_OF_FILES:
                log.warning("a call to an agent waits: %s; raise the limit of open files", error.strerror)
                self._loop.forget(listener.fileno())
                self._loop.at(time.monotonic() + 1.0, partial(self._watch, listener, link))
        else:
            link.open(caller)

    def _ended(self, agent_id: str, listener: socket.socket, link: Link, reason: str) -> None:
        self._loop.forget(listener.fileno())
        listener.close()
        if self._linked.get(agent_id) is link:
            del self._linked[agent_id]
        if agent_id not in self._linked:
            (self._folder / agent_id).unlink(missing_ok=True)
        log.info("a link of agent %s ended: %s", agent_id, reason)

    def _drop_at(self, moment: float, agent_id: str) -> None:
        if moment <= time.monotonic():
            self._drop(agent_id)
        else:
            self._loop.at(moment, partial(self._drop, agent_id))

    def _drop(self, agent_id: str) -> None:
        link = self._linked.get(agent_id)
        if link is not None:
            link.close("the agent is not registered any more", GOING_AWAY)

    def _drop_refused(self) -> None:
        """End the links of agents that may not have one, and schedule the next check."""
        self._loop.at(time.monotonic() + _REFUSED_SECONDS, self._drop_refused)
        for agent_id in self._refused(self.connected()):
            self._drop(agent_id)

    def _end_all(self) -> None:
        for link in list(self._linked.values()):
            link.close("the hub is stopping", GOING_AWAY)


def _listen(folder: Path, agent_id: str) -> socket.socket:
    """Return a listening socket at FOLDER/AGENT_ID, readable by its owner only.

    Replaces an existing socket. Raises OSError.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    temporary = folder / f".{os.urandom(4).hex()}"
    try:
        with short_path(folder) as short:
            listener.bind(f"{short}/{temporary.name}")
        temporary.chmod(0o600)
        listener.listen(_BACKLOG)
        temporary.replace(folder / agent_id)
    except BaseException:
        listener.close()
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    return listener


class _NoThread:
    """A stand-in for simple_websocket's reading thread.

    One thread serves all links.
    """

    name = ""

    def __init__(self, target: Callable[[], None]) -> None: ...

    def start(self) -> None: ...


@dataclass(frozen=True)
class _Begun:
    """A link that begins once the server's thread has released its connection."""

    links: Links
    agent_id: str
    websocket: Any

    def begin(self) -> None:
        self.links.serve(self.agent_id, self.websocket)


def add_link(app: Flask, links: Links, admit: Callable[[str], None]) -> None:
    """Serve GET /api/agents/{agentId}/link.

    `admit` raises an OCCError when the request may not link this agent.
    """

    @app.before_request
    def check_link() -> None:
        """Refuse the request while a refusal can still be an HTTP reply."""
        if request.endpoint == LINK_ENDPOINT:
            admit((request.view_args or {})["agent_id"])
            offered = request.headers.get("Sec-WebSocket-Protocol", "").split(",")
            if SUBPROTOCOL not in (name.strip() for name in offered):
                raise RequestError(
                    "PROTOCOL_UNSUPPORTED", f"This hub requires {SUBPROTOCOL} for links. Update the agent or the hub."
                )

    # Not flask-sock's route, which has one set of options for all routes and a thread for each connection.
    @app.route("/api/agents/<agent_id>/link", endpoint=LINK_ENDPOINT, websocket=True)
    def link(agent_id: str) -> Any:
        raise HandedOver(_Begun(links, agent_id, _accepted(request.environ)))


def _accepted(environ: dict[str, Any]) -> Any:
    """Complete the handshake of this request, and return its WebSocket.

    Raises RequestError when the request is not a WebSocket's.
    """
    # No compression: a small message could expand to a large one.
    plain = {name: value for name, value in environ.items() if name != "HTTP_SEC_WEBSOCKET_EXTENSIONS"}
    try:
        return Server.accept(plain, subprotocols=[SUBPROTOCOL], thread_class=_NoThread)
    except (NoWebSocket, ProtocolError):
        raise RequestError("BAD_REQUEST", "This address accepts only the WebSocket of an agent's link.") from None
