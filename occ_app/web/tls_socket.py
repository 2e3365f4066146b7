"""The server's TLS connections.

No operation on them waits without a limit, and two threads may share one.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import ssl
import threading
from collections.abc import Iterator
from typing import Any

from occ_app.errors import StartFailed
from occ_app.home.certificate import Certificate, checked
from occ_app.web.pacing import Paced, unblocked

log = logging.getLogger("occ.server")

IO_SECONDS = 10


class _TLSSocket(Paced, ssl.SSLSocket):
    """A TLS connection for two threads, on which no operation waits without a limit.

    The kernel's limits for a plain socket do not end a wait of Python's ssl, which retries; its own limit does. And
    before Python 3.13 two threads of one connection may be inside OpenSSL at the same time, which it forbids.
    """

    _turn: threading.RLock

    def settimeout(self, value: float | None) -> None:
        super().settimeout(IO_SECONDS if value is None else value)

    def setblocking(self, flag: bool) -> None:
        self.settimeout(None if flag else 0.0)

    def do_handshake(self, block: bool = False) -> None:
        self._turn = threading.RLock()
        with _silence_is_a_reset():
            super().do_handshake(block)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        with self._turn, _silence_is_a_reset():
            return super().recv(buflen, flags)

    def send(self, data: Any, flags: int = 0) -> int:
        with self._turn, _silence_is_a_reset():
            return super().send(data, flags)

    def send_at_once(self, data: memoryview) -> int:
        with self._turn, unblocked(self):
            return super().send(data)


@contextlib.contextmanager
def _silence_is_a_reset() -> Iterator[None]:
    """Raise ConnectionResetError for a client that stalls.

    It is no fault of the server, and gunicorn logs a traceback for unknown errors.
    """
    try:
        yield
    except TimeoutError as error:
        raise ConnectionResetError(errno.ECONNRESET, "the client fell silent") from error


def server_context(certificate: Certificate) -> ssl.SSLContext:
    """Return the context of a server with this certificate, TLS 1.2 or newer."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate.chain, certificate.key, password="")
    context.sslsocket_class = _TLSSocket
    return context


class ServerContexts:
    """The TLS context for each new connection.

    Files that are replaced by a valid pair are read again.
    """

    def __init__(self, certificate: Certificate) -> None:
        self._certificate = certificate
        self._lock = threading.Lock()
        self._seen = self._signature()
        self._context = server_context(certificate)

    def current(self) -> ssl.SSLContext:
        """Return the context with the files' certificate, or their last valid one."""
        with self._lock:
            signature = self._signature()
            if signature != self._seen:
                self._seen = signature
                self._read_again()
            return self._context

    def _signature(self) -> tuple[object, ...]:
        """Return the identity that changes when a file is replaced."""
        marks: list[object] = []
        for path in (self._certificate.chain, self._certificate.key):
            try:
                status = path.stat()
            except OSError:
                marks.append(None)
            else:
                marks.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(marks)

    def _read_again(self) -> None:
        chain, key = self._certificate.chain, self._certificate.key
        try:
            self._context = server_context(checked(chain, key))
        except (StartFailed, OSError) as error:
            log.warning("the former certificate is still served: %s", error)
        else:
            log.warning("the certificate %s was replaced and is served from now on", chain)


def say_goodbye(connection: ssl.SSLSocket) -> None:
    """Send the client a TLS close, and wait a moment for its own.

    Without it the client cannot distinguish an end from a cut.
    """
    connection.settimeout(1.0)
    try:
        connection.unwrap()
    except (OSError, ValueError):
        log.debug("a client was gone before its connection was closed")
