"""One POST to an address of the operator's choice, over one connection, within a limit of time."""

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
    """Send one request. Returns the status of the answer, of which nothing more is read; raises Unreachable.

    Redirects are not followed. Addresses that are never called are refused for the very address that is connected to.
    """
    addresses.resolved(url)
    line, deadline = _Line(), time.monotonic() + seconds
    watch = threading.Timer(seconds, line.cut)  # a receiver that sends a byte a second is never silent for long
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
            if line.was_cut:  # in the middle of its headers, which http.client takes for their end
                raise TimeoutError
            return int(response.status)
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        late = line.was_cut or time.monotonic() >= deadline  # the limit on the head may have cut it first
        raise Unreachable("no answer in time" if late else _why(error)) from None
    finally:
        watch.cancel()
        line.close()


def _why(error: BaseException) -> str:
    if isinstance(error, urllib3.exceptions.SSLError):
        return "its certificate is not trusted here" if "CERTIFICATE_VERIFY" in str(error) else "it does not speak TLS"
    return replies.reason(error)


class _Line:
    """The one connection of an attempt, which can be cut from another thread."""

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
        """A PoolManager whose connection is this one."""
        return pools_over(self._connect, retries=False)

    def _connect(self, connection: HTTPConnection) -> socket.socket:
        connected = HTTPConnection._new_conn(connection)
        # A name may have led elsewhere since it was looked up; nothing was sent yet.
        if addresses.never_called(addresses.address(connected.getpeername()[0])):
            connected.close()
            raise urllib3.exceptions.NewConnectionError(connection, "never called")
        with self._lock:
            self._socket = connected.dup()  # TLS takes the other over; shutting one shuts both
            if self.was_cut:
                self._shut()
        return connected

    def _shut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
