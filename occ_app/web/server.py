"""gunicorn as OCC runs it: one process of many threads.

Two faults of gunicorn 27.0.1's thread worker are mended: the lingering close runs on the accepting loop and blocks it
for up to 2 s per client that keeps its socket open; and after the first byte, or with TLS, a thread waits for the rest
of the head.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from flask import Flask
from gunicorn import http, util
from gunicorn.app.base import BaseApplication
from gunicorn.http import wsgi
from gunicorn.http.errors import ParseException
from gunicorn.sock import create_sockets
from gunicorn.workers import gthread

from occ_app.home.certificate import Certificate
from occ_app.system.logs import handler
from occ_app.web import bodies, pacing, shares
from occ_app.web.admission import AdmittingWorker
from occ_app.web.handover import HandedOver
from occ_app.web.heads import HEAD_SECONDS, Arriving, Unreader, readable, set_limits
from occ_app.web.refusals import BROWSER_HEADERS, error_body
from occ_app.web.tls_socket import ServerContexts, say_goodbye

log = logging.getLogger("occ.server")

_PLAIN_SEND = socket.socket.send  # past a subclass that would encrypt

_EOL = "\r\n"
STOP_SECONDS = 3
SPARE_THREADS = (
    bodies.THREADS + pacing.THREADS + shares.THREADS + 16
)  # beside the streams: those that wait, and a few that never do
_DRAIN_SECONDS = 0.2
_FIRST_DATA_SECONDS = 0.05  # most clients send at once, and a turn in the loop would cost them time
_HUNG_SECONDS, _LOOKED_AFTER_SECONDS = 60.0, 10.0


class WebWorker(AdmittingWorker):
    """gunicorn's thread worker that reads heads without a thread.

    No client can block its loop.
    """

    _next_look = 0.0

    def handle(self, conn: Any) -> Any:
        try:
            if not self._head_is_here(conn):
                return gthread._DEFER  # to the loop, where waiting takes no thread
        except (ssl.SSLError, ParseException) as error:
            self.handle_error(None, conn.sock, conn.client, error)
            return _let_go(conn)
        except OSError:
            log.debug("a client was gone before its request came")
            conn.sock.close()
            conn.close = _already_closed
            return False
        try:
            kept = super().handle(conn)
        except HandedOver as handed:
            conn.close = _already_closed
            handed.stream.begin()
            return False
        return kept if kept else _let_go(conn)

    def _head_is_here(self, conn: Any) -> bool:
        """Read the arrived bytes of a head, and return whether it is complete.

        A complete head goes to the connection's parser. Raises ssl.SSLError or gunicorn's parse errors, and OSError
        when the client disconnected or is too slow.
        """
        if conn.occ_arriving is None:
            conn.occ_arriving = Arriving(self.app.head_seconds, conn.parser.unreader.take_buffered())
        wait_until = time.monotonic() + _FIRST_DATA_SECONDS if conn.occ_new else 0.0
        conn.occ_new = False
        conn.sock.setblocking(False)
        while not self._arrived(conn):
            now = time.monotonic()
            if now >= conn.occ_arriving.deadline:
                raise TimeoutError("the head came too slowly")
            if now >= wait_until or not readable(conn.sock, wait_until - now):
                return False
        if not conn.occ_arriving.seen:
            raise ConnectionResetError("the client closed the connection")
        set_limits(conn.sock)
        if conn.parser is None:
            conn.parser = http.get_parser(self.cfg, conn.sock, conn.client)
            conn.parser.unreader = Unreader(conn.sock)
            conn.initialized = True
        conn.parser.unreader.begin_head(bytes(conn.occ_arriving.seen))
        conn.occ_arriving, conn.data_ready = None, True
        return True

    def _arrived(self, conn: Any) -> bool:
        if self.cfg.is_ssl and not conn.initialized:
            if not isinstance(conn.sock, ssl.SSLSocket):
                context = self.cfg.ssl_context(self.cfg, None)
                conn.sock = context.wrap_socket(conn.sock, server_side=True, do_handshake_on_connect=False)
            try:
                conn.sock.do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            conn.initialized = True
        return bool(conn.occ_arriving.whole(conn.sock))

    def _keepalive_after(self, conn: Any, keepalive: Any) -> bool:
        """Return whether the connection can be used again.

        It cannot while a refused body is still to come.
        """
        deadline = time.monotonic() + _DRAIN_SECONDS
        return bool(keepalive) and bool(conn.parser.finish_body(deadline=deadline))

    def handle_request(self, req: Any, conn: Any) -> Any:
        conn.parser.unreader.begin_body()
        conn.sock.pace = pacing.begin(str(conn.client[0]) if conn.client else "", req.force_close)
        return super().handle_request(req, conn)

    def init_signals(self) -> None:
        super().init_signals()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal is no reason to stop

    def run(self) -> None:
        gc.freeze()  # existing objects stay, and need no further collection
        self.app.on_serving()  # connections wait in the socket's queue for the loop that begins now
        super().run()
        faulthandler.cancel_dump_traceback_later()
        self._to_the_application("occ_on_end")

    def notify(self) -> None:
        """Note that the loop is alive, once a second.

        When it stops, the process ends and logs where it hung.
        """
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _LOOKED_AFTER_SECONDS
            faulthandler.dump_traceback_later(_HUNG_SECONDS, exit=True)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Let every stream send its stored events and end at a stop.

        Otherwise it would be cut at the time limit.
        """
        super().handle_exit(sig, frame)
        self._to_the_application("occ_on_stop")

    def _to_the_application(self, name: str) -> None:
        hook: Callable[[], None] | None = getattr(self.wsgi, name, None)
        if hook is not None:
            hook()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:  # noqa: ARG002 - gunicorn's shape
        """Answer a request that is not HTTP with the JSON of every refusal.

        gunicorn would send a page.
        """
        status, code = _framing_status(exc)
        message = "The request is not well-formed HTTP; docs/protocol.md describes what this agent accepts."
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
            f"{''.join(f'{name}: {value}{_EOL}' for name, value in BROWSER_HEADERS.items())}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        try:
            send(head.encode() + body)
        except OSError:
            log.debug("a client left before it got its refusal")


def _let_go(conn: Any) -> bool:
    """End a connection where waiting for the client's close blocks nobody.

    Returns False, as gunicorn expects.
    """
    try:
        if isinstance(conn.sock, ssl.SSLSocket):
            say_goodbye(conn.sock)
        conn.sock.setblocking(True)
        util.close_graceful(conn.sock, timeout=1.0)
    except OSError:
        log.debug("a client was gone before its connection was closed")
    conn.close = _already_closed
    return False


def _already_closed(graceful: bool = False) -> None:
    """Do nothing, in place of the close of a closed connection."""


def _framing_status(exc: Exception) -> tuple[int, str]:
    if not type(exc).__module__.startswith(("gunicorn.http", "ssl")):
        return 500, "INTERNAL"
    return 400, "BAD_REQUEST"


class Application(BaseApplication):
    """One agent's or hub's server.

    `make_app` builds the WSGI application in the process that serves it; `on_serving` is called once it serves. A
    connection is closed when its request has no whole head after `head_seconds`.
    """

    def __init__(
        self,
        make_app: Callable[[], Flask],
        on_serving: Callable[[], None],
        bind: str,
        streams: int,
        certificate: Certificate | None,
        head_seconds: float = HEAD_SECONDS,
    ) -> None:
        self._make_app = make_app
        self.head_seconds = head_seconds
        self.on_serving = on_serving
        self._options = {
            "bind": bind,
            "workers": 1,
            "worker_class": WebWorker,
            "threads": streams + SPARE_THREADS,
            "worker_connections": streams + 2 * SPARE_THREADS + 1000,
            "graceful_timeout": STOP_SECONDS,
            "keepalive": 15,
            "loglevel": "warning",
            "errorlog": "-",
            # occ_app/web/proxies.py reads the headers of trusted proxies; gunicorn would believe any on this machine.
            "forwarded_allow_ips": "",
            "secure_scheme_headers": {},
            "forwarder_headers": "",
        }
        if certificate is not None:
            contexts = ServerContexts(certificate)
            self._options |= {
                "certfile": str(certificate.chain),
                "keyfile": str(certificate.key),
                # One for all connections, where gunicorn would read the files for each.
                "ssl_context": lambda _config, _default: contexts.current(),
            }
        wsgi.SERVER = "occ"
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        return self._make_app()

    def run(self) -> None:
        """Serve in this process, to its end.

        The supervisor does the work of gunicorn's master.
        """
        logger = self.cfg.logger_class(self.cfg)
        for each in (logger.error_log, logger.access_log):
            each.handlers = [handler()]  # gunicorn's lines quote text that clients send
        worker = WebWorker(1, os.getppid(), create_sockets(self.cfg, logger), self, self.cfg.timeout, self.cfg, logger)
        worker.pid = os.getpid()
        worker.init_process()
