"""gunicorn as OCC runs it: one process of many threads, with the faults of its thread worker that would hurt put right.

Two of gunicorn 27.0.1's: the lingering close runs on the accepting loop and freezes it for up to 2 s per client that
keeps its socket open; and once a first byte came there is no limit on reading, so a few stalled clients take every
thread.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import socket
import ssl
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from flask import Flask
from gunicorn import util
from gunicorn.app.base import BaseApplication
from gunicorn.http import wsgi
from gunicorn.sock import create_sockets
from gunicorn.workers import gthread

from occ_app.home.certificate import Certificate
from occ_app.web.handover import HandedOver
from occ_app.web.refusals import error_body
from occ_app.web.requests import BODIES
from occ_app.web.tls_socket import IO_SECONDS, say_goodbye, server_context

log = logging.getLogger("occ.server")

_PLAIN_SEND = socket.socket.send  # past a subclass that would encrypt

STOP_SECONDS = 3
SPARE_THREADS = BODIES + 16  # beside the streams: those that read bodies, and a few that nothing can take
_FIRST_DATA_SECONDS = 0.05  # most clients send at once, and a turn in the loop would cost them time
_HEAD_SECONDS = 20.0
_LONGEST_WAITED_FOR = 16384  # a longer head is read as it comes
_HUNG_SECONDS, _LOOKED_AFTER_SECONDS = 60.0, 10.0


class Worker(gthread.ThreadWorker):
    """gunicorn's thread worker, with timeouts on each read and write and closing done where it blocks nobody."""

    _next_look = 0.0

    def handle(self, conn: Any) -> Any:
        limit = struct.pack("ll", IO_SECONDS, 0)
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        conn.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A reader that takes nothing lets a send creep on while the kernel's buffer grows; this ends that.
        conn.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, IO_SECONDS * 1000)
        if not conn.initialized and not self.cfg.is_ssl:
            if not _head_is_here(conn):
                return gthread._DEFER  # to the loop, where waiting takes no thread
            conn.data_ready = True  # gunicorn need not look
        try:
            kept = super().handle(conn)
        except HandedOver as handed:
            conn.close = _already_closed
            handed.stream.begin()
            return False
        if not kept and kept is not gthread._DEFER:
            try:
                if isinstance(conn.sock, ssl.SSLSocket):
                    say_goodbye(conn.sock)
                conn.sock.setblocking(True)
                util.close_graceful(conn.sock, timeout=1.0)
            except OSError:
                log.debug("a client was gone before its connection was closed")
            conn.close = _already_closed
        return kept

    def init_signals(self) -> None:
        super().init_signals()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal is no reason to stop

    def run(self) -> None:
        gc.freeze()  # what is there now stays, and need not be looked through again and again
        super().run()
        faulthandler.cancel_dump_traceback_later()
        self._to_the_application("occ_on_end")

    def notify(self) -> None:
        """The loop goes round, as it does once a second. When it stops, the process ends and says where it hung."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _LOOKED_AFTER_SECONDS
            faulthandler.dump_traceback_later(_HUNG_SECONDS, exit=True)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A stop: let every stream send what is stored and end, instead of being cut at the time limit."""
        super().handle_exit(sig, frame)
        self._to_the_application("occ_on_stop")

    def _to_the_application(self, name: str) -> None:
        hook: Callable[[], None] | None = getattr(self.wsgi, name, None)
        if hook is not None:
            hook()

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


def _head_is_here(conn: Any) -> bool:
    """Whether a new connection's request head has come whole, so that a thread can read it without waiting.

    True also when there is no sense in waiting: what came is no HTTP or very long, or the client closed or is too slow.
    """
    try:
        seen = conn.sock.recv(_LONGEST_WAITED_FOR, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        if not conn.data_ready and conn.wait_for_data(_FIRST_DATA_SECONDS):
            return _head_is_here(conn)
        return False
    except OSError:
        return True
    begun, before = getattr(conn, "occ_head", (time.monotonic(), -1))
    if time.monotonic() - begun > _HEAD_SECONDS:
        conn.sock.shutdown(socket.SHUT_RD)  # its thread shall find an end, and not wait for more
        before = len(seen)
    # Woken without anything new: the client has closed its side.
    known = len(seen) in (0, before, _LONGEST_WAITED_FOR)
    if known or b"\r\n\r\n" in seen or not seen[:1].isalpha():
        if before >= 0:
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        return True
    conn.occ_head = begun, len(seen)
    # The loop is woken by one byte more than this, and not again and again by these.
    conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(seen) + 1)
    return False


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
            "graceful_timeout": STOP_SECONDS,
            "keepalive": 15,
            "loglevel": "warning",
            "errorlog": "-",
        }
        if certificate is not None:
            context = server_context(certificate)
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

    def run(self) -> None:
        """Serve in this very process, to its end: what gunicorn's master does for its workers, the supervisor does."""
        logger = self.cfg.logger_class(self.cfg)
        worker = Worker(1, os.getppid(), create_sockets(self.cfg, logger), self, self.cfg.timeout, self.cfg, logger)
        worker.pid = os.getpid()
        worker.init_process()
