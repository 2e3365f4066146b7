"""Replies at a minimum rate.

A reader that takes one too slowly loses its connection, which frees a thread. A reply may make its thread wait for 60
s, or for the time that its bytes take at a minimum rate if that is longer. Only so many threads wait for readers at
once, and a key or an address has its share of them. A live stream has no such limit: event_stream.py serves it, and it
holds a place among the streams.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from occ_app import errors
from occ_app.web.shares import Shares

ANSWER_SECONDS = 60.0
MIN_BYTES_PER_SECOND = 16_384
SILENCE_SECONDS = 10.0  # in which a reader must take something
_READERS, _READERS_OF_KEY = 96, 48
_MAX_STRANGERS, _MAX_STRANGERS_PER_ADDRESS = 16, 4
THREADS = _READERS + _MAX_STRANGERS  # that wait for readers at once
_PIECE = 1 << 16

_readers = Shares(_READERS, _READERS_OF_KEY, "Too many answers are being read slowly.")
_strangers = Shares(_MAX_STRANGERS, _MAX_STRANGERS_PER_ADDRESS, "Too many answers are being read slowly.")
_current = threading.local()


@dataclass
class Pace:
    """The state of one reply while it is read.

    It has the holder of its thread, the seconds waited for the reader, and the bytes taken. `holder` is an address
    until the caller is known; then it is a key, or None for the server's own token. `last` says in the head of the
    reply that the connection ends with it.
    """

    holder: str | None
    last: Callable[[], object] = lambda: None
    known: bool = False
    live: bool = False
    waited: float = 0.0
    sent: int = 0

    def wait(self, connection: socket.socket) -> None:
        """Wait until the connection accepts more data.

        Raises ConnectionResetError for a reader that is too slow.
        """
        places = _readers if self.known else _strangers
        try:
            with places.place(self.holder):
                begun = time.monotonic()
                poll = select.poll()  # takes no open file
                poll.register(connection, select.POLLOUT)
                ready = poll.poll(SILENCE_SECONDS * 1000)
                self.waited += time.monotonic() - begun
        except errors.Unavailable:
            ready = []
        if not ready or self.waited > max(ANSWER_SECONDS, self.sent / MIN_BYTES_PER_SECOND):
            raise ConnectionResetError(errno.ECONNRESET, "the answer is read too slowly")


def begin(address: str, last: Callable[[], object] = lambda: None) -> Pace:
    """Begin the reply of this thread, for a caller that is unknown so far.

    `last` is as in Pace.
    """
    _current.pace = Pace(address, last)
    return _current.pace  # type: ignore[no-any-return]  # a thread-local has no types


def answering(holder: str | None, *, known: bool) -> None:
    """Note the holder of this thread's request.

    It is an address or, if `known`, a key, or None for the server's own token.
    """
    pace = getattr(_current, "pace", None)
    if pace is not None:
        pace.holder, pace.known = holder, known


def live() -> None:
    """Remove the limit from this thread's reply, a stream and the connection's last.

    gunicorn would announce that the connection stays open, and a client that reuses it would lose its next request.
    """
    pace = getattr(_current, "pace", None)
    if pace is not None:
        pace.live = True
        pace.last()


if TYPE_CHECKING:
    _Base = socket.socket
else:
    _Base = object


class Paced(_Base):
    """The sending side of a connection with a pace; a part of classes of sockets."""

    pace: Pace | None = None

    def send_at_once(self, data: memoryview) -> int:
        """Send as much as the connection takes without waiting.

        Raises BlockingIOError or SSLWantWriteError.
        """
        raise NotImplementedError

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all of it, at the pace if there is one. Raises OSError."""
        pace = self.pace
        if pace is None or pace.live:
            super().sendall(data, flags)
            return
        rest = memoryview(data).cast("B")
        while rest:
            try:
                sent = self.send_at_once(rest[:_PIECE])
            except (BlockingIOError, ssl.SSLWantWriteError):
                pace.wait(self)
                continue
            except TimeoutError as error:  # the kernel's own limit; gunicorn would log a traceback for each
                raise ConnectionResetError(errno.ECONNRESET, "the client fell silent") from error
            pace.sent += sent
            rest = rest[sent:]

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a part of a file; returns the number of bytes. Raises OSError."""
        file.seek(offset)
        total = 0
        while count is None or total < count:
            piece = file.read(_PIECE if count is None else min(_PIECE, count - total))
            if not piece:
                break
            self.sendall(piece)
            total += len(piece)
        return total


class PacedSocket(Paced, socket.socket):
    """A plain connection of the server."""

    @classmethod
    def of(cls, connection: socket.socket) -> PacedSocket:
        """Take over an accepted connection."""
        kind = (connection.family, connection.type, connection.proto)
        return cls(*kind, fileno=connection.detach())

    def send_at_once(self, data: memoryview) -> int:
        return self.send(data, socket.MSG_DONTWAIT)


@contextlib.contextmanager
def unblocked(connection: ssl.SSLSocket) -> Any:
    """Let calls on a TLS connection not wait."""
    seconds = connection.gettimeout()
    ssl.SSLSocket.settimeout(connection, 0.0)
    try:
        yield
    finally:
        connection.settimeout(seconds)
