"""A POST to an address that the operator chose, over one connection.

Its total time is limited.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Mapping

import urllib3
from urllib3.connection import HTTPConnection

from occ_app.client import replies
from occ_app.client.connections import pools_over
from occ_app.errors import Unreachable
from occ_app.hub import forbidden_addresses as addresses


def post(url: str, headers: Mapping[str, str], content: bytes, seconds: float) -> int:
    """Send one request within `seconds`, and return the status of the reply.

    Nothing more of the reply is read, and redirects are not followed. The address of the open connection is checked,
    so that an address that is never called receives nothing. Raises Unreachable.
    """
    addresses.resolved(url)
    line, deadline = _Line(), time.monotonic() + seconds
    watch = threading.Timer(seconds, line.cut)  # the socket's timeout does not end a trickling reply
    watch.daemon = True
    watch.start()
    try:
        with line.pools() as pools:
            response = pools.request(
                "POST",
                url,
                body=content,
                headers=dict(headers),
                preload_content=False,
                redirect=False,
                timeout=urllib3.Timeout(total=seconds),
            )
            response.close()
            if line.was_cut:  # cut within its headers, which http.client takes for their end
                raise TimeoutError
            return int(response.status)
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        late = line.was_cut or time.monotonic() >= deadline  # the limit on the headers may have cut it first
        raise Unreachable("no answer in time" if late else _why(error)) from None
    finally:
        watch.cancel()
        line.close()


def _why(error: BaseException) -> str:
    if isinstance(error, urllib3.exceptions.SSLError):
        return "its certificate is not trusted here" if "CERTIFICATE_VERIFY" in str(error) else "it does not speak TLS"
    return replies.reason(error)


class _Line:
    """The single connection of an attempt, which another thread can cut."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self.was_cut = False

    def cut(self) -> None:
        """Cut the connection at any point; one that is opened later is cut at once."""
        with self._lock:
            self.was_cut = True
            self._shut()

    def close(self) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def pools(self) -> urllib3.PoolManager:
        """Return a PoolManager that uses this connection."""
        return pools_over(self._connect, retries=False)

    def _connect(self, connection: HTTPConnection) -> socket.socket:
        connected = HTTPConnection._new_conn(connection)
        # The name may resolve to another address by now; nothing has been sent yet.
        if addresses.never_called(addresses.address(connected.getpeername()[0])):
            connected.close()
            raise urllib3.exceptions.NewConnectionError(connection, "never called")
        with self._lock:
            self._socket = connected.dup()  # TLS takes over the original; shutting down one shuts down both
            if self.was_cut:
                self._shut()
        return connected

    def _shut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
