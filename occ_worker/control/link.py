"""The agent's end of its link to the hub.

It is one connection, over which the hub's calls reach this agent's own API. One thread connects, serves the link to
its end, and reconnects after a growing pause.
"""

from __future__ import annotations

import hashlib
import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, RejectConnection, Request
from wsproto.utilities import ProtocolError

from occ_app import __version__
from occ_app.errors import OCCError, Refused, StartFailed, Unreachable
from occ_app.home import state
from occ_app.link.frames import SUBPROTOCOL
from occ_app.link.link import PING_SECONDS, Link
from occ_app.link.websocket import LinkSocket
from occ_app.system.event_loop import Loop

log = logging.getLogger("occ.link")

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 300.0
_STEADY_SECONDS = 10.0  # after a link that lasted so long, pauses start short again
_CONNECT_SECONDS = 10.0
_REFUSALS = frozenset({401, 403, 404, 426})  # only a new registration or an upgrade changes these
_PIECE = 4096
_LARGEST_ANSWER = 64 * 1024


class LinkClient:
    """The link of one control process.

    `local_address` is the address of this agent's API, and `note` is called at each change with whether the link is
    connected. `pin` is the fingerprint of the only hub certificate to trust, `instance` the id of this start.
    """

    def __init__(
        self,
        remote_urls: Collection[str],
        state_file: Path,
        local_address: tuple[str, int],
        note: Callable[[bool], None],
        pin: str | None = None,
        ping_seconds: float = PING_SECONDS,
        instance: str = "",
    ) -> None:
        self._remote_urls = remote_urls
        self._pin, self._instance = pin, instance
        self._state_file = state_file
        self._local_address = local_address
        self._note = note
        self._ping_seconds = ping_seconds
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._loop: Loop | None = None  # while there is a link
        self._link: Link | None = None
        self._stopping = False
        self._noted = ""

    def start(self) -> None:
        self._thread.start()

    def renew(self) -> None:
        """Reconnect at once with the new registration in state.json."""
        with self._lock:
            self._wake.set()
            if self._loop is not None:
                self._loop.stop()

    def stop(self, patience: float = 0.0, seconds: float = 0.3) -> None:
        """End the link when its streams have ended, or after `patience` seconds.

        Then wait at most `seconds` for its thread.
        """
        self._stopping = True
        with self._lock:
            self._wake.set()
            if self._loop is not None and self._link is not None:
                self._loop.soon(partial(self._link.finish, "the agent is stopping"))
                ending = patience
            else:
                ending = 0.0
        self._thread.join(ending)
        self.renew()
        self._thread.join(seconds)

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        self._note(False)
        while not self._stopping:
            self._wake.clear()
            begun, longest = time.monotonic(), False
            try:
                identity = self._registered()
                if identity is not None:
                    self._tell(self._linked(identity))
            except Refused as refusal:
                longest = refusal.status in _REFUSALS
                self._tell(f"not linked: {refusal}")
            except (OCCError, OSError) as error:
                self._tell(f"not linked: {error}")
            if self._stopping:
                return
            if time.monotonic() > begun + _STEADY_SECONDS:
                pause = _FIRST_PAUSE
            seconds = _LONGEST_PAUSE if longest or identity is None else pause
            woken = self._wake.wait(seconds * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
            pause = _FIRST_PAUSE if woken else min(pause * 2, _LONGEST_PAUSE)

    def _registered(self) -> state.State | None:
        """Return this agent's identity at the hub; None until it has registered."""
        try:
            identity = state.load(self._state_file)
        except StartFailed:
            return None
        return identity if identity and identity.agent_id and identity.remote_url in self._remote_urls else None

    def _linked(self, identity: state.State) -> str:
        """Connect and serve the link to its end, and return the reason why it ended.

        Raises Refused, Unreachable or OSError.
        """
        instance = self._instance if identity.hub_id else ""  # a hub without proofs does not know it
        connection, framing = connect(
            identity.remote_url or "", identity.agent_id or "", identity.token, self._pin, instance
        )
        loop = Loop()
        why = list[str]()

        def ended(reason: str) -> None:
            why.append(reason)
            loop.stop()

        link = Link(loop, LinkSocket(connection, framing), ended, self._dial, self._ping_seconds)
        with self._lock:
            self._loop, self._link = (None, None) if self._wake.is_set() else (loop, link)
        try:
            if self._loop is not None:
                self._tell(f"linked with the hub as {identity.agent_id}", True)
                link.begin()
                loop.run()
        finally:
            with self._lock:
                self._loop = self._link = None
            link.close("the agent is stopping" if self._stopping else "the agent registered again")
            loop.close()
        return f"the link ended: {why[0]}"

    def _dial(self) -> socket.socket:
        """Return a socket connecting to this agent's own API.

        The connection may still be in progress.
        """
        family, *_, address = socket.getaddrinfo(*self._local_address, type=socket.SOCK_STREAM)[0]
        local = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            local.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            local.connect(address)
        except BlockingIOError:
            return local
        except OSError:
            local.close()
            raise
        return local

    def _tell(self, what: str, connected: bool = False) -> None:
        """Log a change of state, once."""
        if what == self._noted or self._stopping:
            return
        self._noted = what
        log.info("%s", what)
        self._note(connected)


def connect(
    remote_url: str, agent_id: str, token: str, pin: str | None = None, instance: str = ""
) -> tuple[socket.socket, WSConnection]:
    """Connect to the hub for this agent's link; return the socket and its WebSocket.

    The handshake is complete. `pin` is the SHA-256 fingerprint of the only certificate to trust, `instance` the id of
    this start of the daemon. Raises Refused when the hub answers with an error, Unreachable when it does not answer
    like a hub.
    """
    parts = urlsplit(remote_url)
    secure = parts.scheme == "https"
    try:
        address = (parts.hostname or "", parts.port or (443 if secure else 80))
        connection = socket.create_connection(address, timeout=_CONNECT_SECONDS)
        try:
            if secure:
                connection = _secured(connection, parts.hostname, pin)
            request = Request(
                host=parts.netloc.rpartition("@")[2],
                target=f"{parts.path.rstrip('/')}/api/agents/{quote(agent_id, safe='')}/link",
                subprotocols=[SUBPROTOCOL],
                extra_headers=[
                    (b"Authorization", f"Bearer {token}".encode()),
                    (b"User-Agent", _USER_AGENT),
                    *([(b"OCC-Instance", instance.encode())] if instance else []),
                ],
            )
            return connection, _upgraded(connection, request, remote_url)
        except BaseException:
            connection.close()
            raise
    except (OSError, ProtocolError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise Unreachable(f"The hub at {remote_url} does not answer ({reason}).") from None


def _secured(connection: socket.socket, host: str | None, pin: str | None) -> ssl.SSLSocket:
    """Return the connection with TLS.

    Raises OSError for a certificate that is not trusted.
    """
    context = ssl.create_default_context()
    if pin is None:
        return context.wrap_socket(connection, server_hostname=host)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    secured = context.wrap_socket(connection, server_hostname=host)
    shown = hashlib.sha256(secured.getpeercert(binary_form=True) or b"").hexdigest()
    if shown != pin.replace(":", "").lower():
        raise ssl.SSLError("it shows another certificate than the pinned one")
    return secured


_USER_AGENT = f"occ/{__version__}".encode()


def _upgraded(connection: socket.socket, request: Request, url: str) -> WSConnection:
    framing = WSConnection(ConnectionType.CLIENT)
    deadline = time.monotonic() + _CONNECT_SECONDS
    connection.sendall(framing.send(request))
    came = 0
    while True:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        data = connection.recv(_PIECE)
        came += len(data)
        if not data or came > _LARGEST_ANSWER or time.monotonic() > deadline:
            raise Unreachable(f"The hub at {url} does not answer like a hub.")
        framing.receive_data(data)
        answer = next(framing.events(), None)
        if isinstance(answer, RejectConnection):
            raise Refused(
                f"The hub at {url} does not link this agent: it answers {answer.status_code}.", answer.status_code
            )
        if isinstance(answer, AcceptConnection):
            if answer.subprotocol != SUBPROTOCOL:
                raise Unreachable(f"The hub at {url} does not speak {SUBPROTOCOL}.")
            return framing
