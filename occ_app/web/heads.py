"""Reading request heads without waiting.

A connection uses no thread before its head is complete.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
import struct
import threading
import time
from typing import Any

from gunicorn.http.errors import InvalidRequestLine, LimitRequestHeaders
from gunicorn.http.unreader import SocketUnreader

from occ_app.web.tls_socket import IO_SECONDS

HEAD_SECONDS = 20.0  # from the accept, or from the first byte of a later request, to the end of the head
BODY_SECONDS = 60.0
MIN_BYTES_PER_SECOND = 16_384
_MAX_HEAD_BYTES = 1 << 16

_PIECE = 8192
_BARE_LF = re.compile(rb"(?<!\r)\n")


class Arriving:
    """The head of one request as it arrives.

    It has the time at which the connection is closed if the head is not complete.
    """

    def __init__(self, seconds: float, seen: bytes = b"") -> None:
        self.deadline = time.monotonic() + seconds
        self.seen = bytearray(seen)

    def whole(self, connection: socket.socket) -> bool:
        """Read all bytes that a non-blocking connection has.

        Returns True when the head, or the stream, is complete. Raises gunicorn's parse errors for bytes that cannot be
        a head, OSError for a broken connection.
        """
        if self._complete(0):
            return True
        while True:
            try:
                data = connection.recv(_PIECE)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            if not data:
                return True
            length = len(self.seen)
            self.seen += data
            if self._complete(length):
                return True

    def _complete(self, length: int) -> bool:
        if self.seen.find(b"\r\n\r\n", max(0, length - 3)) >= 0:
            return True
        if self.seen and not self.seen[:1].isalpha():
            raise InvalidRequestLine("the request line does not begin with a method")
        if _BARE_LF.search(self.seen, max(0, length - 1)):
            raise InvalidRequestLine("bare LF as line terminator")
        if len(self.seen) > _MAX_HEAD_BYTES:
            raise LimitRequestHeaders("the head is too large")
        return False


_current = threading.local()


def hurry(seconds: float) -> None:
    """Limit the body of this thread's request to `seconds` from now on."""
    unreader = getattr(_current, "unreader", None)
    if unreader is not None:
        unreader.hurry(seconds)


class Unreader(SocketUnreader):
    """A source for gunicorn: a complete head, then the body at a minimum rate.

    A body may take `BODY_SECONDS` and the time that its bytes take at `MIN_BYTES_PER_SECOND`, however they arrive.
    """

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        self._deadline: float | None = None  # None while a head is parsed, which reads nothing more

    def begin_head(self, head: bytes) -> None:
        self._deadline = None
        self.unread(head)

    def begin_body(self) -> None:
        self._deadline = time.monotonic() + BODY_SECONDS
        _current.unreader = self

    def hurry(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def chunk(self, size_hint: int | None = None) -> bytes:
        if self._deadline is None:
            return b""
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the body arrived too slowly")
        if remaining < IO_SECONDS:
            _limit_reads(self.sock, remaining)
        try:
            data: bytes = super().chunk(size_hint)
        except BlockingIOError:  # the limit on one read, which the kernel reports so
            raise TimeoutError("the body arrived too slowly") from None
        self._deadline += len(data) / MIN_BYTES_PER_SECOND
        return data


def set_limits(connection: Any) -> None:
    """Make a connection blocking, with a limit of `IO_SECONDS` on each read and write."""
    connection.setblocking(True)
    limit = struct.pack("ll", IO_SECONDS, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A reader that takes nothing lets a send creep on while the kernel's buffer grows; this ends that.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, IO_SECONDS * 1000)


def readable(connection: socket.socket, seconds: float) -> bool:
    """Wait at most `seconds` for a connection to have something to read.

    Unlike a selector, this uses no open file.
    """
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(max(1.0, seconds * 1000)))


def _limit_reads(connection: Any, seconds: float) -> None:
    if isinstance(connection, ssl.SSLSocket):
        connection.settimeout(seconds)
    else:
        limit = struct.pack("ll", int(seconds), max(1, int(seconds % 1 * 1e6)))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
