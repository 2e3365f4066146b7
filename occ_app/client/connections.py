"""urllib3's pools with OCC's way of connecting.

They connect through a socket of a link, or check the peer first.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection

from occ_app.client.deadlines import TimedHTTPConnection, TimedHTTPSConnection

Connect = Callable[[HTTPConnection], socket.socket]
"""Opens the TCP or Unix connection of an HTTP connection; TLS comes after it."""

Check = Callable[[HTTPConnection], None]
"""Looks at an HTTP connection once it is connected, with TLS where that is used, before a request is sent on it."""


def pools_over(
    connect: Connect = HTTPConnection._new_conn, check: Check = lambda _: None, **options: Any
) -> PoolManager:
    """Return a PoolManager whose connections `connect` opens and `check` checks.

    Heads of replies have a limit of time.
    """
    manager = PoolManager(**options)
    plain = partial(_pool, HTTPConnectionPool, partial(_Plain, connect, check))
    secure = partial(_pool, HTTPSConnectionPool, partial(_Secure, connect, check))
    manager.pool_classes_by_scheme = {"http": plain, "https": secure}  # type: ignore[dict-item]  # urllib3 calls them
    return manager


def _pool(kind: type[HTTPConnectionPool], connection: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return a pool of this kind that makes its connections by `connection`."""
    pool = kind(*args, **options)
    pool.ConnectionCls = connection  # type: ignore[assignment]  # urllib3 calls it and asks nothing else of it
    return pool


class _Opened:
    """A mixin for urllib3's connections: `_open` opens, `_check` checks before use."""

    def __init__(self, open_: Connect, check: Check, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._open, self._check = open_, check

    def _new_conn(self) -> socket.socket:
        return self._open(cast(HTTPConnection, self))

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]  # of the connection that it is mixed into
        self._check(cast(HTTPConnection, self))


class _Plain(_Opened, TimedHTTPConnection):
    """A plain connection."""


class _Secure(_Opened, TimedHTTPSConnection):
    """A connection with TLS."""


def connect_to(admit: Callable[[str], None]) -> Connect:
    """Return a way of connecting that has `admit` check the peer's IP address first.

    Nothing is sent before. `admit` raises for an address that is not to be called: a name may resolve to another
    address since it was looked up.
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
