"""gunicorn as OCC runs it: one process of many threads, with the faults of its thread worker that would hurt put right.

Two of gunicorn 27.0.1's: the lingering close runs on the accepting loop and freezes it for up to 2 s per client that
keeps its socket open; and once a first byte came there is no limit on reading, so a few stalled clients take every
thread.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from flask import Flask
from gunicorn import util
from gunicorn.app.base import BaseApplication
from gunicorn.http import wsgi
from gunicorn.workers import gthread

from occ_app.kernel import die_with_parent
from occ_app.tls import Certificate
from occ_app.web import error_body

log = logging.getLogger("occ.server")

_PLAIN_SEND = socket.socket.send  # past a subclass that would encrypt

IO_SECONDS = 10
STOP_SECONDS = 3
SPARE_THREADS = 64


class Worker(gthread.ThreadWorker):
    """gunicorn's thread worker, with timeouts on each read and write and closing done where it blocks nobody."""

    def handle(self, conn: Any) -> Any:
        limit = struct.pack("ll", IO_SECONDS, 0)
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        conn.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A reader that takes nothing lets a send creep on while the kernel's buffer grows; this ends that.
        conn.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, IO_SECONDS * 1000)
        kept = super().handle(conn)
        if not kept and kept is not gthread._DEFER:
            try:
                if isinstance(conn.sock, ssl.SSLSocket):
                    _end_tls(conn.sock)
                conn.sock.setblocking(True)
                util.close_graceful(conn.sock, timeout=1.0)
            except OSError:
                log.debug("a client was gone before its connection was closed")
            conn.close = _already_closed
        return kept

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A stop: let every stream send what is stored and end, instead of being cut at the time limit."""
        super().handle_exit(sig, frame)
        on_stop: Callable[[], None] | None = getattr(self.wsgi, "occ_on_stop", None)
        if on_stop is not None:
            on_stop()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:  # noqa: ARG002 - gunicorn's shape
        """A request that is not HTTP: the same JSON as every refusal, where gunicorn would send a page."""
        status, code = _framing_status(exc)
        message = "The request is not well-formed HTTP; docs/protocol.md says what this agent takes."
        send: Callable[[bytes], object] = partial(util.write_nonblock, client)
        if isinstance(exc, ssl.SSLError):
            # There is no TLS to answer through; who spoke plain HTTP can read a plain answer.
            if exc.reason != "HTTP_REQUEST":
                return
            message, send = "This agent speaks TLS; use https:// with the same address.", partial(_PLAIN_SEND, client)
        body = error_body(code, message)
        if status == 500:
            log.error("a request failed in the server", exc_info=exc)
        reason = {400: "Bad Request", 413: "Content Too Large", 500: "Internal Server Error"}[status]
        head = (
            f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        try:
            send(head.encode() + body)
        except OSError:
            log.debug("a client was gone before it was told of its mistake")


class _TLSSocket(ssl.SSLSocket):
    """A TLS connection on which nothing waits for ever, and that may be read and written by two threads.

    The limits that the kernel keeps for a plain socket do not end a wait of Python's ssl, which tries again; its own
    does. And before Python 3.13 two threads of one connection may be inside OpenSSL at the same time, which it forbids.
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


@contextlib.contextmanager
def _silence_is_a_reset() -> Iterator[None]:
    """A client that stalls is no fault of the server's, and gunicorn logs a traceback for what it does not know."""
    try:
        yield
    except TimeoutError as error:
        raise ConnectionResetError(errno.ECONNRESET, "the client fell silent") from error


def _tls_context(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate.chain, certificate.key, password="")
    context.sslsocket_class = _TLSSocket
    return context


def _end_tls(connection: ssl.SSLSocket) -> None:
    """Tell the client that this was all, so that it knows a cut from an end; wait a moment for its own goodbye."""
    connection.settimeout(1.0)
    try:
        connection.unwrap()
    except (OSError, ValueError):
        log.debug("a client was gone before its connection was closed")


def _already_closed(graceful: bool = False) -> None:
    """Stands in for a connection's close once that is done."""


def _framing_status(exc: Exception) -> tuple[int, str]:
    if not type(exc).__module__.startswith(("gunicorn.http", "ssl")):
        return 500, "INTERNAL"
    return 400, "BAD_REQUEST"


class Application(BaseApplication):
    """One agent's or hub's server. `make_app` builds the WSGI application in the process that serves it."""

    def __init__(self, make_app: Callable[[], Flask], bind: str, streams: int, certificate: Certificate | None) -> None:
        self._make_app = make_app
        self._options = {
            "bind": bind,
            "workers": 1,
            "worker_class": Worker,
            "threads": streams + SPARE_THREADS,
            "worker_connections": streams + 2 * SPARE_THREADS + 1000,
            "timeout": 60,
            "graceful_timeout": STOP_SECONDS,
            "keepalive": 15,
            "control_socket_disable": True,  # it would be shared by every gunicorn of this user
            "post_fork": _die_with_master,
            "loglevel": "warning",
            "errorlog": "-",
        }
        if certificate is not None:
            context = _tls_context(certificate)
            self._options |= {
                "certfile": str(certificate.chain),
                "keyfile": str(certificate.key),
                # One for all connections, where gunicorn would read the files for each.
                "ssl_context": lambda _config, _default: context,
            }
        wsgi.SERVER = "occ"
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        return self._make_app()


def _die_with_master(_: Any, worker: Any) -> None:
    """In the worker: go when the master is killed, since its successor serves the same socket."""
    die_with_parent(worker.ppid)
