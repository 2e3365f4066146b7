"""An execution's events as server-sent events.

The thread of the request sends the stored events. The tail's thread sends later ones: it serves all connections and
waits for none.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator

from flask import Response, request

from occ_app import errors
from occ_app.streams.followers import KEEPALIVE_SECONDS, Follower
from occ_app.streams.tail import Tail
from occ_app.web import pacing
from occ_app.web.handover import HandedOver

log = logging.getLogger("occ.web")

STALLED_SECONDS = 10.0  # for a connection to take anything at all

_GREETING = b": follows\n\n"
_KEEPALIVE = b": still here\n\n"
_PEER_CLOSED = select.EPOLLRDHUP

Frame = Callable[[bytes], bytes]
"""Puts a piece of the body into the transfer coding of its response; the empty piece is the end."""


class LiveStream:
    """A connection that follows an execution live, served by the tail's thread.

    The thread never waits for it: it sends as much as the connection takes, and the rest stays in the table until that
    drains. `release` is called when it is over.
    """

    def __init__(
        self, tailing: Tail, follower: Follower, connection: socket.socket, frame: Frame, release: Callable[[], None]
    ) -> None:
        self._tail = tailing
        self._follower = follower
        self._connection = connection
        self._frame = frame
        self._unsent = memoryview(b"")
        self._sent_at = time.monotonic()
        self._blocked_at: float | None = None
        self._ended = False
        self._over = False  # nothing follows the unsent bytes
        self._watched = _PEER_CLOSED
        self._leave = contextlib.ExitStack()
        self._leave.callback(release)

    def begin(self) -> None:
        """Take the connection over, to its end."""
        self._connection.setblocking(False)
        self._tail.soon(self._attach)

    def _attach(self) -> None:
        try:
            self._leave.enter_context(self._follower)
            self._follower.attach(self)
            self._leave.callback(self._follower.detach, self)
            self._tail.watch(self._connection.fileno(), self._watched, self._happened)
        except BaseException:
            self._finish()
            raise
        self.push()

    def _happened(self, mask: int) -> None:
        if mask & (_PEER_CLOSED | select.EPOLLHUP | select.EPOLLERR):
            self._finish()
        else:
            self.push()

    def push(self) -> None:
        if self._ended:
            return
        if self._follower.refused():
            self._finish()
            return
        try:
            if not self._unsent:
                self._take()
            if self._unsent:
                self._send()
        except errors.OCCError:
            return  # a held database is asked again within a second
        except OSError:
            self._finish()
        except Exception:
            log.exception("internal error in a stream")  # the thread must continue for all others
            self._finish()
        if self._unsent or self._ended:
            return
        if self._over:
            self._finish()
        elif self._follower.behind:
            self._tail.soon(self.push)  # everybody else first

    def _take(self) -> None:
        batch = self._follower.ready()
        if batch:
            self._unsent = memoryview(self._frame(b"".join([event.sse for event in batch])))
            self._over = batch[-1].final
        elif self._tail.closed:
            self._over = True
        elif time.monotonic() >= self._sent_at + KEEPALIVE_SECONDS:
            self._unsent = memoryview(self._frame(_KEEPALIVE))
        if self._over:
            self._unsent = memoryview(bytes(self._unsent) + self._frame(b""))

    def _send(self) -> None:
        now = time.monotonic()
        try:
            sent = self._connection.send(self._unsent)
            self._sent_at, self._blocked_at = now, None
        except (BlockingIOError, ssl.SSLWantWriteError):
            sent, self._blocked_at = 0, self._blocked_at or now
            if now >= self._blocked_at + STALLED_SECONDS:
                raise TimeoutError from None
        self._unsent = self._unsent[sent:]
        mask = _PEER_CLOSED | select.EPOLLOUT if self._unsent else _PEER_CLOSED
        if mask != self._watched:
            self._watched = mask
            self._tail.watch(self._connection.fileno(), mask, self._happened)

    def _finish(self) -> None:
        self._ended = True
        self._tail.forget(self._connection.fileno())
        with contextlib.suppress(OSError, ValueError):
            if self._over and isinstance(self._connection, ssl.SSLSocket):
                self._connection.unwrap()  # its goodbye, without waiting for the client's
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        self._connection.close()
        self._leave.close()


def event_stream(tailing: Tail, follower: Follower, place: contextlib.ExitStack, *, follow: bool) -> Response:
    """Return an execution's events as server-sent events.

    The response owns `place` and releases it at its end. The thread of the request sends all stored events; then the
    tail's thread continues.
    """
    pacing.live()
    connection = request.environ["gunicorn.socket"]
    frame = _bare if request.environ["SERVER_PROTOCOL"] == "HTTP/1.0" else _chunk

    def generate() -> Iterator[bytes]:
        over = follower.repeated_final() if follow else None
        begun = _GREETING + (over.sse if over else b"")
        for batch in follower.stored():
            yield begun + b"".join([event.sse for event in batch])
            begun, over = b"", batch[-1] if batch[-1].final else None
        if begun:
            yield begun
        if follow and over is None:
            raise HandedOver(LiveStream(tailing, follower, connection, frame, held.pop_all().close))

    response = Response(generate(), content_type="text/event-stream; charset=utf-8")
    held = place.pop_all()
    # A generator that was never begun runs no `finally`; the response's own close always comes.
    response.call_on_close(held.close)
    response.headers.update({"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"})
    return response


def _chunk(content: bytes) -> bytes:
    """One piece of a body in chunked transfer coding; the empty one is its end."""
    return b"%x\r\n%b\r\n" % (len(content), content)


def _bare(content: bytes) -> bytes:
    return content
