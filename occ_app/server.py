"""gunicorn as OCC runs it: one process of many threads, with the faults of its thread worker that would hurt put right.

Two of gunicorn 27.0.1's: the lingering close runs on the accepting loop and freezes it for up to 2 s per client that
keeps its socket open; and once a first byte came there is no limit on reading, so a few stalled clients take every
thread.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Callable
from typing import Any

from flask import Flask
from gunicorn import util
from gunicorn.app.base import BaseApplication
from gunicorn.http import wsgi
from gunicorn.workers import gthread

from occ_app.kernel import die_with_parent
from occ_app.web import error_body

log = logging.getLogger("occ.server")

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
        body = error_body(code, "The request is not well-formed HTTP; docs/protocol.md says what this agent takes.")
        if status == 500:
            log.error("a request failed in the server", exc_info=exc)
        reason = {400: "Bad Request", 413: "Content Too Large", 500: "Internal Server Error"}[status]
        head = (
            f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        try:
            util.write_nonblock(client, head.encode() + body)
        except OSError:
            log.debug("a client was gone before it was told of its mistake")


def _already_closed(graceful: bool = False) -> None:
    """Stands in for a connection's close once that is done."""


def _framing_status(exc: Exception) -> tuple[int, str]:
    if not type(exc).__module__.startswith(("gunicorn.http", "ssl")):
        return 500, "INTERNAL"
    return 400, "BAD_REQUEST"


class Application(BaseApplication):
    """One agent's or hub's server. `make_app` builds the WSGI application in the process that serves it."""

    def __init__(self, make_app: Callable[[], Flask], bind: str, streams: int) -> None:
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
