"""The WebSocket of a link on a socket that never blocks.

It has the messages in both directions and the unsent rest. simple_websocket would use a thread for each and lets two
threads send at once; here only its protocol library is used.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any, Protocol

from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong

from occ_app.link.frames import LARGEST_MESSAGE, Violation

_PIECE_BYTES = 128 * 1024
_FULL_BYTES = 128 * 1024  # of unsent bytes, above which no more data are taken from local sockets
_MAX_UNSENT_BYTES = 1024 * 1024  # of unsent bytes: only a peer that answers without reading gets there
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Framing(Protocol):
    """A WebSocket whose handshake is done: wsproto's WSConnection, or its Connection."""

    def send(self, event: Event) -> bytes: ...

    def receive_data(self, data: bytes | None) -> None: ...

    def events(self) -> Iterator[Event]: ...


class LinkSocket:
    """One side of a link's WebSocket.

    `heard` is the time of the last data received, on the monotonic clock. Methods raise ConnectionError when the
    connection is over and Violation when the other side breaks the protocol.
    """

    def __init__(self, connection: socket.socket, framing: Framing) -> None:
        connection.setblocking(False)
        with contextlib.suppress(OSError):  # it may be no TCP connection
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Data waits for the network here, where streams take turns, and not in the kernel's queue.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _FULL_BYTES)
        self._socket = connection
        self._framing = framing
        self._unsent = bytearray()
        self._parts = bytearray()  # of a message that has not come whole
        self._leaving = False  # the last message was put
        self.heard = time.monotonic()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def waits(self) -> bool:
        """Whether something is still to be sent."""
        return bool(self._unsent)

    @property
    def full(self) -> bool:
        return len(self._unsent) >= _FULL_BYTES

    def give_up_after(self, seconds: float) -> None:
        """Have the kernel close the connection if sent data stays unacknowledged.

        `seconds` is the limit.
        """
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))

    def put(self, message: bytes) -> None:
        """Add a message to what `send_pending` sends."""
        self._put(BytesMessage(data=message))

    def ping(self) -> None:
        self._put(Ping())

    def send_pending(self) -> None:
        """Send as much as the connection takes now."""
        while self._unsent:
            try:
                with memoryview(self._unsent)[:_PIECE_BYTES] as piece:
                    sent = self._socket.send(piece)
            except _WOULD_BLOCK:
                return
            del self._unsent[:sent]

    def receive(self) -> Iterator[bytes]:
        """Read once and yield the messages; those before an end of the connection, too."""
        try:
            data = self._socket.recv(_PIECE_BYTES)
            while data and isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
                data += self._socket.recv(_PIECE_BYTES)  # epoll does not report data that is decrypted already
        except _WOULD_BLOCK:
            return iter(())
        if not data:
            raise ConnectionResetError("the other side closed the connection")
        self.heard = time.monotonic()
        self._framing.receive_data(data)
        return self.received()

    def received(self) -> Iterator[bytes]:
        """Yield the messages received so far."""
        return (message for event in self._framing.events() if (message := self._understood(event)) is not None)

    def say_goodbye(self, code: int, reason: str) -> None:
        """Put this as the last message; the other side closes when it has come to it."""
        self._put(CloseConnection(code=code, reason=reason))
        self._leaving = True

    def close(self, code: int, reason: str) -> None:
        """Say goodbye if that can be done at once, and close the connection."""
        with contextlib.suppress(Exception):  # its state or the connection may not allow it any more
            self._unsent += self._framing.send(CloseConnection(code=code, reason=reason))
            self.send_pending()
        self._socket.close()

    def _put(self, event: Event) -> None:
        if self._leaving:
            return
        self._unsent += self._framing.send(event)
        if len(self._unsent) > _MAX_UNSENT_BYTES:
            raise Violation("it does not read its input")

    def _understood(self, event: Any) -> bytes | None:
        if isinstance(event, BytesMessage):
            if event.message_finished and not self._parts:
                return bytes(event.data)
            self._parts += event.data
            if len(self._parts) > LARGEST_MESSAGE:
                raise Violation(f"a message of more than {LARGEST_MESSAGE} bytes")
            if event.message_finished:
                whole, self._parts = bytes(self._parts), bytearray()
                return whole
        elif isinstance(event, Ping):
            self._put(event.response())
        elif isinstance(event, CloseConnection):
            printable = (event.reason or "").encode("unicode_escape").decode()  # it goes into a log
            raise ConnectionResetError(printable or f"the other side closed it with code {int(event.code)}")
        elif not isinstance(event, Pong):
            raise Violation(f"a {type(event).__name__}")
        return None
