"""A limit on the whole time to the head of a reply.

urllib3's limits are for each read, and a head may arrive byte by byte.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection


class _Timed:
    """A mixin that limits the time to the head of a reply.

    It must arrive within the read timeout of its request.
    """

    def getresponse(self) -> Any:
        connection: Any = self
        seconds = connection.timeout
        if not isinstance(seconds, (int, float)) or connection.sock is None:
            return super().getresponse()  # type: ignore[misc]  # of urllib3's connection, which it is mixed into
        overdue = threading.Event()
        timer = threading.Timer(seconds, _cut, (connection.sock, overdue))
        timer.daemon = True
        timer.start()
        late = TimeoutError("the answer's head came too slowly")
        try:
            response = super().getresponse()  # type: ignore[misc]  # as above
        except Exception:
            if overdue.is_set():  # the error is of the cut, not of the peer
                raise late from None
            raise
        finally:
            timer.cancel()
        if overdue.is_set():  # http.client takes a head that was cut for a whole one
            response.close()
            raise late
        return response


class TimedHTTPConnection(_Timed, HTTPConnection):
    """A plain connection with the limit."""


class TimedHTTPSConnection(_Timed, HTTPSConnection):
    """A TLS connection with the limit."""


def _cut(connection: socket.socket, overdue: threading.Event) -> None:
    """End a connection under a thread that reads from it; TLS is left to that thread."""
    overdue.set()
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
