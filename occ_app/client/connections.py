"""urllib3's pools with OCC's way of connecting: through a socket of a link, or with a look at the peer first."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection

from occ_app.client.deadlines import TimedHTTPConnection, TimedHTTPSConnection

Connect = Callable[[HTTPConnection], socket.socket]
"""Opens the TCP or Unix connection of an HTTP connection; TLS comes after it."""


def pools_over(
    connect: Connect, check: Callable[[HTTPConnection], None] = lambda _: None, **options: Any
) -> urllib3.PoolManager:
    """Return a PoolManager whose every connection `connect` opens.

    `check` gets each one once it is connected, with TLS where that is used, before a request is sent on it.
    """

    class Plain(TimedHTTPConnection):
        def _new_conn(self) -> socket.socket:
            return connect(self)

        def connect(self) -> None:
            super().connect()
            check(self)

    class Secure(TimedHTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return connect(self)

        def connect(self) -> None:
            super().connect()
            check(self)

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    manager = urllib3.PoolManager(**options)
    manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return manager


def connect_to(admit: Callable[[str], None]) -> Connect:
    """Return a way of connecting that has `admit` look at the peer's IP address before anything is sent.

    `admit` raises for an address that is not to be called: a name may lead elsewhere since it was looked up.
    """

    def connect(connection: HTTPConnection) -> socket.socket:
        connected = HTTPConnection._new_conn(connection)
        try:
            admit(str(connected.getpeername()[0]))
        except BaseException:
            connected.close()
            raise
        return connected

    return connect
