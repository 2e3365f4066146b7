"""The supervisor's question to the web process: do you answer?"""

from __future__ import annotations

import contextlib
import socket
from typing import Any


class Probe:
    """Asks the web part for /health once, without waiting: the answer makes `descriptor` readable."""

    def __init__(self, address: tuple[Any, ...], family: int, token: str, *, tls: bool) -> None:
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._not_yet: tuple[type[OSError], ...] = (BlockingIOError,)
        with contextlib.suppress(OSError):
            self._socket.connect(address)  # our own listener takes it at once
        self._socket.setblocking(False)
        if tls:
            self._wrap()
        self._request = f"GET /health HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        self._sent = False

    def _wrap(self) -> None:
        import ssl  # an agent without TLS does without its memory

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Nothing to verify: the other end is the socket this process bound.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._socket = context.wrap_socket(self._socket, do_handshake_on_connect=False)
        self._not_yet = (BlockingIOError, ssl.SSLWantReadError)

    def fileno(self) -> int:
        return self._socket.fileno()

    def answer(self) -> bool | None:
        """True for a 200, False when the connection broke, None while nothing is known yet."""
        try:
            if not self._sent:
                if hasattr(self._socket, "do_handshake"):
                    self._socket.do_handshake()
                self._socket.send(self._request)
                self._sent = True
            return self._socket.recv(64).startswith(b"HTTP/1.1 200")
        except OSError as error:
            return None if isinstance(error, self._not_yet) else False

    def close(self) -> None:
        self._socket.close()
